// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/reshard"
)

func (c *cluster) do(addr string, args ...string) string {
	c.t.Helper()
	rep, err := c.connect(addr).ask(within(c.t, time.Minute), args...)
	if err != nil {
		c.t.Fatalf("%q at %s: %v", args, addr, err)
	}
	return text(rep)
}

func TestDeletedKeysDoNotComeBackWithAnOldReplica(t *testing.T) {
	unhurried(t)
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	m := c.mover(c.options(g, s))
	slots, tag := []int{300}, tagOf(300)
	for i := range 500 {
		c.do(c.primary("a").Addr, "SET", fmt.Sprintf("k%d%s", i, tag), "old")
	}
	mustRun(t, m, reshard.Move{Slots: slots, From: "a", To: "b"})
	for i := range 200 {
		c.do(c.primary("b").Addr, "DEL", fmt.Sprintf("k%d%s", i, tag))
	}
	mustRun(t, m, reshard.Move{Slots: slots, From: "b", To: "a"})
	c.promote("a")
	if n := c.count(c.primary("a").Addr, slots); n != 300 {
		t.Fatalf("%d keys at the promoted replica, 300 were not deleted", n)
	}
	if got := c.do(c.primary("a").Addr, "GET", "k7"+tag); got != "nil" {
		t.Fatalf("a deleted key reads %q", got)
	}
	mustRun(t, m, reshard.Move{Slots: slots, From: "a", To: "b"})
	c.promote("b")
	if n := c.count(c.primary("b").Addr, slots); n != 300 {
		t.Fatalf("%d keys at the promoted replica of b", n)
	}
}

// TestLeftoversOfReplicasArePurgedFirst: with Redis 7.0 a replica keeps what its primary deleted when it learned of a new owner.
func TestLeftoversOfReplicasArePurgedFirst(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	slots, tag := []int{9000}, tagOf(9000)
	a, b := c.primary("a"), c.primary("b")
	for i := range 60 {
		c.do(b.Addr, "SET", fmt.Sprintf("k%d%s", i, tag), "old")
	}
	replica := c.topology()[1].Replicas[0]
	eventually(t, "a replica with the keys", func() bool { return c.count(replica.Addr, slots) == 60 })
	c.do(a.Addr, "CLUSTER", "SETSLOT", "9000", "IMPORTING", b.ID)
	c.do(a.Addr, "CLUSTER", "SETSLOT", "9000", "NODE", a.ID)
	eventually(t, "a source that has learned", func() bool { return c.count(b.Addr, slots) == 0 })
	left := c.count(replica.Addr, slots) // later servers delete them there, too
	c.do(a.Addr, "SET", "new"+tag, "v")
	g, s := newGate(half), &shelf{}
	g.owner[9000] = "a"
	o := c.options(g, s)
	purged := false
	o.Before = func(step reshard.Step) error { purged = purged || step.Do == reshard.Purge; return nil }
	mustRun(t, c.mover(o), reshard.Move{Slots: slots, From: "a", To: "b"})
	if purged != (left > 0) {
		t.Fatalf("%d leftovers, purged: %v", left, purged)
	}
	c.promote("b")
	if n := c.count(c.primary("b").Addr, slots); n != 1 {
		t.Fatalf("%d keys at the promoted replica, 1 is there", n)
	}
}

func TestWhatEndsByItselfIsLetGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	slots, tag := []int{400}, tagOf(400)
	a := c.primary("a").Addr
	c.do(a, "DEBUG", "SET-ACTIVE-EXPIRE", "0")
	for i := range 50 {
		c.do(a, "SET", fmt.Sprintf("k%d%s", i, tag), "v")
	}
	for i := range 20 {
		c.do(a, "PEXPIRE", fmt.Sprintf("k%d%s", i, tag), "1")
	}
	for i := range 10 { // these end while the source lets go
		c.do(a, "PEXPIRE", fmt.Sprintf("k%d%s", 20+i, tag), "700")
	}
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	o.Before = func(step reshard.Step) error {
		if step.Do == reshard.Clean {
			return rest(within(t, time.Minute), 800*time.Millisecond)
		}
		return nil
	}
	mustRun(t, c.mover(o), reshard.Move{Slots: slots, From: "a", To: "b"})
	if n := c.count(a, slots); n != 0 {
		t.Fatalf("%d keys are left at the source", n)
	}
	eventually(t, "what had not ended at the target", func() bool { return c.count(c.primary("b").Addr, slots) == 20 })
}

