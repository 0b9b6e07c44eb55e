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

// The steps for which clients wait: from the moment at which they are held up to the one at which everybody knows the new owner.

const (
	askTimeout = 1000 // ms a server of Valkey waits for its replicas when slots change hands
	epochPause = 2 * time.Millisecond
	barsInVain = 4
	catchUp    = 4 // times as long as clients wait, before they do
)

// park makes clients wait. The target's replicas get the time that they need for what was copied before, not in it.
func (b *batch) park(ctx context.Context) error {
	if b.o.Replicas > 0 {
		if err := b.acknowledged(ctx, catchUp*b.o.Stop); err != nil {
			return b.vain(ctx, err)
		}
	}
	b.parked = time.Now()
	b.f.Parked = true // also when it fails: clients may be waiting
	err := b.o.Parker.Park(ctx, b.mv.Slots)
	if errors.Is(err, ErrUnderWay) {
		if b.f.Tried < underWayMost {
			return b.vain(ctx, err)
		}
		err = nil // they are refused by whoever gave the slots up, and asked again by their fronts
	}
	return err
}

// drain ends copying while clients wait, and has the source give up the slots. What takes too long gives them back.
//
// The source's word is the fence: behind DELSLOTS it refuses whoever still comes to it, one of our own that has not heard or one that
// comes directly. What was written up to then is in its stream, and if there is anything it has the slots again, and it is tried anew.
func (b *batch) drain(ctx context.Context) error {
	soft, cancel := context.WithTimeout(ctx, b.o.Stop)
	defer cancel()
	for try := range barsInVain {
		src := b.s.src
		if try > 0 { // somebody writes who does not wait
			src.add("CLIENT", "PAUSE", strconv.FormatInt(b.o.Stop.Milliseconds(), 10), "WRITE")
		}
		src.add("INFO", "replication")
		if err := b.readToEnd(ctx, soft); err != nil {
			return b.vain(ctx, err)
		}
		if err := b.copyDirty(ctx, reshard.Rate{}); err != nil {
			return err
		}
		if b.o.Replicas > 0 {
			left := b.o.Stop
			if d, ok := soft.Deadline(); ok {
				left = time.Until(d)
			}
			if err := b.acknowledged(ctx, left); err != nil {
				return b.vain(ctx, err)
			}
		}
		b.f.Source.Owner = reshard.Nobody // also if the answer does not come
		src.add(append([]string{"CLUSTER", "DELSLOTS"}, numbers(b.mv.Slots)...)...)
		if try > 0 {
			src.add("CLIENT", "UNPAUSE")
		}
		src.add("CLUSTER", "NODES")
		src.add("INFO", "replication")
		if err := b.readToEnd(ctx, ctx); err != nil {
			return err
		}
		dirty, _, err := b.s.stream.debt(b.big, 0)
		if err != nil {
			return err
		}
		if dirty == 0 {
			b.f.Drained = true
			return nil
		}
		if err := b.readmit(ctx); err != nil {
			return err
		}
	}
	return b.vain(ctx, errBusySlots)
}

// readToEnd sends what was collected for the source, the last of which asks for its offset, and follows its stream to that. If the nodes
// were asked for before, the source's epoch is noted: what it said with it is the last that anybody can hear of its claim.
func (b *batch) readToEnd(ctx, soft context.Context) error {
	src := b.s.src
	reps, err := src.must(ctx)
	if err != nil {
		return err
	}
	n := len(reps)
	if n > 1 && len(reps[n-2].body) > 2 { // not the OK of another command
		v, err := readView(string(reps[n-2].body), b.mv.Slots)
		if err != nil {
			return err
		}
		b.s.epoch = v.epoch[v.me]
	}
	end, err := strconv.ParseInt(fields(reps[n-1].body)["master_repl_offset"], 10, 64)
	if err != nil {
		return fmt.Errorf("read the offset of %s: %w", src.addr, err)
	}
	return b.s.stream.readTo(soft, end)
}

// readmit makes the source the owner of slots that it gave up.
func (b *batch) readmit(ctx context.Context) error {
	for _, words := range [][]string{{"STABLE"}, {"NODE", b.s.from.Primary.ID}} {
		if err := b.atSource(ctx, words...); err != nil {
			return err
		}
	}
	b.f.Source.Owner, b.f.Drained = reshard.BySource, false
	return nil
}

