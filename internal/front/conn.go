// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"fmt"
	"net"
	"runtime"

	"redoubt/internal/resp"
)

const (
	chunkMin   = 4 << 10  // read at a time from a shard that has little to say
	chunkMax   = 64 << 10 // and from one that has much
	storeKept  = 64 << 10
	streamFrom = 64 << 10 // bytes of an incomplete reply; from here on it is handed on while it arrives
)

// conn is one client's connection to one shard. Its reader puts what arrives into view; it is taken out in the order of the
// client's queue.
type conn struct {
	c     *client
	i     int // number of the shard
	sock  net.Conn
	dirty bool // the client's goroutine has put something into out; its own
	wrote bool // a command that may write was sent; the client's goroutine's own

	// Guarded by client.mu.
	out   outlet
	scan  resp.Scanner
	view  []byte // what has arrived and is not taken: view[pos:]
	store []byte // the memory of view, unless that is what the reader has just read
	pos   int
	size  int    // of the complete reply at pos; 0: not known
	owed  int    // replies that the queue expects of it
	subs  int    // subscriptions that the shard has confirmed
	keeps bool   // it holds a state that another connection would not have: WATCH, MULTI, tracking
	gone  bool   // it is not used any more
	id    []byte // of the connection at the shard, as digits; nil: not known
	last  []byte // a cluster's: the latest command, in case it is to be tried again; empty: it is not
}

// name returns the name of its shard.
func (k *conn) name() string { return k.c.f.o.Shards[k.i].Name }

// to returns the client's connection to a shard, which is opened if there is none.
func (c *client) to(i int) (*conn, error) {
	c.mu.Lock()
	k := c.conns[i]
	c.mu.Unlock()
	if k != nil {
		return k, nil
	}
	c.flush() // what is on its way need not wait for a connection
	shard := c.f.o.Shards[i]
	ctx, done := context.WithTimeout(c.f.ctx, c.f.o.Limits.Dial)
	defer done()
	sock, err := shard.Dial(ctx)
	if err != nil {
		c.f.log.Warn("a shard cannot be reached", "shard", shard.Name, "err", err)
		return nil, fmt.Errorf("shard %s cannot be reached", shard.Name)
	}
	k = &conn{c: c, i: i, sock: sock}
	k.out = outlet{mu: &c.mu, sock: sock, spawn: c.wg.Go, moved: c.stir}
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		_ = sock.Close()
		return nil, fmt.Errorf("the client is gone")
	}
	c.conns[i] = k
	c.mu.Unlock()
	c.introduce(k)
	c.wg.Go(k.read)
	return k, nil
}

// read is the goroutine that takes what the shard sends.
func (k *conn) read() {
	chunk, few := make([]byte, chunkMin), 0
	for {
		n, err := k.sock.Read(chunk)
		if !k.arrived(chunk[:n], err != nil) {
			_ = k.sock.Close()
			return
		}
		switch {
		case n == len(chunk) && n < chunkMax:
			chunk, few = make([]byte, 2*len(chunk)), 0
		case n < len(chunk)/4 && len(chunk) > chunkMin:
			if few++; few == 64 {
				chunk, few = make([]byte, chunkMin), 0
			}
		}
	}
}

// arrived hands on what was read, and reports whether to go on; it returns when there is room for more.
func (k *conn) arrived(b []byte, ended bool) bool {
	c := k.c
	c.mu.Lock()
	if len(b) > 0 && !k.gone {
		if k.pos == len(k.view) {
			k.view, k.pos = b, 0
		} else {
			k.own()
			k.store = append(k.store, b...)
			k.view = k.store
		}
		c.drain()
		if len(k.view)-k.pos > c.f.o.Limits.Output {
			c.fail(tooLong)
		}
		k.own() // b is the reader's
	}
	if ended {
		c.lost(k)
	}
	again, more := c.retried, c.head < len(c.queue)
	c.retried = nil
	c.mu.Unlock()
	if more {
		runtime.Gosched() // other shards may have answered, too: the client gets all that in one write
	}
	c.write(again)
	c.mu.Lock()
	defer c.mu.Unlock()
	for !ended && !c.over && !k.gone && k.mustWait() {
		c.sleep()
	}
	return !ended && !c.over && !k.gone
}

// own moves what is not taken yet to the front of the connection's own memory.
func (k *conn) own() {
	rest := k.view[k.pos:]
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
	return len(k.view)-k.pos > c.f.o.Limits.Held && !c.awaits(k)
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
		c.append(f)
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
			_ = k.sock.Close()
		}
	}
	c.cond.Broadcast()
}
