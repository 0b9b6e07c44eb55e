// SPDX-License-Identifier: Apache-2.0

package accord_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/accord"
	"redoubt/internal/converge"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/looptest"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const key = topo.KeyShard + "s"

// world is members with views and accords over a store in memory; n1 is the primary of n1, n2 and n3, and a1 has no data node.
type world struct {
	t       *testing.T
	clock   looptest.Clock
	store   *memstore.Cluster
	shard   topo.Shard
	members map[string]*member
}

// member is one process. Its node pledges as the shipped one does, but for the disk.
type member struct {
	w    *world
	id   string
	view *view.View
	*accord.Accord

	mu       sync.Mutex
	against  string // why it pledges nothing, whatever it is asked
	writable bool
	pledges  int
}

func (m *member) Pledge(p topo.Plea) (bool, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.against != "" {
		return false, m.against
	}
	s := m.view.Load()
	ok, why := converge.MayPledge(p, topo.NodeID(m.id), &s.Shard, m.w.clock.Uptime()-s.ReadStart, 0)
	if ok {
		m.pledges++
	}
	return ok, why
}

func (m *member) Settle() error { return nil }

func (m *member) Writable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writable
}

func (m *member) set(do func(*member)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do(m)
}

func (m *member) leased() bool { return m.view.Load().Leased(m.w.clock.Uptime()) }

func newWorld(t *testing.T) *world {
	w := &world{t: t, clock: looptest.NewClock(), members: map[string]*member{}}
	ids := []string{"n1", "n2", "n3", "a1"}
	w.store = memstore.New(w.clock, append(ids, "control")...)
	w.shard = topo.Shard{Format: topo.Format, ID: "s", Spec: topo.Spec{Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming()}}
	for _, id := range ids[:3] {
		w.shard.Spec.Nodes = append(w.shard.Spec.Nodes, topo.Node{ID: topo.NodeID(id), Addr: id + ":1"})
	}
	w.shard.Assigned = topo.Assigned{Term: 1, Epoch: 3, Phase: topo.PhaseServing, Primary: "n1", RunID: "r1", History: []topo.HistoryEntry{{Epoch: 3, ReplID: "A"}}}
	w.put()
	loops := map[string]func(context.Context) error{}
	for _, id := range ids {
		log := slog.New(slog.DiscardHandler)
		m := &member{w: w, id: id, writable: id == "n1", view: view.New(w.store.Member(id), w.clock, key, log)}
		o := accord.Options{Member: id, View: m.view, Clock: w.clock, Peers: w.store.Member(id), Node: m, Log: log}
		if id == "a1" {
			o.Node = nil
		}
		m.Accord = accord.New(o)
		w.members[id] = m
		loops["view of "+id], loops["accord of "+id] = m.view.Run, m.Run
	}
	t.Cleanup(looptest.Start(t, loops))
	looptest.Pass(time.Second)
	return w
}

func (w *world) put() {
	w.t.Helper()
	doc, _ := w.store.Doc(key)
	if _, err := w.store.Member("control").Swap(context.Background(), key, w.shard.Encode(), doc.Rev); err != nil {
		w.t.Fatal(err)
	}
}

// always lets time pass and looks all the while.
func (w *world) always(what string, d time.Duration, cond func() bool) {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < d; looptest.Pass(5 * time.Millisecond) {
		if !cond() {
			w.t.Fatalf("not any more after %s: %s", time.Since(began), what)
		}
	}
}

// ends waits until nobody has a lease, and returns how long that took.
func (w *world) ends(ids ...string) time.Duration {
	w.t.Helper()
	return looptest.Until(w.t, "the leases end", 5*time.Second, func() bool {
		for _, id := range ids {
			if w.members[id].leased() {
				return false
			}
		}
		return true
	}, func() string { return w.members["n1"].Words() })
}

func (w *world) everybodyLeased() bool {
	for _, m := range w.members {
		if !m.leased() {
			return false
		}
	}
	return true
}

func TestNobodyIsAskedWhileTheStoreAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.always("nobody has anything to say", 5*time.Second, func() bool {
			return w.members["n1"].Words() == "" && w.members["n2"].pledges == 0 && w.members["n1"].view.Load().Pledged.From == 0
		})
	})
}

