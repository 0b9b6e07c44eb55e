// SPDX-License-Identifier: Apache-2.0

package front

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"redoubt/internal/resp"
)

const (
	inputMin  = 4 << 10   // of an idle client
	inputKept = 64 << 10  // larger buffers are given back when they are empty
	batchMax  = 256 << 10 // bytes for one shard that are not kept for the end of what was read
	behindMax = 1 << 20   // bytes that a shard has not taken; beyond it, the client is not read from
	lastWords = time.Second
	atOnce    = 1024 // commands between two looks at whether there are too many
)

// client is one client. Its goroutine reads and gives out its commands; the readers of its connections to shards give it the
// replies.
type client struct {
	f    *Front
	id   uint64
	sock net.Conn
	born time.Time
	wg   sync.WaitGroup // of all goroutines that belong to it
	vis  visible

	// Owned by the client's goroutine.
	parser  resp.Parser
	in      []byte
	r, w    int // what is read and not handled yet is in[r:w]
	eof     bool
	session         // what the server side of a connection would know
	dirty   []*conn // that have something to be written, in the order in which they got it
	idx     []int
	where   []int
	counts  []int
	bySlot  map[int]int // of a command that is split: which part has a slot
	scratch []byte
	local   bool // something was answered here that nobody has written yet

	mu       sync.Mutex // guards what follows
	cond     sync.Cond
	sleepers int
	out      outlet
	conns    []*conn // by shard; nil: none
	queue    []expect
	head     int
	blocked  int   // blocking commands in the queue
	stream   *conn // the reply at the head is handed on while it arrives
	alarm    bool  // the client's goroutine reads and wants to know when the queue is empty
	alarmed  bool
	detour   net.Conn // on which the command at the head of the queue is tried again
	turned   bool     // that goes on; nothing new is sent meanwhile
	over     bool     // nothing more is handled
	retried  []*conn
}

func newClient(f *Front, sock net.Conn, id uint64) *client {
	c := &client{f: f, id: id, sock: sock, born: time.Now(), conns: make([]*conn, len(f.o.Shards)), counts: make([]int, len(f.o.Shards))}
	c.cond.L = &c.mu
	c.out = outlet{mu: &c.mu, sock: sock, spawn: c.wg.Go, moved: c.tookSome}
	c.session.clear(f.o.Password == "")
	c.vis.begin(c)
	return c
}

// tookSome follows progress of the client's own socket. The caller holds c.mu.
func (c *client) tookSome() {
	if c.out.broken {
		c.endLocked()
	}
	c.stir()
}

// sleep waits for a change. The caller holds c.mu.
func (c *client) sleep() {
	c.sleepers++
	c.cond.Wait()
	c.sleepers--
}

// stir wakes those who wait for a change. The caller holds c.mu.
func (c *client) stir() {
	if c.sleepers > 0 {
		c.cond.Broadcast()
	}
	if c.alarm && c.head == len(c.queue) {
		c.alarm, c.alarmed = false, true
		_ = c.sock.SetReadDeadline(time.Unix(1, 0))
	}
}

// kill disconnects the client at once. Safe for concurrent use.
func (c *client) kill() {
	c.mu.Lock()
	c.over, c.out.broken = true, true
	c.cond.Broadcast()
	for _, k := range c.conns {
		if k != nil {
			_ = k.sock.Close()
		}
	}
	if c.detour != nil {
		_ = c.detour.Close()
	}
	c.mu.Unlock()
	_ = c.sock.Close()
}

// endLocked has the client's goroutine end, after what is in out. The caller holds c.mu.
func (c *client) endLocked() {
	if !c.over {
		c.over = true
		_ = c.sock.SetReadDeadline(time.Unix(1, 0))
		c.cond.Broadcast()
	}
}

// fail ends the client with an error. The caller holds c.mu.
func (c *client) fail(text string) {
	if c.over {
		return
	}
	if c.stream == nil {
		c.out.buf = resp.AppendError(c.out.buf, text)
	}
	c.f.log.Warn("client disconnected", "client", c.id, "why", text)
	c.endLocked()
}

func (c *client) isOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

// quietNow reports whether nothing is on its way for the client and it waits for nothing.
func (c *client) quietNow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head != len(c.queue) {
		return false
	}
	for _, k := range c.conns {
		if k != nil && k.subs > 0 {
			return false
		}
	}
	return true
}

func (c *client) serve() {
	defer c.end()
	for {
		more, bad := c.commands()
		c.flush()
		switch {
		case bad != nil:
			if c.settle() {
				c.say(resp.AppendError(nil, "ERR "+bad.Error()))
				c.flush()
			}
			return
		case c.isOver() || c.leaving:
			c.settle()
			return
		case !c.room(c.f.o.Limits.Pipeline, c.f.o.Limits.Pipeline/2):
			return
		case more:
		case !c.fill():
			if c.eof && !c.isOver() {
				c.settle() // it may have closed only its own side
				c.flush()
			}
			return
		}
	}
}

