// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/topo"
)

// leaseShard is a shard with quorum, one acknowledging replica and reads under the lease.
func leaseShard(t *testing.T, replicas int) *shard {
	t.Helper()
	return newShard(t, replicas, func(sp *spec, o *Options) {
		sp.Durability, sp.AckReplicas, o.ReadConsistency = topo.Quorum, 1, ReadLease
		sp.Timing.Park = topo.Duration(10 * time.Second)
	})
}

func TestALeaseReadNeedsNoReplica(t *testing.T) {
	t.Parallel()
	s := leaseShard(t, 1)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	c.want("1", "GET", "a") // the first of a tenure has a marker behind it
	waitFor(t, "nothing is in doubt", func() bool { return s.p.sure(s.p.order.Load().t) })
	s.nodes[1].signal(syscall.SIGSTOP)
	defer s.nodes[1].signal(syscall.SIGCONT)
	before := s.nodes[0].info("master_repl_offset")
	for range 100 {
		c.want("1", "GET", "a")
	}
	c.batch("GET a", "EXISTS a", "STRLEN a")
	for range 3 {
		if got := c.recv(); got != "1" {
			t.Fatal(got)
		}
	}
	if after := s.nodes[0].info("master_repl_offset"); after != before {
		t.Fatalf("reads moved the primary from %s to %s", before, after)
	}
}

func TestALeaseReadDoesNotShowWhatThisProxyIsWriting(t *testing.T) {
	t.Parallel()
	s := leaseShard(t, 1)
	c, r, lost := s.client(), s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	r.want("1", "GET", "a")
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("SET", "a", "2")
	waitFor(t, "it ran", func() bool { return s.nodes[0].do(t, "GET", "a") == "2" })
	r.send("GET", "a")
	r.silent("no replica has what it shows")
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv() + " " + r.recv(); got != "OK 2" {
		t.Fatal(got)
	}
	// Nor what nobody waits for any more: the outcome of a write whose connection ended is open.
	waitFor(t, "nothing is in doubt", func() bool { return s.p.sure(s.p.order.Load().t) })
	s.nodes[1].signal(syscall.SIGSTOP)
	lost.send("SET", "a", "3")
	waitFor(t, "it ran", func() bool { return s.nodes[0].do(t, "GET", "a") == "3" })
	s.nodes[0].do(t, "CLIENT", "KILL", "TYPE", "normal")
	if got := lost.recv(); got[:15] != "-OUTCOMEUNKNOWN" {
		t.Fatal(got)
	}
	r.send("GET", "a")
	r.silent("no replica has what it shows, and nobody waits for it")
	s.nodes[1].signal(syscall.SIGCONT)
	if got := r.recv(); got != "3" {
		t.Fatal(got)
	}
}

// The old primary stops, another one serves and has a newer value, and the old one goes on: the read that waited in its socket is
// answered by the new one.
func TestALeaseReadIsNeverAnsweredByADeposedPrimary(t *testing.T) {
	t.Parallel()
	s := leaseShard(t, 2)
	old, next, other := s.nodes[0], s.nodes[1], s.nodes[2]
	c := s.client()
	c.want("OK", "SET", "k", "1")
	c.want("1", "GET", "k")
	waitFor(t, "nothing is in doubt", func() bool { return s.p.sure(s.p.order.Load().t) })
	for i := range 3 {
		old.signal(syscall.SIGSTOP)
		c.send("GET", "k")
		want := string(rune('2' + i))
		s.phase(topo.PhaseFencing)
		for _, n := range []*node{next, other} {
			n.do(t, "REPLICAOF", "127.0.0.1", "0")
		}
		next.do(t, "REPLICAOF", "NO", "ONE")
		next.do(t, "SET", "k", want)
		s.follow(other, next)
		s.serve(next)
		old.signal(syscall.SIGCONT)
		if got := c.recv(); got != want {
			t.Fatalf("%q was read, and %q had been written before", got, want)
		}
		s.follow(old, next)
		waitFor(t, "both follow", func() bool {
			return s.caughtUp(next) && strings.Count(next.info("slave0")+next.info("slave1"), "state=online") == 2
		})
		old, next, other = next, other, old
	}
}

// The same for a proxy that cannot be told: it cannot read the store any more, and goes by its own clock.
func TestALeaseReadIsNotAnsweredAfterTheLease(t *testing.T) {
	t.Parallel()
	s := leaseShard(t, 1)
	old, next := s.nodes[0], s.nodes[1]
	c := s.client()
	c.want("OK", "SET", "k", "1")
	c.want("1", "GET", "k")
	waitFor(t, "nothing is in doubt", func() bool { return s.p.sure(s.p.order.Load().t) })
	old.signal(syscall.SIGSTOP)
	c.send("GET", "k")
	s.docs.setOutage(true)
	next.do(t, "REPLICAOF", "NO", "ONE")
	waitFor(t, "the lease is over", func() bool { return !s.p.maySend(s.p.order.Load()) })
	next.do(t, "SET", "k", "2")
	old.signal(syscall.SIGCONT)
	c.silent("the lease is over")
	s.serve(next) // before the old tenure can get another lease
	s.docs.setOutage(false)
	s.follow(old, next)
	if got := c.recv(); got != "2" {
		t.Fatal(got)
	}
}

// A lease is trusted for less than its length: clocks' rates differ.
func TestALeaseIsCertainForLessThanItLasts(t *testing.T) {
	t.Parallel()
	x := &tenure{lease: 800 * time.Millisecond, margin: 100 * time.Millisecond}
	x.from.Store(int64(time.Second))
	for at, want := range map[time.Duration][2]bool{1699: {true, true}, 1700: {true, false}, 1799: {true, false}, 1800: {false, false}} {
		if now := at * time.Millisecond; x.good(now) != want[0] || x.certain(now) != want[1] {
			t.Errorf("at %s: good %v, certain %v", now, x.good(now), x.certain(now))
		}
	}
}
