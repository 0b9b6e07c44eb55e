// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// The data: as many keys of each size, present before the first round.
const (
	keys   = 1000
	small  = 64
	large  = 1024
	random = "__rand_int__" // replaced by the generator with a number below keys, in 12 digits
)

// workload is what the clients do.
type workload struct {
	name     string // for -workloads
	title    string // for the report
	clients  int
	pipeline int
	command  []string
	reads    int // keys that a request reads; all must be found
	rate     int // requests per second at a fixed rate; 0: as many as the stack answers
}

func value(size int) string { return strings.Repeat("x", size) }

func keyPrefix(size int) string { return fmt.Sprintf("k%d:", size) }

func allWorkloads() []workload {
	get := []string{"GET", keyPrefix(small) + random}
	set := []string{"SET", keyPrefix(small) + random, value(small)}
	mget := append([]string{"MGET"}, slices.Repeat([]string{keyPrefix(small) + random}, 10)...)
	return []workload{
		{name: "get-64", title: "GET 64 B, 50 clients", clients: 50, pipeline: 1, command: get, reads: 1},
		{name: "set-64", title: "SET 64 B, 50 clients", clients: 50, pipeline: 1, command: set},
		{name: "get-1k", title: "GET 1 KiB, 50 clients", clients: 50, pipeline: 1, command: []string{"GET", keyPrefix(large) + random}, reads: 1},
		{name: "set-1k", title: "SET 1 KiB, 50 clients", clients: 50, pipeline: 1, command: []string{"SET", keyPrefix(large) + random, value(large)}},
		{name: "get-64-p16", title: "GET 64 B, 50 clients, pipeline 16", clients: 50, pipeline: 16, command: get, reads: 1},
		{name: "set-64-p16", title: "SET 64 B, 50 clients, pipeline 16", clients: 50, pipeline: 16, command: set},
		{name: "get-64-p100", title: "GET 64 B, 50 clients, pipeline 100", clients: 50, pipeline: 100, command: get, reads: 1},
		{name: "mget-10", title: "MGET of 10 keys of 64 B, 50 clients", clients: 50, pipeline: 1, command: mget, reads: 10},
		{name: "get-64-c500", title: "GET 64 B, 500 clients", clients: 500, pipeline: 1, command: get, reads: 1},
		{name: "get-64-c5000", title: "GET 64 B, 5,000 clients", clients: 5000, pipeline: 1, command: get, reads: 1},
		{name: "get-64-c1", title: "GET 64 B, 1 client", clients: 1, pipeline: 1, command: get, reads: 1},
		{name: "latency-10k", title: "GET 64 B, 50 connections, fixed 10,000 requests/s", clients: 50, pipeline: 1, command: get, reads: 1, rate: 10000},
	}
}

// frontWorkloads are those of several shards.
func frontWorkloads() []workload {
	get, set := []string{"GET", keyPrefix(small) + random}, []string{"SET", keyPrefix(small) + random, value(small)}
	mget := func(n int) []string {
		return append([]string{"MGET"}, slices.Repeat([]string{keyPrefix(small) + random}, n)...)
	}
	var all []workload
	for _, clients := range []int{50, 500} {
		for _, pipeline := range []int{1, 16} {
			name, title := fmt.Sprintf("64-c%d-p%d", clients, pipeline), fmt.Sprintf("64 B, %d clients", clients)
			if pipeline > 1 {
				title += fmt.Sprintf(", pipeline %d", pipeline)
			}
			all = append(all, workload{name: "get-" + name, title: "GET " + title, clients: clients, pipeline: pipeline, command: get, reads: 1},
				workload{name: "set-" + name, title: "SET " + title, clients: clients, pipeline: pipeline, command: set})
		}
		for _, n := range []int{10, 100} {
			all = append(all, workload{name: fmt.Sprintf("mget-%d-c%d", n, clients), title: fmt.Sprintf("MGET of %d keys of 64 B, %d clients", n, clients),
				clients: clients, pipeline: 1, command: mget(n), reads: n})
		}
	}
	return all
}

// workloadsOf returns those of the front of several shards, or of the proxy of one.
func workloadsOf(front bool) []workload {
	if front {
		return frontWorkloads()
	}
	return allWorkloads()
}

func workloadNames(front bool) []string {
	var names []string
	for _, w := range workloadsOf(front) {
		names = append(names, w.name)
	}
	return names
}

func selectWorkloads(s string, front bool) ([]workload, error) {
	names, err := selectNames(s, workloadNames(front))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(workloadsOf(front), func(w workload) bool { return !slices.Contains(names, w.name) }), nil
}
