// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/resp"
)

// Handing clients over to another process (ADR 0016). Whoever drives a client lets go of it at a moment when nothing of
// it is in flight: its loop, or its goroutine. Until then it is not read from: what it sends waits in its socket.

// Given is a client on its way to another process. Whoever gets it closes the descriptors.
type Given struct {
	Record   *Record
	Client   int // descriptor
	Upstream int // that of its own upstream connection; -1: none
}

// ErrTooLarge is what give returns for a client that the other process cannot take, as with a transaction of many megabytes:
// it stays, and the others leave.
var ErrTooLarge = errors.New("what is known about a client is too large to be handed over")

// leaving is a hand-over that is under way.
type leaving struct {
	given chan Given
	begun atomic.Int64 // clients that were let go of
	ended atomic.Int64 // of these, those that have left or were taken back
}

// underWay reports whether a client is neither here nor gone; begun is what to compare with after a look at who is here.
func (m *leaving) underWay() (begun int64, some bool) {
	ended := m.ended.Load()
	begun = m.begun.Load()
	return begun, begun != ended
}

const (
	askedMore    = 64      // clients that are asked to leave in each look
	givenAhead   = 256     // clients that wait to be sent
	inputMax     = 2 << 20 // more unhandled input of one client is carried out here first
	leaveEvery   = time.Millisecond
	leaveLater   = 10 * time.Millisecond
	leaveHurry   = 500         // looks before the pace slackens
	lingerNotice = time.Second // after which clients that are still here are told that they have to move
	ownDrain     = time.Second // for a client to take the last messages of its own connection
)

// Leave closes the ports to new clients and gives every client away as soon as nothing of it is in flight. Clients that are
// blocked are taken out of their command, which is given away with them. It returns when no client is left or ctx ends,
// with the number of clients that are still here. After an error of give, and after Leave, Stay takes clients again.
func (p *Proxy) Leave(ctx context.Context, give func(Given) error) (left int, err error) {
	m := &leaving{given: make(chan Given, givenAhead)}
	sent := make(chan error, 1)
	go func() { sent <- p.sendAll(m, give) }()
	p.mu.Lock()
	doors := p.doors
	p.doors = nil
	p.mu.Unlock()
	for _, d := range doors {
		d.leave()
	}
	p.mover.Store(m)
	left = p.awaitLeft(ctx, m)
	// Nobody begins to give from here on; who is in the middle of it is waited for.
	p.mover.CompareAndSwap(m, nil)
	p.settleLoops()
	p.moving.Lock()
	close(m.given)
	p.moving.Unlock()
	return left, <-sent
}

// sendAll sends what is given away. What could not be sent is taken back.
func (p *Proxy) sendAll(m *leaving, give func(Given) error) error {
	var failed error
	for g := range m.given {
		if failed == nil {
			failed = give(g)
		}
		switch {
		case failed == nil:
			_ = unix.Close(g.Client)
			if g.Upstream >= 0 {
				_ = unix.Close(g.Upstream)
			}
		case errors.Is(failed, ErrTooLarge):
			failed = nil
			p.log.Info("a client stays until its process ends", "client", g.Record.ID, "err", ErrTooLarge)
			p.takeAgain(g, true)
		default:
			p.mover.CompareAndSwap(m, nil)
			p.takeAgain(g, false)
		}
		m.ended.Add(1)
	}
	return failed
}

// takeAgain goes on with a client that was about to leave. stays: it is not asked again.
func (p *Proxy) takeAgain(g Given, stays bool) {
	if err := p.adopt(g, stays); err != nil {
		p.log.Warn("a client could neither be handed over nor kept", "client", g.Record.ID, "err", err)
	}
}

