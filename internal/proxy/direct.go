// SPDX-License-Identifier: Apache-2.0

package proxy

import "redoubt/internal/route"

// The short way between a session and its client within the process: on their loop, a command that the client has understood already
// is handed to the session instead of being written, and a reply is handed back from the memory into which it was read. It is taken only
// while nothing is on its way in the pipe, so that both ways together keep the order, and by a session that would put the command on its
// lane at once. Everything else goes through the pipe.

// Offer takes a plain command of so many words, whose bytes are raw, as if it had been written and v were what the proxy thinks of it. It
// reports false when it has to be written. On the loop only, and not while something that was written before waits for room.
func (st *Stream) Offer(v route.Verdict, words int, raw []byte) bool {
	return st.far != nil && st.far.offered(v, words, raw)
}

// Hear has f called on the loop with replies that have come, so many whole ones, instead of their being read. b is valid until f returns;
// if f returns false they are to be read after all. To be called before anything is written or offered.
func (st *Stream) Hear(f func(b []byte, replies int) bool) {
	if p := st.c.pipe; p != nil {
		p.mu.Lock()
		p.hear = f
		p.mu.Unlock()
	}
}

// offered puts a command on the session's lane. It reports false when the session is not ready for that, or the command is not of those
// that simply go to a lane.
func (s *session) offered(v route.Verdict, words int, raw []byte) bool {
	if v.Class > route.Write || v.Row.Care != route.NoCare || v.Row.Name == "PING" || !s.open() {
		return false
	}
	it := &s.one[0]
	*it = item{n: uint32(len(raw))}
	s.classed(it, v, words)
	heavy := it.flags&writes != 0
	s.exact, s.main = it.flags&exact != 0, v.Row.Flags&route.Readonly == 0
	taken := s.handOnLoop(raw, s.one[:], heavy)
	s.main = false
	if taken {
		s.p.stats.commands.Add(1)
		s.show(v.Row, nil)
		s.touch()
	}
	return taken
}

// open reports whether the loop drives the session, and it would handle what is written now before it looks at anything else. On the loop only.
func (s *session) open() bool {
	if s.driven.Load() || !s.watched || s.over || s.leaving || s.eof || s.r != s.w || s.preface != HeaderOff || !s.loopable() || s.closed.Load() {
		return false
	}
	if s.p.paused.Load() != nil || s.p.loss.shut.Load() != nil || s.inflight.Load() >= int64(s.p.o.Limits.Pipeline) {
		return false
	}
	return s.pipe.quiet()
}

// quiet reports whether nothing is on its way to this end, and its end is not either.
func (p *pipe) quiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.in == nil && !p.ended
}

// answer hands whole replies to so many commands to a client within the process. It reports false when they have to be delivered. On the loop
// only.
func (s *session) answer(b []byte, count int64) bool {
	if s.pipe == nil || s.p.o.HangUp || s.closed.Load() || s.out.pending() > 0 || !s.pipe.peer.hears(b, count) {
		return false
	}
	s.touch()
	s.answered(count)
	return true
}

// hears hands over what would have to be read otherwise.
func (p *pipe) hears(b []byte, replies int64) bool {
	p.mu.Lock()
	hear := p.hear
	if p.in != nil || p.ended {
		hear = nil // in its turn
	}
	p.mu.Unlock()
	return hear != nil && hear(b, int(replies))
}
