// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/slots"
)

// A server of a cluster says that it is not responsible, or not yet. It has not carried out the command then, and the client
// never hears of it: the command is tried again, where the present slot map sends it, until it is answered or the time is over.

const (
	turnMin = time.Millisecond // between two attempts
	turnMax = 50 * time.Millisecond
)

// redirects reports whether an error of a cluster's server means: not carried out, it is the business of another one, or of
// another moment.
func redirects(f []byte) bool {
	for _, code := range [...]string{"-MOVED ", "-ASK ", "-TRYAGAIN ", "-CLUSTERDOWN "} {
		if len(f) > len(code) && string(f[:len(code)]) == code {
			return true
		}
	}
	return false
}

// elsewhere returns what a client hears in place of a redirection.
func elsewhere(f []byte) []byte {
	if bytes.HasPrefix(f, []byte("-TRYAGAIN ")) {
		return f
	}
	return resp.AppendError(nil, "TRYAGAIN the command was not executed: the slot of its keys has no primary at the moment, or is on its way to another shard")
}

const keptMost = 256 << 10 // bytes that are kept of commands on one connection

// remember keeps a command in case it is refused, until it is answered.
func (k *conn) remember(e *expect, command []byte) {
	if e.op != opPass && e.op != opPart && e.op != opScript || len(command) > repeatMax || len(k.kept)-k.keptAt+len(command) > keptMost {
		return
	}
	e.kept = int32(len(command))
	k.kept = append(k.kept, command...)
}

// release lets go of what is kept for an entry, the oldest one of its connection.
func (e *expect) release() {
	if e.kept == 0 {
		return
	}
	k := e.from
	k.keptAt, e.kept = k.keptAt+int(e.kept), 0
	switch {
	case k.keptAt == len(k.kept) && cap(k.kept) > repeatMax:
		k.kept, k.keptAt = nil, 0
	case k.keptAt == len(k.kept):
		k.kept, k.keptAt = k.kept[:0], 0
	case k.keptAt > keptMost:
		k.kept, k.keptAt = append(k.kept[:0], k.kept[k.keptAt:]...), 0
	}
}

// reroute has the command at the head of the queue, which was refused with f, tried again elsewhere, and reports whether it is, or
// may still be. The caller holds c.mu.
func (c *client) reroute(e *expect, f []byte) bool {
	k := e.from
	if e.kept == 0 || k.keeps || c.f.ctx.Err() != nil {
		return false
	}
	if !c.turned {
		c.turnEnd = time.Now().Add(c.f.o.Limits.Redirect)
	}
	c.turned, c.full = true, true
	if may, known := c.mayCallLast(e, f); !known || !may {
		return !known
	}
	raw, reply, shard, end := bytes.Clone(k.kept[k.keptAt:k.keptAt+int(e.kept)]), bytes.Clone(f), k.i, c.turnEnd
	slot := -1
	if e.aim != aimNone && e.aim != aimAllKeys {
		slot = int(e.aim) - 1
	}
	e.release()
	c.take(k)
	c.land(e)
	e.turned, e.from = true, nil
	c.f.wg.Go(func() { c.answered(c.goAround(shard, slot, raw, reply, end)) })
	return true
}

// mayCallLast reports whether the command at the head of the queue may be carried out behind all those that are under way: none of them
// may be about its key and have run. A server that has no part in a slot refuses what follows about it on the same connection, too, unless
// it gets the slot in that moment; what is refused as well is tried again after this one. known is false while that cannot be said yet.
func (c *client) mayCallLast(e *expect, f []byte) (may, known bool) {
	behind := c.queue[c.head+1:]
	if len(behind) == 0 {
		return e.from.owed == 1, true
	}
	if e.aim == aimNone || e.aim == aimAllKeys {
		return false, true
	}
	last := -1 // of those about the same slot
	for i := range behind {
		switch o := &behind[i]; {
		case o.op == opCanned, o.op == opMust, o.op == opID, o.op == opJoin && o.x.frames != nil: // about no key, or nothing at a shard
		case o.aim == aimNone || o.aim == aimAllKeys || o.blocks:
			return false, true
		case o.aim == e.aim && (o.from != e.from || o.kept == 0):
			return false, true
		case o.aim == e.aim:
			last = i
		}
	}
	return e.from.refusesToo(f, behind[:last+1], e.aim)
}

// refusesToo reports whether the shard, behind the refusal that comes next from it, has refused all commands of these that are aimed at the
// same slot. known is false while that has not arrived.
func (k *conn) refusesToo(f []byte, behind []expect, aim uint16) (all, known bool) {
	rest := k.view[k.pos+len(f):]
	for i := range behind {
		if behind[i].from != k {
			continue
		}
		for {
			var scan resp.Scanner
			n, err := scan.Next(rest)
			if n == 0 || err != nil {
				return false, err != nil || len(rest) > k.c.f.o.Limits.Held
			}
			f, rest = rest[:n], rest[n:]
			if f[0] != '>' {
				break
			}
		}
		if behind[i].aim == aim && !redirects(f) {
			return false, true
		}
	}
	return true, true
}

