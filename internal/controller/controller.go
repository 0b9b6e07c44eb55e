// SPDX-License-Identifier: Apache-2.0

// Package controller is the loop of the one agent that currently decides: gather what was agreed and seen, ask failover
// for the decision, swap it into the store, record it.
//
// It judges nothing itself (failover), and nobody calls it: it meets agents and proxies only in the store. Its invariant:
// it writes only documents that Decide returned for the very revision that it replaces. Goroutines: Run's own, and one
// that writes the timeline.
package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/event"
	"redoubt/internal/failover"
	"redoubt/internal/topo"
)

// Options are what a controller needs. All fields but Events are required.
type Options struct {
	Member string // id of this member of the store
	Shard  string // shard id
	Store  coord.Store
	Clock  clock.Clock
	Log    *slog.Logger
	Events event.Sink
}

// Controller takes part in the election and, when elected, decides for one shard.
type Controller struct {
	o        Options
	key      string
	timeline *timeline
}

// The loop's bounds.
const (
	look        = 20 * time.Millisecond // the latest next look when nothing arrives
	lookSoonest = 200 * time.Microsecond
	swapTimeout = 500 * time.Millisecond
	reportEvery = 500 * time.Millisecond
	reportAfter = 30 * time.Millisecond
	reportTTL   = 5 * time.Second
	campaignGap = 50 * time.Millisecond
)

// New returns a controller that is not running yet.
func New(o Options) (*Controller, error) {
	if o.Store == nil || o.Member == "" || o.Shard == "" {
		return nil, errors.New("controller: store, member and shard are required")
	}
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	return &Controller{o: o, key: topo.KeyShard + o.Shard, timeline: newTimeline(o)}, nil
}

// Run campaigns and decides, again and again, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var recorded sync.WaitGroup
	recording, decided := context.WithCancel(context.WithoutCancel(ctx)) // ends after the last decision, which is then still written
	recorded.Go(func() { c.timeline.run(recording) })
	defer recorded.Wait()
	defer decided()
	for ctx.Err() == nil {
		lease, err := c.o.Store.Campaign(ctx)
		if err != nil {
			if ctx.Err() == nil {
				c.o.Log.Warn("campaign", "err", err)
				pause(ctx, campaignGap)
			}
			continue
		}
		c.o.Log.Info("elected controller", "member", c.o.Member, "term", lease.Term())
		c.lead(ctx, lease)
		c.o.Log.Info("no longer controller", "member", c.o.Member, "term", lease.Term())
	}
	return ctx.Err()
}

// tenure is one time in office. It forgets everything of earlier ones.
type tenure struct {
	*Controller
	lease   coord.Lease
	since   time.Duration // uptime
	doc     topo.Shard
	rev     coord.Rev
	reports map[string]report // by the store's name for them: those that were there at the latest look
	seen    map[topo.NodeID]arrival
	knownAt time.Duration // uptime at which the present epoch and phase were first known here
	rule    string        // that matched last
	ruleAt  time.Duration // uptime since when
	saidAt  time.Duration // uptime of its latest explanation
}

func (c *Controller) lead(ctx context.Context, lease coord.Lease) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &tenure{Controller: c, lease: lease, since: c.o.Clock.Uptime(), reports: map[string]report{}, seen: map[topo.NodeID]arrival{}}
	docs := c.o.Store.Watch(ctx, c.key)
	for {
		wait := t.step(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-lease.Lost():
			timer.Stop()
			return
		case doc, ok := <-docs:
			if !ok {
				docs = nil
			} else {
				t.learn(doc)
			}
		case <-c.o.Store.Arrived():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// learn takes a version of the document, unless a newer one is known.
func (t *tenure) learn(doc coord.Doc) {
	if doc.Rev <= t.rev {
		return
	}
	s, err := topo.DecodeShard(doc.Value)
	if err != nil {
		t.o.Log.Error("shard document is not usable", "shard", t.o.Shard, "rev", doc.Rev, "err", err)
		return
	}
	t.accept(s, doc.Rev)
}

func (t *tenure) accept(s topo.Shard, rev coord.Rev) {
	if t.rev == 0 || s.Assigned.Epoch != t.doc.Assigned.Epoch || s.Assigned.Phase != t.doc.Assigned.Phase {
		t.knownAt = t.o.Clock.Uptime()
	}
	t.doc, t.rev = s, rev
}

// step decides once, swaps if that is the decision, and returns how long it may wait for news.
func (t *tenure) step(ctx context.Context) time.Duration {
	if t.rev == 0 {
		t.read(ctx)
		if t.rev == 0 {
			return look
		}
	}
	state, err := t.gather(ctx)
	if err != nil {
		return look
	}
	d := failover.Decide(state)
	t.say(ctx, state, d)
	if d.Next == nil {
		if d.Recheck > 0 {
			return max(min(d.Recheck, look), lookSoonest)
		}
		return look
	}
	if t.swap(ctx, d) {
		return lookSoonest
	}
	t.rev = 0 // conflict or unknown outcome: read again before anything else
	return lookSoonest
}

func (t *tenure) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, swapTimeout)
	defer cancel()
	doc, err := t.o.Store.Get(ctx, t.key)
	if err != nil {
		if !errors.Is(err, coord.ErrNotFound) && ctx.Err() == nil {
			t.o.Log.Warn("read the shard document", "err", err)
		}
		return
	}
	t.learn(doc)
}