// recall decides, after a primary was replaced, by the target's word alone: either it owns the slots, or they stay the source's. Nothing of
// an earlier session can change that any more, because its connections are ended first.
func (b *batch) recall(ctx context.Context) error {
	b.drop()
	b.f.Seen, b.f.Copy = false, reshard.Copy{}
	from, to, others, err := b.sides()
	if err != nil {
		return err
	}
	s := &session{o: &b.o, from: from, to: to, others: others, peers: map[string]*link{}, name: sessionName(&b.o, from, to)}
	defer s.close()
	if s.tgt, err = s.dial(ctx, to.Primary.Addr); err != nil {
		return err
	}
	if err := s.alone(ctx, s.tgt); err != nil {
		return err
	}
	rep, err := s.tgt.ask(ctx, "CLUSTER", "NODES")
	if err != nil {
		return err
	}
	v, err := readView(string(rep.body), b.mv.Slots)
	if err != nil {
		return err
	}
	if v.me != to.Primary.ID || !v.primary {
		return fmt.Errorf("%s calls itself %s (a primary: %v), and not the primary %s of shard %s", to.Primary.Addr, v.me, v.primary, to.Primary.ID, to.ID)
	}
	switch s.ownerOf(v, b.mv.Slots, true) {
	case reshard.ByTarget:
		return b.store(ctx, reshard.Settling)
	case reshard.Mixed:
		return fmt.Errorf("%w: shard %s has taken a part of the slots, and a primary was replaced meanwhile", ErrHalted, to.ID)
	}
	return b.store(ctx, reshard.Copying)
}

// errBusySlots: somebody writes the slots all the time although clients wait.
var errBusySlots = fmt.Errorf("%w: these slots are written by clients that do not wait", errLate)

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
	if !errors.Is(why, errLate) && !errors.Is(why, ErrUnderWay) && !errors.Is(why, context.DeadlineExceeded) || ctx.Err() != nil {
		return errors.Join(ctx.Err(), why)
	}
	if b.f.Tried++; b.f.Tried >= parksInVain {
		return why
	}
	if b.f.Late = true; !b.f.Parked {
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
	if b.s.told.target {
		if err := b.atTarget(ctx, b.node(true)...); err != nil {
			return err
		}
	} else {
		b.take()
	}
	if err := b.hear(ctx); err != nil {
		return err
	}
	if owner := b.s.ownerOf(b.s.heard, b.mv.Slots, true); owner != reshard.ByTarget {
		return fmt.Errorf("%s did not take the slots: they are of %s by its word", b.s.tgt.addr, owner)
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

// take collects the commands by which the target takes all of the slots or none. A server tells every node of its whole table for each slot
// that it takes under the mark, which takes half a millisecond: so the last one alone has it then, and tells of all.
func (b *batch) take() {
	t := b.s.tgt
	t.add("MULTI")
	addSetSlots(t, b.mv.Slots[:len(b.mv.Slots)-1], []string{"STABLE"})
	b.setSlots(t, b.node(false)...)
	t.add("EXEC")
}

// confirm reads the tenures anew. Whoever is elected from now on is told of the stage that is stored.
func (b *batch) confirm(ctx context.Context) error {
	if b.o.Confirm != nil {
		from, to, err := b.o.Confirm(ctx, b.mv.From, b.mv.To)
		if err != nil {
			return fmt.Errorf("confirm the primaries: %w", err)
		}
		if from+" "+to != b.mv.Tenure {
			return fmt.Errorf("a primary was replaced: it was %q, and is %q", b.mv.Tenure, from+" "+to)
		}
	}
	b.f.Confirmed = true
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

func (b *batch) node(told bool) []string {
	words := []string{"NODE", b.s.to.Primary.ID}
	if told {
		words = append(words, "TIMEOUT", strconv.Itoa(askTimeout))
	}
	return words
}

// tell makes the source and all other primaries know, so that nobody waits for gossip. Of the others it is not needed.
func (b *batch) tell(ctx context.Context) error {
	if err := b.atSource(ctx, b.node(b.s.told.source)...); err != nil {
		return err
	}
	for _, n := range b.s.others {
		if b.s.told.target {
			break // each slot takes a moment there, and gossip is as fast
		}
		if _, err := b.s.ask(ctx, n, func(l *link) { b.setSlots(l, b.node(false)...) }); err != nil && ctx.Err() != nil {
			return ctx.Err()
		} // else gossip tells it
	}
	if err := b.s.look(ctx, b.mv, &b.f); err != nil {
		return err
	}
	b.f.Told = true
	return nil
}
