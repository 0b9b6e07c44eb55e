// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// stackNames are all stacks, in the order of the report. With several builds of Redoubt, "redoubt" stands for all.
func stackNames() []string {
	return []string{"direct", "redoubt", "twemproxy", "predixy-1", "predixy-2", "haproxy"}
}

// stack is one way to a server.
type stack struct {
	name    string
	addr    string // where its clients connect
	server  *server
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
	return startProxy(dir, b.name, b.path, addrs[0], s, "run -c %s", fmt.Sprintf(`
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

func startTwemproxy(ctx context.Context, dir, path, listen string, s *server) (*stack, error) {
	stats, err := freeAddress()
	if err != nil {
		return nil, err
	}
	pid := filepath.Join(dir, "twemproxy.pid")
	return startProxy(dir, "twemproxy", path, listen, s, "-c %s -a 127.0.0.1 -s "+portOf(stats)+" -o /dev/stderr -p "+pid, fmt.Sprintf(`
bench:
  listen: %s
  redis: true
  hash: fnv1a_64
  distribution: ketama
  preconnect: true
  auto_eject_hosts: false
  backlog: 4096
  servers:
    - %s:1
`, listen, s.addr), "nutcracker "+versionOf(ctx, path, "-V"))
}

func startPredixy(ctx context.Context, dir, path, listen string, threads int, s *server) (*stack, error) {
	return startProxy(dir, fmt.Sprintf("predixy-%d", threads), path, listen, s, "%s", fmt.Sprintf(`
Bind %s
WorkerThreads %d
StandaloneServerPool {
    Databases 1
    Hash crc16
    Distribution modula
    RefreshMethod fixed
    Group bench {
        + %s
    }
}
`, listen, threads, s.addr), fmt.Sprintf("predixy %s, worker threads: %d", versionOf(ctx, path, "--version"), threads))
}

func startHAProxy(ctx context.Context, dir, path, listen string, s *server) (*stack, error) {
	return startProxy(dir, "haproxy", path, listen, s, "-db -f %s", fmt.Sprintf(`
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
func startProxy(dir, name, path, listen string, s *server, args, config, about string) (*stack, error) {
	file := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(file, []byte(config[1:]), 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	p, err := start(dir, name, path, splitArguments(args, file)...)
	if err != nil {
		return nil, err
	}
	return &stack{name: name, addr: listen, server: s, proxy: p, about: about}, nil
}