func TestEverythingIsFlushedMeanwhile(t *testing.T) {
	unhurried(t)
	c := newCluster(t, 2, 1, 0)
	slots, tag := []int{500}, tagOf(500)
	a := c.primary("a").Addr
	for i := range 300 {
		c.do(a, "SET", fmt.Sprintf("k%d%s", i, tag), "v")
	}
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	flushed := false
	o.Before = func(step reshard.Step) error {
		if step.Do == reshard.Park && !flushed {
			flushed = true
			c.do(a, "FLUSHALL")
			c.do(a, "SET", "after"+tag, "v")
		}
		return nil
	}
	mustRun(t, c.mover(o), reshard.Move{Slots: slots, From: "a", To: "b"})
	if n := c.count(c.primary("b").Addr, slots); n != 1 {
		t.Fatalf("%d keys at the target, 1 was written after the flush", n)
	}
}

func TestAMoveIsPausedAndTakenBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots := slotsFrom(600, 2)
	w := newClients(t, c, g, slots)
	w.fill(t, 2, 400)
	w.run(t, 2)
	for _, rule := range []string{"mark", "track", "copy", "let-go", "park", "drain", "flip"} {
		o := c.options(g, s)
		s.wish = reshard.GoOn
		paused := 0
		o.Before = func(step reshard.Step) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			switch {
			case step.Rule == rule:
				s.wish = reshard.Pause
			case step.Rule == "stand-still":
				if paused++; paused == 2 {
					s.wish = reshard.Cancel
				}
			}
			return nil
		}
		got, err := c.mover(o).Run(within(t, time.Minute), reshard.Move{Slots: slots, From: "a", To: "b"})
		if err != nil || rule != "flip" && (got.Stage != reshard.Cancelled || paused != 2) {
			t.Fatalf("cancelled at %s: %s, paused %d times: %v", rule, got, paused, err)
		}
		if rule == "flip" && got.Stage != reshard.Done { // the target had them already when it was asked
			t.Fatalf("cancelled too late: %s", got)
		}
	}
	w.compare(t)
}

// TestPrimariesAreReplacedMeanwhile kills the primary of either side before each step, promotes its replica, and goes on.
func TestPrimariesAreReplacedMeanwhile(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("many clusters")
	}
	for _, rule := range []string{"copy", "let-go", "park", "drain", "flip", "flipped", "tell"} {
		for _, side := range []string{"a", "b"} {
			if rule == "flip" && side == "a" {
				continue // the source has given up the slots, and no replica that would claim them is promoted (ADR 31)
			}
			t.Run(rule+"/"+side, func(t *testing.T) {
				c := newCluster(t, 2, 2, 0)
				if side == "a" && given(rule, side, nil) != nil && c.valkey8() {
					t.Skip("a promoted server deletes keys that are not its own, and has its replicas do what it was told then: CLUSTER FAILOVER, at which they crash (9.0.4)")
				}
				g, s := newGate(half), &shelf{}
				slots := slotsFrom(700, 2)
				w := newClients(t, c, g, slots)
				w.fill(t, 2, 300)
				s.stored = reshard.Move{Slots: slots, From: "a", To: "b"}
				killed := false
				for n := 0; s.stored.Stage != reshard.Done; n++ {
					o := c.options(g, s)
					o.Before = func(step reshard.Step) error {
						if step.Rule == rule && !killed {
							killed = true
							// A failover loses nothing that clients were told when replicas have it.
							c.do(c.primary(side).Addr, "DEBUG", "SLEEP", "0")
							eventually(t, "replicas in sync", func() bool { return c.synced(side) })
							c.promote(side, given(rule, side, slots)...)
						}
						return nil
					}
					m := c.mover(o)
					got, err := m.Run(within(t, time.Minute), s.stored)
					m.Close()
					if err != nil && n > 100 {
						t.Fatalf("%s: %v", got, err)
					}
				}
				switch {
				case !killed && rule == "tell":
					t.Skip("gossip was faster")
				case !killed:
					t.Fatal("nobody was killed")
				}
				w.compare(t)
			})
		}
	}
}

