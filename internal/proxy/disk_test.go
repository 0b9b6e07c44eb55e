// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// platter stands between the proxy and a server that may be without WAITAOF, and answers that command by WAIT and a script. So the
// proxy's side of quorum+disk is tested with any server.
type platter struct {
	addr string

	mu      sync.Mutex
	changed chan struct{}
	synced  bool   // what is written is on the primary's disk
	broken  string // the error that WAITAOF gets; empty: none
	asked   int
}

func newPlatter(t *testing.T, server string) *platter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &platter{addr: ln.Addr().String(), changed: make(chan struct{}), synced: true}
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				_ = near.Close()
				continue
			}
			conns.Store(near, nil)
			conns.Store(far, nil)
			asks := make(chan bool, 1<<16) // of each command on its way: is it WAITAOF
			wg.Go(func() { p.requests(near, far, asks); _ = far.Close() })
			wg.Go(func() { p.replies(far, near, asks); _ = near.Close() })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
		p.set(true, "")
		wg.Wait()
	})
	return p
}

func (p *platter) requests(near, far net.Conn, asks chan bool) {
	var parser resp.Parser
	var have []byte
	pass(near, func(b []byte) (int, error) {
		have = append(have, b...)
		var out []byte
		for {
			n, err := parser.Next(have, resp.Limits{Bulk: 1 << 20})
			if n == 0 || err != nil {
				break
			}
			is := bytes.EqualFold(parser.Args[0], []byte("WAITAOF"))
			if is {
				out = resp.AppendCommand(out, "WAIT", string(parser.Args[2]), string(parser.Args[3]))
			} else {
				out = append(out, have[:n]...)
			}
			asks <- is
			have = have[n:]
			parser.Reset()
		}
		_, err := far.Write(out)
		return len(b), err
	})
}

func (p *platter) replies(far, near net.Conn, asks chan bool) {
	var scan resp.Scanner
	var have []byte
	pass(far, func(b []byte) (int, error) {
		have = append(have, b...)
		for {
			n, err := scan.Next(have)
			if n == 0 || err != nil {
				return len(b), err
			}
			f := bytes.Replace(have[:n], []byte("redis_version:7.0."), []byte("redis_version:7.4."), 1)
			if <-asks {
				f = p.answer(f)
			}
			if _, err := near.Write(f); err != nil {
				return 0, err
			}
			have = have[n:]
		}
	})
}

// answer waits a moment for the disk, as the server does.
func (p *platter) answer(replicas []byte) []byte {
	limit := time.After(50 * time.Millisecond)
	for {
		p.mu.Lock()
		changed, synced, broken := p.changed, p.synced, p.broken
		p.asked++
		p.mu.Unlock()
		switch {
		case broken != "":
			return resp.AppendError(nil, broken)
		case synced:
			return append([]byte("*2\r\n:1\r\n"), replicas...)
		}
		select {
		case <-changed:
		case <-limit:
			return append([]byte("*2\r\n:0\r\n"), replicas...)
		}
	}
}

func (p *platter) set(synced bool, broken string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced, p.broken = synced, broken
	close(p.changed)
	p.changed = make(chan struct{})
}

// diskShard is a shard whose primary is reached through a platter.
func diskShard(t *testing.T, change func(*topo.Spec, *Options)) (*shard, *platter) {
	t.Helper()
	var p *platter
	s := newShard(t, 1, func(sp *spec, o *Options) {
		sp.Durability, sp.AckReplicas = topo.QuorumDisk, 1
		sp.Timing.Park = topo.Duration(2 * time.Second)
		p = newPlatter(t, sp.Nodes[0].Addr)
		sp.Nodes[0].Addr = p.addr
		if change != nil {
			change(sp, o)
		}
	})
	return s, p
}

func (w *wire) silent(why string) {
	w.t.Helper()
	_ = w.c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if f, err := w.frame(); err == nil {
		w.t.Fatalf("answered %q %s", f, why)
	}
}