// awaitDetour waits until no command is tried again, nor may be: what follows may not overtake it. It is for a goroutine that drives the
// client: the loop handles nothing meanwhile, because the client counts as full. The caller holds c.mu.
func (c *client) awaitDetour() {
	if !c.turned {
		return
	}
	c.writeDirty() // what is said is waited for, and so it must be under way
	for c.turned && !c.over {
		c.sleep()
	}
}

// answered gives the entry at the head of the queue its answer.
func (c *client) answered(reply []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detour = nil
	if c.over {
		return
	}
	if c.head < len(c.queue) && c.queue[c.head].turned {
		e := &c.queue[c.head]
		e.turned = false
		if e.op == opPart {
			e.op, e.silent = opCanned, true
			c.keepPart(e, reply)
		} else {
			e.op, e.canned = opCanned, reply
		}
	}
	c.drain()
	c.out.write()
}

// goAround tries a command again until it is carried out, or the time is over, where the slot is by the present map, and at shard while
// that is not known. reply is the refusal.
func (c *client) goAround(shard, slot int, raw, reply []byte, end time.Time) []byte {
	var d *detour
	defer func() { d.close() }()
	for pause := turnMin; time.Now().Before(end) && !c.isOver(); pause = min(2*pause, turnMax) {
		select {
		case <-time.After(pause):
		case <-c.f.ctx.Done():
			return elsewhere(reply)
		}
		if moved, ok := movedSlot(reply); ok {
			slot = moved
		}
		if slot >= 0 {
			if to := c.f.shardOfSlot(slot); to >= 0 && to < len(c.f.shards()) {
				shard = to
			}
		}
		if d == nil || d.shard != shard {
			d.close()
			var err error
			if d, err = c.detourTo(shard); err != nil {
				continue
			}
		}
		f, err := d.ask(raw, c.f.o.Limits.Output)
		if err != nil {
			return resp.AppendError(nil, unknownOutcome+"the connection to shard "+c.f.shards()[shard].Name+" ended before it answered; it may or may not have been applied")
		}
		if f[0] != '-' || !redirects(f) {
			return f
		}
		reply = f
	}
	return elsewhere(reply)
}

// movedSlot returns the slot that a redirection names.
func movedSlot(f []byte) (int, bool) {
	words := bytes.Fields(f)
	if len(words) < 2 || string(words[0]) != "-MOVED" {
		return 0, false
	}
	n, err := strconv.Atoi(string(words[1]))
	return n, err == nil && n >= 0 && n < slots.Count
}

// detour is a connection for commands that are tried again. A goroutine has it, and its loop wakes that.
type detour struct {
	shard int
	sock  Stream
	wake  chan struct{} // something may have come, or there may be room
	buf   []byte
	scan  resp.Scanner
}

func (d *detour) close() {
	if d != nil {
		d.sock.Close()
	}
}

// event is called by the loop.
func (d *detour) event() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// detourTo opens a connection to a shard, which knows as much of the client as plain commands need. The client changes none of
// that before everything is answered.
func (c *client) detourTo(shard int) (*detour, error) {
	d := &detour{shard: shard, wake: make(chan struct{}, 1)}
	take, err := c.reachShard(shard)
	if err != nil {
		return nil, err
	}
	if d.sock, err = take(d.event); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		d.close()
		return nil, errors.New("the client is gone")
	}
	c.detour = d.sock
	c.mu.Unlock()
	var words [][]byte
	if c.password != nil {
		words = [][]byte{[]byte("AUTH")}
		if c.user != nil {
			words = append(words, c.user)
		}
		words = append(words, c.password)
		if f, err := d.ask(resp.AppendCommand(nil, words...), c.f.o.Limits.Output); err != nil || f[0] == '-' {
			d.close()
			return nil, errors.New("the shard refuses the client's credentials")
		}
	}
	if c.proto == 3 {
		if _, err := d.ask(resp.AppendCommand(nil, "HELLO", "3"), c.f.o.Limits.Output); err != nil {
			d.close()
			return nil, err
		}
	}
	return d, nil
}

// ask sends a command and returns its reply.
func (d *detour) ask(raw []byte, most int) ([]byte, error) {
	for len(raw) > 0 {
		n, err := d.sock.Write(raw)
		if err != nil {
			return nil, err
		}
		if raw = raw[n:]; len(raw) > 0 {
			<-d.wake // an end of the client or of the front shuts the connection, and that is an event, too
		}
	}
	chunk := make([]byte, inputMin)
	for {
		f, err := d.next()
		if f != nil || err != nil {
			return f, err
		}
		if len(d.buf) > most {
			return nil, errors.New("the reply is too long")
		}
		n, err := d.sock.Read(chunk)
		if d.buf = append(d.buf, chunk[:n]...); n > 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		<-d.wake
	}
}

// next takes a complete reply out of what has come; nil: there is none.
func (d *detour) next() ([]byte, error) {
	for len(d.buf) > 0 {
		n, err := d.scan.Next(d.buf)
		if n == 0 || err != nil {
			return nil, err
		}
		f := d.buf[:n:n]
		if d.buf = d.buf[n:]; f[0] != '>' {
			return f, nil
		}
	}
	return nil, nil
}
