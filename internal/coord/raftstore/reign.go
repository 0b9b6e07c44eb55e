// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// reign is one term in office: it exists while this member is Raft's leader and has applied everything that was
// committed before.
type reign struct {
	s        *Store
	term     uint64 // grows with every reign of the deployment; the lease's term
	raftTerm uint64
	lost     chan struct{}
	beats    *kit.Beats
	ages     *kit.Ages
	wake     chan struct{} // a round is waiting; capacity one

	mu      sync.Mutex
	peers   map[string]*kit.Peer
	waiting *round // begins next; everybody who asks meanwhile joins it
	running *round
	rounds  uint64
}

// round is one question to all members: is it still this Raft term?
type round struct {
	id   uint64
	need int             // confirmations of others
	ask  map[string]bool // voters that have not confirmed yet
	done chan struct{}   // closed when err is settled
	full chan struct{}   // closed when enough have confirmed

	before time.Duration // clock.Uptime at which one of them may last have confirmed an earlier Raft term
	vague  bool          // one of them did not say
	err    error
}

var errNotInOffice = fmt.Errorf("this member is no longer the controller: %w", coord.ErrUnavailable)

// rule takes and leaves office as package raft says.
func (s *Store) rule() {
	defer s.abdicate()
	for {
		select {
		case <-s.ctx.Done():
			return
		case on := <-s.raised.office:
			s.abdicate()
			if on {
				s.takeOffice()
			}
		}
	}
}

// takeOffice commits an entry of its own, which proves that everything committed earlier was applied here, and begins a
// reign. It returns without one when leadership is lost first.
func (s *Store) takeOffice() {
	r := s.raft.Load()
	for s.ctx.Err() == nil && len(s.raised.office) == 0 {
		raftTerm := r.CurrentTerm()
		if r.State() != raft.Leader {
			return // the notice of it is on its way
		}
		won := s.opts.Clock.Uptime() // after the election that made us leader of raftTerm
		f := r.Apply(leadCommand(newName()), s.opts.Timing.Election)
		if err := f.Error(); err != nil {
			s.log.Debug("take office", "err", err)
			s.pause(s.ctx, nil, retry)
			continue
		}
		out, ok := f.Response().(led)
		if !ok {
			s.log.Error("take office", "answer", f.Response())
			return
		}
		if out.raftTerm != raftTerm {
			won = s.opts.Clock.Uptime() // elected again in between: later is the safe side
		}
		g := &reign{s: s, term: out.term, raftTerm: out.raftTerm, lost: make(chan struct{}), wake: make(chan struct{}, 1),
			beats: kit.NewBeats(), ages: kit.NewAges(won), peers: map[string]*kit.Peer{}}
		s.reign.Store(g)
		s.spawn(g.confirmer)
		s.spawn(func() { s.seatSelf(g) })
		s.log.Info("this member is the controller", "term", g.term, "raft_term", g.raftTerm)
		s.news.Fire()
		return
	}
}

// seatSelf records this member's own directory, once.
func (s *Store) seatSelf(g *reign) {
	s.disk.mu.Lock()
	me := s.disk.me
	s.disk.mu.Unlock()
	if s.machine.seat(me.Member) == "" {
		s.giveSeat(g, me.Member, me.Seat)
	}
}

func (s *Store) abdicate() {
	g := s.reign.Swap(nil)
	if g == nil {
		return
	}
	close(g.lost)
	g.keepPeers(func(string) bool { return false })
	s.log.Info("this member is no longer the controller", "term", g.term)
	s.news.Fire()
}

// confirm returns nil when a majority has said, after confirm was called, that the Raft term is still this reign's.
// Package raft's own VerifyLeader is not used for it: that counts answers to heartbeats that were sent before the call,
// so a process that was stopped could confirm itself with old answers that waited in its sockets.
func (g *reign) confirm(ctx context.Context) error {
	g.mu.Lock()
	if g.waiting == nil {
		g.waiting = &round{done: make(chan struct{}), full: make(chan struct{})}
	}
	q := g.waiting
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
	select {
	case <-q.done:
		return q.err
	case <-g.lost:
		return errNotInOffice
	case <-ctx.Done():
		return fmt.Errorf("confirm leadership: %w: %w", coord.ErrUnavailable, ctx.Err())
	}
}

// confirmer runs the rounds, one after the other.
func (g *reign) confirmer() {
	for {
		select {
		case <-g.lost:
			return
		case <-g.s.ctx.Done():
			return
		case <-g.wake:
		}
		g.mu.Lock()
		q := g.waiting
		g.waiting = nil
		if q != nil {
			g.begin(q)
		}
		g.mu.Unlock()
		if q == nil {
			continue
		}
		q.err = g.await(q)
		g.mu.Lock()
		g.running = nil
		g.mu.Unlock()
		close(q.done)
	}
}

