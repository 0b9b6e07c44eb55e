// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// office is one term as the controller.
type office struct {
	term  uint64
	lost  chan struct{}
	once  sync.Once
	beats *kit.Beats
	ages  *kit.Ages
	wake  chan struct{} // a round is waiting; capacity one

	mu      sync.Mutex // guards what follows
	until   time.Duration
	peers   map[string]*kit.Peer
	waiting *round // begins next; everybody who asks meanwhile joins it
}

// round is one read of the seat and of all documents that somebody waits for.
type round struct {
	keys map[string]bool
	done chan struct{} // closed when docs and err are settled
	docs map[string]coord.Doc
	err  error
}

func newRound() *round { return &round{keys: map[string]bool{}, done: make(chan struct{})} }

// beginOffice begins a term with the seat as it was written by a swap that began at that time. No earlier controller answers a
// Get that arrived after since.
func (s *Store) beginOffice(c *chair, begun, since time.Duration) {
	if s.uptime() >= begun+s.opts.Timing.Lease {
		return // the answer came too late to count; the next look finds the seat this member's own
	}
	g := &office{term: c.Term, lost: make(chan struct{}), beats: kit.NewBeats(), ages: kit.NewAges(since), wake: make(chan struct{}, 1),
		until: begun + s.opts.Timing.Lease, peers: map[string]*kit.Peer{}, waiting: newRound()}
	s.office.Store(g)
	s.abstain.Store(0)
	s.log.Info("this member is the controller", "term", g.term)
	if !s.work.Spawn(func() { s.keep(g) }) || !s.work.Spawn(func() { s.expire(g) }) || s.gone() != nil {
		s.lose(g)
	}
	s.news.Fire()
}

// lose ends a term in office.
func (s *Store) lose(g *office) {
	g.once.Do(func() {
		s.office.CompareAndSwap(g, nil)
		close(g.lost)
		g.mu.Lock()
		for _, p := range g.peers {
			p.Close()
		}
		g.mu.Unlock()
		s.log.Info("this member is no longer the controller", "term", g.term)
	})
	s.news.Fire()
}

// expire ends the term when the right to it is over, whatever the store does meanwhile, and tells the members that this one lives.
func (s *Store) expire(g *office) {
	t := time.NewTimer(0)
	defer t.Stop()
	pulse := kit.Frame{Kind: kit.KindPulse}.Encode()
	for {
		select {
		case <-t.C:
		case <-g.lost:
			return
		case <-s.ctx.Done():
			s.lose(g)
			return
		}
		g.mu.Lock()
		left := g.until - s.uptime()
		g.mu.Unlock()
		if left <= 0 {
			s.log.Warn("the store did not confirm this controller in time", "term", g.term, "lease", s.opts.Timing.Lease)
			s.lose(g)
			return
		}
		g.push(pulse)
		t.Reset(min(left, s.opts.Timing.pulse()))
	}
}

// keep reads the seat again and again, and with it what somebody waits for.
func (s *Store) keep(g *office) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-g.wake:
		case <-g.lost:
			return
		}
		g.mu.Lock()
		q := g.waiting
		g.waiting = newRound()
		until := g.until
		g.mu.Unlock()
		q.docs, q.err = s.reread(g, q, until)
		close(q.done)
		if errors.Is(q.err, errNotInOffice) {
			s.lose(g)
			return
		}
		after := s.opts.Timing.reread()
		if q.err != nil {
			after = retry
		}
		t.Reset(after)
	}
}

