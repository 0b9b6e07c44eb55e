// SPDX-License-Identifier: Apache-2.0

// Package view keeps this process's copy of a shard's document: one loop of reads and one watch per process, an atomic
// pointer for everybody else. Agents, proxies and faces read it; only controllers write documents, through the store.
// Beside it, DecodeReports reads what agents and members report, for the faces that show it.
// Its invariant: a snapshot never goes back in revision, nor in ReadStart within a tenure, and ReadStart is the start of a
// linearizable read that returned this tenure, so leases can be counted from it. Goroutines: Run's own, and one for each read under way.
package view

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// Snapshot is one version of a shard's document. It is immutable.
type Snapshot struct {
	Shard topo.Shard
	Rev   coord.Rev
	// ReadStart is clock.Uptime at the start of the latest linearizable read that returned this tenure (epoch, primary and
	// run id); zero when there was none. Leases count from it. A later revision of the same tenure that is known from a
	// push alone, or from a read that began earlier, does not shorten the lease: whatever ended the tenure would have a new
	// epoch.
	ReadStart time.Duration
	// Confirmed is true when a linearizable read returned this very revision, false while it is known from a push alone,
	// which is good enough to stop writing but not to begin following.
	Confirmed bool
	// Pledged is the lease of this tenure beside the store's, while that is away.
	Pledged Pledged
}

// Pledged is a lease that the other data nodes' agents gave, in place of a read.
type Pledged struct {
	From time.Duration // clock.Uptime from which it counts; zero: there is none
	By   []topo.NodeID // who pledged
}

// LeaseStart is clock.Uptime from which the lease counts: that of the latest read, or of the latest round of pledges. Zero when
// there was neither.
func (s *Snapshot) LeaseStart() time.Duration { return max(s.ReadStart, s.Pledged.From) }

// Leased reports whether the lease is good at now, whoever gave it.
func (s *Snapshot) Leased(now time.Duration) bool {
	from := s.LeaseStart()
	return from > 0 && now < from+s.Shard.Spec.Timing.Lease.D()
}

// Fresh reports whether a lease counted from the snapshot's read is still good at now: whether the store answers.
func (s *Snapshot) Fresh(now time.Duration) bool {
	return s != nil && s.ReadStart > 0 && now < s.ReadStart+s.Shard.Spec.Timing.Lease.D()
}

// View publishes snapshots of one document. Its methods are safe for concurrent use.
type View struct {
	docs  coord.Docs
	clock clock.Clock
	key   string
	log   *slog.Logger
	last  atomic.Pointer[Snapshot]

	ahead   chan struct{} // ReadAhead was called; capacity one
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every new revision or confirmation
}

