// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Clients of Join that are handed over to another process, one by one, by whoever stands in front of the proxy: it knows when nothing is asked of a
// session (ADR 0050).

// Depart takes the session at the other end out of this proxy, for Rejoin in another process. Nothing may be on its way to it but commands that block,
// which FreeBlocked ends: they come back as input, to be given once more. What the session had to say can still be read here, and then the end. It returns
// false when that did not succeed within patience: then nothing has changed. The caller closes file, the session's own upstream connection (-1: none).
// Not for a loop, because it waits.
func (st *Stream) Depart(patience time.Duration) (record []byte, file int, input []byte, ok bool) {
	s := st.far
	if s == nil {
		return nil, -1, nil, false
	}
	m := &leaving{given: make(chan Given, 1)}
	s.alone.Store(m)
	g, ok := s.awaitDeparture(m, patience)
	if !ok {
		return nil, -1, nil, false
	}
	input, g.Record.Input = g.Record.Input, nil
	record, err := g.Record.Encode()
	if err != nil { // it consists of texts and numbers
		panic(err)
	}
	return record, g.Upstream, input, true
}

// awaitDeparture asks the session to leave, again and again.
func (s *session) awaitDeparture(m *leaving, patience time.Duration) (g Given, ok bool) {
	end := time.NewTimer(patience)
	defer end.Stop()
	tick := time.NewTicker(leaveEvery)
	defer tick.Stop()
	for {
		s.sock.loop.post(s.leaveLoop)
		select {
		case g = <-m.given:
			return g, true
		case <-end.C:
			return s.callBack(m)
		case <-tick.C:
		}
	}
}

// callBack has the session go on here, unless it has left meanwhile.
func (s *session) callBack(m *leaving) (g Given, left bool) {
	s.p.moving.Lock() // no goroutine is in the middle of it behind this, nor the loop behind the next
	s.alone.Store(nil)
	s.p.moving.Unlock()
	done := make(chan struct{})
	posted := s.sock.loop.post(func() {
		defer close(done)
		if len(m.given) == 0 {
			s.goOn()
		}
	})
	if posted {
		<-done
	}
	select {
	case g = <-m.given:
		return g, true
	default:
		return g, false
	}
}

// goOn has the session served again, whoever drives it. On the loop only.
func (s *session) goOn() {
	if s.leaving {
		s.leaving = false
		s.event(unix.EPOLLIN)
	} else if w := s.sock.wait.Load(); w != nil {
		poke(w.in)
	}
}

// hander is the hand-over that the session is to take part in; nil: none.
func (s *session) hander() *leaving {
	if s.pipe != nil {
		return s.alone.Load()
	}
	return s.p.mover.Load()
}

// Rejoin is Join for a client that another process has given away: what Depart returned there. It owns the descriptor from now on, also when it fails.
func (p *Proxy) Rejoin(loop int, event func(), record []byte, file int) (*Stream, error) {
	r, err := DecodeRecord(record)
	if err == nil {
		select {
		case <-p.running:
		default:
			err = fmt.Errorf("join the proxy: it does not run yet")
		}
	}
	if err != nil {
		closeAll(file)
		return nil, err
	}
	near, far := newPipe(p.loops[loop])
	st := &Stream{c: near, said: event}
	near.owner = endpoint{f: st}
	if st.far, err = p.readmit(far, Given{Record: r, Client: -1, Upstream: file}, false); err != nil {
		return nil, err
	}
	return st, nil
}

// FreeBlocked takes all clients of Join out of commands that block, so that Depart finds them idle. Those that do not depart are given their command
// back by Stay.
func (p *Proxy) FreeBlocked() { p.freeBlocked() }

// SayMoving tells the clients that wanted to know that their connection will be closed when ctx ends, unless they become idle before.
func (p *Proxy) SayMoving(ctx context.Context) { p.sayMoving(ctx) }
