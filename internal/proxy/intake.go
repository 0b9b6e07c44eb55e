// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"slices"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// A command with a long argument passes through on a connection of its own as it arrives, so that it needs no more memory than
// intakeBuffer. It cannot be sent again: when its primary fails before it has arrived as a whole, nothing was executed, and the
// client is told so.

const intakeBuffer = 256 << 10

// tail is what is still to come of a command.
type tail struct {
	args int // arguments after the present one
	bulk int // missing bytes of the present one, with its line end
	line []byte
	max  int
}

// pass returns how many bytes of b belong to the command, and whether it is complete with them.
func (t *tail) pass(b []byte) (n int, done bool, err error) {
	for n < len(b) {
		if t.bulk > 0 {
			take := min(t.bulk, len(b)-n)
			n += take
			if t.bulk -= take; t.bulk == 0 && t.args == 0 {
				return n, true, nil
			}
			continue
		}
		end := bytes.IndexByte(b[n:], '\n')
		if end < 0 {
			end = len(b) - n - 1
		}
		t.line = append(t.line, b[n:n+end+1]...)
		n += end + 1
		if len(t.line) > 32 {
			return n, false, resp.ErrBulkTooBig
		}
		if t.line[len(t.line)-1] != '\n' {
			return n, false, nil
		}
		length, err := strconv.Atoi(string(bytes.TrimSuffix(bytes.TrimPrefix(t.line, []byte("$")), []byte("\r\n"))))
		if err != nil || t.line[0] != '$' || length < 0 || length > t.max {
			return n, false, resp.ErrBulk
		}
		t.line, t.bulk, t.args = t.line[:0], length+2, t.args-1
	}
	return n, false, nil
}

// longInput reports whether the client is in the middle of a command that should pass through as it arrives.
func (s *session) longInput() bool {
	if s.w-s.r == 0 || s.eof || s.ro || s.p.paused.Load() != nil || s.p.loss.shut.Load() != nil || !s.authed || s.multi || s.quiet || s.skip || s.parser.Missing(s.w-s.r) < streamMin {
		return false
	}
	args, _, _, ok := s.parser.Begun(s.buf[s.r:s.w])
	if !ok || len(args) == 0 {
		return false
	}
	v := s.p.table.Load().Classify(args)
	return v.Class <= route.Write && v.Row.Care == route.NoCare
}

// intake passes the present command through. It reports false when the session is over.
func (s *session) intake() bool {
	args, after, missing, _ := s.parser.Begun(s.buf[s.r:s.w])
	if w := s.p.crowd.Load(); w != nil && len(args) > 0 {
		w.passes(s, args, s.w-s.r+missing)
	}
	t := &tail{args: after, bulk: missing, max: s.p.o.Limits.Bulk}
	if !s.own() || !s.await(0) {
		return false
	}
	s.parser.Reset()
	k, b := s.lane.beginIntake(s)
	if k == nil && s.closed.Load() {
		return false
	}
	chunk := s.buf[s.r:s.w]
	for done := false; ; {
		if k != nil {
			s.p.lossSending(s.p.order.Load(), len(chunk))
			if _, err := k.conn.Write(chunk); err != nil {
				s.lane.endIntake(k, b, false)
				k = nil // the rest is read and dropped
			}
		}
		if done {
			break
		}
		n, over, err := s.more(t)
		if err != nil { // the client is gone, or breaks the protocol: the command must not be completed
			if k != nil {
				k.cut()
				s.lane.endIntake(k, b, false)
			}
			s.bad = err
			return s.bad != errGone
		}
		chunk, done = s.buf[s.r:s.r+n], over
		s.r += n
	}
	s.from, s.to = s.r, s.r
	if k != nil {
		s.lane.endIntake(k, b, true)
	} else if b == nil {
		return s.say(notSent("it was held until the deadline, but " + s.p.why(s.p.order.Load())))
	}
	return true
}

// more reads the next piece of the command into the buffer.
func (s *session) more(t *tail) (n int, done bool, err error) {
	if len(s.buf) < intakeBuffer || len(s.buf) > queryBufferKept {
		s.buf = make([]byte, intakeBuffer)
	}
	w := s.sock.waiter()
	for {
		got, err := s.sock.read(s.buf)
		if err == nil {
			s.touch()
			s.r, s.w = 0, got
			return t.pass(s.buf[:got])
		}
		if err != errAgain {
			return 0, false, errGone
		}
		select {
		case <-w.in:
		case <-s.p.ctx.Done():
			return 0, false, errGone
		}
	}
}

// beginIntake waits for the lane's connection and takes its place on it. The caller writes the command, and then calls
// endIntake. k is nil when there was no primary in time.
func (l *lane) beginIntake(s *session) (k *link, b *batch) {
	deadline := time.Now().Add(l.p.order.Load().parkFor())
	for time.Now().Before(deadline) && !s.closed.Load() {
		o := l.p.order.Load()
		if k = l.current(); k != nil && !k.ended() && !k.demoted.Load() && l.p.maySend(o) && k.to.t == o.t {
			l.send.Lock()
			l.p.inflight.Add(1)
			if b = l.registerIntake(s, k, o); b != nil {
				return k, b
			}
			l.p.landed()
			l.send.Unlock()
		}
		l.nudge()
		if !l.p.pause(time.Millisecond) {
			break
		}
	}
	return nil, nil
}

func (l *lane) registerIntake(s *session, k *link, o *order) *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link != k || !l.p.maySend(o) || l.prefix != nil || l.commit > 0 || len(l.redo)+len(l.pend.ents)+len(l.queue) > 0 {
		return nil
	}
	s.seq++
	s.inflight.Add(1)
	b := l.p.newBatch()
	b.buf = append(b.buf, 0) // stands for the command
	b.ents = append(b.ents, entry{s: s, x: &extra{}, n: 1, seq: s.seq, flags: long | commits | writes})
	b.primary, b.need, b.epoch = true, o.need, k.epoch()
	b.refs.Store(2)
	if b.withheld() {
		l.commit++
		if b.aside = l.key.user != ""; !b.aside {
			b.marked = true
			l.waiting++
			l.p.prod.opened()
		}
	}
	l.sent = append(l.sent, b)
	k.idle.Store(false)
	return b
}

// endIntake notes whether the whole command was written, and what it waits for. It gives up the lane's send.
func (l *lane) endIntake(k *link, b *batch, whole bool) {
	defer l.nudge()
	defer l.send.Unlock()
	if whole {
		l.mu.Lock()
		b.wrote = 1
		l.mu.Unlock()
		if b.withheld() && !b.aside {
			if _, err := k.conn.Write(b.need.appendWait(slices.Clone(l.p.marker.usual))); err != nil {
				k.cut()
			}
		}
		l.p.release(b)
		return
	}
	k.cut()
}
