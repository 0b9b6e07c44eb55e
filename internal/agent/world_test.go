// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/agent"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/event"
	"redoubt/internal/looptest"
	"redoubt/internal/redis"
	"redoubt/internal/redis/redistest"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const key = topo.KeyShard + "s"

// world is some agents beside fake servers, and a test that plays the controller.
type world struct {
	t       *testing.T
	clock   looptest.Clock
	store   *memstore.Cluster
	control *memstore.Store
	servers *redistest.Net
	seats   map[topo.NodeID]*seat
	spec    topo.Spec
	keeper  agent.Keeper

	mu    sync.Mutex
	notes []string // events about discarded writes
}

// seat is one node: a server that outlives its agent, and the agent's directory.
type seat struct {
	*redistest.Fake
	w     *world
	id    topo.NodeID
	dir   string
	beats *notary
	docs  *pushed
	view  *view.View
	agent *agent.Agent
	end   func()

	mu         sync.Mutex
	restarts   []time.Time   // each attempt
	slowTail   bool          // reading the tail takes all the time that it may
	fenceTakes time.Duration // how long a fence takes
	hangIn     string        // the next such verb finds that the server has just stopped answering
}

// Restart notes when it was tried.
func (s *seat) Restart(ctx context.Context) error {
	s.mu.Lock()
	s.restarts = append(s.restarts, time.Now())
	s.mu.Unlock()
	return s.Fake.Restart(ctx)
}

func (s *seat) begins(verb string) {
	s.mu.Lock()
	hang := s.hangIn == verb
	if hang {
		s.hangIn = ""
	}
	s.mu.Unlock()
	if hang {
		s.SetHealth(topo.HealthHung)
	}
}

func (s *seat) Configure(ctx context.Context, want redis.Settings) error {
	s.begins("Configure")
	return s.Fake.Configure(ctx, want)
}

// Fence takes fenceTakes, and what that means for a server that has less.
func (s *seat) Fence(ctx context.Context) error {
	s.begins("Fence")
	s.mu.Lock()
	takes := s.fenceTakes
	s.mu.Unlock()
	if takes > 0 {
		s.SetHealth(topo.HealthHung)
		time.AfterFunc(takes, func() {
			if s.look().Health == topo.HealthHung {
				s.SetHealth(topo.HealthUp)
			}
		})
	}
	return s.Fake.Fence(ctx)
}

// Promote carries the promotion out before the server stops answering.
func (s *seat) Promote(ctx context.Context, e topo.Elected, cred redis.Credentials) (topo.Position, error) {
	pos, err := s.Fake.Promote(ctx, e, cred)
	if s.mu.Lock(); s.hangIn != "Promote" {
		s.mu.Unlock()
		return pos, err
	}
	s.mu.Unlock()
	s.begins("Promote")
	<-ctx.Done()
	return topo.Position{}, redis.ErrUnanswered
}

func (s *seat) ProxyConnections(ctx context.Context) (int, error) {
	s.begins("ProxyConnections")
	return s.Fake.ProxyConnections(ctx)
}

func (s *seat) Tail(ctx context.Context, from, limit int64, to io.Writer) (redis.Tail, error) {
	s.mu.Lock()
	slow := s.slowTail
	s.mu.Unlock()
	if slow {
		<-ctx.Done()
		return redis.Tail{}, redis.ErrUnanswered
	}
	return s.Fake.Tail(ctx, from, limit, to)
}

// pushed is a member's documents, with pushes of the test's own beside the store's.
type pushed struct {
	coord.Docs
	ch chan coord.Doc
}