// awaitLeft asks again and again until all clients have left.
func (p *Proxy) awaitLeft(ctx context.Context, m *leaving) (left int) {
	began, told := time.Now(), false
	asked := map[*session]struct{}{}
	for n := 0; ; n++ {
		begun, some := m.underWay()
		here := p.everybody()
		if len(here) == 0 && !some && begun == m.begun.Load() || p.mover.Load() == nil {
			return len(here)
		}
		p.urge(newlyAsked(asked, here))
		if n%5 == 0 {
			p.freeBlocked()
		}
		if !told && time.Since(began) > lingerNotice {
			told = true
			p.sayMoving(ctx)
		}
		every := leaveEvery
		if n > leaveHurry {
			every = leaveLater
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
			t.Stop()
			return len(p.everybody())
		case <-p.ctx.Done():
			t.Stop()
			return len(p.everybody())
		case <-t.C:
		}
	}
}

// newlyAsked returns those of asked who are still here, and a few more: a client that was asked waits, so that not all
// are asked before the first ones have left.
func newlyAsked(asked map[*session]struct{}, here []*session) []*session {
	now, more := make([]*session, 0, len(here)), 0
	for _, s := range here {
		if _, before := asked[s]; !before {
			if more == askedMore {
				continue
			}
			more++
			asked[s] = struct{}{}
		}
		now = append(now, s)
	}
	return now
}

// urge has everybody who drives a client look whether it can leave.
func (p *Proxy) urge(here []*session) {
	byLoop := make([][]*session, len(p.loops))
	for _, s := range here {
		i := s.sock.loop.index
		byLoop[i] = append(byLoop[i], s)
	}
	for i, some := range byLoop {
		if len(some) == 0 {
			continue
		}
		p.loops[i].post(func() {
			for _, s := range some {
				s.leaveLoop()
			}
		})
	}
}

// settleLoops returns when every loop has done what was posted before.
func (p *Proxy) settleLoops() {
	for _, lp := range p.loops {
		done := make(chan struct{})
		if lp.post(func() { close(done) }) {
			<-done
		}
	}
}

// Stay undoes Leave: ports are opened again, and who is still here is served.
func (p *Proxy) Stay() {
	p.mover.Store(nil)
	p.mu.Lock()
	if p.doors == nil && p.ctx.Err() == nil {
		p.openDoors()
	}
	var freed []*lane
	for l := range p.lanes {
		if l.key.own {
			freed = append(freed, l)
		}
	}
	p.mu.Unlock()
	for _, l := range freed {
		l.mu.Lock()
		l.moved = false
		l.mu.Unlock()
		l.nudge()
	}
	for _, s := range p.everybody() {
		s.sock.loop.post(s.goOn)
	}
}

// leaveLoop lets the client go if the loop drives it and nothing of it is in flight. On the loop only.
func (s *session) leaveLoop() {
	m := s.hander()
	if m == nil || s.huge || s.over || s.closed.Load() || s.eof || s.bad != nil {
		return
	}
	if s.driven.Load() {
		if w := s.sock.wait.Load(); w != nil {
			poke(w.in)
		}
		return
	}
	s.leaving = true
	if s.inflight.Load() > 0 {
		return
	}
	g := s.pack(nil)
	if g == nil {
		return
	}
	m.begun.Add(1)
	s.release(&g.Client)
	m.given <- *g
}

// departure is what became of an attempt to leave.
type departure int

const (
	staysHere    departure = iota // it goes on as ever
	waitsToLeave                  // something is still in flight
	tookBack                      // its input has what was blocked in front; it stays
	hasLeft
)

// depart lets the client go if nothing of it is in flight, on the goroutine that drives it.
func (s *session) depart() departure {
	p := s.p
	p.moving.RLock()
	defer p.moving.RUnlock()
	m := s.hander()
	if m == nil || s.huge || s.eof || s.bad != nil || s.closed.Load() || s.w-s.r > inputMax {
		return staysHere
	}
	s.out.flush()
	if s.out.pending() > 0 {
		return waitsToLeave
	}
	stay := waitsToLeave
	if s.takeBack() {
		stay = tookBack
	}
	if s.inflight.Load() > 0 {
		return stay
	}
	own, upstream, ok := s.packOwn()
	if !ok {
		return stay
	}
	g := s.pack(own)
	if g == nil { // it does not take its last messages, and its upstream connection is gone
		if upstream >= 0 {
			_ = unix.Close(upstream)
		}
		if own != nil {
			s.kill()
			return staysHere
		}
		return stay
	}
	g.Upstream = upstream
	m.begun.Add(1)
	released := make(chan struct{})
	s.sock.loop.post(func() { s.release(&g.Client); close(released) })
	<-released // loops outlive sessions
	m.given <- *g
	return hasLeft
}