// TestEverybodyGoesOnWhileAllPledge: the primary by the pledges, the other members by its word; and as before when the store is back.
func TestEverybodyGoesOnWhileAllPledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Outage(true)
		w.always("all have a lease", 10*time.Second, w.everybodyLeased)
		for _, m := range w.members {
			if want := "n1 goes on by the promise of n2, n3"; !strings.Contains(m.Words(), want) {
				t.Errorf("%s says %q, want %q", m.id, m.Words(), want)
			}
			if s := m.view.Load(); fmt.Sprint(s.Pledged.By) != "[n2 n3]" || s.Fresh(w.clock.Uptime()) {
				t.Errorf("%s: by %v, fresh %v", m.id, s.Pledged.By, s.Fresh(w.clock.Uptime()))
			}
		}
		// The others' leases are at most as long as the primary's.
		for _, id := range []string{"n2", "n3", "a1"} {
			if p, o := w.members["n1"].view.Load().LeaseStart(), w.members[id].view.Load().LeaseStart(); o > p {
				t.Errorf("%s counts from %s, the primary from %s", id, o, p)
			}
		}
		w.store.Outage(false)
		looptest.Pass(200 * time.Millisecond)
		pledged := w.members["n2"].pledges
		w.always("nothing is left of it", 2*time.Second, func() bool {
			return w.everybodyLeased() && w.members["n1"].Words() == "" && w.members["n2"].pledges == pledged
		})
	})
}

// TestOneWhoDoesNotPledgeEndsTheLease: whatever the reason, within a lease, and it does not come back by itself.
func TestOneWhoDoesNotPledgeEndsTheLease(t *testing.T) {
	for _, c := range []struct {
		name, words string
		do          func(*world)
	}{
		{"its agent is dead", "n3 (it does not answer)", func(w *world) { w.store.Sever(true, "n3") }},
		{"it refuses", "n3 (it has other plans)", func(w *world) { w.members["n3"].set(func(m *member) { m.against = "it has other plans" }) }},
		{"the store answers it", "n3 (the store answers here)", func(w *world) { w.store.Cut("n1", "n2", "a1"); w.store.Outage(false) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.store.Outage(true)
				w.always("all have a lease", 3*time.Second, w.everybodyLeased)
				c.do(w)
				took := w.ends("n1", "n2", "a1")
				if lease, read := w.shard.Spec.Timing.Lease.D(), w.shard.Spec.Timing.Beat.D()/2; took > lease+read || // n3 finds the store with its next read
					took < lease/2 {
					t.Errorf("the leases ended after %s, the lease is %s", took, lease)
				}
				if words := w.members["n1"].Words(); !strings.Contains(words, c.words) {
					t.Errorf("it says %q, want %q", words, c.words)
				}
				w.members["n1"].set(func(m *member) { m.writable = false }) // as its agent does now
				w.store.Sever(false, "n3")
				w.members["n3"].set(func(m *member) { m.against = "" })
				w.always("no lease comes back without the store", 3*time.Second, func() bool { return !w.members["n1"].leased() })
			})
		})
	}
}

// TestAnOlderRuleGetsNoWord: a proxy that has not heard of a stronger rule stops when its table expires, as the change counts on.
func TestAnOlderRuleGetsNoWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Cut("n2", "a1")
		w.shard.Assigned.Begin(topo.Change{Kind: topo.ChangeAck, Durability: topo.Quorum, AckReplicas: 2})
		w.put()
		looptest.Pass(100 * time.Millisecond)
		w.store.Outage(true)
		if took := w.ends("n2", "a1"); took > w.shard.Spec.Timing.Lease.D() {
			t.Errorf("tables of the older rule were good for another %s", took)
		}
		w.always("the primary goes on", 3*time.Second, func() bool { return w.members["n1"].leased() && w.members["n3"].leased() })
	})
}

// TestAnotherTenureGetsNothing: a member that knows of an election neither pledges nor takes a word of the past.
func TestAnotherTenureGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Cut("n1") // the old primary alone misses the end of its tenure
		w.shard.Assigned.Epoch, w.shard.Assigned.Phase = 4, topo.PhaseFencing
		w.put()
		w.store.Outage(true)
		w.ends("n1", "n2", "n3", "a1")
		if w.members["n2"].pledges+w.members["n3"].pledges > 0 {
			t.Error("somebody pledged to a primary whose tenure is over")
		}
	})
}
