// SPDX-License-Identifier: Apache-2.0

package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/agent"
	"redoubt/internal/controller"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/event"
	"redoubt/internal/looptest"
	"redoubt/internal/redis/redistest"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const (
	key      = topo.KeyShard + "s"
	patience = 10 * time.Second // of a bubble: it costs nothing
)

// world is three members: each with a server, an agent and a controller.
type world struct {
	t       *testing.T
	clock   looptest.Clock
	store   *memstore.Cluster
	servers *redistest.Net
	nodes   map[topo.NodeID]*redistest.Fake
	desks   map[topo.NodeID]*desk // what each controller does in the store
	wait    map[topo.NodeID]func()
	stop    func() // ends everything and waits for it

	mu        sync.Mutex
	decisions []event.Event
}

// desk is a controller's store. It notes its swaps, and can keep one back as a slow network does.
type desk struct {
	*memstore.Store
	mu      sync.Mutex
	swaps   []swapped
	hold    bool         // the next swap of the shard's document is kept back, with an unknown outcome
	deliver func() error // what was kept back
	deaf    bool         // nothing is pushed to it
	unsure  []bool       // of the next writes of the timeline: the outcome is unknown, and whether they happen
}

func (d *desk) Watch(ctx context.Context, k string) <-chan coord.Doc {
	if d.deaf {
		return nil
	}
	return d.Store.Watch(ctx, k)
}

// record is a write of the timeline.
func (d *desk) record(ctx context.Context, k string, value []byte, old coord.Rev) (coord.Rev, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.unsure) == 0 {
		return d.Store.Swap(ctx, k, value, old)
	}
	applied := d.unsure[0]
	d.unsure = d.unsure[1:]
	if applied {
		if _, err := d.Store.Swap(ctx, k, value, old); err != nil {
			return 0, err
		}
	}
	return 0, coord.ErrUnsure
}

type swapped struct {
	assigned topo.Assigned
	err      error
}

func (d *desk) Swap(ctx context.Context, k string, value []byte, old coord.Rev) (coord.Rev, error) {
	if k != key {
		return d.record(ctx, k, value, old)
	}
	shard, err := topo.DecodeShard(value)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hold {
		d.hold = false
		d.deliver = func() error {
			_, err := d.Store.Swap(context.Background(), k, value, old)
			return err
		}
		return 0, coord.ErrUnsure
	}
	rev, err := d.Store.Swap(ctx, k, value, old)
	d.swaps = append(d.swaps, swapped{shard.Assigned, err})
	return rev, err
}