func TestAWriteWaitsForTheDisksOfPrimaryAndReplica(t *testing.T) {
	t.Parallel()
	s, disk := diskShard(t, nil)
	c, b, x, r := s.client(), s.client(), s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	c.want("quorum+disk", "PROXY", "DURABILITY")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	disk.set(false, "")
	c.send("SET", "a", "2")
	x.send("EVAL", "return redis.call('rpush','l','x')", "1", "l")
	for _, w := range []*wire{c, b, x} {
		w.silent("although the primary's disk does not have it")
	}
	r.want("2", "GET", "a") // a local read waits for nobody
	disk.set(true, "")
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	if got := b.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
	if got := x.recv(); got != "1" {
		t.Fatal(got)
	}
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("MULTI")
	c.send("INCR", "n")
	c.send("EXEC")
	c.silent("although no replica has it")
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv() + c.recv() + c.recv(); got != "OKQUEUED*1 :1" {
		t.Fatal(got)
	}
	disk.set(false, "")
	got := c.do("SET", "a", "3")
	if want := "-OUTCOMEUNKNOWN the write was applied by the primary, but within 2s it was not on the primary's disk, and on the disks of 1 of 1 replicas"; !strings.HasPrefix(got, want) {
		t.Fatal(got)
	}
	disk.set(true, "")
	c.want("OK", "SET", "a", "4")
}

// TestAServerThatCannotSpeakOfItsDiskGetsNoWrites: not one that could never be acknowledged. Reads go on.
func TestAServerThatCannotSpeakOfItsDiskGetsNoWrites(t *testing.T) {
	t.Parallel()
	s, disk := diskShard(t, nil)
	c, r := s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	disk.set(true, "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.")
	if got := c.do("SET", "a", "2"); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") { // the one that was under way
		t.Fatal(got)
	}
	r.want("2", "GET", "a")
	if got := c.do("SET", "a", "3"); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed: it was held for 2s, but n0: greet") || !strings.Contains(got, "appendonly is disabled") {
		t.Fatal(got)
	}
	r.want("2", "GET", "a")
	if got := r.do("INFO", "redoubt"); !strings.Contains(got, "durability:quorum+disk") || !strings.Contains(got, "appendonly is disabled") {
		t.Fatal(got)
	}
	disk.set(true, "")
	c.want("OK", "SET", "a", "4")
}

// TestAnOlderServerIsRefused: one that has no WAITAOF at all.
func TestAnOlderServerIsRefused(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command(serverBinary(t), "--version").Output(); err != nil || !strings.Contains(string(out), "v=7.0.") {
		t.Skipf("needs a server of version 7.0: this is %s", out)
	}
	s := newShard(t, 1, func(sp *spec, _ *Options) {
		sp.Durability, sp.AckReplicas = topo.QuorumDisk, 1
		sp.Timing.Park = topo.Duration(time.Second)
	})
	got := s.client().do("SET", "a", "1")
	if !strings.HasPrefix(got, "-TRYAGAIN the command was not executed: ") || !strings.Contains(got, "run Redis 7.4 or Valkey 8.0") {
		t.Fatal(got)
	}
	if got := s.nodes[0].do(t, "EXISTS", "a"); got != "0" {
		t.Fatal("a write that could not be acknowledged was executed")
	}
}

func TestConnectionsBeginToWaitForDisksWithTheRule(t *testing.T) {
	t.Parallel()
	s, disk := diskShard(t, func(sp *topo.Spec, _ *Options) { sp.Durability = topo.Quorum })
	c, b := s.client(), s.client()
	disk.set(false, "")
	c.want("OK", "SET", "a", "1")
	c.want("quorum", "PROXY", "DURABILITY")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	s.write(func(a *topo.Assigned) {
		a.Begin(topo.Change{Kind: topo.ChangeAck, Durability: topo.QuorumDisk, AckReplicas: 1})
	})
	waitFor(t, "the proxy has the rule", func() bool { return c.do("PROXY", "DURABILITY") == "quorum+disk" })
	waitFor(t, "the pop waits under the rule", func() bool {
		return strings.Contains(s.nodes[0].do(t, "CLIENT", "LIST"), "name=redoubt-pinned:p1#1 ") && s.nodes[0].info("blocked_clients") == "1"
	})
	c.send("RPUSH", "l", "x")
	for _, w := range []*wire{c, b} {
		w.silent("although the primary's disk does not have it")
	}
	disk.set(true, "")
	if got := c.recv() + b.recv(); got != "1*2 $1 l $1 x" {
		t.Fatal(got)
	}
	s.write(func(a *topo.Assigned) { a.Change = nil }) // taken back: it is as it was
	disk.set(false, "")
	waitFor(t, "the proxy has the rule", func() bool { return c.do("PROXY", "DURABILITY") == "quorum" })
	c.want("OK", "SET", "a", "2")
}

