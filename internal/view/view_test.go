// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/looptest"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// gate stands between a view and its store, and holds reads back or answers them from the past.
type gate struct {
	coord.Docs
	mu    sync.Mutex
	stuck time.Duration // of a read, on its way to the store
	delay time.Duration // of a read's answer
	fail  error         // of a read
	asked []time.Time
	pushs chan coord.Doc // instead of the store's pushes
}

func (g *gate) set(do func(*gate)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	do(g)
}

// Get reads and answers after the delay: what it saw may be old by then.
func (g *gate) Get(ctx context.Context, key string) (coord.Doc, error) {
	g.mu.Lock()
	stuck, delay, fail := g.stuck, g.delay, g.fail
	g.asked = append(g.asked, time.Now())
	g.mu.Unlock()
	if stuck > 0 {
		<-time.After(stuck)
	}
	if fail != nil {
		return coord.Doc{}, fail
	}
	doc, err := g.Docs.Get(ctx, key)
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return coord.Doc{}, ctx.Err()
	}
	return doc, err
}

func (g *gate) Watch(ctx context.Context, key string) <-chan coord.Doc {
	if g.pushs != nil {
		return g.pushs
	}
	return g.Docs.Watch(ctx, key)
}

const key = topo.KeyShard + "s"

// world is a view over a store in memory, in a bubble.
type world struct {
	t     *testing.T
	clock looptest.Clock
	store *memstore.Cluster
	gate  *gate
	view  *view.View
	ended chan error
	end   context.CancelFunc
}

func start(t *testing.T, pushs chan coord.Doc) *world {
	w := &world{t: t, clock: looptest.NewClock(), ended: make(chan error, 1)}
	w.store = memstore.New(w.clock, "m1")
	w.gate = &gate{Docs: w.store.Member("m1"), pushs: pushs}
	w.write(serving(1, "run1"))
	w.view = view.New(w.gate, w.clock, key, slog.New(slog.DiscardHandler))
	var ctx context.Context
	ctx, w.end = context.WithCancel(t.Context())
	go func() { w.ended <- w.view.Run(ctx) }()
	t.Cleanup(func() {
		w.end()
		if err := <-w.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the view ended with %v", err)
		}
	})
	synctest.Wait()
	return w
}

func serving(epoch topo.Epoch, run string) topo.Assigned {
	return topo.Assigned{Term: 1, Epoch: epoch, Phase: topo.PhaseServing, Primary: "n1", RunID: run,
		History: []topo.HistoryEntry{{Epoch: epoch, ReplID: "h", Node: "n1"}}}
}

// write makes a new revision and lets everybody who can notice it notice it.
func (w *world) write(a topo.Assigned) coord.Doc {
	w.t.Helper()
	spec := topo.Spec{Nodes: []topo.Node{{ID: "n1", Addr: "n1:1"}, {ID: "n2", Addr: "n2:1"}}, Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming()}
	shard := topo.Shard{Format: topo.Format, ID: "s", Spec: spec, Assigned: a}
	return w.put(shard.Encode())
}

func (w *world) put(b []byte) coord.Doc {
	w.t.Helper()
	old, _ := w.store.Doc(key)
	if _, err := w.store.Member("m1").Swap(w.t.Context(), key, b, old.Rev); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
	doc, _ := w.store.Doc(key)
	return doc
}

func (w *world) fresh() bool { return w.view.Load().Fresh(w.clock.Uptime()) }

func TestReadsConfirmTheDocumentAndExtendTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		first := w.view.Load()
		if first == nil || !first.Confirmed || !w.fresh() {
			t.Fatalf("after the first read: %+v", first)
		}
		for range 20 {
			looptest.Pass(100 * time.Millisecond)
			if s := w.view.Load(); s.ReadStart <= first.ReadStart || s.Rev != first.Rev || !w.fresh() {
				t.Fatalf("after another beat: %+v", s)
			}
			first = w.view.Load()
		}
	})
}

func TestPushedRevisionOfTheSameTenureKeepsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		w.gate.set(func(g *gate) { g.fail = coord.ErrUnavailable }) // pushes arrive, reads do not
		before := w.view.Load()
		a := serving(1, "run1")
		a.Enrolled = map[topo.NodeID]string{"n2": "run2"}
		doc := w.write(a)
		s := w.view.Load()
		if s.Rev != doc.Rev || s.Confirmed || s.ReadStart != before.ReadStart || !w.fresh() {
			t.Fatalf("read at %s; the pushed revision of the same tenure: %+v", before.ReadStart, s)
		}
		looptest.Pass(topo.LANTiming().Lease.D())
		if w.fresh() {
			t.Fatal("pushes alone kept a lease alive")
		}
	})
}

func TestPushedRevisionOfANewTenureEndsTheLease(t *testing.T) {
	fencing := serving(2, "run1")
	fencing.Phase = topo.PhaseFencing
	sameEpoch := serving(1, "run1")
	sameEpoch.Phase = topo.PhaseFencing
	for name, a := range map[string]topo.Assigned{
		"new epoch": serving(2, "run1"), "another process": serving(1, "run9"), "nobody may write": fencing, "nobody may write any more": sameEpoch,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, nil)
				w.gate.set(func(g *gate) { g.fail = coord.ErrUnavailable })
				doc := w.write(a)
				if s := w.view.Load(); s.Rev != doc.Rev || s.ReadStart != 0 || s.Confirmed || w.fresh() {
					t.Fatalf("a push of another tenure: %+v", s)
				}
				w.gate.set(func(g *gate) { g.fail = nil })
				looptest.Pass(topo.LANTiming().Beat.D())
				if s := w.view.Load(); !s.Confirmed || !w.fresh() {
					t.Fatalf("after a read: %+v", s)
				}
			})
		})
	}
}

func TestPushIsConfirmedAtOnceByARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		looptest.Pass(30 * time.Millisecond) // between two beats
		changed := w.view.Next()
		doc := w.write(serving(2, "run1"))
		select {
		case <-changed:
		default:
			t.Fatal("nobody was told of a new revision")
		}
		if s := w.view.Load(); s.Rev != doc.Rev || !s.Confirmed || s.ReadStart != w.clock.Uptime() {
			t.Fatalf("right after a push: %+v", s)
		}
	})
}

func TestViewNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pushs := make(chan coord.Doc)
		w := start(t, pushs)
		old, _ := w.store.Doc(key)
		w.gate.set(func(g *gate) { g.delay = 300 * time.Millisecond }) // a read that sees the old revision and answers late
		looptest.Pass(150 * time.Millisecond)
		newer := w.write(serving(2, "run1"))
		pushs <- newer
		synctest.Wait()
		pushed := w.view.Load()
		if pushed.Rev != newer.Rev || pushed.Confirmed {
			t.Fatalf("after the push: %+v", pushed)
		}
		looptest.Pass(260 * time.Millisecond) // the late answer is there, the next one is not
		if s := w.view.Load(); s != pushed {
			t.Fatalf("the answer of an older read: %+v", s)
		}
		pushs <- old
		synctest.Wait()
		if s := w.view.Load(); s != pushed {
			t.Fatalf("an old push: %+v", s)
		}
		looptest.Pass(time.Second)
		if s := w.view.Load(); s.Rev != newer.Rev || !s.Confirmed {
			t.Fatalf("after a read: %+v", s)
		}
	})
}

func TestLeaseCountsFromTheStartOfTheRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		w.gate.set(func(g *gate) { g.delay = 400 * time.Millisecond })
		looptest.Pass(2 * time.Second)
		var asked []time.Time
		w.gate.set(func(g *gate) { asked = g.asked })
		s := w.view.Load()
		last := time.Duration(0)
		for _, at := range asked {
			if begun := w.clock.Uptime() - time.Since(at); begun+400*time.Millisecond <= w.clock.Uptime() {
				last = begun
			}
		}
		if s.ReadStart != last {
			t.Fatalf("the lease counts from %s; the latest answered read began at %s", s.ReadStart, last)
		}
	})
}

// A read that was stuck for long, while a controller moved, may be the first to see the revision that the new one writes.
func TestAReadThatBeganEarlierDoesNotShortenTheLease(t *testing.T) {
	for name, next := range map[string]topo.Assigned{"of the same tenure": serving(1, "run1"), "of another tenure": serving(2, "run1")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, make(chan coord.Doc)) // no pushes
				beat, long := topo.LANTiming().Beat.D(), 700*time.Millisecond
				w.gate.set(func(g *gate) { g.stuck = long })
				looptest.Pass(beat / 2)
				w.gate.set(func(g *gate) { g.stuck = 0 })
				began := w.clock.Uptime()
				looptest.Pass(long - beat/4) // later reads were answered meanwhile
				w.gate.set(func(g *gate) { g.fail = coord.ErrUnavailable })
				before, doc := w.view.Load(), w.write(next)
				looptest.Pass(beat / 4)
				s := w.view.Load()
				if s.Rev != doc.Rev || !s.Confirmed || before.ReadStart <= began {
					t.Fatalf("the stuck read showed %+v; before it, %+v", s, before)
				}
				if kept := s.ReadStart == before.ReadStart; kept != (next.Epoch == 1) || !kept && s.ReadStart != began {
					t.Fatalf("the lease counted from %s, and now from %s; the stuck read began at %s", before.ReadStart, s.ReadStart, began)
				}
			})
		})
	}
}

func TestOutageOfTheStoreLetsTheSnapshotAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		looptest.Pass(time.Second)
		w.store.Outage(true)
		kept := w.view.Load()
		looptest.Pass(topo.LANTiming().Lease.D() - 101*time.Millisecond) // the latest read is a beat old at most
		if !w.fresh() {
			t.Fatal("the lease ended too early")
		}
		looptest.Pass(101 * time.Millisecond)
		if w.fresh() || w.view.Load() != kept {
			t.Fatalf("a lease outlived an outage: %+v", w.view.Load())
		}
		w.store.Outage(false)
		looptest.Pass(topo.LANTiming().Beat.D())
		if !w.fresh() {
			t.Fatal("no lease after the outage")
		}
	})
}

func TestUnusableDocumentDoesNotReplaceAGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		for _, b := range []string{"{", `{"format": 999}`, `{"format": 1, "assigned": {"phase": "dancing"}}`} {
			w.put([]byte(b))
			looptest.Pass(time.Second)
			if s := w.view.Load(); s.Rev != 1 || s.Shard.Assigned.Epoch != 1 || w.fresh() {
				t.Fatalf("after %s: %+v", b, s)
			}
		}
		doc := w.write(serving(2, "run1"))
		if s := w.view.Load(); s.Rev != doc.Rev || !w.fresh() {
			t.Fatalf("after a good one: %+v", s)
		}
	})
}

// TestViewEndsWithItsContext: the bubble itself fails if a goroutine is left.
func TestViewEndsWithItsContext(t *testing.T) {
	for name, delay := range map[string]time.Duration{"between reads": 0, "during a read": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, nil)
				w.gate.set(func(g *gate) { g.delay = delay })
				looptest.Pass(150 * time.Millisecond)
				at := time.Now()
				w.end()
				err := <-w.ended
				if !errors.Is(err, context.Canceled) || time.Since(at) > 0 {
					t.Fatalf("ended after %s with %v", time.Since(at), err)
				}
				w.ended <- err
			})
		})
	}
}
