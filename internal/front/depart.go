// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"slices"
	"time"
)

// A client leaves for another process, see leave.go. Who drives it lets go of it: its loop, if nothing has to be waited for, or a goroutine.

const (
	departPatience = 30 * time.Millisecond // for one connection to a shard, before the client is served again
	lastMessages   = time.Second           // for the client to take what its connections had still got
)

// departed is a connection to a shard that has left already.
type departed struct {
	RecordShard
	i    int // number of the shard
	file int // descriptor; -1: none
}

// mayLeave returns the hand-over that the client is to take part in, and can; nil: it goes on as ever. Only who drives the client calls it.
func (c *client) mayLeave() *leaving {
	m := c.f.mover.Load()
	if m == nil || c.stays || c.eof || c.bad != nil || c.leaving || c.w-c.r > inputMax {
		return nil
	}
	return m
}

// calm reports whether nothing of the client is under way, but for what its connections that have left had still got. The caller holds c.mu.
func (c *client) calm() bool {
	return c.head == len(c.queue) && (c.out.size() == 0 || len(c.carried) > 0) && len(c.dirty) == 0 && c.stream == nil && !c.turned && c.detour == nil && !c.rehomes && len(c.adrift) == 0 &&
		len(c.retried) == 0 && c.blocked == 0
}

// carries returns the connections that another one would not do for: they hold something, or are what is known of the client's writes. The caller holds c.mu.
func (c *client) carries() []*conn {
	told := slices.ContainsFunc(c.settings, func(s setting) bool { return s.key == "MAINT_NOTIFICATIONS" })
	var some []*conn
	for _, k := range c.conns {
		if k != nil && (told || k.keeps || k.wrote || k.subs > 0) {
			some = append(some, k)
		}
	}
	return some
}

// leaveOnLoop lets the client go, if nothing has to be waited for; else it is asked again. It reports false when it is to be served on.
func (c *client) leaveOnLoop() bool {
	m := c.mayLeave()
	if m == nil {
		return false
	}
	c.mu.Lock()
	if c.rehomes && c.txn.on { // it is read from: EXEC comes first, see rehome
		c.mu.Unlock()
		return false
	}
	calm := c.calm()
	waits := calm && len(c.carries()) > 0
	c.mu.Unlock()
	switch {
	case waits:
		c.drive()
	case calm:
		return c.giveAway(m)
	}
	return true
}

// leaves lets the client go, on the goroutine that drives it. It reports false when it is to be served on.
func (c *client) leaves() bool {
	if c.tryToLeave() {
		return true
	}
	if len(c.carried) > 0 {
		c.welcomeBack()
	}
	return false
}

func (c *client) tryToLeave() bool {
	m := c.mayLeave()
	if m == nil || !c.settle() || c.eof {
		return false
	}
	c.mu.Lock()
	calm, some := c.calm(), c.carries()
	c.mu.Unlock()
	if !calm {
		return false
	}
	for _, k := range some {
		if !c.carry(k) {
			return false
		}
	}
	return c.takesLast() && c.giveAway(m)
}

// takesLast waits until the client has taken what came on its connections before they left. It reports false when it does not, which is its end.
func (c *client) takesLast() bool {
	impatience := time.AfterFunc(lastMessages, c.look)
	defer impatience.Stop()
	end := time.Now().Add(lastMessages)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.out.write(); c.out.size() > 0 && !c.over; {
		if time.Now().After(end) {
			c.endLocked()
			break
		}
		c.sleep()
	}
	return !c.over
}

// carry takes a connection to a shard along. It reports false when that cannot be at the moment.
func (c *client) carry(k *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.carryLocked(k)
	return ok
}

