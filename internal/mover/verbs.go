// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"redoubt/internal/reshard"
)

const (
	unlinkBatch = 500
	countTries  = 50
	countPause  = 20 * time.Millisecond
)

// do carries out one step, and notes what it changed in the facts.
func (b *batch) do(ctx context.Context, step reshard.Step) error {
	if b.s == nil && needsSession(step.Do) {
		from, to, others, err := b.sides()
		if err != nil {
			return err
		}
		if b.s, err = open(ctx, &b.o, from, to, others); err != nil {
			return err
		}
	}
	if err := rest(ctx, step.Recheck); err != nil {
		return err
	}
	switch step.Do {
	case reshard.Wait:
		return nil
	case reshard.Store:
		return b.store(ctx, step.Stage)
	case reshard.Look:
		return b.s.look(ctx, b.mv, &b.f)
	case reshard.Import:
		return b.mark(ctx)
	case reshard.Purge:
		return b.purge(ctx)
	case reshard.Track:
		return b.track(ctx)
	case reshard.CopyAll:
		b.f.Copy.Listed = true
		return b.copyAll(ctx)
	case reshard.CopyDirty:
		b.f.Copy.Rounds++
		b.rounds++
		return b.copyDirty(ctx, b.o.Rate)
	case reshard.Park:
		return b.park(ctx)
	case reshard.Drain:
		return b.drain(ctx)
	case reshard.Readmit:
		return b.readmit(ctx)
	case reshard.Confirm:
		return b.confirm(ctx)
	case reshard.Recall:
		return b.recall(ctx)
	case reshard.Flip:
		return b.flip(ctx)
	case reshard.Flow:
		return b.flow(ctx, step.Owner)
	case reshard.Tell:
		return b.tell(ctx)
	case reshard.Clean:
		return b.clean(ctx)
	case reshard.Count:
		return b.count(ctx)
	case reshard.Stable:
		return b.stable(ctx)
	}
	return fmt.Errorf("unknown step %q", step.Do)
}

func needsSession(v reshard.Verb) bool {
	switch v {
	case reshard.Wait, reshard.Store, reshard.Flow, reshard.Recall, reshard.Confirm:
		return false
	}
	return true
}

func (b *batch) store(ctx context.Context, stage reshard.Stage) error {
	next := b.mv
	next.Stage = stage
	if next.Tenure = ""; stage == reshard.LettingGo {
		next.Tenure = tenure(b.s.from) + " " + tenure(b.s.to)
	}
	if err := b.o.Store(ctx, next); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	b.mv, b.f.Late, b.f.Confirmed = next, false, false
	return nil
}

// setSlots collects CLUSTER SETSLOT for every slot of the batch.
func (b *batch) setSlots(l *link, words ...string) { addSetSlots(l, b.mv.Slots, words) }

func addSetSlots(l *link, slots []int, words []string) {
	for _, slot := range slots {
		l.add(append([]string{"CLUSTER", "SETSLOT", strconv.Itoa(slot)}, words...)...)
	}
}

// atSource and atTarget have the primaries carry out CLUSTER SETSLOT for every slot of the batch.
func (b *batch) atSource(ctx context.Context, words ...string) error {
	return b.s.order(ctx, b.s.src, b.s.told.source, b.mv.Slots, words...)
}

func (b *batch) atTarget(ctx context.Context, words ...string) error {
	return b.s.order(ctx, b.s.tgt, b.s.told.target, b.mv.Slots, words...)
}

// mark makes the target take keys of the slots under ASKING. A server does not listen to gossip about slots that it has marked: behind a
// failover of the source it may call nobody their owner, and then refuses their keys. So it is told whose they are.
func (b *batch) mark(ctx context.Context) error {
	var its, others []int
	for _, slot := range b.mv.Slots {
		if b.s.heard.owner[slot] == b.s.heard.me {
			continue
		}
		if its = append(its, slot); !b.s.told.target || b.s.heard.owner[slot] != b.s.from.Primary.ID {
			others = append(others, slot)
		}
	}
	if err := b.s.order(ctx, b.s.tgt, b.s.told.target, others, "NODE", b.s.from.Primary.ID); err != nil {
		return err
	}
	if err := b.s.order(ctx, b.s.tgt, b.s.told.target, its, "IMPORTING", b.s.giver(true)); err != nil {
		return err
	}
	b.f.Target.Marked, b.f.Target.AnyMark = true, true
	return nil
}

// purge deletes what the target has in slots that it does not own.
func (b *batch) purge(ctx context.Context) error {
	keys, err := keysOf(ctx, b.s.tgt, b.mv.Slots)
	if err != nil {
		return err
	}
	if err := b.forget(ctx, b.s.tgt, keys, false); err != nil {
		return err
	}
	if b.f.Target.Left > 0 {
		if err := b.purgeReplicas(ctx, b.s.tgt, b.s.to.Replicas); err != nil {
			return err
		}
	}
	return b.s.look(ctx, b.mv, &b.f)
}

