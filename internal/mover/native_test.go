// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/reshard"
)

// migrates ends a test where servers do not move slots by themselves (CLUSTER MIGRATESLOTS: Valkey 9.0).
func (c *cluster) migrates() {
	c.t.Helper()
	if !strings.Contains(strings.ToUpper(c.do(c.primary("a").Addr, "CLUSTER", "HELP")), "MIGRATESLOTS") {
		c.t.Skip("the servers do not move slots by themselves: REDOUBT_TEST_SERVER=a server of Valkey 9.0 or later")
	}
}

// native has a server give slots that follow each other to another shard, and waits until it has them; ok is what the server said of it.
func (c *cluster) native(from, to Node, slots []int) (ok bool) {
	c.t.Helper()
	n := numbers(slots)
	if said := c.do(from.Addr, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", n[0], n[len(n)-1], "NODE", to.ID); said != "OK" {
		c.t.Fatalf("MIGRATESLOTS: %s", said)
	}
	var jobs string
	eventually(c.t, "the end of the server's own move", func() bool {
		jobs = c.do(from.Addr, "CLUSTER", "GETSLOTMIGRATIONS")
		latest, _, _ := strings.Cut(jobs, "message")
		ok = strings.Contains(latest, "success")
		return ok || strings.Contains(latest, "failed") || strings.Contains(latest, "cancelled")
	})
	if !ok {
		c.t.Logf("%.500s", jobs)
	}
	return ok
}

// follower writes one key all the time, where the servers send it, and remembers for how long it had no answer.
type follower struct {
	stop atomic.Bool
	done chan struct{}
	gap  time.Duration
}

func (c *cluster) follow(key string, addrs ...string) *follower {
	f := &follower{done: make(chan struct{})}
	links := map[string]*link{}
	for _, a := range addrs {
		links[a] = c.connect(a)
	}
	go func() {
		defer close(f.done)
		at, last := addrs[0], time.Now()
		for !f.stop.Load() {
			reps, err := func() ([]reply, error) {
				links[at].add("SET", key, "v")
				return links[at].round(context.Background())
			}()
			switch {
			case err != nil:
				return
			case reps[0].err() == nil:
				f.gap = max(f.gap, time.Since(last))
				last = time.Now()
				_ = rest(context.Background(), 200*time.Microsecond)
			default:
				if words := strings.Fields(reps[0].err().Error()); len(words) > 2 && links[words[len(words)-1]] != nil {
					at = words[len(words)-1]
				}
			}
		}
	}()
	return f
}

func (f *follower) end() time.Duration {
	f.stop.Store(true)
	<-f.done
	return f.gap
}

// TestTheServersOwnMoveBesideOurs moves the same slots by CLUSTER MIGRATESLOTS and by the mover in turn.
func TestTheServersOwnMoveBesideOurs(t *testing.T) {
	if !*speed {
		t.Skip("measure with -speed")
	}
	c := newCluster(t, 2, 1, 0)
	c.migrates()
	a, b := c.primary("a"), c.primary("b")
	g, s := newGate(half), &shelf{}
	m := c.mover(c.options(g, s))
	for i, size := range []struct{ slots, each int }{{1, 2000}, {32, 300}, {32, 3000}} {
		slots := slotsFrom(100*(i+1), size.slots)
		fillSlots(t, c, a.Addr, slots, size.each)
		key := "key:0" + tagOf(slots[0])
		for range 3 {
			f, p := c.follow(key, a.Addr, b.Addr), probe(t, c, a.Addr)
			began := time.Now()
			if !c.native(a, b, slots) {
				t.Fatal("it failed")
			}
			took, gap, ping := time.Since(began), f.end(), p.end()
			for _, slot := range slots { // it did not come by us
				g.owner[slot] = "b"
			}
			eventually(t, "the source to have deleted its keys", func() bool { return c.count(a.Addr, slots) == 0 })
			f, p = c.follow(key, b.Addr, a.Addr), probe(t, c, b.Addr)
			began = time.Now()
			mustRun(t, m, reshard.Move{Slots: slots, From: "b", To: "a"})
			mine := time.Since(began)
			t.Logf("%d slots of %d keys: by the server in %s, a client without an answer for %s, the source's longest PING %s; by the mover %s, %s, %s", size.slots, size.each,
				took.Round(time.Millisecond), gap.Round(10*time.Microsecond), ping.Round(10*time.Microsecond), mine.Round(time.Millisecond), f.end().Round(10*time.Microsecond), p.end().Round(10*time.Microsecond))
			if c.count(a.Addr, slots) != int64(size.slots*size.each) {
				t.Fatal("keys are missing")
			}
		}
	}
}

// TestTheServersOwnMoveWaitsForNobody is why it is not used: the target takes the slots although none of its replicas has a single key, and
// what was acknowledged long ago is gone with the target's primary. The mover gives such a hand-over up
// (TestClientsGoOnWhenTheTargetsReplicasDoNotAcknowledge).
func TestTheServersOwnMoveWaitsForNobody(t *testing.T) {
	t.Parallel()
	const keys = 1000
	c := newCluster(t, 2, 1, 0)
	c.migrates()
	a, b, slots := c.primary("a"), c.primary("b"), slotsFrom(200, 4)
	l := c.connect(a.Addr)
	value := strings.Repeat("v", 64<<10) // more than sockets hold
	for i := range keys {
		l.add("SET", fmt.Sprint("k", i, tagOf(slots[i%len(slots)])), value)
	}
	l.add("WAIT", "1", "5000")
	if reps, err := l.must(within(t, time.Minute)); err != nil || reps[keys].num != 1 {
		t.Fatal(reps, err) // all of it is on two servers now
	}
	replica := c.nodes[1][1]
	if err := replica.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = replica.cmd.Process.Signal(syscall.SIGCONT) }()
	if !c.native(a, b, slots) {
		t.Fatal("the servers wait for a replica: use their own move")
	}
	eventually(t, "the source to have deleted its keys", func() bool { return c.count(a.Addr, slots) == 0 })
	c.nodes[1][0].kill()
	if err := replica.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var left int64
	eventually(t, "an answer of the replica", func() bool {
		left = c.count(replica.Addr, slots)
		return c.try(replica.Addr, "PING") == "PONG"
	})
	t.Logf("of %d acknowledged keys the target's replica has %d", keys, left)
	if left == keys {
		t.Error("nothing was lost: the reason for not using it is gone")
	}
}
