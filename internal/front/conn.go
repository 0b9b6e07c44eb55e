// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"errors"
	"fmt"

	"redoubt/internal/resp"
)

const (
	storeKept  = 4 << 10
	writeFrom  = 4 << 10  // bytes for a client that are written while they are warm, and not at the end of the round
	streamFrom = 64 << 10 // bytes of an incomplete reply; from here on it is handed on while it arrives
)

// conn is one client's connection to one shard. What arrives is in view; it is taken out in the order of the client's queue.
type conn struct {
	c     *client
	sock  Stream
	i     int  // number of the shard
	dirty bool // who drives the client has put something into out; its own
	wrote bool // a command that may write was sent; owned by who drives the client

	// Guarded by client.mu. What plain commands touch comes first: of many clients it is cold, and so it is in few lines of the processor's cache.
	gone    bool   // it is not used any more
	paused  bool   // it is not read from, because its shard is far enough ahead
	ahead   bool   // something has come that is not taken, as own found it
	keeps   bool   // it holds a state that another connection would not have: WATCH, MULTI, tracking
	owed    int    // replies that the queue expects of it
	subs    int    // subscriptions that the shard has confirmed
	departs bool   // it goes on in another process: its end is no loss
	view    []byte // what has arrived and is not taken: view[pos:]
	store   []byte // the memory of view, unless that is what was just read
	pos     int
	size    int // of the complete reply at pos; 0: not known
	out     outlet
	scan    resp.Scanner
	id      []byte // of the connection at the shard, as digits; nil: not known
	kept    []byte // a cluster's: the commands that are not answered, in case they are to be tried again: kept[keptAt:]
	keptAt  int
}

// name returns the name of its shard.
func (k *conn) name() string { return k.c.f.shards()[k.i].Name }

// to returns the client's connection to a shard, which is opened if there is none.
func (c *client) to(i int) (*conn, error) {
	k := c.have(i)
	if k != nil {
		return k, nil
	}
	if !c.onLoop {
		c.mu.Lock()
		c.awaitDetour() // nothing new is said meanwhile
		c.mu.Unlock()
	}
	k = &conn{c: c, i: i}
	if err := k.connect(); err != nil {
		c.f.log.Warn("a shard cannot be reached", "shard", k.name(), "err", err)
		return nil, fmt.Errorf("shard %s cannot be reached", k.name())
	}
	c.introduce(k)
	return k, nil
}

