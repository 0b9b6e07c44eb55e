// SPDX-License-Identifier: Apache-2.0

// Package kubereg tells a Kubernetes cluster what was decided: where the services NAME-primary and NAME-read of each shard lead, by
// endpoint slices and, where that is asked for, by Endpoints; a label for its role on pods, and an Event for each new primary. Who wants
// the address of the real server can then use the cluster's own means.
//
// It decides nothing, and nothing is decided by what it wrote. Its invariants: what bears a later epoch, or a later revision of the
// agreed state, is never overwritten, whoever tells it; and in each object an old primary is withdrawn before, or in the same write as,
// another one is published. Only the controller's member tells; each of the others waits to become that.
//
// Goroutines: Run's own, which does all telling, and one for each shard that waits for news; Run waits for them.
package kubereg

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/kube"
	"redoubt/internal/view"
)

// Options are what it needs.
type Options struct {
	Client    *kube.Client  // Run closes it
	Parts     func() []Part // the shards that there are now
	Member    string        // this one
	Service   string        // NAME
	Endpoints bool          // Endpoints are kept, too
	Clock     clock.Clock
	Log       *slog.Logger
}

// Part is one shard of which the cluster is told.
type Part struct {
	ID    string // among all that the store knows
	Name  string // within the deployment; empty: there is one shard
	View  *view.View
	Store coord.Store // as the shard sees it
}

// Registrar tells the cluster. One goroutine runs it.
type Registrar struct {
	o       Options
	tellers []*teller
}

const (
	lookEvery  = 100 * time.Millisecond // whether this member has become the controller, or a shard has come
	roundEvery = 3 * time.Second        // pods come back with other addresses
	roundTime  = 5 * time.Second        // one round
	hurry      = 50 * time.Millisecond  // after a round that did not succeed
	hurryMax   = 2 * time.Second
	moveTime   = 300 * time.Millisecond // a planned move that takes longer is told of
)

// New makes a registrar.
func New(o Options) *Registrar { return &Registrar{o: o} }

// Run tells the cluster until ctx ends.
func (r *Registrar) Run(ctx context.Context) error {
	defer r.o.Client.Close()
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	news := make(chan struct{}, 1)
	for {
		r.match(ctx, func(ctx context.Context, v *view.View) { watching.Go(func() { v.Revisions(ctx, news) }) })
		for r.tell(ctx) && ctx.Err() == nil {
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		case <-tick.C:
		}
	}
}

// match has a teller for each shard that there is now. Of one that has gone the cluster is told that nobody serves it.
func (r *Registrar) match(ctx context.Context, watch func(context.Context, *view.View)) {
	parts := r.o.Parts()
	r.tellers = slices.DeleteFunc(r.tellers, func(t *teller) bool {
		gone := !slices.ContainsFunc(parts, func(p Part) bool { return p.View == t.part.View })
		if gone {
			t.leave(ctx)
		}
		return gone
	})
	for _, p := range parts {
		if !slices.ContainsFunc(r.tellers, func(t *teller) bool { return p.View == t.part.View }) {
			watched, end := context.WithCancel(ctx)
			r.tellers = append(r.tellers, newTeller(r.o, p, end))
			watch(watched, p.View)
		}
	}
}

// tell does what is most urgent: of the shards that have changed, or else of those whose time has come, the one that was told of
// longest ago. It reports whether there was one.
func (r *Registrar) tell(ctx context.Context) bool {
	now := r.o.Clock.Uptime()
	var due []*teller
	for _, t := range r.tellers {
		if t.look(now) {
			due = append(due, t)
		}
	}
	if len(due) == 0 {
		return false
	}
	slices.SortStableFunc(due, urgency)
	due[0].run(ctx)
	return true
}