// packOwn ends the session's own lane, if it has one that holds something.
func (s *session) packOwn() (own *Own, upstream int, ok bool) {
	l := s.lane
	if l == nil || !l.key.own {
		return nil, -1, true
	}
	if l.isClean() && s.user == "" {
		s.dropOwn()
		return nil, -1, true
	}
	if own, upstream, ok = l.pack(); !ok {
		return nil, -1, false
	}
	s.lane = nil
	for until := time.Now().Add(ownDrain); s.out.pending() > 0 && time.Now().Before(until) && s.p.pause(leaveEvery); {
		s.out.flush()
	}
	return own, upstream, true
}

// pack describes the session, which nobody can give anything to any more; nil: something waits for the client.
func (s *session) pack(own *Own) *Given {
	now := s.p.tick.Load()
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	if s.mid || s.after != nil || s.out.pending() > 0 || s.closed.Load() {
		return nil
	}
	s.closed.Store(true)
	r := &Record{
		ID: s.id, Readonly: s.ro, AgeMS: time.Since(s.born).Milliseconds(), IdleS: now - s.vis.seen.Load(),
		Proto: s.proto, DB: s.db, Authed: s.authed, User: octets(s.user), Pass: octets(s.pass), Quiet: s.quiet, Skip: s.skip, Multi: s.multi, Poison: s.poison, Lax: s.lax,
		Maint: s.maint.Load(), Told: s.told, Name: s.name, Lib: s.lib, LibVer: s.libVer, Shown: octets(s.vis.user),
		NoEvict: s.vis.noEvict.Load(), NoTouch: s.vis.noTouch.Load(), Far: s.sock.far, Door: s.sock.door, SaidFar: s.vis.far, SaidOur: s.vis.near,
		Preface: s.preface, Begun: s.begun, Wrote: s.wrote.Load(), WroteAt: s.wroteAt.Load(), Input: slices.Clone(s.buf[s.r:s.w]), Own: own,
	}
	if due := s.vis.due.Load(); due != 0 {
		r.DueS = 1 + max(due, now) - now
	}
	if row := s.vis.row.Load(); row != nil {
		r.Last = row.Name
	}
	if sub := s.vis.sub.Load(); sub != nil {
		r.LastSub = *sub
	}
	return &Given{Record: r, Client: -1, Upstream: -1}
}

// release takes the session out of this proxy; its socket stays open under fd. On the loop only.
func (s *session) release(fd *int) {
	s.over = true
	*fd = s.sock.loop.unwatch(s.sock)
	s.p.mu.Lock()
	delete(s.p.sessions, s.id)
	s.p.mu.Unlock()
	s.p.wg.Done()
}

// takeBack puts the commands that were blocked when the session's own connection was given up in front of its input, as
// the client sent them but for the time that is left. It reports whether there were any.
func (s *session) takeBack() bool {
	l := s.lane
	if l == nil || !l.key.own {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.moved || l.link != nil || len(l.redo) == 0 || int64(len(l.redo)) != s.inflight.Load() || len(l.pend.ents)+len(l.queue)+len(l.sent)+len(l.unacked) > 0 {
		return false
	}
	for i := range l.redo {
		if e := &l.redo[i]; e.n == 0 || e.op != opNone || e.flags&muted != 0 || e.x == nil || e.x.txn != nil {
			l.moved = false // it goes on here
			l.nudge()
			return false
		}
	}
	l.st.caching = l.redo[0].flags & caches
	var b []byte
	for i := range l.redo {
		b = append(b, l.redo[i].x.data...)
		s.redo.Add(-1)
	}
	s.inflight.Add(-int64(len(l.redo)))
	clear(l.redo)
	l.redo = l.redo[:0]
	l.recount()
	b = append(b, s.buf[s.r:s.w]...)
	s.r, s.w, s.from, s.to = 0, len(b), 0, 0
	s.buf = append(b, make([]byte, queryBuffer)...)
	s.parser.Reset()
	return true
}

func (l *lane) isMoved() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.moved
}