// reread carries one round out.
func (s *Store) reread(g *office, q *round, until time.Duration) (map[string]coord.Doc, error) {
	begun := s.uptime()
	if begun >= until {
		return nil, errNotInOffice // a right that is over does not come back, as after suspend
	}
	ctx, cancel := context.WithTimeout(s.ctx, max(until-begun, time.Millisecond))
	defer cancel()
	keys := []string{keyChair}
	for k := range q.keys {
		if k != keyChair {
			keys = append(keys, k)
		}
	}
	known := make([]coord.Rev, len(keys)) // these are in the store before it is asked
	for i, k := range keys {
		known[i] = s.hub.Rev(k)
		if c := s.chair.Load(); k == keyChair && c != nil {
			known[i] = max(known[i], c.rev)
		}
	}
	docs, err := s.back.Read(ctx, keys...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
	}
	for i, k := range keys {
		if docs[k].Rev < known[i] {
			return nil, goneBack(k, known[i])
		}
	}
	c, err := decodeChair(docs[keyChair])
	if err != nil {
		s.log.Error("the election's document is lost or cannot be used", "err", err)
		return nil, errNotInOffice
	}
	s.seen(c)
	if !s.mine(c) || c.Term != g.term {
		return nil, errNotInOffice
	}
	for _, d := range docs {
		s.hub.Learn(d)
	}
	if c.Doubt == "" {
		g.extend(begun + s.opts.Timing.Lease)
		return docs, nil
	}
	// Nothing is answered under a doubt: whoever takes the seat counts on it.
	begun = s.uptime()
	answer := *c
	answer.Doubt = ""
	if _, err := s.writeChair(ctx, answer, c.rev); err != nil {
		return nil, fmt.Errorf("answer a doubt: %w: %w", coord.ErrUnavailable, err)
	}
	s.log.Info("a member does not reach this controller, which lives", "peer", c.Doubt)
	g.extend(begun + s.opts.Timing.Lease)
	return docs, nil
}

// goneBack is the error when the store shows less than this process knew before it asked: it was restored or emptied, or its reads
// are not what they should be.
func goneBack(key string, known coord.Rev) error {
	return fmt.Errorf("the store has gone back behind revision %d of %s (restored from a backup, or emptied?): stop all members before that is done, and start them afterwards: %w", known, key, coord.ErrUnavailable)
}

func (g *office) extend(until time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until = max(g.until, until)
}

// read waits for a round that began after it was called, and returns one document of it.
func (g *office) read(ctx context.Context, key string) (coord.Doc, error) {
	g.mu.Lock()
	q := g.waiting
	q.keys[key] = true
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
	select {
	case <-q.done:
	case <-g.lost:
		return coord.Doc{}, errNotInOffice
	case <-ctx.Done():
		return coord.Doc{}, fmt.Errorf("read %s: %w: %w", key, coord.ErrUnavailable, ctx.Err())
	}
	if q.err != nil {
		return coord.Doc{}, q.err
	}
	d, ok := q.docs[key]
	if !ok {
		return coord.Doc{}, coord.ErrNotFound
	}
	return d, nil
}

// join takes a member's stream and closes the one that it had before.
func (g *office) join(p *kit.Peer) bool {
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
	return true
}

func (g *office) leave(p *kit.Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.peers[p.ID] == p {
		delete(g.peers, p.ID)
	}
}

// push sends an encoded frame to all members.
func (g *office) push(f []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.peers {
		p.Send(f)
	}
}

// ReadAge implements coord.ReadAges. Members read through the controller, which notes when each read arrives, so within one term
// in office it knows. An earlier controller answers a read only if, after the read had arrived, the store showed the seat as
// its own and undoubted, or its own swap took a doubt away. So every read that it answered had arrived before the doubt was
// written on which this member took the seat, or, when nobody had it, before the swap that took it: there the count begins.
func (s *Store) ReadAge(member string) (time.Duration, bool) {
	g := s.office.Load()
	if g == nil {
		return 0, false
	}
	return max(0, s.uptime()-g.ages.Latest(member, s.hub.Rev)), true
}

// VacantFor implements coord.ReadAges.
func (s *Store) VacantFor() (time.Duration, bool) {
	g := s.office.Load()
	if g == nil {
		return 0, false
	}
	return max(0, s.uptime()-g.ages.Since()), true
}
