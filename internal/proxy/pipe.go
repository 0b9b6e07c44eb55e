// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// pipe is one end of a connection within the process. It behaves as a socket that never blocks, and tells of events through its
// loop as a descriptor would: whatever is done with sockets works with it, limits and slow readers included.
type pipe struct {
	own  *sock
	peer *pipe
	mu   *sync.Mutex                      // of both ends; guards what follows
	hear func(b []byte, replies int) bool // see Stream.Hear

	in    *memory // what has come and was not read yet; nil: nothing
	from  int     // in.b[from:]
	ended bool    // no more comes
	deaf  bool    // nothing more is taken
	wants bool    // the other end found no room
}

// memory is what one direction of a pipe holds for the moment.
type memory struct{ b []byte }

const (
	pipeMax    = 256 << 10 // bytes on their way in one direction
	memoryMin  = 4 << 10
	memoryKept = 64 << 10
)

// newPipe returns the two ends of a connection within one loop. Their memory is one piece, because it is used together.
func newPipe(lp *loop) (near, far *sock) {
	both := &struct {
		mu        sync.Mutex
		ends      [2]pipe
		near, far sock
	}{near: sock{fd: -1, loop: lp, door: attached}, far: sock{fd: -1, loop: lp, door: attached}}
	near, far = &both.near, &both.far
	near.pipe, far.pipe = &both.ends[0], &both.ends[1]
	*near.pipe = pipe{own: near, mu: &both.mu, peer: far.pipe}
	*far.pipe = pipe{own: far, mu: &both.mu, peer: near.pipe}
	return near, far
}

// attached is the door of clients within the process: nobody stands in front of them with a PROXY header.
const attached = "attached"

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	if p.in == nil {
		defer p.mu.Unlock()
		if p.ended {
			return 0, io.EOF
		}
		return 0, errAgain
	}
	n := copy(b, p.in.b[p.from:])
	p.from += n
	if p.from == len(p.in.b) {
		p.empty()
	}
	room := p.wants && p.size() <= pipeMax/2
	if room {
		p.wants = false
	}
	p.mu.Unlock()
	if room {
		p.peer.tell(unix.EPOLLOUT)
	}
	return n, nil
}

// size returns how much is on its way to this end; the caller holds mu.
func (p *pipe) size() int {
	if p.in == nil {
		return 0
	}
	return len(p.in.b) - p.from
}

// empty gives the memory back; the caller holds mu.
func (p *pipe) empty() {
	m := p.in
	p.in, p.from = nil, 0
	if cap(m.b) <= memoryKept {
		m.b = m.b[:0]
		p.own.loop.memory.Put(m)
	}
}

// write gives the other end as much as it takes now; errAgain: not all of it.
func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	to := p.peer
	if to.deaf || to.ended {
		p.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	n := min(len(b), pipeMax-to.size())
	if n < len(b) {
		to.wants = true
	}
	if n > 0 {
		if to.in == nil {
			to.in = p.own.loop.memory.Get().(*memory)
		}
		if to.from > 0 && len(to.in.b)+n > cap(to.in.b) {
			to.in.b = to.in.b[:copy(to.in.b, to.in.b[to.from:])]
			to.from = 0
		}
		to.in.b = append(to.in.b, b[:n]...)
	}
	p.mu.Unlock()
	if n > 0 {
		to.tell(unix.EPOLLIN)
	}
	if n < len(b) {
		return n, errAgain
	}
	return n, nil
}

// tell has the owner of this end told.
func (p *pipe) tell(events uint32) { p.own.loop.stir(p.own, events) }

// shut ends both directions. What is on its way arrives.
func (p *pipe) shut() {
	p.mu.Lock()
	was := p.deaf
	p.deaf, p.ended, p.peer.ended = true, true, true
	p.mu.Unlock()
	if !was {
		p.tell(unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP)
		p.peer.tell(unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLHUP)
	}
}

// shutWrite tells the other end that no more comes.
func (p *pipe) shutWrite() {
	p.mu.Lock()
	p.peer.ended = true
	p.mu.Unlock()
	p.peer.tell(unix.EPOLLIN | unix.EPOLLRDHUP)
}
