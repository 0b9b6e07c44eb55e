// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"slices"

	"redoubt/internal/resp"
)

// op says what is done with the reply that an entry of the queue waits for.
type op uint8

const (
	opPass   op = iota // it goes to the client
	opCanned           // there is none: the client gets entry.canned
	opDrop             // nobody gets it
	opMust             // nobody gets it, but an error ends the client
	opID               // it is the connection's id
	opAsk              // the client's goroutine gets it
	opTell             // both get it
	opJoin             // several become one
	opScan             // its cursor is made one of all shards
	opSub              // the shards confirm a subscription, or its end
	opScript           // it may say that the shard does not know a script or function
	opPart             // it is kept for the opJoin that follows: one connection has several parts of it
)

const tooLong = "ERR a reply is longer than what is held for one client"

// expect is an entry of a client's queue: one reply that it is owed, or one that a shard owes to the front.
type expect struct {
	from   *conn // opCanned, opJoin, opSub: nil
	x      *extra
	canned []byte
	op     op
	part   int32  // opPart: which one
	kept   int32  // bytes that its connection keeps of the command, in case it is refused
	aim    uint16 // what it is counted under, see hold.go
	silent bool   // the client has switched its replies off
	blocks bool
	turned bool // there is no reply yet: the command is tried again
}

// extra is what only some entries need.
type extra struct {
	parts  []*conn // opJoin, opSub
	join   join
	order  []int  // of a split command: for each key the index of its part
	reply  []byte // opAsk, opTell; opSub: an error
	sub    *subscription
	raw    []byte // opScript: the command; nil: it is not to be repeated
	row    string
	before int // replies of from to be dropped before the one that counts

	frames [][]byte // of the opParts of a joined reply; nil: they are taken from parts
	held   int      // bytes of them
}

// push appends an entry, with what is to be sent to e.from for it. Only who drives the client calls it.
func (c *client) push(e expect, command []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitDetour()
	c.pushLocked(e, command)
}

func (c *client) pushLocked(e expect, command []byte) {
	if e.from != nil {
		c.give(e.from, command)
	}
	c.owe(e, command)
}

// owe appends an entry whose command is on its way. The caller holds c.mu.
func (c *client) owe(e expect, command []byte) {
	if k := e.from; k != nil {
		k.owed++
		if c.f.o.Cluster != nil {
			k.remember(&e, command)
		}
	}
	if e.blocks {
		c.blocked++
	}
	c.takeOff(&e)
	if c.head == len(c.queue) {
		c.queue, c.head = c.queue[:0], 0
	} else if c.head > 256 && 2*c.head > len(c.queue) {
		n := copy(c.queue, c.queue[c.head:])
		clear(c.queue[n:])
		c.queue, c.head = c.queue[:n], 0
	}
	c.queue = append(c.queue, e)
	if len(c.queue)-c.head >= c.f.o.Limits.Pipeline {
		c.full = true
	}
	if e.from == nil {
		c.local = true // it may be due at once
	}
}

// offer has a shard take the present command, or raw, which is a part of it, without its being written. The caller holds c.mu.
func (c *client) offer(k *conn, raw []byte) bool {
	return c.onLoop && !k.gone && k.out.size() == 0 && k.sock.Offer(c.verdict, c.words, raw)
}

// give puts a command into what is to be written to a shard. The caller holds c.mu.
func (c *client) give(k *conn, command []byte) {
	k.out.buf = append(k.out.buf, command...)
	k.out.grown()
	if k.out.size() > behindMax {
		c.full = true
	}
	if !k.dirty {
		k.dirty = true
		c.dirty = append(c.dirty, k)
	}
	if k.gone {
		c.fail("ERR the connection to shard " + k.name() + " ended")
	}
}

// say answers the client itself, behind what it is owed.
func (c *client) say(reply []byte) {
	c.push(expect{op: opCanned, canned: reply, silent: c.mute}, nil)
}

// refuse answers with an error.
func (c *client) refuse(text string) { c.say(resp.AppendError(nil, text)) }

// append gives the client bytes. The caller holds c.mu.
func (c *client) append(b []byte) {
	if c.out.broken || c.over {
		return
	}
	c.out.buf = append(c.out.buf, b...)
	c.measure()
}

// measure ends a client that does not take what it is given.
func (c *client) measure() {
	c.out.grown()
	if c.out.size() > c.f.o.Limits.Output && !c.over {
		c.f.log.Warn("client disconnected: it does not take its replies", "client", c.id, "bytes", c.out.size())
		c.over, c.out.broken, c.out.buf = true, true, nil
		c.sock.Shut()
		c.cond.Broadcast()
	}
}

// drain gives the client what it is owed, as far as the shards have answered. The caller holds c.mu.
func (c *client) drain() {
	for c.head < len(c.queue) && !c.over {
		e := &c.queue[c.head]
		if !c.one(e) {
			break
		}
		if e.blocks {
			c.blocked--
		}
		c.land(e)
		e.release()
		*e = expect{}
		c.head++
	}
	if c.head == len(c.queue) {
		c.turned = false
	}
	if c.stream == nil && c.ahead > 0 {
		for _, k := range c.conns { // messages do not wait for a turn
			if k != nil && k.size == 0 && k.pos < len(k.view) {
				k.front()
			}
		}
	}
	c.stir()
}