func newWorld(t *testing.T, prepare ...func(*desk)) *world {
	w := &world{t: t, clock: looptest.NewClock(), nodes: map[topo.NodeID]*redistest.Fake{}, desks: map[topo.NodeID]*desk{}, wait: map[topo.NodeID]func(){}}
	w.servers = redistest.NewNet(w.clock)
	w.store = memstore.New(w.clock, "n1", "n2", "n3")
	spec := topo.Spec{Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming()}
	ids := []topo.NodeID{"n1", "n2", "n3"}
	for _, id := range ids {
		w.nodes[id] = w.servers.Add(string(id) + ":1")
		w.desks[id] = &desk{Store: w.store.Member(string(id))}
		for _, p := range prepare {
			p(w.desks[id])
		}
		spec.Nodes = append(spec.Nodes, topo.Node{ID: id, Addr: w.nodes[id].Addr()})
	}
	shard := topo.Shard{Format: topo.Format, ID: "s", Spec: spec, Assigned: topo.Assigned{Phase: topo.PhaseNew}}
	if _, err := w.store.Member("n1").Swap(t.Context(), key, shard.Encode(), 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		w.start(id)
		synctest.Wait() // n1 campaigns first
	}
	w.stop = sync.OnceFunc(func() {
		for _, id := range ids {
			w.wait[id]()
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) start(id topo.NodeID) {
	log := slog.New(slog.DiscardHandler)
	member := w.desks[id].Store
	v := view.New(member, w.clock, key, log)
	a, err := agent.New(agent.Options{ID: id, Node: w.nodes[id], View: v, Beats: member, Clock: w.clock, Dir: w.t.TempDir(), Log: log})
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := controller.New(controller.Options{Member: string(id), Shard: "s", Store: w.desks[id], Clock: w.clock, Log: log, Events: w.note})
	if err != nil {
		w.t.Fatal(err)
	}
	w.wait[id] = looptest.Start(w.t, map[string]func(context.Context) error{
		"view of " + string(id): v.Run, "agent of " + string(id): a.Run, "controller of " + string(id): c.Run,
	})
}

func (w *world) note(e event.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Kind == "decision" {
		w.decisions = append(w.decisions, e)
	}
}

// rules returns the rules that wrote something so far.
func (w *world) rules() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.decisions {
		out = append(out, e.Rule)
	}
	return out
}

func (w *world) agreed() topo.Assigned { return looptest.Agreed(w.t, w.store, key) }

func (w *world) timeline() (rules []string) {
	doc, _ := w.store.Doc(topo.KeyTimeline + "s")
	var line topo.Timeline
	if doc.Value != nil {
		if err := json.Unmarshal(doc.Value, &line); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, e := range line.Events {
		rules = append(rules, e.Rule)
	}
	return rules
}

func (w *world) until(what string, limit time.Duration, cond func() bool) time.Duration {
	w.t.Helper()
	return looptest.Until(w.t, what, limit, cond, func() string {
		return fmt.Sprintf("agreed is %+v; rules so far: %s", w.agreed(), w.rules())
	})
}

// whole: somebody serves, and everybody has a vote.
func (w *world) whole() bool {
	a := w.agreed()
	return a.Phase == topo.PhaseServing && len(a.Enrolled) == 3
}

func (w *world) bootstrap() {
	w.t.Helper()
	w.until("the shard is whole", patience, w.whole)
	looptest.Pass(500 * time.Millisecond) // the timeline is written, and everything is quiet
}

// failover waits for service by somebody else than the primary of epoch e, and for three votes.
func (w *world) failover(e topo.Epoch) time.Duration {
	w.t.Helper()
	took := w.until("another primary serves", patience, func() bool { a := w.agreed(); return a.Phase == topo.PhaseServing && a.Epoch > e })
	w.until("the shard is whole again", patience, w.whole)
	return took
}

func TestBootstrapOfThreeNodesEndsServingWithAllEnrolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bootstrap()
		a := w.agreed()
		if a.Primary != "n1" || len(a.History) != 1 || a.History[0].Epoch != a.Epoch || a.Elected != nil {
			t.Fatalf("agreed: %+v", a)
		}
		if _, err := w.nodes["n1"].Write("x"); err != nil {
			t.Fatal(err)
		}
		for id, n := range w.nodes {
			if !n.Holds("x") {
				t.Errorf("%s does not hold what was written at the primary", id)
			}
		}
		looptest.Pass(20 * time.Second)
		if now := w.agreed(); now.Epoch != a.Epoch || now.Phase != topo.PhaseServing {
			t.Fatalf("a shard that is well changed: %+v", now)
		}
	})
}

func TestCrashOfThePrimaryElectsTheBestNodeAndRecordsItsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bootstrap()
		before := w.agreed()
		w.servers.Cut("n1:1", "n2:1", true) // n2 would be the first choice among equals
		if _, err := w.nodes["n1"].Write("acknowledged by n3"); err != nil {
			t.Fatal(err)
		}
		w.nodes["n1"].Crash()
		took := w.failover(before.Epoch)
		after := w.agreed()
		if after.Primary != "n3" || !w.nodes["n3"].Holds("acknowledged by n3") {
			t.Fatalf("agreed: %+v", after)
		}
		if took > 200*time.Millisecond {
			t.Errorf("a crash that was seen took %s", took)
		}
		last, _ := after.Latest()
		if len(after.History) != 2 || last.Epoch != after.Epoch || last.Parent != before.Epoch || last.Node != "n3" || last.ReplID == before.History[0].ReplID {
			t.Fatalf("history: %+v", after.History)
		}
		for id, n := range w.nodes {
			if !n.Holds("acknowledged by n3") {
				t.Errorf("%s has not joined the new primary", id)
			}
		}
	})
}