// carryLocked is carry for who holds c.mu, which it lets go of for a while. A command that waited there is not waited for any more: it is returned.
func (c *client) carryLocked(k *conn) (input []byte, ok bool) {
	if k.gone || c.over || c.f.o.Rejoin == nil {
		return nil, false
	}
	k.departs = true
	c.mu.Unlock()
	record, file, input, ok := k.sock.Depart(departPatience)
	c.mu.Lock()
	if !ok {
		if k.departs = false; k.gone { // it has ended meanwhile, for another reason
			c.fail("ERR the connection to shard " + k.name() + " ended, and with it what it held for this client")
		}
		return nil, false
	}
	for !k.gone && !c.over { // its last words come first
		c.sleep()
	}
	c.carried = append(c.carried, departed{
		RecordShard{Shard: k.name(), Record: record, File: file >= 0, Keeps: k.keeps, Wrote: k.wrote, Subs: k.subs, ID: string(k.id)}, k.i, file,
	})
	return input, true
}

// left notes that the connection has come to its end because its other side has departed. The caller holds c.mu.
func (c *client) left(k *conn) {
	k.gone = true
	k.sock.Close()
	if k.paused {
		c.paused--
	}
	if k.ahead {
		c.ahead--
	}
	if c.conns[k.i] == k {
		c.conns[k.i] = nil
	}
	c.cond.Broadcast()
}

// takeBack takes the client out of a command that blocks, if that is all that it waits for and it is to leave: the command goes in front of its input, with
// the time that it still has. The caller holds c.mu, and is no loop. It reports whether nothing is waited for any more.
func (c *client) takeBack() bool {
	if c.blocked != 1 || c.head+1 != len(c.queue) || c.mayLeave() == nil {
		return false
	}
	e := &c.queue[c.head]
	k := e.from
	if !e.blocks || e.op != opPass && e.op != opAsk || k == nil || k.owed != 1 {
		return false
	}
	input, ok := c.carryLocked(k)
	if !ok || input == nil || c.head+1 != len(c.queue) {
		return false // it may have been answered
	}
	c.skip = c.skip || c.queue[c.head].silent && !c.quiet // it was for this command
	c.blocked--
	c.land(&c.queue[c.head])
	c.queue[c.head] = expect{}
	c.head++
	c.back = input
	return true
}

// putBack puts the command in front of the input that takeBack has taken, if there is one.
func (c *client) putBack() {
	if c.back == nil {
		return
	}
	c.in = append(bytes.Clone(c.back), c.in[c.r:c.w]...)
	c.r, c.w, c.back = 0, len(c.in), nil
	c.parser.Reset()
}

// giveAway lets go of the client. It reports false when the hand-over has ended.
func (c *client) giveAway(m *leaving) bool {
	f := c.f
	f.moving.RLock()
	if f.mover.Load() != m {
		f.moving.RUnlock()
		return false
	}
	m.begun.Add(1)
	f.moving.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	g := Given{Record: c.record(), Client: -1}
	for _, d := range c.carried {
		g.Shards = append(g.Shards, d.file)
	}
	c.driven, c.away, c.carried = true, true, nil
	for _, k := range c.conns {
		if k != nil {
			k.gone = true
			k.sock.Close()
		}
	}
	c.sock.Release(func(fd int) {
		g.Client = fd
		f.forget(c)
		m.given <- g
	})
	return true
}

// welcomeBack makes the connections anew that have departed already, and goes on.
func (c *client) welcomeBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		closeFiles(c.carried)
		c.carried = nil
	}
	for n, d := range c.carried {
		if err := c.rejoin(d); err != nil {
			closeFiles(c.carried[n+1:])
			c.fail("ERR the connection to shard " + d.Shard + " ended, and with it what it held for this client")
			break
		}
	}
	c.carried = nil
}

// rejoin makes the connection that another one was, there or here. It owns the descriptor, also when it fails. The caller holds c.mu.
func (c *client) rejoin(d departed) error {
	k := &conn{c: c, i: d.i, wrote: d.Wrote, keeps: d.Keeps, subs: d.Subs}
	if d.ID != "" {
		k.id = []byte(d.ID)
	}
	var err error
	if k.sock, err = c.f.o.Rejoin(k.i, c.loop, k.event, d.Record, d.file); err != nil {
		return err
	}
	k.begin()
	for _, held := range []**conn{&c.watch, &c.txn.to} {
		if old := *held; old != nil && old.gone && old.i == k.i {
			*held = k
		}
	}
	return nil
}

func closeFiles(some []departed) {
	for _, d := range some {
		Given{Client: d.file}.close()
	}
}
