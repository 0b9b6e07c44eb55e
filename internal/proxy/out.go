// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"sync"
)

// output is what one client has not taken yet. Whoever has replies appends them; flush writes without waiting, and
// only what the socket does not take at once is left to a goroutine of its own, so that a slow client holds up nobody.
type output struct {
	s *session

	mu   sync.Mutex // guards what follows; held across writes that cannot block
	buf  []byte
	own  []byte // what the client keeps while buf is borrowed
	busy bool   // a goroutine is writing
	away int    // bytes that it has
	more chunks // follows buf, once there is much
	room func() // called once the client has taken some; under no lock
}

// chunks holds much without ever copying what it has: the loop that adds to it must not wait for that.
type chunks struct {
	b    [][]byte
	size int // of all
}

const chunkSize = 256 << 10

func (c *chunks) add(b []byte) {
	c.size += len(b)
	for len(b) > 0 {
		last := len(c.b) - 1
		if last < 0 || len(c.b[last]) == cap(c.b[last]) {
			c.b = append(c.b, make([]byte, 0, chunkSize))
			last++
		}
		n := min(len(b), cap(c.b[last])-len(c.b[last]))
		c.b[last] = append(c.b[last], b[:n]...)
		b = b[n:]
	}
}

// take returns the first chunk, which is the caller's.
func (c *chunks) take() []byte {
	b := c.b[0]
	c.b = slices.Delete(c.b, 0, 1)
	c.size -= len(b)
	return b
}

const (
	outputKept  = 1 << 10  // bytes that an idle client keeps
	outputSpare = 64 << 10 // largest buffer that goes to the next client
)

// spareOutput is a buffer on its way from one client to another.
type spareOutput struct{ b []byte }

// add appends bytes and reports false when the client has to be disconnected because it does not take its replies.
func (o *output) add(b []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.s.sock.pipe != nil && !o.busy && o.size() == 0 { // it costs no system call, so nothing has to come together first
		n, err := o.s.sock.write(b)
		if b = b[n:]; err == nil {
			o.s.touch()
			return true
		}
	}
	if o.size()+len(b) > o.s.p.o.Limits.Output {
		return false
	}
	if o.more.size > 0 || o.busy && len(o.buf) > outputSpare {
		o.more.add(b)
		return true
	}
	if need := len(o.buf) + len(b); need > cap(o.buf) && need > outputKept/2 {
		if spare, _ := o.s.p.outputs.Get().(*spareOutput); spare != nil {
			if cap(o.buf) <= outputKept { // the client's own, and not one that it has borrowed
				o.own = o.buf[:0]
			}
			o.buf, spare.b = append(spare.b, o.buf...), nil
			o.s.p.shells.Put(spare)
		}
	}
	o.buf = append(o.buf, b...)
	return true
}

// size returns how many bytes wait to be written; the caller holds mu.
func (o *output) size() int { return o.away + len(o.buf) + o.more.size }

// flush writes what can be written at once.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || len(o.buf) == 0 {
		return
	}
	n, err := o.s.sock.write(o.buf)
	switch err {
	case nil:
		o.s.touch()
		o.empty()
		return
	case errAgain:
	default:
		o.buf = nil
		o.s.kill()
		return
	}
	o.buf = o.buf[:copy(o.buf, o.buf[n:])]
	o.busy = true
	o.s.sock.waiter() // before the goroutine tries, so that no event is missed
	o.s.p.spawn(o.drain)
}

// empty lets go of a buffer that an idle client need not keep.
func (o *output) empty() {
	switch c := cap(o.buf); {
	case c <= outputKept:
		o.buf = o.buf[:0]
	case c <= outputSpare:
		shell, _ := o.s.p.shells.Get().(*spareOutput)
		if shell == nil {
			shell = &spareOutput{}
		}
		shell.b = o.buf[:0]
		o.s.p.outputs.Put(shell)
		o.buf, o.own = o.own, nil
	default:
		o.buf, o.own = o.own, nil
	}
}

// drain writes until nothing is left; it ends when the connection is closed.
func (o *output) drain() {
	var spare []byte
	for {
		o.mu.Lock()
		out := o.buf
		if len(out) > 0 {
			o.buf = spare[:0]
		} else if o.more.size > 0 {
			out = o.more.take()
		} else {
			o.busy, o.away = false, 0
			o.mu.Unlock()
			return
		}
		o.away = len(out)
		o.mu.Unlock()
		err := o.s.sock.writeAll(out)
		o.mu.Lock()
		o.away = 0
		if err != nil {
			o.buf, o.more, o.busy = nil, chunks{}, false
		}
		var room func()
		if err != nil || o.size() < streamAhead {
			room, o.room = o.room, nil
		}
		o.mu.Unlock()
		if err != nil {
			o.s.kill()
		}
		if room != nil {
			room()
		}
		if err != nil {
			return
		}
		o.s.touch()
		if spare = out; cap(spare) > outputSpare {
			spare = nil
		}
	}
}

// full reports whether streamAhead bytes wait for the client; f is called once it has taken some, or is gone.
func (o *output) full(f func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.busy || o.size() < streamAhead {
		return false
	}
	o.room = f
	return true
}

// pending returns how many bytes wait to be written.
func (o *output) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.size()
	if o.busy && n == 0 {
		n++ // its goroutine is about to end
	}
	return n
}
