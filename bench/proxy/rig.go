// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// readyWithin bounds how long a server or a proxy may take to serve.
const readyWithin = 20 * time.Second

// rig is everything that runs: the servers, and the stacks in front of them.
type rig struct {
	dir       string
	generator string // redis-benchmark
	version   string // of the server
	shards    int    // 0: each stack is in front of one server
	servers   []*server
	stacks    []*stack // in the order of the report
	missing   []string // what is left out, and why
}

// server is a redis-server with the data in it.
type server struct {
	addr    string
	pid     int
	process *process // nil: a Redoubt has started it
	client  *redis.Client
}

// startRig starts the stacks that are wanted and can be had. The first build of Redoubt shares the peers' server. Each
// further one has a server of its own, as a server can have one keeper only, and a direct row that shows it equal.
func startRig(ctx context.Context, builds []binary, wanted []string, shards int) (_ *rig, err error) {
	r := &rig{shards: shards}
	if r.dir, err = os.MkdirTemp("", "bench-proxy-"); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	if r.generator, err = find("redis-benchmark", "valkey-benchmark"); err != nil {
		return nil, err
	}
	if !slices.Contains(wanted, "redoubt") {
		builds = nil
	}
	if shards > 0 {
		err = r.startRings(ctx, builds)
	} else {
		err = r.startServers(ctx, builds)
	}
	if err != nil {
		return nil, err
	}
	if slices.Contains(wanted, "direct") {
		r.startDirect(builds)
	}
	if err := r.startPeers(ctx, wanted); err != nil {
		return nil, err
	}
	for _, s := range r.stacks {
		if err := s.waitReady(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// startDirect puts direct connections in front of the other stacks.
func (r *rig) startDirect(builds []binary) {
	about := "redis-server " + r.version
	if r.shards > 0 {
		r.stacks = slices.Insert(r.stacks, 0, &stack{name: "direct", addr: r.servers[0].addr, servers: r.servers[:1], about: about + ", one of those behind the others"})
		return
	}
	for i, s := range r.servers {
		name := "direct"
		if i > 0 {
			name, about = "direct-"+builds[i].name, "redis-server "+r.version+", the one behind "+builds[i].name
		}
		// Before the Redoubts, which startServers has put there.
		r.stacks = slices.Insert(r.stacks, i, &stack{name: name, addr: s.addr, servers: []*server{s}, about: about})
	}
}

// startServers starts the servers, with the Redoubt that makes each writable, and fills them.
func (r *rig) startServers(ctx context.Context, builds []binary) error {
	path, err := find("redis-server", "valkey-server")
	if err != nil {
		return err
	}
	for i := range max(1, len(builds)) {
		addr, err := freeAddress()
		if err != nil {
			return err
		}
		args := []string{"--bind", "127.0.0.1", "--port", portOf(addr), "--dir", r.dir, "--save", "", "--appendonly", "no", "--tcp-backlog", "4096"}
		if len(builds) > 0 {
			args = append(args, "--replicaof", "127.0.0.1 0") // a server that is attached to Redoubt boots frozen
		}
		p, err := start(r.dir, fmt.Sprintf("server-%d", i), path, args...)
		if err != nil {
			return err
		}
		s := &server{addr: addr, pid: p.cmd.Process.Pid, process: p, client: redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1, MaxRetries: -1})}
		r.servers = append(r.servers, s)
		if len(builds) > 0 {
			st, err := startRedoubt(ctx, r.dir, builds[i], s)
			if err != nil {
				return err
			}
			st.redoubt = true
			st.about += ", one member, attached to the server, durability async"
			r.stacks = append(r.stacks, st)
		}
		if err := s.fill(ctx); err != nil {
			return fmt.Errorf("%w; its log ends with:\n%s", err, p.lastWords())
		}
	}
	stats, err := r.servers[0].info(ctx)
	r.version = stats["redis_version"]
	return err
}

// startRings starts a ring of each build, with servers of its own. All servers have all keys, so that each stack may place them as it
// does. The peers are in front of the first ring's.
func (r *rig) startRings(ctx context.Context, builds []binary) error {
	if len(builds) == 0 {
		return errors.New("with -shards, the servers are those of a Redoubt: it must take part")
	}
	for _, b := range builds {
		var servers []*server
		for range r.shards {
			addr, err := freeAddress()
			if err != nil {
				return err
			}
			servers = append(servers, &server{addr: addr, client: redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1, MaxRetries: -1})})
		}
		r.servers = append(r.servers, servers...)
		st, err := startRing(ctx, r.dir, b, servers)
		if err != nil {
			return err
		}
		st.redoubt = true
		st.about += fmt.Sprintf(", one member, a ring of %d shards, durability async", r.shards)
		r.stacks = append(r.stacks, st)
		for _, s := range servers {
			if err := s.fill(ctx); err != nil {
				return fmt.Errorf("%w; Redoubt's log ends with:\n%s", err, st.proxy.lastWords())
			}
			stats, err := s.info(ctx)
			if err != nil {
				return err
			}
			s.pid, r.version = int(counter(stats, "process_id")), stats["redis_version"]
		}
	}
	return nil
}

