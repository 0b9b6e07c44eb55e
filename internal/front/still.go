// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"slices"
	"time"

	"redoubt/internal/route"
)

// A ring changes as a whole, between two commands of everybody (ADR 46): before it nothing is given to a shard any more, and it is waited until all that
// was given is answered. Behind it the new ring says where commands go.

// Ring is what is agreed of a ring. It is immutable.
type Ring struct {
	Gen   uint64               // grows with each change
	Place func(key []byte) int // the number of the shard that has the key; safe for concurrent use
	Live  []int                // numbers of the shards that have a part in it
}

// ringOf returns the present ring; nil: the shards are those of the options, and keys are where Options.Place says.
func (f *Front) ringOf() *Ring {
	if f.o.Ring == nil {
		return nil
	}
	return f.o.Ring()
}

// gen is the present ring's.
func (f *Front) gen() uint64 {
	if r := f.ringOf(); r != nil {
		return r.Gen
	}
	return 0
}

// live are the numbers of the shards that clients have to do with.
func (f *Front) live() []int {
	if r := f.ringOf(); r != nil {
		return r.Live
	}
	all := make([]int, 0, len(f.shards()))
	for i, s := range f.shards() {
		if !s.gone {
			all = append(all, i)
		}
	}
	return all
}

// Still gives nothing to a shard any more, until Resume. It returns at once.
func (f *Front) Still() {
	over := make(chan struct{})
	f.still.CompareAndSwap(nil, &over)
}

// Resume ends what Still began.
func (f *Front) Resume() {
	if over := f.still.Swap(nil); over != nil {
		close(*over)
	}
}

// Busy returns how many clients wait for an answer of a shard, without those who wait in a command that blocks, if blocking is false. Behind Still
// it comes to zero and stays there.
func (f *Front) Busy(blocking bool) int {
	n := 0
	for _, c := range f.all() {
		if c.busy(blocking) {
			n++
		}
	}
	return n
}

func (c *client) busy(blocking bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head == len(c.queue) || c.over {
		return c.handling.Load() && !c.over
	}
	return blocking || slices.ContainsFunc(c.queue[c.head:], func(e expect) bool { return !e.blocks })
}

// EndListeners disconnects the clients that have subscriptions: what is published about a channel is another shard's business behind a change.
func (f *Front) EndListeners() {
	for _, c := range f.all() {
		c.mu.Lock()
		listens := slices.ContainsFunc(c.conns, func(k *conn) bool { return k != nil && k.subs > 0 })
		c.mu.Unlock()
		if listens {
			c.kill()
		}
	}
}

const stillLook = 20 * time.Millisecond // a waiting client's end is noticed within it

// beginHandling notes that commands are being handled: who wants stillness either sees this, or is seen.
func (c *client) beginHandling() {
	if c.f.o.Ring != nil {
		c.handling.Store(true)
	}
}

func (c *client) endHandling() {
	if c.f.o.Ring != nil {
		c.handling.Store(false)
	}
}

// awaitRing waits until commands may be given to shards. It is for a goroutine that drives the client.
func (c *client) awaitRing() {
	for over := c.f.still.Load(); over != nil && !c.isOver(); over = c.f.still.Load() {
		c.flush() // what it said before is what is waited for
		c.handling.Store(false)
		look := time.NewTimer(stillLook)
		select {
		case <-*over:
		case <-look.C:
		case <-c.f.ctx.Done():
			look.Stop()
			return
		}
		look.Stop()
		c.handling.Store(true)
	}
}

// blockInRing passes a command that may block, and does so again when the ring has changed meanwhile.
func (c *client) blockInRing(v route.Verdict, args [][]byte, raw []byte) {
	for {
		shard, text := c.shardOf(v, args)
		if text != "" {
			c.refuse(text)
			return
		}
		k := c.connTo(shard)
		if k == nil {
			return
		}
		x := &extra{}
		c.vis.blocked.Store(k)
		c.send(expect{op: opAsk, from: k, x: x, blocks: true}, raw, true)
		alive := c.settle()
		c.vis.blocked.Store(nil)
		if !alive || x.reply == nil {
			return
		}
		if !bytes.HasPrefix(x.reply, []byte("-"+route.KeysMove)) {
			c.say(x.reply)
			return
		}
		c.awaitRing()
	}
}

// EndBusy disconnects the clients that still wait for an answer of a shard.
func (f *Front) EndBusy() {
	for _, c := range f.all() {
		if c.busy(true) {
			c.kill()
		}
	}
}
