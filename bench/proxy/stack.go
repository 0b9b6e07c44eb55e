// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// stackNames are all stacks, in the order of the report. With several builds of Redoubt, "redoubt" stands for all.
func stackNames(front bool) []string {
	if front {
		return []string{"direct", "redoubt", "twemproxy", "predixy-1", "predixy-2"} // HAProxy places no keys
	}
	return []string{"direct", "redoubt", "twemproxy", "predixy-1", "predixy-2", "haproxy"}
}

// stack is one way to a server, or to several.
type stack struct {
	name    string
	addr    string // where its clients connect
	servers []*server
	proxy   *process // nil: direct
	redoubt bool
	about   string // version and settings, for the report
}

// startRedoubt runs a deployment of one member beside the server, which it did not start itself.
func startRedoubt(ctx context.Context, dir string, b binary, s *server) (*stack, error) {
	var addrs [3]string // proxy, API, store
	for i := range addrs {
		a, err := freeAddress()
		if err != nil {
			return nil, err
		}
		addrs[i] = a
	}
	return startProxy(dir, b.name, b.path, addrs[0], []*server{s}, "run -c %s", fmt.Sprintf(`
member: {id: n1, dir: %s}
store: {members: [{id: n1, addr: %q}]}
deployments:
  - name: bench
    durability: async
    nodes: [{id: n1, addr: %q}]
    node: {kind: attached}
proxy: {listen: %q}
api: {listen: %q}
`, b.name, addrs[2], s.addr, addrs[0], addrs[1]), "redoubt "+versionOf(ctx, b.path, "version"))
}

// startRing runs a deployment of one member with a shard for each address, whose servers it starts.
func startRing(ctx context.Context, dir string, b binary, servers []*server) (*stack, error) {
	var addrs [3]string // proxy, API, store
	for i := range addrs {
		a, err := freeAddress()
		if err != nil {
			return nil, err
		}
		addrs[i] = a
	}
	var shards strings.Builder
	for i, s := range servers {
		fmt.Fprintf(&shards, "      - {name: s%d, nodes: [{id: n1, addr: %q}]}\n", i+1, s.addr)
	}
	return startProxy(dir, b.name, b.path, addrs[0], servers, "run -c %s", fmt.Sprintf(`
member: {id: n1, dir: %s}
store: {members: [{id: n1, addr: %q}]}
deployments:
  - name: bench
    mode: ring
    durability: async
    ring: {hash: fnv1a_64, distribution: ketama}
    shards:
%s    node: {persistence: none}
proxy: {listen: %q}
api: {listen: %q}
`, b.name, addrs[2], shards.String(), addrs[0], addrs[1]), "redoubt "+versionOf(ctx, b.path, "version"))
}

// lines is a text for each server, with its address in the place of %s.
func lines(servers []*server, format string) string {
	var b strings.Builder
	for i, s := range servers {
		b.WriteString(strings.NewReplacer("%s", s.addr, "%d", strconv.Itoa(i)).Replace(format))
	}
	return b.String()
}

func startTwemproxy(ctx context.Context, dir, path, listen string, servers []*server) (*stack, error) {
	stats, err := freeAddress()
	if err != nil {
		return nil, err
	}
	pid := filepath.Join(dir, "twemproxy.pid")
	return startProxy(dir, "twemproxy", path, listen, servers, "-c %s -a 127.0.0.1 -s "+portOf(stats)+" -o /dev/stderr -p "+pid, fmt.Sprintf(`
bench:
  listen: %s
  redis: true
  hash: fnv1a_64
  distribution: ketama
  preconnect: true
  auto_eject_hosts: false
  backlog: 4096
  servers:
%s`, listen, lines(servers, "    - %s:1 s%d\n")), "nutcracker "+versionOf(ctx, path, "-V"))
}

func startPredixy(ctx context.Context, dir, path, listen string, threads int, servers []*server) (*stack, error) {
	return startProxy(dir, fmt.Sprintf("predixy-%d", threads), path, listen, servers, "%s", fmt.Sprintf(`
Bind %s
WorkerThreads %d
StandaloneServerPool {
    Databases 1
    Hash crc16
    Distribution modula
    RefreshMethod fixed
%s}
`, listen, threads, lines(servers, "    Group g%d {\n        + %s\n    }\n")), fmt.Sprintf("predixy %s, worker threads: %d", versionOf(ctx, path, "--version"), threads))
}

func startHAProxy(ctx context.Context, dir, path, listen string, s *server) (*stack, error) {
	return startProxy(dir, "haproxy", path, listen, []*server{s}, "-db -f %s", fmt.Sprintf(`
global
    maxconn 6000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend clients
    bind %s backlog 4096
    default_backend servers
backend servers
    server redis %s
`, listen, s.addr), "haproxy "+versionOf(ctx, path, "-v")+", mode tcp, its default of a thread for each CPU")
}

// startProxy writes a proxy's configuration and runs it. The file's path replaces %s in its arguments.
func startProxy(dir, name, path, listen string, servers []*server, args, config, about string) (*stack, error) {
	file := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(file, []byte(config[1:]), 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	p, err := start(dir, name, path, splitArguments(args, file)...)
	if err != nil {
		return nil, err
	}
	return &stack{name: name, addr: listen, servers: servers, proxy: p, about: about}, nil
}
