// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/topo"
)

// lossShard is an asynchronous shard of two with a dial.
func lossShard(t *testing.T, l topo.Loss, park time.Duration) *shard {
	t.Helper()
	return newShard(t, 1, func(sp *spec, _ *Options) {
		sp.MaxLoss, sp.Timing.Park = l, topo.Duration(park)
	})
}

func (s *shard) held() bool {
	_, _, held := s.p.Loss()
	return held
}

func TestWritesAreHeldWhenTheirLastOnesAreOnNoReplicaForTooLong(t *testing.T) {
	t.Parallel()
	const bound = 200 * time.Millisecond
	s := lossShard(t, topo.Loss{Time: topo.Duration(bound)}, 10*time.Second)
	c, r := s.client(), s.client()
	for i := range 50 { // a healthy replica holds nobody up
		c.want("OK", "SET", "k", fmt.Sprint(i))
	}
	s.nodes[1].signal(syscall.SIGSTOP)
	begun := time.Now()
	last := begun
	c.want("OK", "SET", "k", "first")
	n := 0
	for !s.held() {
		if time.Since(begun) > 5*time.Second {
			t.Fatal("writes are never held")
		}
		c.want("OK", "SET", "k", fmt.Sprint("alone", n))
		last = time.Now()
		n++
	}
	if took := last.Sub(begun); took > bound {
		t.Errorf("a write was acknowledged %s after the first that no replica has; the bound is %s", took, bound)
	}
	c.send("INCR", "n")
	r.want(fmt.Sprint("alone", n-1), "GET", "k") // reads go on
	if v := s.nodes[0].do(t, "EXISTS", "n"); v != "0" {
		t.Error("a held write reached the primary")
	}
	if got := r.do("INFO", "redoubt"); !strings.Contains(got, "writes_held:true") {
		t.Errorf("INFO does not tell: %s", got)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv(); got != "1" {
		t.Fatalf("the held write was answered %q", got)
	}
	waitFor(t, "everything is on the replica", func() bool {
		age, bytes, held := s.p.Loss()
		return age == 0 && bytes == 0 && !held
	})
}

func TestHeldWritesAreRefusedAfterTheParkTime(t *testing.T) {
	t.Parallel()
	s := lossShard(t, topo.Loss{Time: topo.Duration(50 * time.Millisecond)}, 300*time.Millisecond)
	c, m := s.client(), s.client()
	c.want("OK", "SET", "k", "1")
	m.want("OK", "MULTI")
	m.want("QUEUED", "INCR", "n")
	s.nodes[1].signal(syscall.SIGSTOP)
	defer s.nodes[1].signal(syscall.SIGCONT)
	c.want("OK", "SET", "k", "2")
	waitFor(t, "writes are held", s.held)
	c.send("SET", "k", "3")
	c.send("GET", "k")
	if got := c.recv(); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed: writes of the last ") {
		t.Fatal(got)
	}
	if got := c.recv(); got != "2" {
		t.Fatal(got)
	}
	if got := m.do("EXEC"); !strings.HasPrefix(got, "-EXECABORT") {
		t.Fatal(got)
	}
	if v := s.nodes[0].do(t, "EXISTS", "n"); v != "0" {
		t.Error("a refused transaction was executed")
	}
}

func TestWritesAreHeldByTheirBytes(t *testing.T) {
	t.Parallel()
	const bound = 256 << 10
	s := lossShard(t, topo.Loss{Bytes: bound}, 10*time.Second)
	c := s.client()
	value := strings.Repeat("x", 4096)
	c.want("OK", "SET", "k", "1")
	waitFor(t, "everything is on the replica", func() bool { _, b, _ := s.p.Loss(); return b == 0 })
	s.nodes[1].signal(syscall.SIGSTOP)
	begun := s.nodes[0].info("master_repl_offset")
	sent := 0
	for ; !s.held(); sent++ {
		if sent > 4*bound/4096 {
			t.Fatal("writes are never held")
		}
		c.want("OK", "SET", "k", value)
	}
	end := s.nodes[0].info("master_repl_offset")
	var from, to int64
	if _, err := fmt.Sscan(begun+" "+end, &from, &to); err != nil || to-from > bound || to == from {
		t.Errorf("%d bytes are on the primary alone (%v), the bound is %d", to-from, err, bound)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	c.want("OK", "SET", "k", "2")
}