// have returns the client's connection to a shard; nil: there is none.
func (c *client) have(i int) *conn {
	if !c.onLoop { // which is where connections are made and lost
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	if i >= len(c.conns) {
		return nil // a shard that came later
	}
	return c.conns[i]
}

// connect opens the connection.
func (k *conn) connect() error {
	c := k.c
	if c.f.o.Join == nil {
		c.flush() // what is on its way need not wait for a connection
	}
	take, err := c.reachShard(k.i)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock() // the event waits until the stream is known
	if k.sock, err = take(k.event); err != nil {
		return err
	}
	if k.begin(); c.over {
		k.gone = true
		k.sock.Close()
		c.conns[k.i] = nil
		return errors.New("the client is gone")
	}
	return nil
}

// begin makes the connection, whose stream is known, the client's. The caller holds c.mu.
func (k *conn) begin() {
	c := k.c
	k.out = outlet{mu: &c.mu, sock: k.sock, moved: c.stir}
	k.sock.Hear(k.hear)
	for len(c.conns) <= k.i {
		c.conns = append(c.conns, nil)
	}
	for len(c.counts) <= k.i {
		c.counts = append(c.counts, 0)
	}
	c.conns[k.i] = k
}

// reachShard returns what makes a new connection to a shard, on the client's loop, at once. Where shards are dialled, that is done here.
func (c *client) reachShard(i int) (take func(event func()) (Stream, error), err error) {
	if c.f.o.Join != nil {
		return func(event func()) (Stream, error) { return c.f.o.Join(i, c.loop, event) }, nil
	}
	ctx, done := context.WithTimeout(c.f.ctx, c.f.o.Limits.Dial)
	defer done()
	conn, err := c.f.shards()[i].Dial(ctx)
	if err != nil {
		return nil, err
	}
	return func(event func()) (Stream, error) { return c.f.o.Loops.Take(conn, c.loop, event) }, nil
}

// event is called by the loop: the shard has sent something, takes more, or is gone.
func (k *conn) event() {
	c := k.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.gone {
		return
	}
	k.out.ready()
	chunk := c.f.scratches[c.loop].reply
	for turn := 0; !c.over && !k.gone; turn++ {
		if k.mustWait() {
			k.pause()
			break
		}
		if turn == readsInARow {
			k.sock.Again()
			break
		}
		n, err := k.sock.Read(chunk)
		if n > 0 {
			k.arrived(chunk[:n])
		}
		switch {
		case err == nil:
		case k.departs:
			c.left(k)
		default:
			c.lost(k)
		}
		if n < len(chunk) {
			break // more comes with an event of its own
		}
	}
	k.moisten()
}

// moisten has what came of a reply written at the end of the loop's round. The caller holds c.mu.
func (k *conn) moisten() {
	c := k.c
	if c.out.size() >= writeFrom && len(c.retried) == 0 {
		c.out.write()
	}
	if !c.wet && (c.out.size() > 0 || len(c.retried) > 0) {
		c.wet = true
		k.sock.Last(c.last)
	}
}

// hear is called by the loop with whole replies that need not be read. It reports false when they have to be, because their turn is far away.
func (k *conn) hear(b []byte, replies int) bool {
	c := k.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.gone || c.over || k.paused || k.mustWait() {
		return false
	}
	if replies == 1 && k.pos == len(k.view) && c.stream != k {
		k.size = len(b)
	}
	k.arrived(b)
	k.moisten()
	return true
}

// pause has the connection not read until stir finds that it need not wait any more.
func (k *conn) pause() {
	if !k.paused {
		k.paused = true
		k.c.paused++
	}
}

// arrived hands on what was read, as far as its turn has come. b is the loop's.
func (k *conn) arrived(b []byte) {
	c := k.c
	if k.pos == len(k.view) {
		k.view, k.pos = b, 0
	} else {
		k.own()
		k.store = append(k.store, b...)
		k.view = k.store
	}
	c.drain()
	if c.stream == nil && k.size == 0 && k.pos < len(k.view) {
		k.front() // a message does not wait for a turn
	}
	if len(k.view)-k.pos > c.f.o.Limits.Output {
		c.fail(tooLong)
	}
	k.own()
}

// own moves what is not taken yet to the front of the connection's own memory.
func (k *conn) own() {
	rest := k.view[k.pos:]
	if k.ahead != (len(rest) > 0) {
		if k.ahead = !k.ahead; k.ahead {
			k.c.ahead++
		} else {
			k.c.ahead--
		}
	}
	switch {
	case len(rest) == 0:
		if cap(k.store) > storeKept {
			k.store = nil
		}
		k.store = k.store[:0]
	case k.pos > 0 || len(k.store) == 0 || &k.view[0] != &k.store[0]:
		k.store = append(k.store[:0], rest...)
	default:
		return
	}
	k.view, k.pos = k.store, 0
}

// mustWait reports whether the shard is far enough ahead.
func (k *conn) mustWait() bool {
	c := k.c
	if c.stream == k {
		return c.out.size() > c.f.o.Limits.Ahead
	}
	return len(k.view)-k.pos > c.f.o.Limits.Held && k.subs == 0 && !c.awaits(k) // a message waits for nobody's turn
}

// awaits reports whether the reply at the head of the queue is, at least in part, to come from k.
func (c *client) awaits(k *conn) bool {
	if c.head == len(c.queue) {
		return false
	}
	e := &c.queue[c.head]
	if e.from == k {
		return true
	}
	if e.x != nil {
		for _, p := range e.x.parts {
			if p == k {
				return true
			}
		}
	}
	return false
}

// front returns the complete reply that comes next from the shard; nil: it has not arrived. Messages before it are handed on.
func (k *conn) front() []byte {
	c := k.c
	for k.pos < len(k.view) {
		if k.size == 0 {
			n, err := k.scan.Next(k.view[k.pos:])
			if err != nil {
				c.fail("ERR shard " + k.name() + " sent what is not a reply")
				return nil
			}
			if n == 0 {
				return nil
			}
			k.size = n
		}
		f := k.view[k.pos : k.pos+k.size]
		if !k.isMessage(f) {
			return f
		}
		if c.f.o.Cluster != nil && string(firstWord(f)) == "sunsubscribe" { // the slot of the channel has gone to another shard
			k.subs = max(0, k.subs-1)
			c.followChannel(f)
		} else {
			c.append(f)
		}
		k.taken()
	}
	return nil
}

// taken takes the complete reply at the front out.
func (k *conn) taken() {
	k.pos += k.size
	k.size = 0
}

// lost handles the end of a connection. The caller holds c.mu.
func (c *client) lost(k *conn) {
	if k.gone {
		return
	}
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
	if k.owed == 0 && k.subs == 0 && !k.keeps || c.over {
		return // the next command opens another one
	}
	text := "ERR the connection to shard " + k.name() + " ended, and with it what it held for this client"
	if k.owed > 0 {
		text = "OUTCOMEUNKNOWN the connection to shard " + k.name() + " ended before it answered; it may or may not have been applied"
	}
	c.fail(text)
}

// drop closes all connections to shards. Nothing may be on its way.
func (c *client) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.conns {
		if k != nil {
			k.gone = true
			c.conns[i] = nil
			k.sock.Close()
		}
	}
	c.paused, c.ahead = 0, 0
}