// one handles the entry at the head of the queue and reports whether it is done.
func (c *client) one(e *expect) bool {
	if e.turned {
		return false
	}
	switch e.op {
	case opCanned:
		if !e.silent {
			c.append(e.canned)
		}
		return true
	case opJoin:
		return c.joined(e)
	case opSub:
		return c.subscribed(e)
	}
	k := e.from
	for e.x != nil && e.x.before > 0 {
		if k.front() == nil {
			return false
		}
		c.take(k)
		e.x.before--
	}
	if c.stream == k {
		return c.passOn(e)
	}
	f := k.front()
	if f == nil {
		return (e.op == opPass || e.op == opScript) && c.passOn(e)
	}
	if f[0] == '-' && c.f.o.Cluster != nil && redirects(f) {
		if c.reroute(e, f) {
			return false // it is tried again; its entry gets the answer
		}
		f = elsewhere(f)
	}
	switch e.op {
	case opPass:
		if !e.silent {
			c.append(f)
		}
	case opPart:
		if !c.keepPart(e, bytes.Clone(f)) {
			return false
		}
	case opMust:
		if f[0] == '-' {
			c.fail(string(resp.Text(f)))
		}
	case opID:
		if f[0] == ':' {
			k.id = bytes.Clone(resp.Text(f))
		}
	case opAsk:
		e.x.reply = bytes.Clone(f)
	case opTell:
		e.x.reply = bytes.Clone(f)
		if !e.silent {
			c.append(f)
		}
	case opScan:
		if !e.silent {
			c.out.buf = c.scanned(c.out.buf, f, k.i)
			c.measure()
		}
	case opScript:
		if f[0] == '-' && c.repeat(e, f) {
			return false
		}
		if !e.silent {
			c.append(f)
		}
	}
	c.take(k)
	return true
}

// keepPart keeps the reply to a part until all are there, and reports false when that is too much.
func (c *client) keepPart(e *expect, f []byte) bool {
	e.x.frames[e.part] = f
	if e.x.held += len(f); e.x.held > c.f.o.Limits.Output {
		c.fail(tooLong)
		return false
	}
	return true
}

// take takes a reply that a shard owed.
func (c *client) take(k *conn) {
	k.taken()
	k.owed--
}

// passOn hands on as much of the reply at the head as has arrived, if it is a long one, and reports whether that was all of it.
func (c *client) passOn(e *expect) bool {
	k := e.from
	have := k.view[k.pos:]
	if len(have) == 0 || c.stream == nil && (len(have) < streamFrom || have[0] == '>' || have[0] == '-' || k.subs > 0) {
		return false
	}
	n := 0
	done := false
	if c.stream == k {
		var err error
		if n, err = k.scan.Next(have); err != nil {
			c.endLocked() // in the middle of a reply, nothing can be said
			return false
		}
		done = n > 0
	}
	if !done {
		n = k.scan.Drop(have)
	}
	if !e.silent {
		c.append(have[:n])
	}
	k.pos += n
	if done {
		k.owed--
		c.stream = nil
	} else if n > 0 {
		c.stream = k
	}
	return done
}

// joined makes one reply of those of several shards, when they are all there.
func (c *client) joined(e *expect) bool {
	if e.x.frames != nil {
		if !e.silent {
			c.joinFrames(e.x, e.x.frames)
		}
		return true
	}
	frames := c.frames[:0]
	held, all := 0, true
	for _, k := range e.x.parts {
		f := k.front()
		frames, all = append(frames, f), all && f != nil
		held += len(k.view) - k.pos
	}
	c.frames = frames
	defer clear(frames) // they are the connections'
	if held > c.f.o.Limits.Output {
		c.fail(tooLong)
		return false
	}
	if !all {
		return false
	}
	if !e.silent {
		c.joinFrames(e.x, frames)
	}
	for _, k := range e.x.parts {
		c.take(k)
	}
	return true
}

// joinFrames gives the client the one reply that several are.
func (c *client) joinFrames(x *extra, frames [][]byte) {
	if bad := slices.IndexFunc(frames, func(f []byte) bool { return f[0] == '-' }); bad >= 0 && !x.join.forgives {
		f := x.join.failed(frames, bad)
		if c.f.o.Cluster != nil && redirects(f) {
			f = elsewhere(f)
		}
		c.append(f)
		return
	}
	c.out.buf = x.join.make(c.out.buf, c, x, frames)
	c.measure()
}

// ask sends a command to some connections, when everything before it is answered, and returns their replies; nil when the client
// is gone.
func (c *client) ask(command []byte, to ...*conn) [][]byte {
	if !c.settle() {
		return nil
	}
	xs := make([]*extra, len(to))
	for i, k := range to {
		xs[i] = &extra{}
		c.push(expect{op: opAsk, from: k, x: xs[i]}, command)
	}
	if !c.settle() {
		return nil
	}
	replies := make([][]byte, len(to))
	for i, x := range xs {
		if replies[i] = x.reply; x.reply == nil {
			return nil
		}
	}
	return replies
}
