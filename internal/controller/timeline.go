// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
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

// quiet is how long the timeline waits for a failover to be over before it writes.
const quiet = 300 * time.Millisecond

func (t *timeline) run(ctx context.Context) {
	var batch []topo.TimelineEvent
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
			if batch = append(batch, e); len(batch) > pendingMax {
				batch = batch[1:]
			}
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
		if n := len(line.Events); n > 0 && line.Events[n-1] == e {
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