// pack ends an own lane that has nothing in flight, and returns what its server side knows, with its connection.
func (l *lane) pack() (own *Own, fd int, ok bool) {
	l.mu.Lock()
	k := l.link
	busy := len(l.pend.ents)+len(l.queue)+len(l.sent)+len(l.unacked)+len(l.redo) > 0 || l.prefix != nil || l.commit > 0 || l.closed || l.st.asked > 0 || k != nil && !k.idle.Load()
	if busy {
		l.mu.Unlock()
		return nil, -1, false
	}
	l.moved = true
	own = l.st.record() // before the end of the connection is noticed, which would count as a lost WATCH
	l.mu.Unlock()
	fd = -1
	var up *Upstream
	if k != nil {
		if c, err := k.copyOf(); err == nil && k.to.t != nil && !k.ended() {
			fd = c
			up = &Upstream{
				Epoch: uint64(k.to.t.epoch), Node: string(k.to.node), Addr: k.to.addr, Process: k.to.t.runID, History: k.to.t.history,
				RunID: k.runID, ClientID: k.clientID,
			}
		} else if err == nil {
			_ = unix.Close(c)
		}
		k.cut() // this copy of it: its reader delivers what it has, and ends
		<-k.done
		if up != nil {
			up.Input = slices.Clone(k.buf[k.r:k.w])
		}
	}
	l.mu.Lock()
	own.Subs = l.st.record().Subs // one may have been confirmed, or ended by the server, on the way
	own.Upstream = up
	l.own = nil
	l.mu.Unlock()
	l.shut()
	return own, fd, true
}

func (st *state) record() *Own {
	o := &Own{Watch: st.watch, Lost: st.lost, Monitor: st.monitor, Tracking: st.tracking, Caching: st.caching.word(), DB: st.db}
	for kind, subs := range st.subs {
		for name := range subs {
			o.Subs[kind] = append(o.Subs[kind], octets(name))
		}
		slices.Sort(o.Subs[kind])
	}
	if t := st.txn; t != nil {
		o.Txn = &Txn{Log: t.log, Caching: t.caching.word(), DB: t.db, Broken: t.broken}
	}
	return o
}

// freeBlocked takes clients out of commands that block: a connection whose command was ended by CLIENT UNBLOCK has popped
// nothing for certain, and the command waits again in the other process.
func (p *Proxy) freeBlocked() {
	commands := map[string][][]string{} // by server
	p.mu.Lock()
	for l := range p.lanes {
		l.mu.Lock()
		if k := l.link; l.key.own && k != nil && l.own != nil && l.blocking.Load() > 0 && !l.closed {
			l.moved = true
			commands[k.to.addr] = append(commands[k.to.addr], []string{"CLIENT", "UNBLOCK", k.clientID, "ERROR"})
		}
		l.mu.Unlock()
	}
	p.mu.Unlock()
	for addr, all := range commands {
		for some := range slices.Chunk(all, 1000) {
			if _, err := p.ask(addr, some...); err != nil {
				p.log.Warn("unblock waiting commands for a hand-over", "addr", addr, "err", err)
				break
			}
		}
	}
}

// sayMoving tells the clients that wanted to know that their connection will be closed, unless they become idle before.
func (p *Proxy) sayMoving(ctx context.Context) {
	seconds := int64(1)
	if end, ok := ctx.Deadline(); ok {
		seconds = max(1, int64(time.Until(end)/time.Second))
	}
	h := &p.herald
	h.mu.Lock()
	h.seq++
	seq := h.seq
	h.mu.Unlock()
	frame := resp.AppendInt(resp.AppendInt(resp.AppendBulk(resp.AppendPush(nil, 4), "MOVING"), seq), seconds)
	frame = resp.AppendNull(frame, 3) // the same address: the other process is behind it
	for _, s := range p.listeners() {
		s.tell(frame, seq)
	}
}