// gather puts together everything that a decision may depend on.
func (t *tenure) gather(ctx context.Context) (failover.State, error) {
	now := t.o.Clock.Uptime()
	s := failover.State{
		WallMS: t.o.Clock.Now().UnixMilli(), Term: t.lease.Term(), Shard: t.doc, Nonce: nonce(),
		LedFor: topo.Duration(now - t.since), PhaseFor: topo.Duration(now - t.knownAt), Sightings: map[topo.NodeID]failover.Seen{},
	}
	beats, err := t.o.Store.All(ctx)
	if err != nil {
		return s, fmt.Errorf("read the reports: %w", err)
	}
	for name, b := range beats {
		id, ok := strings.CutPrefix(name, topo.BeatNode)
		if !ok {
			continue
		}
		if r := t.decode(name, b.Body); r.usable {
			s.Sightings[topo.NodeID(id)] = t.newest(topo.NodeID(id), r.says, now-b.Age)
		}
	}
	maps.DeleteFunc(t.reports, func(name string, _ report) bool { _, there := beats[name]; return !there })
	if ages, ok := t.o.Store.(coord.ReadAges); ok {
		vacant, _ := ages.VacantFor()
		s.ReadAge, s.VacantFor = map[topo.NodeID]topo.Duration{}, topo.Duration(vacant)
		for _, n := range t.doc.Spec.Nodes {
			if age, known := ages.ReadAge(string(n.ID)); known {
				s.ReadAge[n.ID] = topo.Duration(age)
			}
		}
	}
	return s, nil
}

// report is what a node's agent sent last. There are more looks than reports, so each is decoded once; nobody changes says.
type report struct {
	body   []byte
	says   topo.Sighting
	usable bool
}

func (t *tenure) decode(name string, body []byte) report {
	if known, ok := t.reports[name]; ok && bytes.Equal(known.body, body) {
		return known
	}
	r := report{body: body}
	err := json.Unmarshal(body, &r.says)
	if r.usable = err == nil; !r.usable {
		t.o.Log.Warn("report is not usable", "from", name, "err", err)
	}
	t.reports[name] = r
	return r
}

// arrival is a sighting and the uptime at which it arrived.
type arrival struct {
	topo.Sighting
	at time.Duration
}

// newest keeps the latest sighting of a node: one that was stuck somewhere and arrives late counts for nothing.
func (t *tenure) newest(id topo.NodeID, s topo.Sighting, at time.Duration) failover.Seen {
	if known, ok := t.seen[id]; !ok || !s.OlderThan(known.Sighting) {
		t.seen[id] = arrival{s, at}
	}
	known := t.seen[id]
	return failover.Seen{Sighting: known.Sighting, Age: topo.Duration(t.o.Clock.Uptime() - known.at)}
}

// nonceBytes is the length of a tenure's replication secret before it is written in hexadecimal.
const nonceBytes = 32

// nonce returns fresh random bytes for a decision that begins a tenure. A secret that was in a swap with an unknown outcome
// is never used for another one.
func nonce() topo.Secret {
	b := make([]byte, nonceBytes)
	_, _ = rand.Read(b) // it never returns an error (crypto/rand, Go 1.24)
	return topo.Secret(hex.EncodeToString(b))
}

// swap writes the decision and reports whether it is certain that it was written.
func (t *tenure) swap(ctx context.Context, d failover.Decision) bool {
	next := t.doc
	next.Assigned = *d.Next
	if d.Spec != nil {
		next.Spec = *d.Spec
	}
	if errs := next.Validate(); len(errs) > 0 {
		t.o.Log.Error("decision is not valid", "rule", d.Rule, "err", errors.Join(errs...))
		pause(ctx, look)
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, swapTimeout)
	defer cancel()
	begun := t.o.Clock.Uptime()
	rev, err := t.o.Store.Swap(ctx, t.key, next.Encode(), t.rev)
	if err != nil {
		t.o.Log.Warn("swap was not confirmed", "rule", d.Rule, "err", err)
		return false
	}
	before := t.doc.Assigned
	t.accept(next, rev)
	a := next.Assigned
	t.o.Log.Info(d.Why, "rule", d.Rule, "shard", t.o.Shard, "epoch", a.Epoch, "phase", a.Phase, "primary", a.Primary, "took", t.o.Clock.Uptime()-begun)
	t.o.Events(event.Event{At: t.o.Clock.Now(), Kind: "decision", Shard: t.o.Shard, Node: string(a.Primary), Epoch: uint64(a.Epoch), Rule: d.Rule, Text: d.Why})
	if before.Phase != a.Phase || before.Epoch != a.Epoch || d.Rule == "intent-refused" || d.Rule == "enrol" || d.Rule == "un-enrol" || d.Rule == "primary-impaired" ||
		before.Change != nil && a.Change == nil || before.Alone != a.Alone {
		t.timeline.add(topo.TimelineEvent{
			AtMS: t.o.Clock.Now().UnixMilli(), Member: t.o.Member, Epoch: a.Epoch, Phase: a.Phase, Primary: a.Primary, Rule: d.Rule, Why: d.Why,
		})
	}
	return true
}

// say publishes what the controller thinks, for redoubt explain: when the rule changes, and now and then.
func (t *tenure) say(ctx context.Context, s failover.State, d failover.Decision) {
	now := t.o.Clock.Uptime()
	if d.Rule != t.rule {
		t.rule, t.ruleAt, t.saidAt = d.Rule, now, 0
	}
	// Words cost time that a failover does not have: only a rule that lasts is explained.
	if d.Next != nil || now-t.ruleAt < reportAfter || t.saidAt > 0 && now-t.saidAt < reportEvery {
		return
	}
	t.saidAt = now
	b, err := json.Marshal(topo.ControllerReport{Member: t.o.Member, Rule: d.Rule, Why: d.Why, Traces: failover.Explain(s)})
	if err != nil {
		t.o.Log.Error("encode the controller's report", "err", err)
		return
	}
	_ = t.o.Store.Send(ctx, topo.BeatController+t.o.Shard, b, reportTTL) // the next one replaces it anyway
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
