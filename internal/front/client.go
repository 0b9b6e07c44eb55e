// SPDX-License-Identifier: Apache-2.0

package front

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

const (
	inputMin  = 4 << 10     // of memory of a client's own
	inputKept = 64 << 10    // larger memory is given back when it is empty; a longer command is waited for by a goroutine
	stashKept = 2 << 10     // of memory that an idle client keeps
	batchMax  = 256 << 10   // bytes for one shard that are not kept for the end of what was read
	behindMax = 1 << 20     // bytes that a shard has not taken; beyond it, the client is not read from
	lastWords = time.Minute // for which a client whose connection ends may take nothing of what it is owed
	lateMost  = 1           // rounds of the loop for which replies wait for those of other shards, so that they leave at once
	atOnce    = 1024        // commands between two looks at whether there are too many
)

// client is one client. Its loop reads and gives out its commands, and gives it the replies of the shards. In front of a command that
// has to wait for something, it leaves the client to a goroutine (serve), which gives it back behind it.
type client struct {
	f    *Front
	loop int

	// Owned by who drives the client. Here, too, what plain commands touch comes first.
	onLoop  bool // that is the loop
	more    bool // there may be complete commands in it
	eof     bool
	local   bool         // something was answered here that nobody has written yet
	parser  *resp.Parser // its loop's, unless there is a part of a command in it; nil: none is needed now
	in      []byte
	r, w    int           // what is read and not handled yet is in[r:w]
	stash   []byte        // the client's own memory, while the loop's is used
	words   int           // of the present command, or of the part of it that is being sent
	aim     int           // what it is aimed at, see hold.go
	verdict route.Verdict // of it
	idx     []int
	dirty   []*conn // that have something to be written, in the order in which they got it
	session         // what the server side of a connection would know

	handling atomic.Bool // commands are being given to shards; only with Options.Ring

	mu      sync.Mutex // guards what follows
	driven  bool       // by a goroutine
	over    bool       // nothing more is handled
	full    bool       // the loop handles nothing more before some of it is answered; while the loop handles something, nobody else changes it
	wet     bool       // ofRound is about to be called
	late    int        // how often it has left the writing to the next round
	turned  bool       // a command is tried again, or was, and others are under way; nothing new is sent meanwhile
	turnEnd time.Time  // until when commands are tried again, if turned
	hint    bool       // meanwhile, something may have come
	sock    Stream
	conns   []*conn // by shard; nil: none
	queue   []expect
	head    int
	out     outlet
	stream  *conn // the reply at the head is handed on while it arrives
	paused  int   // connections that are not read from
	ahead   int   // connections on which something has come that is not taken, or had a moment ago

	sleepers int
	cond     sync.Cond
	blocked  int    // blocking commands in the queue
	detour   Stream // on which the command at the head of the queue is tried again; nil: none
	retried  []*conn
	frames   [][]byte // of joined, while it runs
	away     bool     // it goes on in another process
	rehomes  bool     // a shard was removed, or a subscription has lost its shard: the loop sees to it
	adrift   []drifting

	// Constant, but for vis, which guards itself.
	last func() // ofRound
	vis  visible
	id   uint64
	born time.Time

	// Owned by who drives the client.
	stays   bool       // what is known about it is too large to be handed over
	back    []byte     // a command that blocked, and is to be given again
	carried []departed // connections that have left already; changed with mu held
	scratch []byte
	bad     error // of the protocol: the client ends with it
	where   []int
	counts  []int
	bySlot  map[int]int // of a command that is split: which part has a slot
}

func newClient(f *Front, id uint64) *client {
	c := &client{f: f, id: id, loop: int(id % uint64(f.o.Loops.Len())), born: time.Now(), conns: make([]*conn, len(f.shards())), counts: make([]int, len(f.shards()))}
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
	c.beginHandling()
	defer func() { c.f.stats.commands.Add(n); c.endHandling() }()
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
		if c.onLoop && c.mayWait(v, c.parser.Args) {
			c.r -= size
			return waiting, nil
		}
		if c.parser.Inline {
			c.scratch = resp.AppendCommand(c.scratch[:0], c.parser.Args...)
			raw = c.scratch
		}
		n++
		c.handle(v, c.parser.Args, raw)
		if len(c.carried) > 0 {
			c.putBack()
			return someOf, nil
		}
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
	if len(c.dirty) > 0 {
		c.mu.Lock()
		c.writeDirty()
		c.mu.Unlock()
	}
	if c.local {
		c.local = false
		c.mu.Lock()
		c.drain()
		c.writeOut()
		c.mu.Unlock()
	}
}

// writeDirty writes what the shards are to get. The caller drives the client and holds c.mu.
func (c *client) writeDirty() {
	for _, k := range c.dirty {
		k.dirty = false
		k.out.write()
	}
	c.dirty = c.dirty[:0]
}

// ofRound is called by the loop when all events of a round are handled: what several shards answer at once leaves at once. While more is
// owed, it may wait for the next round, which begins without waiting for events.
func (c *client) ofRound() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late < lateMost && c.head < len(c.queue) && c.blocked == 0 && len(c.retried) == 0 && c.out.size() > 0 && !c.over {
		c.late++
		c.sock.Late(c.last)
		return
	}
	c.wet, c.late = false, 0
	c.writeOut()
}

// writeOut writes what was repeated to shards, and what the client was given. The caller holds c.mu.
func (c *client) writeOut() {
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
		if c.blocked > 0 && c.f.mover.Load() != nil && c.takeBack() {
			return true
		}
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
