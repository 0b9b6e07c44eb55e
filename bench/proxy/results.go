// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sample is what one round of one stack gave. CPU is in µs per request, latency in µs.
type sample struct {
	rate                float64 // requests per second
	proxyCPU, serverCPU float64
	p50, p99            float64 // at a fixed rate only
}

// cell names one stack under one workload.
type cell struct{ workload, stack string }

// column is a stack as the report knows it.
type column struct {
	name, about    string
	redoubt, proxy bool
}

// results is everything that was measured, and what kept something from being measured.
type results struct {
	shards   int // 0: of the proxy of one shard
	rounds   int
	seconds  float64
	took     time.Duration
	busy     []float64 // share of the machine that was in use before each workload
	columns  []column
	loads    []workload // those that were measured
	samples  map[cell][]sample
	failures map[cell]string
	notes    []string
}

func newResults(r *rig, rounds int, seconds float64) *results {
	res := &results{shards: r.shards, rounds: rounds, seconds: seconds, samples: map[cell][]sample{}, failures: map[cell]string{}, notes: slices.Clone(r.missing)}
	for _, s := range r.stacks {
		res.columns = append(res.columns, column{name: s.name, about: s.about, redoubt: s.redoubt, proxy: s.proxy != nil})
	}
	return res
}

func (r *results) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *results) add(w workload, s *stack, got sample) {
	r.touch(w)
	at := cell{w.name, s.name}
	r.samples[at] = append(r.samples[at], got)
}

// fail notes why a stack has no figures. Rounds that it finished before do not count.
func (r *results) fail(w workload, s *stack, err error) {
	r.touch(w)
	at := cell{w.name, s.name}
	delete(r.samples, at)
	r.failures[at] = err.Error()
	r.note("%s failed in %s: %s", s.name, w.title, strings.ReplaceAll(err.Error(), "\n", " "))
}

func (r *results) touch(w workload) {
	if !slices.ContainsFunc(r.loads, func(x workload) bool { return x.name == w.name }) {
		r.loads = append(r.loads, w)
	}
}

// figure is the median of the rounds, with the extremes.
type figure struct{ median, least, most float64 }

// of is one quantity of a stack under a workload; false where it was not measured.
func (r *results) of(workload, stack string, pick func(sample) float64) (figure, bool) {
	all := r.samples[cell{workload, stack}]
	if len(all) == 0 {
		return figure{}, false
	}
	var v []float64
	for _, s := range all {
		v = append(v, pick(s))
	}
	slices.Sort(v)
	n := len(v)
	return figure{median: (v[(n-1)/2] + v[n/2]) / 2, least: v[0], most: v[n-1]}, true
}

func rate(s sample) float64      { return s.rate }
func proxyCPU(s sample) float64  { return s.proxyCPU }
func serverCPU(s sample) float64 { return s.serverCPU }
func p50(s sample) float64       { return s.p50 }
func p99(s sample) float64       { return s.p99 }

// best is the stack among those named that has the best median: the greatest, or the least.
func (r *results) best(workload string, names []string, pick func(sample) float64, greatest bool) (string, float64, bool) {
	var who string
	var what float64
	for _, n := range names {
		f, ok := r.of(workload, n, pick)
		if ok && (who == "" || (f.median > what) == greatest) {
			who, what = n, f.median
		}
	}
	return who, what, who != ""
}

// ratio of a stack's rate to another's.
func (r *results) ratio(workload, stack, to string) (float64, bool) {
	a, ok := r.of(workload, stack, rate)
	b, ok2 := r.of(workload, to, rate)
	return a.median / b.median, ok && ok2
}

// multiplexers are the peers that, as Redoubt does, share connections to the server.
func multiplexers() []string { return append([]string{"twemproxy"}, predixies()...) }

func predixies() []string { return []string{"predixy-1", "predixy-2"} }

func peers() []string { return append(multiplexers(), "haproxy") }