// New returns a view of the document under key.
func New(docs coord.Docs, c clock.Clock, key string, log *slog.Logger) *View {
	return &View{docs: docs, clock: c, key: key, log: log, ahead: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Load returns the latest snapshot; nil before the document was first seen.
func (v *View) Load() *Snapshot { return v.last.Load() }

// Next returns a channel that is closed at the next change of revision or confirmation. Take the channel first, then
// Load, then wait, and nothing is missed.
func (v *View) Next() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// readsAtOnce bounds the reads under way. One that waits for a controller does not hold up the next: its start is too
// early to renew a lease with, once it is answered.
const readsAtOnce = 8

// A switchover to a node of this process is over within that time, or it is not worth so many reads.
const (
	aheadEvery = 5 * time.Millisecond
	aheadReads = 30
)

// ReadAhead has the document read now, and often for a moment while a switchover drains the primary. It does not wait. Safe for
// concurrent use.
func (v *View) ReadAhead() {
	select {
	case v.ahead <- struct{}{}:
	default:
	}
}

// Run keeps the view current until ctx ends: pushes arrive at once, and two linearizable reads in every beat confirm them.
func (v *View) Run(ctx context.Context) error {
	pushed := v.docs.Watch(ctx, v.key)
	done := make(chan struct{}, readsAtOnce)
	interval := topo.LANTiming().Beat.D() / 2
	tick := time.NewTicker(interval)
	defer tick.Stop()
	often := time.NewTicker(aheadEvery)
	often.Stop()
	defer often.Stop()
	ahead := 0 // reads that ReadAhead has left to make
	reading := 0
	again := false
	start := func() {
		if reading == readsAtOnce {
			again = true
			return
		}
		reading++
		go func() { v.read(ctx); done <- struct{}{} }()
	}
	start()
	for {
		select {
		case <-ctx.Done():
			for ; reading > 0; reading-- {
				<-done
			}
			return ctx.Err()
		case doc, ok := <-pushed:
			if !ok {
				pushed = nil
				continue
			}
			if v.offer(doc, 0) && v.Load().Shard.Assigned.Phase != topo.PhaseDraining {
				start() // confirm a new revision at once: a lease counts from a read, never from a push; nobody gets one by draining
			}
		case <-tick.C:
			start()
		case <-v.ahead:
			ahead = aheadReads
			often.Reset(aheadEvery)
			start()
		case <-often.C:
			if ahead--; ahead == 0 || v.Load().Shard.Assigned.Phase != topo.PhaseDraining {
				often.Stop()
			}
			start()
		case <-done:
			reading--
			if again {
				again = false
				start()
			}
			if s := v.Load(); s != nil {
				if want := s.Shard.Spec.Timing.Beat.D() / 2; want > 0 && want != interval {
					interval = want
					tick.Reset(want)
				}
			}
		}
	}
}

func (v *View) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	begun := v.clock.Uptime()
	doc, err := v.docs.Get(ctx, v.key)
	if err != nil {
		if !errors.Is(err, coord.ErrNotFound) && !errors.Is(err, coord.ErrUnavailable) && ctx.Err() == nil {
			v.log.Warn("read of the shard document", "key", v.key, "err", err)
		}
		return
	}
	v.offer(doc, begun)
}

// offer publishes doc if it is not older than what is known, and reports whether its revision is new.
func (v *View) offer(doc coord.Doc, readStart time.Duration) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.last.Load()
	read := readStart > 0
	if old != nil && (doc.Rev < old.Rev || doc.Rev == old.Rev && (!read || readStart <= old.ReadStart && old.Confirmed)) {
		return false
	}
	next := &Snapshot{Rev: doc.Rev, ReadStart: readStart, Confirmed: read}
	isNew := old == nil || doc.Rev > old.Rev
	if isNew {
		shard, err := topo.DecodeShard(doc.Value)
		if err != nil {
			v.log.Error("shard document is not usable; keeping the earlier one", "key", v.key, "rev", doc.Rev, "err", err)
			return false
		}
		next.Shard = shard
	} else {
		next.Shard = old.Shard
	}
	if !isNew || old != nil && next.Shard.Assigned.SameTenure(old.Shard.Assigned) {
		next.Pledged = old.Pledged
		next.ReadStart = max(next.ReadStart, old.ReadStart) // reads overtake each other; a lease that is good stays good
	}
	v.publish(next)
	return isNew
}

// publish shows next to everybody. Callers hold v.mu.
func (v *View) publish(next *Snapshot) {
	v.last.Store(next)
	close(v.changed)
	v.changed = make(chan struct{})
}

// Extend lets the lease of a tenure count from from, by the word of others in place of a read. It does nothing where
// another tenure or a later lease is known.
func (v *View) Extend(of topo.Assigned, from time.Duration, by []topo.NodeID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.last.Load()
	if old == nil || old.Shard.Assigned.Phase != topo.PhaseServing || !old.Shard.Assigned.SameTenure(of) || from <= old.LeaseStart() {
		return
	}
	next := *old
	next.Pledged = Pledged{From: from, By: by}
	v.publish(&next)
}
