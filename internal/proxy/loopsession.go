// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"golang.org/x/sys/unix"
)

// Clients in no special state, as their loop drives them.

// loopable reports whether the session is in no state that needs waiting or a look at every command.
func (s *session) loopable() bool {
	return s.authed && s.user == "" && !s.multi && !s.quiet && !s.skip
}

// calm reports whether the loop can drive the session from now on.
func (s *session) calm() bool {
	if !s.loopable() || s.eof || s.bad != nil || s.closed.Load() {
		return false
	}
	return s.lane == nil || !s.lane.key.own || s.inflight.Load() == 0 && s.lane.isClean()
}

// giveBack lets the loop go on. What is left of a command stays in the session's own buffer.
func (s *session) giveBack() {
	if s.ownLane() != nil {
		s.dropOwn()
	}
	if s.r == s.w {
		s.buf, s.r, s.w = nil, 0, 0
	}
	s.items = nil
	s.driven.Store(false)
	s.sock.loop.post(func() { s.event(unix.EPOLLIN) }) // one may have come to the goroutine
}

// drive has a goroutine go on with the session. On the loop only.
func (s *session) drive() {
	s.driven.Store(true)
	s.p.spawn(s.serve)
}

// begin is the first thing that the loop does with a client.
func (s *session) begin() {
	if err := s.sock.loop.watch(s.sock, endpoint{s: s}); err != nil {
		s.p.log.Error("watch a client", "client", s.id, "err", err)
		s.end()
		return
	}
	s.watched = true
}

// event handles what epoll reported, on the loop.
func (s *session) event(events uint32) {
	s.sock.signal(events)
	if events&^uint32(unix.EPOLLOUT) != 0 && !s.driven.Load() {
		s.readable()
	}
}

// readable reads once, and hands over what is complete.
func (s *session) readable() {
	lp := s.sock.loop
	if s.over || s.leaving {
		return
	}
	if !s.borrow(lp) {
		s.end()
		return
	}
	room := len(s.buf) - s.w
	n, err := s.sock.read(s.buf[s.w:])
	s.w += n
	if err != nil && err != errAgain {
		s.eof = true
	}
	last := n > 0 && s.sock.hungUp // the end came with the data, in one event: there will be no other
	if s.preface != HeaderOff && !s.introduced() {
		if s.keep(lp); s.closed.Load() || s.eof {
			s.end()
		} else if last {
			lp.later(s.sock)
		}
		return
	}
	s.items = lp.items[:0]
	handled, bad := true, error(nil)
	if n > 0 {
		s.touch()
		handled, bad = s.commands()
		if !s.flushRun() {
			handled, bad = false, nil // a goroutine reads it once more
		}
	}
	lp.items, s.items = s.items[:0], nil
	s.bad = bad
	s.keep(lp)
	busy := s.inflight.Load()
	switch {
	case s.closed.Load() || s.eof && busy == 0 && s.out.pending() == 0:
		s.end()
	case s.longInput() || !handled || bad != nil || s.eof || busy >= int64(s.p.o.Limits.Pipeline):
		s.drive()
	case n == room || last:
		lp.later(s.sock)
	}
}

// borrow makes s.buf a place to read into: the loop's input, with what the session has of an incomplete command in front;
// or, when that is long, a buffer of its own.
func (s *session) borrow(lp *loop) bool {
	have := s.w - s.r
	if have > len(lp.input)/2 {
		return s.makeRoom()
	}
	s.stash = s.buf
	copy(lp.input, s.buf[s.r:s.w])
	s.buf, s.r, s.w = lp.input, 0, have
	return true
}

// keep saves what is left of the input before the loop's buffer is used for another client.
func (s *session) keep(lp *loop) {
	if s.buf == nil || &s.buf[0] != &lp.input[0] {
		if s.r == s.w {
			s.buf, s.r, s.w = nil, 0, 0
		}
		return
	}
	left := s.buf[s.r:s.w]
	stash := s.stash
	s.stash = nil
	switch {
	case len(left) == 0 && cap(stash) <= stashKept:
		s.buf = stash[:0]
	case len(left) == 0:
		s.buf = nil
	default:
		s.buf = append(stash[:0], left...)
		s.buf = s.buf[:cap(s.buf)]
	}
	s.r, s.w = 0, len(left)
}

// handOnLoop gives commands to a shared lane, if that needs no waiting.
func (s *session) handOnLoop(chunk []byte, items []item, heavy bool) bool {
	if s.lane == nil || s.inflight.Load() == 0 {
		s.lane = s.shared(heavy)
	} else if !s.stays(heavy) {
		return false
	}
	return s.lane.push(s, chunk, items, true) == nil
}
