// SPDX-License-Identifier: Apache-2.0

package proxy

import (
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
	room func() // called once the client has taken some; under no lock
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
	if o.away+len(o.buf)+len(b) > o.s.p.o.Limits.Output {
		return false
	}
	if need := len(o.buf) + len(b); need > cap(o.buf) && need > outputKept/2 {
		if spare, _ := o.s.p.outputs.Get().(*spareOutput); spare != nil {
			o.own, o.buf, spare.b = o.buf[:0], append(spare.b, o.buf...), nil
			o.s.p.shells.Put(spare)
		}
	}
	o.buf = append(o.buf, b...)
	return true
}

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
		o.buf = o.own
	default:
		o.buf = o.own
	}
}

// drain writes until nothing is left; it ends when the connection is closed.
func (o *output) drain() {
	var spare []byte
	for {
		o.mu.Lock()
		if len(o.buf) == 0 {
			o.busy, o.away = false, 0
			o.mu.Unlock()
			return
		}
		out := o.buf
		o.buf, o.away = spare[:0], len(out)
		o.mu.Unlock()
		err := o.s.sock.writeAll(out)
		o.mu.Lock()
		o.away = 0
		if err != nil {
			o.buf, o.busy = nil, false
		}
		var room func()
		if err != nil || len(o.buf) < streamAhead {
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
	if !o.busy || o.away+len(o.buf) < streamAhead {
		return false
	}
	o.room = f
	return true
}

// pending returns how many bytes wait to be written.
func (o *output) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.buf) + o.away
	if o.busy && n == 0 {
		n++ // its goroutine is about to end
	}
	return n
}