// startPeers starts the other proxies that are wanted and installed.
func (r *rig) startPeers(ctx context.Context, wanted []string) error {
	s, all := r.servers[0], r.servers[:max(1, r.shards)]
	predixy := os.Getenv("PREDIXY")
	if predixy == "" {
		predixy = "predixy"
	}
	for _, peer := range []struct {
		name, program string
		start         func(path, listen string) (*stack, error)
	}{
		{"twemproxy", "nutcracker", func(path, listen string) (*stack, error) { return startTwemproxy(ctx, r.dir, path, listen, all) }},
		{"predixy-1", predixy, func(path, listen string) (*stack, error) { return startPredixy(ctx, r.dir, path, listen, 1, all) }},
		{"predixy-2", predixy, func(path, listen string) (*stack, error) { return startPredixy(ctx, r.dir, path, listen, 2, all) }},
		{"haproxy", "haproxy", func(path, listen string) (*stack, error) { return startHAProxy(ctx, r.dir, path, listen, s) }},
	} {
		if !slices.Contains(wanted, peer.name) {
			continue
		}
		path, err := exec.LookPath(peer.program)
		if err != nil {
			r.missing = append(r.missing, fmt.Sprintf("%s is left out: there is no %s", peer.name, peer.program))
			continue
		}
		listen, err := freeAddress()
		if err != nil {
			return err
		}
		st, err := peer.start(path, listen)
		if err != nil {
			return err
		}
		r.stacks = append(r.stacks, st)
	}
	return nil
}

// stop ends everything and removes what it wrote.
func (r *rig) stop() {
	for _, s := range r.stacks {
		if s.proxy != nil {
			s.proxy.stop()
		}
	}
	for _, s := range r.servers {
		_ = s.client.Close()
		if s.process != nil {
			s.process.stop()
		}
	}
	_ = os.RemoveAll(r.dir)
}

// fill writes the data as soon as the server accepts it.
func (s *server) fill(ctx context.Context) error {
	return poll(ctx, func() error {
		_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, size := range []int{small, large} {
				for i := range keys {
					p.Set(ctx, fmt.Sprintf("%s%012d", keyPrefix(size), i), value(size), 0)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("fill the server: %w", err)
		}
		return nil
	})
}

// info is the server's own account of itself.
func (s *server) info(ctx context.Context) (map[string]string, error) {
	text, err := s.client.Info(ctx).Result()
	if err != nil {
		return nil, fmt.Errorf("ask the server for its counters: %w", err)
	}
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			all[k] = v
		}
	}
	return all, nil
}

// counter is one number of info.
func counter(info map[string]string, name string) int64 {
	n, _ := strconv.ParseInt(info[name], 10, 64) // absent is zero, which no check takes for success
	return n
}

// waitReady waits until a stack answers with the data.
func (s *stack) waitReady(ctx context.Context) error {
	err := poll(ctx, func() error {
		if s.proxy != nil && s.proxy.ended() {
			return errEnded
		}
		return s.probe()
	})
	if err != nil && s.proxy != nil {
		return fmt.Errorf("%s does not serve: %w; its log ends with:\n%s", s.name, err, s.proxy.lastWords())
	}
	return err
}

var errEnded = errors.New("the process has ended")

// probe asks for one key. A client library would greet with commands that not every proxy knows.
func (s *stack) probe() error {
	c, err := net.DialTimeout("tcp", s.addr, time.Second)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("set the deadline: %w", err)
	}
	if _, err := c.Write(probeRequest()); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	got := make([]byte, len(probeReply()))
	if n, err := io.ReadFull(bufio.NewReader(c), got); err != nil || !bytes.Equal(got, probeReply()) {
		return fmt.Errorf("read: %q, %w", got[:n], errors.Join(err, errors.New("expected the key's value")))
	}
	return nil
}

// probeRequest is a GET of one small key.
func probeRequest() []byte {
	key := fmt.Sprintf("%s%012d", keyPrefix(small), 7)
	return fmt.Appendf(nil, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", len(key), key)
}

func probeReply() []byte { return fmt.Appendf(nil, "$%d\r\n%s\r\n", small, value(small)) }

// poll repeats an attempt until it succeeds or readyWithin has passed.
func poll(ctx context.Context, attempt func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		err := attempt()
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w", readyWithin, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// versionOf is the version that a program prints with this argument, or the word "unknown".
func versionOf(ctx context.Context, path, arg string) string {
	out, _ := exec.CommandContext(ctx, path, arg).CombinedOutput() // some exit with 1
	for _, word := range strings.FieldsFunc(string(out), func(r rune) bool { return strings.ContainsRune(" \n-/", r) }) {
		if word[0] >= '0' && word[0] <= '9' && strings.Contains(word, ".") || word == "devel" {
			return word
		}
	}
	return "unknown"
}

// splitArguments splits at blanks; %s is the file.
func splitArguments(args, file string) []string {
	fields := strings.Fields(args)
	for i, f := range fields {
		if f == "%s" {
			fields[i] = file
		}
	}
	return fields
}