// given is what a shard has given away for good when a rule is about to be carried out.
func given(rule, side string, slots []int) []int {
	if side == "a" && (rule == "flipped" || rule == "tell") {
		return append([]int{}, slots...)
	}
	return nil
}

// valkey8 reports whether the servers are of Valkey 8.0 or later.
func (c *cluster) valkey8() bool {
	return valkey8(reply{body: []byte(c.do(c.primary("a").Addr, "INFO", "server"))})
}

// synced reports whether all replicas of a shard have what their primary has.
func (c *cluster) synced(shard string) bool {
	for _, s := range c.topology() {
		if s.ID != shard {
			continue
		}
		at := fields([]byte(c.try(s.Primary.Addr, "INFO", "replication")))["master_repl_offset"]
		for _, r := range s.Replicas {
			if f := fields([]byte(c.try(r.Addr, "INFO", "replication"))); f["slave_repl_offset"] != at || f["master_link_status"] != "up" {
				return false
			}
		}
	}
	return true
}

// TestCommandsThatTakeLongPutAHandOverOff: it is tried again, and behind some times not waited for any more.
func TestCommandsThatTakeLongPutAHandOverOff(t *testing.T) {
	t.Parallel()
	for _, busy := range []int{2, 1000} {
		c := newCluster(t, 2, 1, 0)
		g, s := newGate(half), &shelf{}
		g.busy = busy
		slots := slotsFrom(700, 2)
		w := newClients(t, c, g, slots)
		w.fill(t, 2, 50)
		flips := 0
		o := c.options(g, s)
		o.Before = func(step reshard.Step) error {
			if step.Do == reshard.Flip {
				flips++
			}
			return nil
		}
		mustRun(t, c.mover(o), reshard.Move{Slots: slots, From: "a", To: "b"})
		if want := min(busy, underWayMost) + 1; g.parks != want || flips != 1 {
			t.Errorf("%d times busy: parked %d times, want %d; %d flips", busy, g.parks, want, flips)
		}
		w.compare(t)
	}
}

func TestWaitDoesNotCountWhoListens(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	a := c.primary("a").Addr
	listening := false
	o.Before = func(step reshard.Step) error {
		if step.Do != reshard.CopyAll {
			return nil
		}
		listening = strings.Contains(c.do(a, "CLIENT", "LIST", "TYPE", "replica"), "name=redoubt-mover:test:a:b")
		l := c.connect(a)
		l.add("SET", "k"+tagOf(800), "v")
		l.add("WAIT", "2", "300")
		reps, err := l.must(within(t, time.Minute))
		if err != nil || reps[1].num != 1 {
			t.Errorf("WAIT counts %d replicas, there is 1 (%v)", reps[1].num, err)
		}
		return nil
	}
	mustRun(t, c.mover(o), reshard.Move{Slots: []int{800}, From: "a", To: "b"})
	if !listening {
		t.Fatal("nobody listened")
	}
	if forks := fields([]byte(c.do(a, "INFO", "stats")))["total_forks"]; forks != "1" { // its replica's
		t.Fatalf("the source forked %s times", forks)
	}
}