// forget deletes keys under the mark. With remake each is made first, so that its deletion is told to the replicas.
func (b *batch) forget(ctx context.Context, l *link, keys []string, remake bool) error {
	for len(keys) > 0 {
		n := min(len(keys), unlinkBatch)
		for _, k := range keys[:n] {
			if remake {
				l.add("ASKING")
				l.add("SET", k, "")
			}
			l.add("ASKING")
			l.add("UNLINK", k)
		}
		if _, err := l.must(ctx); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// purgeReplicas deletes keys that replicas have and their primary has not (Redis 7.0 leaves them there when slots move away).
func (b *batch) purgeReplicas(ctx context.Context, primary *link, replicas []Node) error {
	for _, n := range replicas {
		reps, err := b.s.ask(ctx, n, func(l *link) { addKeys(l, b.mv.Slots) })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			continue // gone: it gets what the others get when it is back
		}
		if err := b.forget(ctx, primary, keysIn(reps), true); err != nil {
			return err
		}
	}
	return b.wait(ctx, primary, len(replicas), time.Second)
}

// wait is WAIT on a connection that has written. Replicas that do not answer are no error: who calls it looks again.
func (b *batch) wait(ctx context.Context, l *link, k int, within time.Duration) error {
	_, err := l.ask(ctx, "WAIT", strconv.Itoa(k), strconv.FormatInt(within.Milliseconds(), 10))
	return err
}

// track begins to notice writes.
func (b *batch) track(ctx context.Context) error {
	if b.s.stream == nil {
		s, addr := b.s, b.s.from.Primary.Addr // the listener dials on its own, while b goes on
		l := &listener{keys: b.o.Keys, slot: b.o.Slot, dial: func(ctx context.Context) (*link, error) { return s.dial(ctx, addr) }}
		if err := listen(ctx, b.s.src, l); err != nil {
			return err
		}
		b.s.stream = l
	}
	if err := b.s.stream.watchOnly(b.mv.Slots); err != nil {
		return err
	}
	b.f.Copy = reshard.Copy{Tracked: true}
	return nil
}

// clean deletes what the source's replicas, or the source, have left of slots that are the target's.
func (b *batch) clean(ctx context.Context) error {
	src := b.s.src
	err := b.atSource(ctx, "IMPORTING", b.s.giver(false))
	if err == nil {
		err = b.unlink(ctx)
	}
	if err == nil {
		err = b.purgeReplicas(ctx, src, b.s.from.Replicas)
	}
	if undo := b.atSource(ctx, "STABLE"); err != nil || undo != nil {
		return errors.Join(err, undo)
	}
	return b.s.look(ctx, b.mv, &b.f)
}

// unlink deletes the keys of the slots at the source, which has the mark and does not own them, and by its stream at its replicas.
func (b *batch) unlink(ctx context.Context) error {
	src := b.s.src
	for _, slot := range b.mv.Slots {
		for {
			rep, err := src.ask(ctx, "CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), strconv.Itoa(unlinkBatch))
			if err != nil {
				return err
			}
			keys := bodies(rep.items)
			if len(keys) == 0 {
				break
			}
			began := time.Now()
			src.add("ASKING")
			src.addValues([]string{"UNLINK"}, keys...)
			reps, err := src.round(ctx)
			if err != nil {
				return err
			}
			var refused serverError
			switch err := reps[1].err(); {
			case errors.As(err, &refused) && refused.is("TRYAGAIN"): // one of them has ended by itself
				if err := b.forget(ctx, src, keysIn([]reply{rep}), false); err != nil {
					return err
				}
			case err != nil:
				return fmt.Errorf("%s: %w", src.addr, err)
			}
			if err := rest(ctx, b.o.Rate.Rest(int64(len(keys)), 0, time.Since(began))); err != nil {
				return err
			}
		}
	}
	return nil
}

func numbers(slots []int) []string {
	out := make([]string, len(slots))
	for i, s := range slots {
		out[i] = strconv.Itoa(s)
	}
	return out
}

// count compares the target's replicas with their primary at moments at which nothing is added. Under a load that leaves no such moment,
// that its replicas acknowledged the copies is enough.
func (b *batch) count(ctx context.Context) error {
	primary := func() (int64, error) {
		b.s.addCounts(b.s.tgt, b.mv.Slots)
		reps, err := b.s.tgt.must(ctx)
		return sum(reps), err
	}
	had, err := primary()
	if err != nil {
		return err
	}
	for differ := 0; len(b.s.to.Replicas) > 0; {
		have, answered, err := b.s.left(ctx, b.s.to.Replicas, b.mv.Slots)
		if err != nil {
			return err
		}
		now, err := primary()
		if err != nil {
			return err
		}
		if now == have || now != had || answered == 0 {
			break
		}
		if differ++; differ > countTries {
			return fmt.Errorf("a replica of shard %s has %d keys of these slots, its primary %d", b.mv.To, have, now)
		}
		if err := rest(ctx, countPause); err != nil {
			return err
		}
	}
	b.f.Counted = true
	return nil
}

func (b *batch) stable(ctx context.Context) error {
	if err := b.atTarget(ctx, "STABLE"); err != nil {
		return err
	}
	b.f.Target.Marked, b.f.Target.AnyMark = false, false
	return nil
}