func TestWhatASessionMayAskForWithDisks(t *testing.T) {
	t.Parallel()
	s, disk := diskShard(t, nil)
	c := s.client()
	c.want("OK", "SET", "a", "0") // from here on the proxy knows its deployment
	c.want("-ERR this deployment promises quorum+disk: a session has that, or asks for ASYNC", "PROXY", "DURABILITY", "QUORUM")
	c.want("OK", "PROXY", "DURABILITY", "async")
	c.want("async", "PROXY", "DURABILITY")
	disk.set(false, "")
	c.want("OK", "SET", "a", "1")
	c.want("OK", "PROXY", "DURABILITY", "quorum+disk")
	c.send("SET", "a", "2")
	c.silent("although the primary's disk does not have it")
	disk.set(true, "")
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	for _, set := range [][]string{{"appendfsync", "everysec"}, {"maxmemory-policy", "noeviction", "APPENDONLY", "no"}, {"no-appendfsync-on-rewrite", "yes"}} {
		if got := c.do(append([]string{"CONFIG", "SET"}, set...)...); !strings.HasPrefix(got, "-ERR CONFIG SET of this setting is refused: durability quorum+disk needs") {
			t.Errorf("%v: %s", set, got)
		}
	}
	c.want("OK", "CONFIG", "SET", "maxmemory-policy", "noeviction")
	c.want("OK", "MULTI")
	if got := c.do("CONFIG", "SET", "appendfsync", "no"); !strings.HasPrefix(got, "-ERR CONFIG SET of this setting is refused") {
		t.Error(got)
	}
	if got := c.do("EXEC"); !strings.HasPrefix(got, "-EXECABORT") {
		t.Error(got)
	}
}

// TestExactRetryWaitsForDisks: a verdict is acknowledged as any other write, and what ran once is answered once.
func TestExactRetryWaitsForDisks(t *testing.T) {
	t.Parallel()
	s, disk := diskShard(t, func(_ *topo.Spec, o *Options) { o.Exact = true })
	c := s.client()
	c.want("1", "INCR", "n")
	disk.set(false, "")
	c.send("INCR", "n")
	c.silent("although the primary's disk does not have it")
	waitFor(t, "it ran", func() bool { return s.nodes[0].do(t, "GET", "n") == "2" })
	for _, line := range strings.Split(s.nodes[0].do(t, "CLIENT", "LIST"), "\n") {
		if strings.Contains(line, "name=redoubt-proxy:") {
			s.nodes[0].do(t, "CLIENT", "KILL", "ID", strings.TrimPrefix(strings.Fields(line)[0], "id="))
		}
	}
	c.silent("although the primary's disk does not have it")
	disk.set(true, "")
	if got := c.recv(); !strings.HasPrefix(got, "-APPLIED ") {
		t.Fatal(got)
	}
	c.want("3", "INCR", "n")
}

// TestAPrimaryThatGoesOnAloneWaitsForItsOwnDisk: one copy was agreed, and that one has to be on a disk.
func TestAPrimaryThatGoesOnAloneWaitsForItsOwnDisk(t *testing.T) {
	t.Parallel()
	s, disk := diskShard(t, func(sp *topo.Spec, _ *Options) { sp.MinCopies = 1 })
	s.nodes[1].signal(syscall.SIGSTOP)
	c := s.client()
	c.send("SET", "a", "1")
	c.silent("although no replica has it")
	s.write(func(a *topo.Assigned) { a.Alone = "n0" })
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	c.want("quorum+disk", "PROXY", "DURABILITY")
	disk.set(false, "")
	c.send("SET", "a", "2")
	c.silent("although the primary's disk does not have it")
	disk.set(true, "")
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
}