// TestTheListenerIsRenewed: a connection that acknowledges nothing would be ended after repl-timeout.
func TestTheListenerIsRenewed(t *testing.T) {
	unhurried(t)
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots := []int{900}
	w := newClients(t, c, g, slots)
	w.fill(t, 2, 200)
	w.run(t, 2)
	c.do(c.primary("a").Addr, "CONFIG", "SET", "repl-timeout", "2")
	o := c.options(g, s)
	paused := 0
	o.Before = func(step reshard.Step) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch step.Rule {
		case "park":
			if paused == 0 {
				s.wish = reshard.Pause
			}
		case "stand-still":
			if paused++; paused == 45 { // 4.5 s
				s.wish = reshard.GoOn
			}
		}
		return nil
	}
	mustRun(t, c.mover(o), reshard.Move{Slots: slots, From: "a", To: "b"})
	if paused < 45 {
		t.Fatalf("paused %d times", paused)
	}
	w.compare(t)
}

func TestClientsGoOnWhenTheTargetsReplicasDoNotAcknowledge(t *testing.T) {
	unhurried(t)
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	o.Replicas, o.Stop = 2, 10*time.Millisecond // there is one
	c.do(c.primary("a").Addr, "SET", "k"+tagOf(1000), "v")
	got, err := c.mover(o).Run(within(t, time.Minute), reshard.Move{Slots: []int{1000}, From: "a", To: "b"})
	if err == nil || got.Stage != reshard.Copying || !errors.Is(err, errLate) {
		t.Fatalf("%s: %v", got, err)
	}
	if len(g.parked) > 0 || len(g.waits) > 0 {
		t.Fatalf("parked %v, %d stops", g.parked, len(g.waits))
	}
	s.stored = got
	o.Replicas = 1
	mustRun(t, c.mover(o), got)
}

func TestAStoreThatFailsEndsItAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	lost := errors.New("no majority")
	store := o.Store
	o.Store = func(ctx context.Context, m reshard.Move) error {
		if m.Stage == reshard.LettingGo {
			return errors.Join(lost, store(ctx, m)) // it is stored, and nobody says so
		}
		return store(ctx, m)
	}
	c.do(c.primary("a").Addr, "SET", "k"+tagOf(1100), "v")
	got, err := c.mover(o).Run(within(t, time.Minute), reshard.Move{Slots: []int{1100}, From: "a", To: "b"})
	if !errors.Is(err, lost) || len(g.parked) != 0 {
		t.Fatalf("%s: %v; parked %v", got, err, g.parked)
	}
	o.Store = store
	mustRun(t, c.mover(o), s.stored)
	if len(g.parked) > 0 || g.owner[1100] != "b" || c.do(c.primary("b").Addr, "GET", "k"+tagOf(1100)) != "v" {
		t.Fatalf("parked %v, owner %s", g.parked, g.owner[1100])
	}
}

func TestMoversOfOneNameEndEachOther(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	c.do(c.primary("a").Addr, "SET", "k"+tagOf(1200), "v")
	o := c.options(g, s)
	late := c.mover(o)
	early := o
	early.Before = func(step reshard.Step) error {
		if step.Do == reshard.CopyAll { // somebody else has taken over meanwhile
			mustRun(t, late, s.stored)
		}
		return nil
	}
	_, err := c.mover(early).Run(within(t, time.Minute), reshard.Move{Slots: []int{1200}, From: "a", To: "b"})
	if err == nil {
		t.Fatal("the one that was overtaken went on")
	}
	if got := c.do(c.primary("b").Addr, "GET", "k"+tagOf(1200)); got != "v" || s.stored.Stage != reshard.Done {
		t.Fatalf("%q, %s", got, s.stored)
	}
	t.Log(err, strconv.Itoa(len(g.waits)))
}

func TestAMoveKeepsItsRate(t *testing.T) {
	unhurried(t)
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	fillSlots(t, c, c.primary("a").Addr, []int{1700}, 400)
	o := c.options(g, s)
	o.Rate = reshard.Rate{KeysPerSecond: 2000}
	var r Report
	o.Done = func(done Report) { r = done }
	mustRun(t, c.mover(o), reshard.Move{Slots: []int{1700}, From: "a", To: "b"})
	if r.Keys != 400 || r.Steps["copy"] < 190*time.Millisecond {
		t.Fatalf("%d keys were copied in %s, 2000 a second were allowed", r.Keys, r.Steps["copy"])
	}
}
