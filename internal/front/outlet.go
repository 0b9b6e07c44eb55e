// SPDX-License-Identifier: Apache-2.0

package front

import "sync"

const (
	outletKept  = 16 << 10  // memory of what is taken that is kept for what comes next
	outletChunk = 256 << 10 // memory that is not made larger, so that what waits is never copied
)

// outlet is what waits to be written to one connection. Nobody waits for that: what is not taken at once is written when the event
// comes that says there is room.
type outlet struct {
	mu     *sync.Mutex // the client's; guards what follows
	buf    []byte      // new things are appended
	at     int         // of the first piece: how much is taken already
	ahead  int         // bytes in full
	choked bool        // the connection takes nothing now
	broken bool
	sock   Stream
	moved  func()   // called with mu held when something was taken, or will never be
	full   [][]byte // goes in front of buf, once there is much
}

// size returns how many bytes are not taken yet. The caller holds mu.
func (o *outlet) size() int { return o.ahead + len(o.buf) - o.at }

// grown is called after something was appended to buf. The caller holds mu.
func (o *outlet) grown() {
	if len(o.buf) >= outletChunk {
		o.full = append(o.full, o.buf)
		o.ahead += len(o.buf)
		o.buf = nil
	}
}

// ready is called when there may be room. The caller holds mu.
func (o *outlet) ready() {
	if o.choked {
		o.choked = false
		o.write()
	}
}

// write writes what is taken at once. The caller holds mu.
func (o *outlet) write() {
	if o.size() == 0 || o.choked || o.broken {
		return
	}
	for o.size() > 0 {
		first := o.buf
		if len(o.full) > 0 {
			first = o.full[0]
		}
		n, err := o.sock.Write(first[o.at:])
		o.at += n
		if err != nil {
			*o = outlet{mu: o.mu, sock: o.sock, moved: o.moved, broken: true}
			break
		}
		if o.at < len(first) {
			o.choked = true
			break
		}
		o.taken()
	}
	o.moved()
}

// taken lets go of the first piece.
func (o *outlet) taken() {
	o.at = 0
	switch {
	case len(o.full) > 0:
		o.ahead -= len(o.full[0])
		o.full[0] = nil
		o.full = o.full[1:]
	case cap(o.buf) > outletKept:
		o.buf = nil
	default:
		o.buf = o.buf[:0]
	}
}
