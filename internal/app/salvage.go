// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/event"
	"redoubt/internal/salvage"
	"redoubt/internal/topo"
)

const (
	salvageLook  = time.Second
	salvageEvery = 15 * time.Second // reports of what has not changed
	salvageTTL   = time.Minute
	notesMax     = 64 // events that wait for the store; more are in the log only
	noteTimeout  = 5 * time.Second
	noteTries    = 12
)

// salvaged is what a member with a data node keeps of discarded writes, and tells about it.
type salvaged struct {
	keeper *salvage.Keeper
	notes  chan topo.TimelineEvent
}

// openSalvage prepares to keep discarded writes; nil when the configuration does not want it.
func (u *unit) openSalvage() (*salvaged, error) {
	c := u.o.Config
	if c.Salvage.Keep == 0 {
		return nil, nil
	}
	k, err := salvage.New(salvage.Options{Dir: u.dir("salvage"), Bytes: int64(c.Salvage.Bytes), Keep: c.Salvage.Keep, Log: u.log})
	if err != nil {
		return nil, err
	}
	return &salvaged{keeper: k, notes: make(chan topo.TimelineEvent, notesMax)}, nil
}

// noteSalvage hands an event about discarded writes to the part that writes the timeline. It never blocks.
func (u *unit) noteSalvage(e event.Event) {
	if u.salvaged == nil {
		return
	}
	t := topo.TimelineEvent{AtMS: e.At.UnixMilli(), Member: u.o.Config.Member.ID, Epoch: topo.Epoch(e.Epoch), Rule: e.Kind, Why: e.Text}
	if s := u.view.Load(); s != nil {
		t.Phase, t.Primary = s.Shard.Assigned.Phase, s.Shard.Assigned.Primary
	}
	select {
	case u.salvaged.notes <- t:
	default:
		u.log.Warn("the timeline is slow; an event is kept in this log only", "why", t.Why)
	}
}

// reportSalvage tells the others what is kept here, and writes what was discarded into the timeline.
func (u *unit) reportSalvage(ctx context.Context) error {
	tick := time.NewTicker(salvageLook)
	defer tick.Stop()
	var told []topo.Salvage
	to := ""
	due := time.Time{}
	for {
		list := u.salvaged.keeper.List()
		controller := u.store.Controller()
		if now := u.clock.Now(); len(list)+len(told) > 0 && (now.After(due) || to != controller || !slices.EqualFunc(list, told, sameSalvage)) {
			u.sendSalvage(ctx, list)
			told, to, due = list, controller, now.Add(salvageEvery)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case e := <-u.salvaged.notes:
			u.writeNote(ctx, e)
		}
	}
}

func sameSalvage(x, y topo.Salvage) bool { return x.ID == y.ID && x.Replayed == y.Replayed }

// sendSalvage reports the latest files, as many as a report may hold.
func (u *unit) sendSalvage(ctx context.Context, list []topo.Salvage) {
	ctx, cancel := context.WithTimeout(ctx, salvageLook)
	defer cancel()
	for {
		body, err := json.Marshal(list)
		if err == nil && len(body) > coord.BeatMax {
			list = list[(len(list)+1)/2:]
			continue
		}
		if err == nil {
			err = u.store.Send(ctx, topo.BeatSalvage+u.o.Config.Member.ID, body, salvageTTL)
		}
		if err != nil {
			u.log.Debug("report what is salvaged", "err", err)
		}
		return
	}
}

// writeNote writes one event into the timeline; a store without a majority is tried again for a while.
func (u *unit) writeNote(ctx context.Context, e topo.TimelineEvent) {
	var err error
	for range noteTries {
		if err = u.note(ctx, e); err == nil {
			return
		}
		t := time.NewTimer(salvageLook)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			break
		}
	}
	u.log.Warn("an event was not written to the timeline; it is kept in this log only", "why", e.Why, "err", err)
}

func (u *unit) note(ctx context.Context, e topo.TimelineEvent) error {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	if err := u.orders.Note(ctx, e); err != nil {
		return fmt.Errorf("note what was discarded: %w", err)
	}
	return nil
}