func TestUnsureSwapIsReadAgainAndDoesNotDecideTwice(t *testing.T) {
	for _, applied := range []bool{true, false} {
		t.Run(map[bool]string{true: "applied", false: "not applied"}[applied], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(d *desk) { d.deaf = true }) // it knows what it reads
				w.bootstrap()
				before := w.agreed()
				for range 3 { // each swap of the failover
					w.store.NextSwapUnsure(applied)
				}
				w.nodes["n1"].Crash()
				w.failover(before.Epoch)
				after := w.agreed()
				if after.Epoch != before.Epoch+2 || len(after.History) != 2 || len(after.Recent) != 1 {
					t.Fatalf("one failover costs two epochs, one history and one entry for spacing: from %+v to %+v", before, after)
				}
				if _, err := w.nodes[after.Primary].Write("x"); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestSwapOfADeposedControllerMeetsAConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bootstrap()
		before := w.agreed()
		old := w.desks["n1"]
		old.mu.Lock()
		old.hold = true
		old.mu.Unlock()
		w.nodes["n1"].Crash()
		w.until("the old controller has decided", patience, func() bool {
			old.mu.Lock()
			defer old.mu.Unlock()
			return old.deliver != nil
		})
		w.store.MoveController("n2")
		w.until("the new controller has claimed its term", patience, func() bool { return w.agreed().Term > before.Term })
		if err := old.deliver(); !errors.Is(err, coord.ErrConflict) {
			t.Fatalf("a decision of the deposed controller was answered by %v", err)
		}
		w.failover(before.Epoch)
		after := w.agreed()
		if after.Epoch != before.Epoch+2 || after.Term <= before.Term {
			t.Fatalf("from %+v to %+v", before, after)
		}
		old.mu.Lock()
		defer old.mu.Unlock()
		for _, s := range old.swaps {
			if s.err == nil && s.assigned.Epoch > before.Epoch {
				t.Errorf("the deposed controller wrote %+v", s.assigned)
			}
		}
	})
}

func TestFirstActOfAControllerIsItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bootstrap()
		before := w.agreed()
		w.store.MoveController("n3")
		looptest.Pass(time.Second)
		d := w.desks["n3"]
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.swaps) == 0 || d.swaps[0].assigned.Term <= before.Term || d.swaps[0].assigned.Epoch != before.Epoch {
			t.Fatalf("swaps of the new controller: %+v", d.swaps)
		}
		if after := w.agreed(); after.Epoch != before.Epoch || after.Phase != topo.PhaseServing {
			t.Fatalf("a move of the controller moved the primary: %+v", after)
		}
	})
}

// TestLateReportDoesNotReplaceANewerOne: a report of the past says that the primary exited. Made after the latest one, the
// same report is believed.
func TestLateReportDoesNotReplaceANewerOne(t *testing.T) {
	for _, late := range []bool{true, false} {
		t.Run(map[bool]string{true: "late", false: "new"}[late], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.bootstrap()
				before := w.agreed()
				ctx := t.Context()
				all, err := w.store.Member("n1").All(ctx)
				if err != nil {
					t.Fatal(err)
				}
				var s topo.Sighting
				if err := json.Unmarshal(all[topo.BeatNode+"n1"].Body, &s); err != nil {
					t.Fatal(err)
				}
				s.Health, s.Fenced = topo.HealthExited, true
				if s.Seq--; !late {
					s.Seq += 2
				}
				body, _ := json.Marshal(s)
				if err := w.store.Member("n1").Send(ctx, topo.BeatNode+"n1", body, time.Second); err != nil {
					t.Fatal(err)
				}
				looptest.Pass(time.Second)
				if after := w.agreed(); (after.Epoch == before.Epoch) != late {
					t.Fatalf("after a report: %+v", after)
				}
			})
		})
	}
}

func TestTimelineRecordsEachDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bootstrap()
		w.nodes["n1"].Crash()
		w.failover(w.agreed().Epoch)
		looptest.Pass(time.Second)
		decided := slices.DeleteFunc(w.rules(), func(r string) bool { return r == "claim-term" }) // changes no epoch, no phase, no vote
		line := w.timeline()
		if !slices.Equal(line, decided) {
			t.Fatalf("timeline: %s\ndecided:  %s", line, decided)
		}
		if text := strings.Join(line, " "); !strings.Contains(text, "bootstrap record") || !strings.Contains(text, "primary-gone elect record") {
			t.Fatalf("timeline: %s", text)
		}
	})
}

func TestTimelineIsWrittenOnceAlthoughTheOutcomeIsUnknown(t *testing.T) {
	for name, unsure := range map[string][]bool{"applied": {true}, "not applied": {false}, "both": {false, true, true, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(d *desk) { d.unsure = slices.Clone(unsure) })
				w.bootstrap() // its events are written together
				looptest.Pass(2 * time.Second)
				w.nodes["n1"].Crash()
				w.failover(w.agreed().Epoch)
				looptest.Pass(2 * time.Second)
				decided := slices.DeleteFunc(w.rules(), func(r string) bool { return r == "claim-term" })
				if line := w.timeline(); !slices.Equal(line, decided) {
					t.Fatalf("timeline: %s\ndecided:  %s", line, decided)
				}
			})
		})
	}
}

// TestTimelineHoldsTheLastDecisions: of a controller that stops, or loses office, right after it decided.
func TestTimelineHoldsTheLastDecisions(t *testing.T) {
	for name, end := range map[string]func(*world){
		"the controller stops":       func(w *world) { w.wait["n1"]() },
		"the controller is deposed":  func(w *world) { w.store.MoveController("n2") },
		"deposed, and then it stops": func(w *world) { w.store.MoveController("n2"); looptest.Pass(time.Millisecond); w.wait["n1"]() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.bootstrap()
				w.servers.Cut("n2:1", "n3:1", true)
				w.nodes["n2"].Crash() // it comes back, and is enrolled anew
				w.until("a decision that nobody wrote down yet", patience, func() bool { return len(w.rules()) > len(w.timeline())+1 })
				mine := len(w.rules())
				end(w)
				looptest.Pass(time.Second)
				decided := slices.DeleteFunc(w.rules()[:mine], func(r string) bool { return r == "claim-term" })
				if line := w.timeline(); len(line) < len(decided) || !slices.Equal(line[:len(decided)], decided) {
					t.Fatalf("timeline: %s\ndecided:  %s", line, decided)
				}
			})
		})
	}
}

// TestEverythingStopsWithItsContext: the bubble itself fails if a goroutine is left.
func TestEverythingStopsWithItsContext(t *testing.T) {
	for name, before := range map[string]func(*world){
		"in peace":         func(*world) {},
		"in an outage":     func(w *world) { w.store.Outage(true) },
		"in a failover":    func(w *world) { w.nodes["n1"].Crash(); looptest.Pass(2 * time.Millisecond) },
		"beside a hang":    func(w *world) { w.nodes["n1"].SetHealth(topo.HealthHung); looptest.Pass(30 * time.Millisecond) },
		"with unsaid news": func(w *world) { w.nodes["n1"].Crash(); looptest.Pass(2 * time.Millisecond); w.store.Outage(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.bootstrap()
				before(w)
				at := time.Now()
				w.stop()
				if took := time.Since(at); took > time.Second {
					t.Fatalf("ended after %s", took)
				}
			})
		})
	}
}

func TestControllerNeedsItsOptions(t *testing.T) {
	store := memstore.New(nil, "m").Member("m")
	for _, o := range []controller.Options{{}, {Store: store, Member: "m"}, {Store: store, Shard: "s"}, {Member: "m", Shard: "s"}} {
		if _, err := controller.New(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
