// SPDX-License-Identifier: Apache-2.0

package memstore

import (
	"context"
	"fmt"
	"time"

	"redoubt/internal/coord"
)

type candidate struct {
	s   *Store
	won chan *lease // capacity one; closed when the store is closed first
}

type lease struct {
	s    *Store
	term uint64
	lost chan struct{}
}

// Term implements coord.Lease.
func (l *lease) Term() uint64 { return l.term }

// Lost implements coord.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release implements coord.Lease: the seat goes to the campaign that waited longest.
func (l *lease) Release(context.Context) error {
	l.s.c.mu.Lock()
	defer l.s.c.mu.Unlock()
	if l.s.c.seat == l {
		l.s.c.vacate()
		l.s.c.settle()
	}
	return nil
}

// Campaign implements coord.Election.
func (s *Store) Campaign(ctx context.Context) (coord.Lease, error) {
	k := &candidate{s: s, won: make(chan *lease, 1)}
	s.c.mu.Lock()
	if s.closed {
		s.c.mu.Unlock()
		return nil, fmt.Errorf("campaign of %s: %w", s.id, coord.ErrClosed)
	}
	if s.c.seat != nil && s.c.seat.s == s {
		l := s.c.seat
		s.c.mu.Unlock()
		return l, nil
	}
	s.c.queue = append(s.c.queue, k)
	s.c.settle()
	s.c.mu.Unlock()
	select {
	case l, ok := <-k.won:
		if !ok {
			return nil, fmt.Errorf("campaign of %s: %w", s.id, coord.ErrClosed)
		}
		return l, nil
	case <-ctx.Done():
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for i := range s.c.queue {
		if s.c.queue[i] == k {
			s.c.queue = append(s.c.queue[:i:i], s.c.queue[i+1:]...)
			return nil, fmt.Errorf("campaign of %s: %w", s.id, ctx.Err())
		}
	}
	if l, ok := <-k.won; ok && s.c.seat == l { // won while giving up
		s.c.vacate()
		s.c.settle()
	}
	return nil, fmt.Errorf("campaign of %s: %w", s.id, ctx.Err())
}

// Controller implements coord.Election. A cut member does not know.
func (s *Store) Controller() string {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.seat == nil || !s.c.reachable(s) {
		return ""
	}
	return s.c.seat.s.id
}

type readKey struct{ member, key string }

// reading tells the latest read of one document by one member, and the latest one that saw an earlier revision.
type reading struct {
	rev   coord.Rev
	at    time.Duration
	older time.Duration // zero: none
}

// noteRead records the start of a Get. Callers hold c.mu.
func (c *Cluster) noteRead(member, key string, rev coord.Rev) {
	k := readKey{member, key}
	r, ok := c.reads[k]
	if ok && rev > r.rev {
		r.older = r.at
	}
	r.rev, r.at = rev, c.uptime()
	c.reads[k] = r
}

// ReadAge implements coord.ReadAges. Every Get happens at one instant, so those that an earlier controller saw began
// before the present one took its seat.
func (s *Store) ReadAge(member string) (time.Duration, bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.seat == nil || s.c.seat.s != s {
		return 0, false
	}
	latest := s.c.seatedAt
	for k, r := range s.c.reads {
		if k.member != member {
			continue
		}
		at := r.older
		if r.rev < s.c.docs[k.key].Rev {
			at = r.at
		}
		latest = max(latest, at)
	}
	return s.c.uptime() - latest, true
}

// VacantFor implements coord.ReadAges.
func (s *Store) VacantFor() (time.Duration, bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.seat == nil || s.c.seat.s != s {
		return 0, false
	}
	return s.c.uptime() - s.c.seatedAt, true
}
