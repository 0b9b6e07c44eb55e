// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"redoubt/internal/converge"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// Keeper keeps the writes that a failover discards.
type Keeper interface {
	// Keep stores what read writes, completes head and returns true; false when nothing of it changes data.
	Keep(head topo.Salvage, read func(limit int64, w io.Writer) error) (topo.Salvage, bool, error)
}

// The bounds of keeping one tail. They delay the return of a node that is no primary any more, and nothing else.
const (
	salvageTime  = 2 * time.Second
	salvageTries = 5
)

// salvaging is what was done about one tail so far.
type salvaging struct {
	tail  converge.Tail
	spent time.Duration
	tries int
}

// SalvageEvent is the kind of the events about discarded writes: they belong into the timeline.
const SalvageEvent = "salvage"

// kept is the outcome of one attempt.
type kept struct {
	head topo.Salvage
	ok   bool
	err  error
}

// salvage keeps the tail of a server that is about to follow another history. Meanwhile reports go on, and a new order ends
// it at once: what was to be kept is still there afterwards.
func (a *Agent) salvage(ctx context.Context, in converge.Input, o converge.Order) error {
	pos := in.Seen.Pos
	if a.o.Salvage == nil {
		a.memory = converge.Salvaged(a.memory, pos)
		return nil
	}
	if t := (converge.Tail{ReplID: pos.ReplID, Offset: pos.Offset}); a.salvaging.tail != t {
		a.salvaging = salvaging{tail: t}
	}
	began := a.o.Clock.Uptime()
	k, interrupted := a.keep(ctx, in, o)
	a.salvaging.spent += a.o.Clock.Uptime() - began
	a.salvaging.tries++
	if interrupted && k.err != nil {
		return nil
	}
	over := errors.Is(k.err, redis.ErrNoTail) || a.salvaging.spent >= salvageTime || a.salvaging.tries >= salvageTries
	if k.err != nil && !over {
		return k.err
	}
	a.memory = converge.Salvaged(a.memory, pos)
	a.tellSalvage(in, o, k)
	return nil
}

// keep runs one attempt and returns when it has ended. interrupted: the order changed meanwhile.
func (a *Agent) keep(ctx context.Context, in converge.Input, o converge.Order) (k kept, interrupted bool) {
	ctx, cancel := context.WithTimeout(ctx, max(salvageTime-a.salvaging.spent, salvageTime/salvageTries))
	defer cancel()
	head := topo.Salvage{
		Shard: in.Shard.ID, Node: a.o.ID, Epoch: o.Epoch, RunID: in.Seen.RunID, ReplID: in.Seen.Pos.ReplID,
		From: o.From, End: in.Seen.Pos.Offset, AtMS: a.o.Clock.Now().UnixMilli(), Reason: o.Why,
	}
	if o.From == converge.FromJournal {
		head.Journal, head.From, head.End = true, 0, 0
	}
	changed := a.o.View.Next()
	done := make(chan kept, 1)
	go func() {
		head, ok, err := a.o.Salvage.Keep(head, func(limit int64, w io.Writer) error {
			if head.Journal {
				_, err := a.o.Node.Journal(ctx, limit, w)
				return err
			}
			t, err := a.o.Node.Tail(ctx, o.From, limit, w)
			if err == nil && (t.RunID != head.RunID || t.ReplID != head.ReplID || t.End != head.End) {
				err = fmt.Errorf("%w: it moved to (%s, %d) meanwhile", redis.ErrRefused, t.ReplID, t.End)
			}
			return err
		})
		done <- kept{head, ok, err}
	}()
	beat := time.NewTicker(in.Shard.Spec.Timing.Beat.D())
	defer beat.Stop()
	for {
		select {
		case k = <-done:
			return k, interrupted
		case <-changed:
			changed = a.o.View.Next()
			if s := a.o.View.Load(); s.Shard.Assigned.Epoch != in.Shard.Assigned.Epoch || s.Shard.Assigned.Phase != in.Shard.Assigned.Phase {
				interrupted = true
				cancel()
			}
		case <-beat.C: // the node is well, and where it was
			in.Now = a.o.Clock.Uptime()
			a.report(in)
		}
	}
}

// tellSalvage says what became of the discarded writes: the price of a failover, once for each node that paid it.
func (a *Agent) tellSalvage(in converge.Input, o converge.Order, k kept) {
	lost := in.Seen.Pos.Offset - o.From
	switch h := k.head; {
	case o.From == converge.FromJournal && k.err != nil:
		a.tell(in, SalvageEvent, fmt.Sprintf("the process of %s ended as a primary, maybe with writes that epoch %d does not have; its memory is gone and its append-only file is not kept: %v", a.o.ID, o.Epoch, k.err))
	case o.From == converge.FromJournal && k.ok:
		a.tell(in, SalvageEvent, fmt.Sprintf("the process of %s ended as a primary, maybe with writes that epoch %d does not have; its memory is gone, but its append-only file since the last rewrite (%d commands, %d bytes, most of them not lost) is kept: redoubt salvage show %s", a.o.ID, o.Epoch, h.Commands, h.Bytes, h.ID))
	case k.err != nil:
		a.tell(in, SalvageEvent, fmt.Sprintf("%s had %d bytes of writes behind offset %d that epoch %d does not have; they are discarded and could not be kept: %v", a.o.ID, lost, o.From, o.Epoch, k.err))
	case !k.ok:
		a.o.Log.Info("nothing is lost at this node: its stream went on without writes", "node", a.o.ID, "epoch", o.Epoch, "bytes", lost)
	case h.Truncated:
		a.tell(in, SalvageEvent, fmt.Sprintf("%s had %d bytes of writes behind offset %d that epoch %d does not have; the first %d commands (%d bytes) are kept, the rest is beyond salvage.bytes: redoubt salvage show %s", a.o.ID, lost, o.From, o.Epoch, h.Commands, h.Bytes, h.ID))
	default:
		a.tell(in, SalvageEvent, fmt.Sprintf("%s had %d commands (%d bytes) behind offset %d that epoch %d does not have; they are kept: redoubt salvage show %s", a.o.ID, h.Commands, lost, o.From, o.Epoch, h.ID))
	}
}