// begin asks everybody. Callers hold the lock.
func (g *reign) begin(q *round) {
	config := g.s.raft.Load().GetConfiguration().Configuration()
	voters := votersOf(&config)
	g.rounds++
	q.id, q.ask, q.need = g.rounds, map[string]bool{}, len(voters)/2+1
	for _, m := range voters {
		if string(m.ID) == g.s.opts.ID {
			q.need--
			continue
		}
		q.ask[string(m.ID)] = true
	}
	g.running = q
	if q.need <= 0 {
		close(q.full)
		return
	}
	f := kit.Frame{Kind: kit.KindConfirm, ID: q.id, Rev: g.raftTerm}.Encode()
	for _, p := range g.peers {
		p.Send(f)
	}
}

func (g *reign) await(q *round) error {
	t := time.NewTimer(g.s.opts.Timing.Election)
	defer t.Stop()
	select {
	case <-q.full:
	case <-g.lost:
		return errNotInOffice
	case <-g.s.ctx.Done():
		return coord.ErrClosed
	case <-t.C:
		return fmt.Errorf("confirm leadership: no majority answered within %s: %w", g.s.opts.Timing.Election, coord.ErrUnavailable)
	}
	// Our own voice: looked at after the round began, like the others'.
	r := g.s.raft.Load()
	term, age := g.s.oaths.swear(g.raftTerm, r.CurrentTerm)
	if r.State() != raft.Leader || term != g.raftTerm {
		return errNotInOffice
	}
	g.mu.Lock()
	before, vague := q.before, q.vague
	g.mu.Unlock()
	if !vague {
		g.ages.Vacant(max(before, g.s.opts.Clock.Uptime()-age, time.Duration(g.s.changed.Load())))
	}
	return nil
}

// confirmed takes one member's answer to a round, which arrived at that time.
func (g *reign) confirmed(member string, f kit.Frame, arrived time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.running
	if q == nil || q.id != f.ID || f.Rev != g.raftTerm || !q.ask[member] || q.need <= 0 {
		return
	}
	delete(q.ask, member)
	if age, ok := decodeAge(f.Value); ok {
		q.before = max(q.before, arrived-age)
	} else {
		q.vague = true
	}
	if q.need--; q.need == 0 {
		close(q.full)
	}
}

// join takes a member's stream and closes the one that it had before.
func (g *reign) join(p *kit.Peer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.lost:
		return false
	default:
	}
	if old := g.peers[p.ID]; old != nil {
		old.Close()
	}
	g.peers[p.ID] = p
	if q := g.running; q != nil {
		p.Send(kit.Frame{Kind: kit.KindConfirm, ID: q.id, Rev: g.raftTerm}.Encode())
	}
	return true
}

func (g *reign) leave(p *kit.Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.peers[p.ID] == p {
		delete(g.peers, p.ID)
	}
}

// keepPeers closes the streams of members that do not stay.
func (g *reign) keepPeers(stays func(id string) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, p := range g.peers {
		if !stays(id) {
			p.Close()
			delete(g.peers, id)
		}
	}
}

// push sends an encoded frame to all members.
func (g *reign) push(f []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.peers {
		p.Send(f)
	}
}

// lease implements coord.Lease.
type lease struct{ *reign }

// Term is the number of this reign in the deployment. It is counted in the replicated state rather than taken from Raft,
// so that it grows even when one member is elected twice.
func (l lease) Term() uint64 { return l.term }

// Lost implements coord.Lease.
func (l lease) Lost() <-chan struct{} { return l.lost }

// Release hands the seat to the member that is most up to date, and returns when it was given up. A single member keeps it.
func (l lease) Release(ctx context.Context) error {
	if l.s.reign.Load() != l.reign {
		return nil
	}
	done := make(chan error, 1)
	l.s.spawn(func() { done <- l.s.raft.Load().LeadershipTransfer().Error() })
	select {
	case <-l.lost:
		return nil
	case err := <-done:
		if err != nil {
			return fmt.Errorf("hand over control: %w", err)
		}
	case <-ctx.Done():
		return fmt.Errorf("hand over control: %w", ctx.Err())
	}
	select {
	case <-l.lost:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("hand over control: %w", ctx.Err())
	}
}

// Campaign implements coord.Election. All members stand for election all the time; it waits until this one won and
// has applied everything.
func (s *Store) Campaign(ctx context.Context) (coord.Lease, error) {
	for {
		next := s.news.Next()
		if err := s.gone(); err != nil {
			return nil, fmt.Errorf("campaign: %w", err)
		}
		if g := s.reign.Load(); g != nil {
			return lease{g}, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, fmt.Errorf("campaign: %w", ctx.Err())
		case <-s.ctx.Done():
		}
	}
}

// Controller implements coord.Election.
func (s *Store) Controller() string {
	if s.gone() != nil {
		return ""
	}
	if s.reign.Load() != nil {
		return s.opts.ID
	}
	if _, id := s.raft.Load().LeaderWithID(); string(id) != s.opts.ID {
		return string(id)
	}
	return "" // elected, but not in office yet
}

// gone tells why this member takes no part any more.
func (s *Store) gone() error {
	if s.ctx.Err() != nil {
		return coord.ErrClosed
	}
	select {
	case <-s.left.done:
		return fmt.Errorf("%s: %w", *s.left.why.Load(), coord.ErrUnavailable)
	default:
		return nil
	}
}

// surelyNot reports whether an error of package raft means that nothing was or will be applied.
func surelyNot(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress)
}