// Watch forwards the store's pushes and the test's.
func (p *pushed) Watch(ctx context.Context, k string) <-chan coord.Doc {
	out, in := make(chan coord.Doc), p.Docs.Watch(ctx, k)
	go func() {
		defer close(out)
		for {
			var doc coord.Doc
			select {
			case doc = <-in:
			case doc = <-p.ch:
			case <-ctx.Done():
				return
			}
			select {
			case out <- doc:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// tell pushes the document to a member that cannot read.
func (w *world) tell(id topo.NodeID) {
	doc, _ := w.store.Doc(key)
	w.seats[id].docs.ch <- doc
}

// notary looks at the disk whenever a report leaves.
type notary struct {
	coord.Beats
	dir   string
	mu    sync.Mutex
	count int // reports of a frozen server that were made under a promise
	wrong []string
}

func (n *notary) Send(ctx context.Context, from string, body []byte, ttl time.Duration) error {
	var s topo.Sighting
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	disk := promiseOnDisk(n.dir)
	n.mu.Lock()
	if s.Promised > disk {
		n.wrong = append(n.wrong, fmt.Sprintf("report %d tells promise %d, on disk is %d", s.Seq, s.Promised, disk))
	}
	if s.Frozen && s.Promised > 0 {
		n.count++
	}
	n.mu.Unlock()
	return n.Beats.Send(ctx, from, body, ttl)
}

// promiseOnDisk reads the file as the next agent would.
func promiseOnDisk(dir string) (highest topo.Epoch) {
	b, _ := os.ReadFile(filepath.Join(dir, "promise"))
	for rest := string(b); ; {
		_, after, found := strings.Cut(rest, "redoubt promise ")
		if !found {
			return highest
		}
		var e topo.Epoch
		if _, err := fmt.Sscan(after, &e); err == nil {
			highest = max(highest, e)
		}
		rest = after
	}
}

func newWorld(t *testing.T, ids ...topo.NodeID) *world {
	w := &world{t: t, clock: looptest.NewClock(), seats: map[topo.NodeID]*seat{}}
	w.spec = topo.Spec{Durability: topo.Async, Timing: topo.LANTiming()}
	w.servers = redistest.NewNet(w.clock)
	for _, id := range ids {
		s := &seat{Fake: w.servers.Add(string(id) + ":1"), w: w, id: id, dir: t.TempDir()}
		w.seats[id] = s
		w.spec.Nodes = append(w.spec.Nodes, topo.Node{ID: id, Addr: s.Addr()})
	}
	w.openStore()
	t.Cleanup(func() {
		for _, s := range w.seats {
			s.stop()
		}
	})
	return w
}

// openStore makes an empty store, with the test in the controller's seat.
func (w *world) openStore() {
	ids := []string{"control"}
	for _, n := range w.spec.Nodes {
		ids = append(ids, string(n.ID))
	}
	w.store = memstore.New(w.clock, ids...)
	w.control = w.store.Member("control")
	w.lead()
}

func (w *world) lead() {
	w.t.Helper()
	if _, err := w.control.Campaign(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start(id topo.NodeID) *seat {
	w.t.Helper()
	s, log := w.seats[id], slog.New(slog.DiscardHandler)
	member := w.store.Member(string(id))
	s.beats = &notary{Beats: member, dir: s.dir}
	s.docs = &pushed{Docs: member, ch: make(chan coord.Doc, 1)}
	v := view.New(s.docs, w.clock, key, log)
	s.view = v
	a, err := agent.New(agent.Options{ID: id, Node: s, View: v, Beats: s.beats, Clock: w.clock, Dir: s.dir, Log: log, Salvage: w.keeper, Events: w.note})
	if err != nil {
		w.t.Fatal(err)
	}
	s.agent = a
	s.end = looptest.Start(w.t, map[string]func(context.Context) error{"view of " + string(id): v.Run, "agent of " + string(id): a.Run})
	return s
}

// note collects what agents say about discarded writes.
func (w *world) note(e event.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Kind == agent.SalvageEvent {
		w.notes = append(w.notes, e.Text)
	}
}

func (s *seat) stop() {
	if s.end != nil {
		s.end()
		s.end = nil
	}
	if s.beats != nil && len(s.beats.wrong) > 0 {
		s.w.t.Errorf("%s: %s", s.id, strings.Join(s.beats.wrong, "; "))
	}
}

// order swaps what is agreed, as a controller does.
func (w *world) order(a topo.Assigned) {
	w.t.Helper()
	old, _ := w.store.Doc(key)
	shard := topo.Shard{Format: topo.Format, ID: "s", Spec: w.spec, Assigned: a}
	if errs := shard.Validate(); len(errs) > 0 {
		w.t.Fatal(errs)
	}
	if _, err := w.control.Swap(context.Background(), key, shard.Encode(), old.Rev); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) agreed() topo.Assigned { return looptest.Agreed(w.t, w.store, key) }

// told returns the latest report of a node that arrived.
func (w *world) told(id topo.NodeID) (s topo.Sighting) {
	all, err := w.control.All(context.Background())
	if err != nil {
		return s
	}
	if b, ok := all[topo.BeatNode+string(id)]; ok {
		if err := json.Unmarshal(b.Body, &s); err != nil {
			w.t.Fatal(err)
		}
	}
	return s
}

// until lets time pass until cond holds, and returns how long that took.
func (w *world) until(what string, limit time.Duration, cond func() bool) time.Duration {
	w.t.Helper()
	return looptest.Until(w.t, what, limit, cond, func() string { return fmt.Sprintf("agreed is %+v", w.agreed()) })
}

// always lets time pass and looks that cond holds all the while.
func (w *world) always(what string, d time.Duration, cond func() bool) {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < d; <-time.After(5 * time.Millisecond) {
		synctest.Wait()
		if !cond() {
			w.t.Fatalf("not any more after %s: %s", time.Since(began), what)
		}
	}
}

func (s *seat) look() redis.Observation {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Observe(ctx)
}

// writable asks as a client would; an unanswered write is one that a stopped server may still carry out.
func (s *seat) writable() bool {
	_, err := s.Write("x")
	return err == nil || errors.Is(err, redis.ErrUnanswered) && s.look().Health != topo.HealthExited
}

func (s *seat) elected() *topo.Elected {
	t := s.w.told(s.id)
	return &topo.Elected{Node: s.id, RunID: t.RunID, ReplID: t.Pos.ReplID, Offset: t.Pos.Offset}
}

// promote plays the controller from a frozen node to one that serves at epoch e.
func (w *world) promote(id topo.NodeID, e topo.Epoch) {
	w.t.Helper()
	s := w.seats[id]
	w.until("the node reports", time.Second, func() bool { return w.told(id).RunID != "" && w.told(id).Health == topo.HealthUp })
	a := topo.Assigned{Term: 1, Epoch: e, Phase: topo.PhasePromoting, Primary: id, Elected: s.elected()}
	a.RunID = a.Elected.RunID
	w.order(a)
	w.until("the node is promoted", time.Second, func() bool { t := w.told(id); return t.Role == topo.RolePrimary && t.Epoch == e && t.Backlog })
	pos := w.told(id).Pos
	a.Phase, a.Elected = topo.PhaseServing, nil
	a.History = []topo.HistoryEntry{{Epoch: e, ReplID: pos.ReplID, Start: pos.Offset, Node: id}}
	a.Enrolled = map[topo.NodeID]string{id: a.RunID}
	w.order(a)
	w.until("the node serves", time.Second, s.writable)
}

func (w *world) fencing(e topo.Epoch) {
	w.t.Helper()
	a := w.agreed()
	a.Epoch, a.Phase, a.Elected = e, topo.PhaseFencing, nil
	w.order(a)
}

// leaseAndMargin is what everybody else waits before a silent primary counts as fenced.
func (w *world) leaseAndMargin() time.Duration {
	return w.spec.Timing.Lease.D() + w.spec.Timing.Margin.D()
}
