// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/failover"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// readTimeout bounds each question to the store: a status must come also when the store does not.
const readTimeout = 700 * time.Millisecond

// statusAge is how old a shared answer may be; many dashboards cost no more than one.
const statusAge = 100 * time.Millisecond

// gatherer reads the inputs of a status. One caller reads, the others wait for its answer: turn holds the right to.
type gatherer struct {
	o    Options
	sh   Shard
	turn chan struct{}
	last Status // guarded by turn
	rev  coord.Rev
	at   time.Duration // before it was read

	ordered atomic.Int64 // uptime of the latest order that this member recorded: answers from before show nothing of it
}

func newGatherer(o Options, sh Shard) *gatherer {
	return &gatherer{o: o, sh: sh, turn: make(chan struct{}, 1)}
}

func (g *gatherer) status(ctx context.Context) (Status, error) {
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
	defer func() { <-g.turn }()
	var rev coord.Rev
	if snap := g.sh.View.Load(); snap != nil {
		rev = snap.Rev
	}
	now := g.o.Clock.Uptime()
	if g.at > time.Duration(g.ordered.Load()) && g.rev == rev && now-g.at < statusAge {
		return g.last, nil
	}
	f := g.facts(ctx)
	if ctx.Err() != nil {
		return Status{}, ctx.Err()
	}
	g.last, g.rev, g.at = f.status(), rev, now
	return g.last, nil
}

// noteOrder has the next status read what was just recorded, although this member's own view may not show it yet.
func (g *gatherer) noteOrder() { g.ordered.Store(int64(g.o.Clock.Uptime())) }

// facts asks the store, and falls back on what this member knew last.
func (g *gatherer) facts(ctx context.Context) facts {
	f := facts{
		now: g.o.Clock.Now(), mode: g.o.Mode, member: g.o.Member, version: g.o.Version, controller: g.sh.Store.Controller(),
	}
	if g.o.Health != nil {
		f.health = g.o.Health()
	}
	if g.sh.Slots != nil {
		f.slots = g.sh.Slots()
	}
	s, err := g.document(ctx)
	switch {
	case err == nil:
		f.shard, f.known = s, true
	case errors.Is(err, coord.ErrNotFound):
	default:
		f.stale = true
		if snap := g.sh.View.Load(); snap != nil {
			f.shard, f.known = snap.Shard, true
		}
		f.outage = g.sh.Outage()
	}
	if snap := g.sh.View.Load(); snap != nil && snap.Pledged.From > snap.ReadStart && snap.Leased(g.o.Clock.Uptime()) {
		f.pledgedBy = snap.Pledged.By
	}
	f.reports, f.reportsErr = g.reports(ctx)
	if ms, ok := g.sh.Store.(coord.Members); ok && !f.stale {
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		f.members, _ = ms.Members(ctx) // extra: the members that report are listed anyway
	}
	return f
}

func (g *gatherer) document(ctx context.Context) (topo.Shard, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	doc, err := g.sh.Store.Get(ctx, topo.KeyShard+g.sh.ID)
	if err != nil {
		return topo.Shard{}, fmt.Errorf("read the shard document: %w", err)
	}
	return topo.DecodeShard(doc.Value)
}

func (g *gatherer) beats(ctx context.Context) (map[string]coord.Beat, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	beats, err := g.sh.Store.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the reports: %w", err)
	}
	return beats, nil
}

func (g *gatherer) reports(ctx context.Context) (view.Reports, error) {
	beats, err := g.beats(ctx)
	return view.DecodeReports(beats), err
}

// report returns what the controller last thought, or how this member goes on without the store.
func (g *gatherer) report(ctx context.Context) (topo.ControllerReport, error) {
	var r topo.ControllerReport
	beats, err := g.beats(ctx)
	if words := g.sh.Outage(); err != nil && words != "" { // nobody decides now; what this member does is known
		return topo.ControllerReport{Member: g.o.Member, Rule: "store-outage", Why: words, Traces: []topo.Trace{}}, nil
	}
	if err != nil {
		return r, err
	}
	b, ok := beats[topo.BeatController+g.sh.ID]
	if !ok {
		return r, &Error{503, "no-report", "the controller has not reported: there is none, or it was elected a moment ago; try again"}
	}
	if err := json.Unmarshal(b.Body, &r); err != nil {
		return r, fmt.Errorf("decode the controller's report: %w", err)
	}
	return r, nil
}

// timeline returns the recorded events; a shard without any has an empty one.
func (g *gatherer) timeline(ctx context.Context) (topo.Timeline, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	tl := topo.Timeline{Format: topo.Format, Events: []topo.TimelineEvent{}}
	doc, err := g.sh.Store.Get(ctx, topo.KeyTimeline+g.sh.ID)
	if errors.Is(err, coord.ErrNotFound) {
		return tl, nil
	}
	if err != nil {
		return tl, fmt.Errorf("read the timeline: %w", err)
	}
	if err := json.Unmarshal(doc.Value, &tl); err != nil {
		return tl, fmt.Errorf("decode the timeline: %w", err)
	}
	if tl.Events == nil {
		tl.Events = []topo.TimelineEvent{}
	}
	return tl, nil
}

// state returns the controller's inputs in the form of its test cases. How long the controller has led is its own
// knowledge; an hour stands for "long enough".
func (g *gatherer) state(ctx context.Context) (failover.State, error) {
	st := failover.State{
		WallMS: g.o.Clock.Now().UnixMilli(), LedFor: topo.Duration(time.Hour), PhaseFor: topo.Duration(time.Hour),
		Sightings: map[topo.NodeID]failover.Seen{},
	}
	shard, err := g.document(ctx)
	if err != nil {
		return st, err
	}
	reports, err := g.reports(ctx)
	if err != nil {
		return st, err
	}
	st.Shard, st.Term = shard.Redacted(), shard.Assigned.Term
	for id, s := range reports.Nodes {
		st.Sightings[id] = failover.Seen{Sighting: s.Sighting, Age: topo.Duration(s.Age)}
	}
	return st, nil
}
