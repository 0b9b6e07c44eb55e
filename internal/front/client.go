// SPDX-License-Identifier: Apache-2.0

package front

import (
	"net"
	"sync"
	"time"

	"redoubt/internal/resp"
)

const (
	inputMin  = 4 << 10   // of memory of a client's own
	inputKept = 64 << 10  // larger memory is given back when it is empty; a longer command is waited for by a goroutine
	stashKept = 2 << 10   // of memory that an idle client keeps
	batchMax  = 256 << 10 // bytes for one shard that are not kept for the end of what was read
	behindMax = 1 << 20   // bytes that a shard has not taken; beyond it, the client is not read from
	lastWords = time.Second
	atOnce    = 1024 // commands between two looks at whether there are too many
)

// client is one client. Its loop reads and gives out its commands, and gives it the replies of the shards. In front of a command that
// has to wait for something, it leaves the client to a goroutine (serve), which gives it back behind it.
type client struct {
	f       *Front
	id      uint64
	loop    int
	born    time.Time
	vis     visible
	last    func() // ofRound
	scratch []byte

	// Owned by who drives the client.
	onLoop  bool // that is the loop
	parser  resp.Parser
	in      []byte
	r, w    int    // what is read and not handled yet is in[r:w]
	stash   []byte // the client's own memory, while the loop's is used
	more    bool   // there may be complete commands in it
	eof     bool
	bad     error   // of the protocol: the client ends with it
	session         // what the server side of a connection would know
	dirty   []*conn // that have something to be written, in the order in which they got it
	idx     []int
	where   []int
	counts  []int
	bySlot  map[int]int // of a command that is split: which part has a slot
	local   bool        // something was answered here that nobody has written yet

	mu       sync.Mutex // guards what follows
	cond     sync.Cond
	sock     Stream
	driven   bool // by a goroutine
	hint     bool // meanwhile, something may have come
	sleepers int
	out      outlet
	conns    []*conn // by shard; nil: none
	queue    []expect
	head     int
	blocked  int    // blocking commands in the queue
	stream   *conn  // the reply at the head is handed on while it arrives
	full     bool   // the loop handles nothing more before some of it is answered; while the loop handles something, nobody else changes it
	paused   int    // connections that are not read from
	wet      bool   // ofRound is about to be called
	detour   Stream // on which the command at the head of the queue is tried again; nil: none
	turned   bool   // that goes on; nothing new is sent meanwhile
	over     bool   // nothing more is handled
	retried  []*conn
	frames   [][]byte // of joined, while it runs
}

func newClient(f *Front, id uint64) *client {
	c := &client{f: f, id: id, loop: int(id % uint64(f.o.Loops.Len())), born: time.Now(), conns: make([]*conn, len(f.o.Shards)), counts: make([]int, len(f.o.Shards))}
	c.cond.L = &c.mu
	c.last = c.ofRound
	c.session.clear(f.o.Password == "")
	return c
}

// adopt begins to serve a connection.
func (c *client) adopt(conn net.Conn) error {
	c.vis.begin(c, addrText(conn.RemoteAddr()), addrText(conn.LocalAddr()))
	c.mu.Lock()
	defer c.mu.Unlock() // the event waits until the stream is known
	var err error
	c.sock, err = c.f.o.Loops.Take(conn, c.loop, c.event)
	c.out = outlet{mu: &c.mu, sock: c.sock, moved: c.tookSome}
	return err
}

// tookSome follows progress of the client's own connection. The caller holds c.mu.
func (c *client) tookSome() {
	if c.out.broken {
		c.endLocked()
	}
	c.stir()
}

// sleep waits for a change. The caller holds c.mu, and is no loop.
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
	if c.full && c.relieved() {
		c.full = false
		c.sock.Again()
	}
	if c.paused > 0 {
		for _, k := range c.conns {
			if k != nil && k.paused && !k.mustWait() {
				k.paused = false
				c.paused--
				k.sock.Again()
			}
		}
	}
}

// relieved reports whether the loop may handle more commands. The caller holds c.mu.
func (c *client) relieved() bool {
	if c.turned || len(c.queue)-c.head > c.f.o.Limits.Pipeline/2 {
		return false
	}
	for _, k := range c.conns {
		if k != nil && k.out.size() > behindMax/2 && !k.out.broken {
			return false
		}
	}
	return true
}

// kill disconnects the client at once. Safe for concurrent use.
func (c *client) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over, c.out.broken = true, true
	c.cond.Broadcast()
	for _, k := range c.conns {
		if k != nil {
			k.sock.Shut()
		}
	}
	if c.detour != nil {
		c.detour.Shut()
	}
	c.sock.Shut()
}

// endLocked has the client end, after what is in out. The caller holds c.mu.
func (c *client) endLocked() {
	if !c.over {
		c.over = true
		c.sock.Again()
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

// handled says why commands has returned.
type handled uint8

const (
	allOf   handled = iota // there is no complete command left
	someOf                 // there may be more
	waiting                // the next command may have to wait for something, and the loop does not
)

// commands handles the complete commands that were read. The error is one of the protocol.
func (c *client) commands() (handled, error) {
	lim := resp.Limits{Bulk: c.f.o.Limits.Bulk, Unauth: !c.authed}
	n := uint64(0)
	defer func() { c.f.stats.commands.Add(n) }()
	for c.r < c.w && !c.leaving {
		size, err := c.parser.Next(c.in[c.r:c.w], lim)
		if err != nil || size == 0 {
			return allOf, err
		}
		raw := c.in[c.r : c.r+size]
		c.r += size
		if len(c.parser.Args) == 0 {
			continue
		}
		v := c.f.o.Table().Classify(c.parser.Args)
		if c.onLoop && c.mayWait(v) {
			c.r -= size
			return waiting, nil
		}
		if c.parser.Inline {
			c.scratch = resp.AppendCommand(c.scratch[:0], c.parser.Args...)
			raw = c.scratch
		}
		n++
		c.handle(v, c.parser.Args, raw)
		lim.Unauth = !c.authed
		if n == atOnce || c.onLoop && c.full {
			return someOf, nil
		}
	}
	return allOf, nil
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
		c.mu.Unlock()
		c.ofRound()
	}
}

// ofRound writes what was repeated to shards, and what the client was given. Its loop calls it when all events of a round are handled:
// what several shards answer at once leaves at once.
func (c *client) ofRound() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wet = false
	for _, k := range c.retried {
		k.out.write()
	}
	c.retried = nil
	c.out.write()
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
		if c.blocked == 0 || !c.hint || !c.roomToRead() {
			c.sleep()
			continue
		}
		c.hint = false
		n, err := c.sock.Read(c.in[c.w:])
		if c.w += n; err != nil {
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
