// SPDX-License-Identifier: Apache-2.0

package front

import (
	"slices"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// Who drives a client: its loop, or a goroutine where something has to be waited for.

// mayWait reports whether a command's procedure may have to wait for something: what is not simply put on its way.
func (c *client) mayWait(v route.Verdict, args [][]byte) bool {
	if v.Class > route.Write || c.txn.on || c.f.still.Load() != nil || v.Row.Name == "RANDOMKEY" || c.held(v, args) != nil {
		return true
	}
	return c.f.o.Join == nil && !c.connected()
}

// connected reports whether the client has a connection to each shard.
func (c *client) connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.Contains(c.conns, nil)
}

// event is called by the loop: there may be something to read, room to write, an end to see, or an answer that was waited for.
func (c *client) event() {
	c.mu.Lock()
	c.out.ready()
	driven := c.driven
	if driven {
		c.hint = true
		c.cond.Broadcast()
	}
	c.mu.Unlock()
	if !driven {
		c.turn()
	}
}

// turn reads once, on the loop, and handles what is complete.
func (c *client) turn() {
	c.mu.Lock()
	over, full, rehomes := c.over, c.full, c.rehomes
	c.mu.Unlock()
	if full && !over {
		return // stir has it go on
	}
	if rehomes && !over {
		c.rehome()
	}
	if !over && c.f.mover.Load() != nil && c.leaveOnLoop() {
		return
	}
	if over || !c.handleOnLoop() {
		c.drive()
	}
}

// handleOnLoop is a turn of a client that is not over. It reports false when a goroutine has to go on.
func (c *client) handleOnLoop() bool {
	c.onLoop = true
	c.takeParser()
	more := c.more
	if !more && !c.borrow() {
		return false
	}
	how, err := c.commands()
	c.bad, c.more = err, how == someOf
	c.store()
	c.flush()
	if how == waiting || err != nil || c.eof || c.w-c.r > inputKept && !c.more || c.isOver() {
		return false
	}
	if (more || c.more) && !c.full {
		c.sock.Again() // nothing was read, or not all of it handled
	}
	return true
}

// borrow reads into the loop's memory, with what the client has of an incomplete command in front; or, when that is long, into
// memory of its own. It reports false when there is too much of it.
func (c *client) borrow() bool {
	have := c.w - c.r
	if input := c.f.scratches[c.loop].input; have <= len(input)/2 {
		c.stash = c.in
		copy(input, c.in[c.r:c.w])
		c.in, c.r, c.w = input, 0, have
	} else if !c.makeRoom() {
		return false
	}
	c.read()
	return true
}

// read reads what has come, and reports whether that was something.
func (c *client) read() bool {
	n, err := c.sock.Read(c.in[c.w:])
	c.w += n
	c.eof = c.eof || err != nil
	if now := c.f.tick.Load(); n > 0 && c.vis.seen.Load() != now {
		c.vis.seen.Store(now)
	}
	return n > 0
}

// takeParser gives the client a parser if it has none: its loop's, whose memory is warm.
func (c *client) takeParser() {
	if c.parser == nil {
		mine := &c.f.scratches[c.loop].parser
		if c.parser, *mine = *mine, nil; c.parser == nil {
			c.parser = &resp.Parser{}
		}
	}
}

// store saves what is left of the input before the loop's memory is used for another client.
func (c *client) store() {
	left := c.in[c.r:c.w]
	if len(left) == 0 {
		c.f.scratches[c.loop].parser, c.parser = c.parser, nil
	}
	if len(c.in) > 0 && &c.in[0] == &c.f.scratches[c.loop].input[0] {
		c.in = append(c.stash[:0], left...)
		c.in = c.in[:cap(c.in)]
		c.r, c.w, c.stash = 0, len(left), nil
	}
	if len(left) == 0 && len(c.in) > stashKept {
		c.in, c.r, c.w = nil, 0, 0
	}
}

// drive has a goroutine go on with the client.
func (c *client) drive() {
	c.onLoop = false
	c.mu.Lock()
	c.driven, c.hint = true, true
	c.mu.Unlock()
	c.f.wg.Go(c.serve)
}

// giveBack has the loop go on, and reports false when there is something left to do here.
func (c *client) giveBack() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	c.driven = false
	c.sock.Again()
	return true
}

// serve is the goroutine that drives the client for a while.
func (c *client) serve() {
	if c.parser == nil {
		c.parser = &resp.Parser{}
	}
	for {
		how := allOf
		if c.bad == nil && !c.isOver() {
			how, c.bad = c.commands()
		}
		c.flush()
		if (c.f.mover.Load() != nil || len(c.carried) > 0) && c.leaves() {
			return
		}
		switch {
		case c.bad != nil:
			if c.settle() {
				c.say(resp.AppendError(nil, "ERR "+c.bad.Error()))
				c.flush()
			}
		case c.isOver() || c.leaving:
			c.settle()
		case !c.room(c.f.o.Limits.Pipeline, c.f.o.Limits.Pipeline/2):
		case how == someOf || !c.eof && c.fill():
			continue
		case !c.eof && c.giveBack():
			return
		case c.eof && !c.isOver():
			c.settle() // it may have closed only its own side
			c.flush()
		}
		c.end()
		return
	}
}

// fill reads more input. It reports false when nothing has come, or no more will.
func (c *client) fill() bool {
	if !c.makeRoom() {
		return false
	}
	for !c.read() {
		if c.eof || c.w-c.r <= inputKept {
			return false
		}
		c.mu.Lock()
		for !c.hint && !c.over {
			c.sleep()
		}
		c.hint = false
		over := c.over
		c.mu.Unlock()
		if over {
			return false
		}
	}
	return true
}

// makeRoom makes room behind what is read, in memory of the client's own. It reports false when there is too much of it.
func (c *client) makeRoom() bool {
	have := c.w - c.r
	switch {
	case have == 0:
		switch size := len(c.in); {
		case size < inputMin || size > inputKept:
			c.in = make([]byte, inputMin)
		case c.w == size && size < inputKept: // it sends more than that at a time
			c.in = make([]byte, 2*size)
		}
		c.r, c.w = 0, 0
	case c.w == len(c.in) && c.r > 0:
		copy(c.in, c.in[c.r:c.w])
		c.r, c.w = 0, have
	}
	if c.w == len(c.in) {
		if have >= c.f.o.Limits.Query {
			c.f.log.Warn("client disconnected: its input exceeds the limit", "client", c.id, "bytes", have)
			c.kill()
			return false
		}
		grown := make([]byte, min(max(2*len(c.in), have+c.parser.Missing(have)), c.f.o.Limits.Query+1))
		copy(grown, c.in[c.r:c.w])
		c.in, c.r, c.w = grown, 0, have
	}
	return true
}

// end lets go of everything that the client had, once it has taken what it was given.
func (c *client) end() {
	c.mu.Lock()
	c.over = true
	impatience := time.AfterFunc(lastWords, c.kill)
	for c.out.write(); !c.out.broken && c.out.size() > 0; {
		c.sleep()
		impatience.Reset(lastWords) // it has taken something
	}
	impatience.Stop()
	c.sock.Close()
	if c.detour != nil {
		c.detour.Shut() // its goroutine closes it
	}
	for _, k := range c.conns {
		if k != nil {
			k.sock.Close()
		}
	}
	for i := c.head; i < len(c.queue); i++ {
		c.land(&c.queue[i])
	}
	c.mu.Unlock()
	c.f.forget(c)
}
