// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"redoubt/internal/route"
	"redoubt/internal/slots"
)

// While slots are handed over from one shard to another, commands about them wait here. It is a courtesy: whoever comes to the former owner
// all the same is refused there, and tries again. So a hold ends by itself, should whoever asked for it be gone.

// What an entry of a queue is aimed at, as it is counted: nothing, a slot (its number and one), or all keys of all shards.
const (
	aimNone    = 0
	aimAllKeys = slots.Count + 1
	aims       = slots.Count + 2
)

const holdLook = 20 * time.Millisecond // a held client's end is noticed within it

// hold is some slots that are held.
type hold struct {
	slots [aims/64 + 1]uint64
	over  chan struct{} // closed when it ends
	timer *time.Timer
}

func (h *hold) has(aim int) bool { return h.slots[aim/64]&(1<<(aim%64)) != 0 }

// holds is what a front knows about it.
type holds struct {
	now    atomic.Pointer[hold] // nil: nothing is held
	flying [aims]atomic.Int32   // commands that are not answered, by what they are aimed at
}

// Hold has commands about these slots wait, in place of what was held before, and those that delete all keys. It returns when none is under way
// any more, or ctx ends: left is how many are. It ends by itself after a while.
func (f *Front) Hold(ctx context.Context, which []int, most time.Duration) (left int) {
	h := &hold{over: make(chan struct{})}
	for _, aim := range append([]int{aimAllKeys - 1}, which...) {
		if aim >= 0 && aim < aimAllKeys {
			h.slots[(aim+1)/64] |= 1 << ((aim + 1) % 64)
		}
	}
	h.timer = time.AfterFunc(most, func() { f.endHold(h) })
	f.swapHold(f.holds.now.Swap(h))
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for {
		left = int(f.holds.flying[aimAllKeys].Load())
		for _, s := range which {
			left += int(f.holds.flying[s+1].Load())
		}
		if left <= 0 {
			return 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return left
		}
	}
}

// Release ends what is held. The present slot map says where commands go then.
func (f *Front) Release() {
	if h := f.holds.now.Load(); h != nil {
		f.endHold(h)
	}
}

func (f *Front) endHold(h *hold) {
	if f.holds.now.CompareAndSwap(h, nil) {
		f.swapHold(h)
	}
}

// swapHold lets those go on that wait for h, which is in force no more.
func (f *Front) swapHold(h *hold) {
	if h != nil {
		h.timer.Stop()
		close(h.over)
	}
}

// held returns what a command has to wait for; nil: nothing.
func (c *client) held(v route.Verdict, args [][]byte) *hold {
	h := c.f.holds.now.Load()
	if h == nil || c.f.o.Cluster == nil {
		return nil
	}
	if name := v.Row.Name; name == "FLUSHALL" || name == "FLUSHDB" || name == "EXEC" && c.txn.keyed && h.has(c.txn.group+1) {
		return h
	}
	c.idx = v.Row.Keys(args, c.idx[:0])
	if slices.ContainsFunc(c.idx, func(i int) bool { return h.has(slots.Of(args[i]) + 1) }) {
		return h
	}
	return nil
}

// await waits until a command is not held any more. It is for a goroutine that drives the client.
func (c *client) await(v route.Verdict, args [][]byte) {
	for h := c.held(v, args); h != nil && !c.isOver(); h = c.held(v, args) {
		c.flush() // what it said before may be what is waited for
		look := time.NewTimer(holdLook)
		select {
		case <-h.over:
		case <-look.C:
		case <-c.f.ctx.Done():
			look.Stop()
			return
		}
		look.Stop()
	}
}

// takeOff counts an entry that is put into the queue; the caller holds c.mu.
func (c *client) takeOff(e *expect) {
	if c.aim == aimNone || e.blocks || e.from == nil && e.op != opJoin {
		return
	}
	e.aim = uint16(c.aim)
	c.f.holds.flying[e.aim].Add(1)
}

// land counts an entry that waits for nothing at a shard any more; the caller holds c.mu.
func (c *client) land(e *expect) {
	if e.aim != aimNone {
		c.f.holds.flying[e.aim].Add(-1)
		e.aim = aimNone
	}
}
