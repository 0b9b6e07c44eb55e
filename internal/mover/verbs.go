// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/reshard"
)

const (
	unlinkBatch = 1000
	askTimeout  = 1000 // ms a server of Valkey waits for its replicas when slots change hands
	countTries  = 50
	countPause  = 20 * time.Millisecond
	epochPause  = 2 * time.Millisecond
	catchUp     = 4 // times as long as clients wait, before they do
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
	case reshard.LetGo:
		return b.letGo(ctx)
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
	case reshard.Wait, reshard.Store, reshard.Park, reshard.Flow:
		return false
	}
	return true
}

func (b *batch) store(ctx context.Context, stage reshard.Stage) error {
	next := b.mv
	next.Stage = stage
	if err := b.o.Store(ctx, next); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	b.mv = next
	return nil
}

// setSlots sends CLUSTER SETSLOT for every slot of the batch.
func (b *batch) setSlots(l *link, words ...string) {
	for _, slot := range b.mv.Slots {
		l.add(append([]string{"CLUSTER", "SETSLOT", strconv.Itoa(slot)}, words...)...)
	}
}

func (b *batch) mark(ctx context.Context) error {
	b.setSlots(b.s.tgt, "IMPORTING", b.s.from.Primary.ID)
	if _, err := b.s.tgt.must(ctx); err != nil {
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
		l := &listener{keys: b.o.Keys, slot: b.o.Slot, dial: func(ctx context.Context) (*link, error) { return b.s.dial(ctx, b.s.from.Primary.Addr) }}
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

// park makes clients wait. The target's replicas get the time that they need for what was copied before, not in it.
func (b *batch) park(ctx context.Context) error {
	if b.o.Replicas > 0 && b.s != nil && b.mv.Stage == reshard.Copying {
		if err := b.acknowledged(ctx, catchUp*b.o.Stop); err != nil {
			return b.vain(ctx, err)
		}
	}
	b.parked = time.Now()
	b.f.Parked = true // also when it fails: clients may be waiting
	return b.o.Parker.Park(ctx, b.mv.Slots)
}

// drain ends copying while clients wait. What takes too long gives them back.
func (b *batch) drain(ctx context.Context) error {
	soft, cancel := context.WithTimeout(ctx, b.o.Stop)
	defer cancel()
	rep, err := b.s.src.ask(ctx, "INFO", "replication")
	if err != nil {
		return err
	}
	end, err := strconv.ParseInt(fields(rep.body)["master_repl_offset"], 10, 64)
	if err != nil {
		return fmt.Errorf("read the offset of %s: %w", b.s.src.addr, err)
	}
	if err := b.s.stream.readTo(soft, end); err != nil {
		return b.vain(ctx, err)
	}
	if err := b.copyDirty(ctx, reshard.Rate{}); err != nil {
		return err
	}
	if b.o.Replicas > 0 {
		left := time.Duration(0)
		if d, ok := soft.Deadline(); ok {
			left = time.Until(d)
		}
		if err := b.acknowledged(ctx, left); err != nil {
			return b.vain(ctx, err)
		}
	}
	b.f.Drained = true
	return nil
}

// errLate: the target's replicas do not have what was copied.
var errLate = errors.New("too few replicas of the target have acknowledged")

// acknowledged waits until enough of the target's replicas have what was copied.
func (b *batch) acknowledged(ctx context.Context, within time.Duration) error {
	rep, err := b.s.tgt.ask(ctx, "WAIT", strconv.Itoa(b.o.Replicas), strconv.FormatInt(max(1, within.Milliseconds()), 10))
	if err == nil && rep.num < int64(b.o.Replicas) {
		err = fmt.Errorf("%w: %d of %d", errLate, rep.num, b.o.Replicas)
	}
	return err
}

// vain lets clients go on at the source, when the stream or the replicas were too late. After some times whoever called Run decides.
func (b *batch) vain(ctx context.Context, why error) error {
	if !errors.Is(why, errLate) && !errors.Is(why, context.DeadlineExceeded) || ctx.Err() != nil {
		return errors.Join(ctx.Err(), why)
	}
	if b.f.Tried++; b.f.Tried >= parksInVain {
		return why
	}
	if !b.f.Parked {
		return nil
	}
	return b.flow(ctx, b.mv.From)
}

func (b *batch) flow(ctx context.Context, owner string) error {
	if err := b.o.Parker.Flow(ctx, b.mv.Slots, owner); err != nil {
		return err
	}
	if owner == b.mv.To && !b.parked.IsZero() {
		b.report.Parked = time.Since(b.parked)
	}
	b.f.Parked, b.f.Drained = false, false
	return nil
}

// letGo makes the source, and by its stream its replicas, forget the keys, and then its claim to the slots: what it said with the epoch that
// is noted here is the last that anybody can hear of it. Nobody writes these keys; they may end by themselves.
func (b *batch) letGo(ctx context.Context) error {
	if b.s.stream != nil {
		_ = b.s.stream.watchOnly(nil) // it is needed no more: an end of it does not matter
	}
	src, n := b.s.src, len(b.mv.Slots)
	for {
		b.setSlots(src, "MIGRATING", b.s.to.Primary.ID)
		for _, slot := range b.mv.Slots {
			src.add("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), strconv.Itoa(4*unlinkBatch))
		}
		reps, err := src.round(ctx)
		if err != nil {
			return err
		}
		for _, r := range reps { // of a slot that it has let go already it is not the owner
			if err := r.err(); err != nil && !strings.Contains(err.Error(), "not the owner of hash slot") {
				return fmt.Errorf("%s: %w", src.addr, err)
			}
		}
		if err := b.unlink(ctx, reps[n:]); err != nil {
			return err
		}
		b.s.addCounts(src, b.mv.Slots)
		b.setSlots(src, b.node()...)
		src.add("CLUSTER", "NODES")
		if reps, err = src.round(ctx); err != nil {
			return err
		}
		if b.f.Source.Keys = sum(reps[:n]); b.f.Source.Keys > 0 {
			continue // a slot with keys is not given away
		}
		if err := src.firstError(reps); err != nil {
			return err
		}
		v, err := readView(string(reps[2*n].body), b.mv.Slots)
		if err != nil {
			return err
		}
		b.s.epoch, b.f.Source.Owner = v.epoch[v.me], reshard.ByTarget
		return nil
	}
}

// unlink deletes the listed keys at the source, slot by slot. A batch of which a key has ended by itself is refused under
// the mark, so it goes without: nobody is there to see it.
func (b *batch) unlink(ctx context.Context, lists []reply) error {
	src := b.s.src
	type part struct {
		slot string
		keys [][]byte
	}
	var parts []part
	for i, r := range lists {
		keys := bodies(r.items)
		for len(keys) > 0 {
			n := min(len(keys), unlinkBatch)
			parts = append(parts, part{strconv.Itoa(b.mv.Slots[i]), keys[:n]})
			src.addValues([]string{"UNLINK"}, keys[:n]...)
			keys = keys[n:]
		}
	}
	reps, err := src.round(ctx)
	if err != nil {
		return err
	}
	for i, r := range reps {
		if r.err() == nil {
			continue
		}
		var refused serverError
		if !errors.As(r.err(), &refused) || !refused.is("TRYAGAIN") && !refused.is("ASK") {
			return fmt.Errorf("%s: %w", src.addr, r.err())
		}
		src.add("CLUSTER", "SETSLOT", parts[i].slot, "STABLE")
		src.addValues([]string{"UNLINK"}, parts[i].keys...)
		src.add("CLUSTER", "SETSLOT", parts[i].slot, "MIGRATING", b.s.to.Primary.ID)
	}
	_, err = src.must(ctx)
	return err
}

// flip gives the target the slots: the one command that everybody believes. It waits until it will be believed (see settled).
func (b *batch) flip(ctx context.Context) error {
	for !b.s.settled() {
		if err := rest(ctx, epochPause); err != nil {
			return err
		}
		if err := b.hear(ctx); err != nil {
			return err
		}
	}
	b.setSlots(b.s.tgt, b.node()...)
	if err := b.hear(ctx); err != nil {
		return err
	}
	for b.s.heard.epoch[b.s.heard.me] <= b.s.epoch { // it had the highest, and another node the same
		b.s.tgt.add("CLUSTER", "BUMPEPOCH")
		if err := b.hear(ctx); err != nil {
			return err
		}
		if err := rest(ctx, epochPause); err != nil {
			return err
		}
	}
	b.f.Target.Owner, b.f.Target.Marked, b.f.Target.AnyMark = reshard.ByTarget, false, false
	return nil
}

// hear sends the target what was collected, and asks what it knows of the cluster.
func (b *batch) hear(ctx context.Context) error {
	b.s.tgt.add("CLUSTER", "NODES")
	reps, err := b.s.tgt.must(ctx)
	if err != nil {
		return err
	}
	b.s.heard, err = readView(string(reps[len(reps)-1].body), b.mv.Slots)
	return err
}

func (b *batch) node() []string {
	words := []string{"NODE", b.s.to.Primary.ID}
	if b.s.valkey {
		words = append(words, "TIMEOUT", strconv.Itoa(askTimeout))
	}
	return words
}

// tell makes the source and all other primaries know, so that nobody waits for gossip. Of the others it is not needed.
func (b *batch) tell(ctx context.Context) error {
	b.setSlots(b.s.src, b.node()...)
	if _, err := b.s.src.must(ctx); err != nil {
		return err
	}
	for _, n := range b.s.others {
		if _, err := b.s.ask(ctx, n, func(l *link) { b.setSlots(l, b.node()...) }); err != nil && ctx.Err() != nil {
			return ctx.Err()
		} // else gossip tells it
	}
	if err := b.s.look(ctx, b.mv, &b.f); err != nil {
		return err
	}
	b.f.Told = true
	return nil
}

// clean deletes what the source's replicas, or the source, have left of slots that are the target's.
func (b *batch) clean(ctx context.Context) error {
	src := b.s.src
	b.setSlots(src, "IMPORTING", b.s.to.Primary.ID)
	keys, err := keysOf(ctx, src, b.mv.Slots)
	if err == nil {
		err = b.forget(ctx, src, keys, false)
	}
	if err == nil {
		err = b.purgeReplicas(ctx, src, b.s.from.Replicas)
	}
	b.setSlots(src, "STABLE")
	if _, undo := src.must(ctx); err != nil || undo != nil {
		return errors.Join(err, undo)
	}
	return b.s.look(ctx, b.mv, &b.f)
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
	b.setSlots(b.s.tgt, "STABLE")
	if _, err := b.s.tgt.must(ctx); err != nil {
		return err
	}
	b.f.Target.Marked, b.f.Target.AnyMark = false, false
	return nil
}
