// SPDX-License-Identifier: Apache-2.0

package front

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	patience  = 2 * time.Millisecond // for which whoever has something to write waits for the socket
	pieceMax  = 64 << 10             // of what a goroutine writes at a time
	spareKept = 64 << 10
)

// outlet is what waits to be written to one socket. Whoever has put something in writes it, and others while it is being
// written; a socket that does not take it in time gets a goroutine that waits for it, so that nobody else has to.
type outlet struct {
	mu     *sync.Mutex // the client's; guards what follows
	sock   net.Conn
	spawn  func(func())
	moved  func() // called with mu held when something was taken, or will never be
	buf    []byte
	spare  []byte
	left   int  // bytes of what was taken out of buf and is not written yet, while a goroutine waits for the socket
	busy   bool // somebody writes
	broken bool
}

// size returns how many bytes are not taken yet. The caller holds mu.
func (o *outlet) size() int { return len(o.buf) + o.left }

// flush writes what there is. It waits for the socket for a moment only.
func (o *outlet) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || o.broken || len(o.buf) == 0 {
		return
	}
	o.busy = true
	for len(o.buf) > 0 && !o.broken {
		b := o.take()
		o.mu.Unlock()
		_ = o.sock.SetWriteDeadline(time.Now().Add(patience))
		n, err := o.sock.Write(b)
		o.mu.Lock()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.left = len(b) - n
			_ = o.sock.SetWriteDeadline(time.Time{})
			o.spawn(func() { o.rest(b, n) })
			o.moved() // who waits for the end may set a deadline for it
			return
		}
		o.wrote(b, err)
	}
	o.busy = false
	o.moved()
}

func (o *outlet) take() []byte {
	b := o.buf
	o.buf, o.spare = o.spare[:0], nil
	return b
}

func (o *outlet) wrote(b []byte, err error) {
	o.left = 0
	if err != nil {
		o.broken, o.buf = true, nil
		return
	}
	if cap(b) <= spareKept {
		o.spare = b[:0]
	}
}

// rest is the goroutine that writes b from n on, and what was added meanwhile.
func (o *outlet) rest(b []byte, n int) {
	for {
		var err error
		for n < len(b) && err == nil {
			var more int
			more, err = o.sock.Write(b[n:min(n+pieceMax, len(b))])
			n += more
			o.mu.Lock()
			o.left = len(b) - n
			o.moved()
			o.mu.Unlock()
		}
		o.mu.Lock()
		o.wrote(b, err)
		if len(o.buf) == 0 || o.broken {
			o.busy = false
			o.moved()
			o.mu.Unlock()
			return
		}
		b, n = o.take(), 0
		o.left = len(b)
		o.mu.Unlock()
	}
}
