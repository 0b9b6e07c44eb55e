// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// world is a store of one document and some reports.
type world struct {
	mu    sync.Mutex
	doc   coord.Doc
	beats map[string]coord.Beat
	wake  chan coord.Doc
}

func (w *world) Get(context.Context, string) (coord.Doc, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.doc.Rev == 0 {
		return coord.Doc{}, coord.ErrNotFound
	}
	return w.doc, nil
}

func (w *world) Swap(context.Context, string, []byte, coord.Rev) (coord.Rev, error) {
	return 0, coord.ErrUnavailable
}

func (w *world) Watch(context.Context, string) <-chan coord.Doc { return w.wake }

func (w *world) Send(_ context.Context, from string, body []byte, _ time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beats[from] = coord.Beat{Body: body}
	return nil
}

func (w *world) All(context.Context) (map[string]coord.Beat, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]coord.Beat{}
	for k, v := range w.beats {
		out[k] = v
	}
	return out, nil
}

func (w *world) Arrived() <-chan struct{} { return nil }

// set makes s the agreed document.
func (w *world) set(s topo.Shard) {
	w.mu.Lock()
	w.doc = coord.Doc{Key: "shard/s", Value: s.Encode(), Rev: w.doc.Rev + 1}
	doc := w.doc
	w.mu.Unlock()
	select {
	case <-w.wake:
	default:
	}
	w.wake <- doc
}

func (w *world) report(t *testing.T, name string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Send(t.Context(), name, b, time.Minute)
}

// shardOf is a serving shard of the nodes at addrs, n1 being the first.
func shardOf(primary topo.NodeID, epoch topo.Epoch, addrs ...string) topo.Shard {
	s := topo.Shard{Format: topo.Format, ID: "s", Spec: topo.Spec{Deployment: "mymaster", Durability: topo.Async, Timing: topo.LANTiming()}}
	for i, a := range addrs {
		s.Spec.Nodes = append(s.Spec.Nodes, topo.Node{ID: topo.NodeID("n" + string(rune('1'+i))), Addr: a})
	}
	s.Assigned = topo.Assigned{Epoch: epoch, Phase: topo.PhaseServing, Primary: primary, History: []topo.HistoryEntry{{Epoch: epoch, ReplID: "a"}}}
	return s
}

// face starts a server with three members that report, the first being its own.
func face(t *testing.T, w *world, o Options) *Server {
	t.Helper()
	return faceOf(t, w, Master{}, o)
}

func faceOf(t *testing.T, w *world, m Master, o Options) *Server {
	t.Helper()
	o.Listen, o.Member, o.Clock = "127.0.0.1:0", "m1", clock.Real{}
	m.Name, m.Beats, m.View = "mymaster", w, view.New(w, o.Clock, "shard/s", slog.New(slog.DiscardHandler))
	o.Masters = append([]Master{m}, o.Masters...)
	for i, id := range []string{"m1", "m2", "m3"} {
		w.report(t, topo.BeatMember+id, topo.MemberReport{
			ID: id, ProxyAddr: "127.0.0.1:700" + string(rune('1'+i)), ReadonlyAddr: "127.0.0.1:800" + string(rune('1'+i)), SentinelAddr: "127.0.0.1:900" + string(rune('1'+i)),
		})
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = m.View.Run(ctx); done <- struct{}{} }()
	go func() { _ = s.Run(ctx); done <- struct{}{} }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	eventually(t, "the view to load", func() bool { return w.doc.Rev == 0 || m.View.Load() != nil })
	return s
}

func newWorld() *world {
	return &world{beats: map[string]coord.Beat{}, wake: make(chan coord.Doc, 1)}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
