// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// timeline appends what was decided to a bounded document, after the fact and never in the way of a decision.
type timeline struct {
	o       Options
	key     string
	pending chan topo.TimelineEvent
}

// pendingMax bounds the events that wait for the store; more are dropped and logged.
const pendingMax = 256

func newTimeline(o Options) *timeline {
	return &timeline{o: o, key: topo.KeyTimeline + o.Shard, pending: make(chan topo.TimelineEvent, pendingMax)}
}

func (t *timeline) add(e topo.TimelineEvent) {
	select {
	case t.pending <- e:
	default:
		t.o.Log.Warn("timeline is full; an event is kept in this log only", "rule", e.Rule, "why", e.Why)
	}
}

// quiet is how long the timeline waits for a failover to be over before it writes. flushTimeout bounds what is left for the
// end: a member that stops waits no longer for its last events.
const (
	quiet        = 300 * time.Millisecond
	flushTimeout = 300 * time.Millisecond
)

// run writes what is added until ctx ends, and then what is left. Nothing may be added any more when ctx ends.
func (t *timeline) run(ctx context.Context) {
	var batch []topo.TimelineEvent
	defer func() { t.flush(ctx, batch) }()
	for {
		var due <-chan time.Time
		var timer *time.Timer
		if len(batch) > 0 {
			timer = time.NewTimer(quiet)
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case e := <-t.pending:
			batch = enqueue(batch, e)
		case <-due:
			if t.append(ctx, batch) {
				batch = nil
			}
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

func enqueue(batch []topo.TimelineEvent, e topo.TimelineEvent) []topo.TimelineEvent {
	if batch = append(batch, e); len(batch) > pendingMax {
		batch = batch[1:]
	}
	return batch
}

// flush writes what is left when ctx has ended, under a short time of its own. Somebody else's write in between is read
// and tried again; a store that is away costs the events, which are in this log only then.
func (t *timeline) flush(ended context.Context, batch []topo.TimelineEvent) {
	for len(t.pending) > 0 {
		batch = enqueue(batch, <-t.pending)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ended), flushTimeout)
	defer cancel()
	for len(batch) > 0 {
		if t.append(ctx, batch) {
			return
		}
		pause(ctx, look)
		if ctx.Err() != nil {
			t.o.Log.Warn("the last events were not written to the timeline; they are kept in this log only", "events", len(batch))
			return
		}
	}
}

func (t *timeline) append(ctx context.Context, batch []topo.TimelineEvent) bool {
	ctx, cancel := context.WithTimeout(ctx, swapTimeout)
	defer cancel()
	line := topo.Timeline{Format: topo.Format}
	doc, err := t.o.Store.Get(ctx, t.key)
	switch {
	case errors.Is(err, coord.ErrNotFound):
	case err != nil:
		return false
	default:
		if err := json.Unmarshal(doc.Value, &line); err != nil {
			t.o.Log.Error("timeline document is damaged; starting a new one", "err", err)
			line = topo.Timeline{Format: topo.Format}
		}
	}
	for _, e := range batch {
		if slices.Contains(line.Events, e) {
			continue // an earlier attempt of unknown outcome wrote it
		}
		line.Events = append(line.Events, e)
	}
	if extra := len(line.Events) - topo.TimelineMax; extra > 0 {
		line.Events = line.Events[extra:]
	}
	b, err := json.Marshal(line)
	if err != nil {
		t.o.Log.Error("encode the timeline", "err", err)
		return true
	}
	_, err = t.o.Store.Swap(ctx, t.key, b, doc.Rev)
	return err == nil
}