// commands handles the complete commands that were read; more: not all of them. The error is one of the protocol.
func (c *client) commands() (more bool, err error) {
	lim := resp.Limits{Bulk: c.f.o.Limits.Bulk, Unauth: !c.authed}
	n := uint64(0)
	defer func() { c.f.stats.commands.Add(n) }()
	for c.r < c.w && !c.leaving {
		size, err := c.parser.Next(c.in[c.r:c.w], lim)
		if err != nil || size == 0 {
			return false, err
		}
		raw := c.in[c.r : c.r+size]
		c.r += size
		if len(c.parser.Args) == 0 {
			continue
		}
		if c.parser.Inline {
			c.scratch = resp.AppendCommand(c.scratch[:0], c.parser.Args...)
			raw = c.scratch
		}
		n++
		c.handle(c.parser.Args, raw)
		lim.Unauth = !c.authed
		if n == atOnce {
			return true, nil
		}
	}
	return false, nil
}

// flush writes what the shards and the client are to get: to the shard of the earliest command first, so that a shard that
// takes nothing never waits for a reply in front of its own.
func (c *client) flush() {
	for _, k := range c.dirty {
		k.dirty = false
		k.out.flush()
	}
	c.dirty = c.dirty[:0]
	if c.local {
		c.local = false
		c.mu.Lock()
		c.drain()
		again := c.retried
		c.retried = nil
		c.mu.Unlock()
		c.write(again)
	}
}

// write writes what is repeated to shards, and what the client is given.
func (c *client) write(again []*conn) {
	for _, k := range again {
		k.out.flush()
	}
	c.out.flush()
}

// room waits until the client has fewer than most unanswered commands, and then until they are at most enough. It reports false
// when the client is gone.
func (c *client) room(most, enough int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue)-c.head >= most {
		for !c.over && len(c.queue)-c.head > enough {
			c.sleep()
		}
	}
	return !c.over
}

// settle waits until all commands are answered, and reports false when the client is gone. While one of them blocks, the client
// is watched: its departure takes back what it waits for.
func (c *client) settle() bool {
	c.flush()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.head < len(c.queue) && !c.over {
		if c.blocked == 0 || !c.roomToRead() {
			c.sleep()
			continue
		}
		c.alarm = true
		c.mu.Unlock()
		n, err := c.sock.Read(c.in[c.w:])
		c.mu.Lock()
		c.w += n
		c.alarm = false
		if c.alarmed {
			c.alarmed = false
			if !c.over {
				_ = c.sock.SetReadDeadline(time.Time{})
			}
		} else if err != nil {
			c.eof = true
			c.endLocked() // what it waits for is taken back
		}
	}
	return !c.over
}

// roomToRead makes room for more input without moving what is there, on which the present command's arguments are views.
func (c *client) roomToRead() bool {
	if c.w < len(c.in) {
		return true
	}
	have := c.w - c.r
	if have >= inputKept {
		return false // the departure of a client that sends so much meanwhile is not noticed
	}
	grown := make([]byte, max(2*have, inputMin))
	copy(grown, c.in[c.r:c.w])
	c.in, c.r, c.w = grown, 0, have
	return true
}

// fill reads more input. It reports false when there is no more, or too much.
func (c *client) fill() bool {
	have := c.w - c.r
	switch {
	case have == 0:
		switch size := len(c.in); {
		case size == 0 || size > inputKept:
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
	for {
		n, err := c.sock.Read(c.in[c.w:])
		c.w += n
		c.vis.seen.Store(c.f.tick.Load())
		if n > 0 {
			return true
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && c.calmed() {
			continue // an alarm that came when the wait was over already
		}
		c.eof = true
		return false
	}
}

// calmed puts the deadline back that an alarm has set, and reports whether the client goes on.
func (c *client) calmed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	c.alarmed = false
	_ = c.sock.SetReadDeadline(time.Time{})
	return true
}

// end lets go of everything that the client had.
func (c *client) end() {
	c.mu.Lock()
	c.over = true
	until := time.Now().Add(lastWords)
	for !c.out.broken && (c.out.busy || c.out.size() > 0) {
		if !c.out.busy {
			c.mu.Unlock()
			c.out.flush()
			c.mu.Lock()
			continue
		}
		_ = c.sock.SetWriteDeadline(until) // of the goroutine that waits for the socket
		c.sleep()
	}
	c.mu.Unlock()
	c.kill()
	c.wg.Wait()
	c.f.mu.Lock()
	delete(c.f.clients, c.id)
	c.f.mu.Unlock()
}
