// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"context"
	"fmt"
	"time"

	"redoubt/internal/coord"
)

// How the seat changes hands. The holder counts itself as the controller until lease after the start of the latest read that showed the
// seat as its own and undoubted. A member that does not reach the holder writes its doubt into the document. A holder that
// lives sees that at its next read, and writes it away; its right then counts from the start of that swap. Who has seen the
// doubt unanswered for lease + margin, by its own clock, may take the seat by a swap of just that version: every read
// that showed it undoubted took place before the doubt was written, so the holder's right is over. While nobody doubts,
// nothing is written.

// doubtEvery spaces the doubts of a member whose controller lives but cannot be reached by it.
const doubtEvery = 2 * time.Second

// releaseTime is how long a member that released the seat leaves it to others.
const releaseTime = time.Second

// lookTime bounds one look at the seat.
const lookTime = time.Second

// candidate is what stand remembers between two looks.
type candidate struct {
	doubted coord.Rev     // version that holds an unanswered doubt
	since   time.Duration // clock.Uptime when it was first seen here, which is after it was written
	run     string        // the controller that this member has doubted
	next    time.Duration // and does not doubt again before then
}

// stand takes the seat whenever nobody has it.
func (s *Store) stand() {
	var k candidate
	for s.gone() == nil {
		next := s.news.Next()
		if g := s.office.Load(); g != nil {
			select {
			case <-g.lost:
			case <-s.ctx.Done():
			case <-s.left.done:
			}
			continue
		}
		if !s.suspects() {
			k.run = ""
			s.pause(next, time.Second)
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, lookTime)
		wait, err := s.look(ctx, &k)
		cancel()
		if err != nil {
			if s.ctx.Err() == nil && unlike(err) {
				s.log.Warn("stand for election", "err", err)
				wait = 10 * retry
			}
			wait = max(wait, retry)
		}
		if wait > 0 {
			s.pause(next, wait)
		}
	}
}

// suspects reports whether there may be no controller, as far as this member can tell without asking the store.
func (s *Store) suspects() bool {
	c := s.chair.Load()
	if c == nil || c.Holder == "" || s.mine(c) || c.Doubt != "" && s.link.Load() == nil {
		return true
	}
	run := s.stranded.Load()
	return run != nil && *run == c.Run
}

// look reads the seat and does what is next; it returns how long to wait before the next look.
func (s *Store) look(ctx context.Context, k *candidate) (time.Duration, error) {
	c, err := s.readChair(ctx)
	if err != nil {
		return 0, err
	}
	now := s.uptime()
	switch {
	case c.Holder == "" || s.mine(c):
		if left := time.Duration(s.abstain.Load()) - now; c.rev > 0 && left > 0 {
			return left, nil
		}
		return 0, s.take(ctx, c, 0)
	case c.Doubt != "":
		if k.doubted != c.rev {
			k.doubted, k.since = c.rev, now
		}
		if left := k.since + s.opts.Timing.Lease + s.opts.Timing.Margin - now; left > 0 {
			return left, nil
		}
		s.log.Info("the controller does not answer: taking its seat", "controller", c.Holder, "term", c.Term)
		return 0, s.take(ctx, c, k.since)
	case k.run == c.Run && k.next > now:
		return k.next - now, nil
	case !s.suspects():
		return 0, nil // somebody else was seated meanwhile
	}
	doubt := *c
	doubt.Doubt = s.opts.ID
	written, err := s.writeChair(ctx, doubt, c.rev)
	if err != nil {
		return 0, err
	}
	k.doubted, k.since = written.rev, s.uptime()
	k.run, k.next = c.Run, k.since+doubtEvery
	return s.opts.Timing.Lease + s.opts.Timing.Margin, nil
}

// take swaps this member into the seat that c shows, and begins a term in office. vacant is when a doubt that was never
// answered had been written; zero: there was none.
func (s *Store) take(ctx context.Context, c *chair, vacant time.Duration) error {
	mine := chair{Deployment: c.Deployment, Term: c.Term + 1, Holder: s.opts.ID, Run: s.run, Addr: s.advertise}
	if mine.Deployment == "" {
		mine.Deployment = s.run // random, and nobody else's
	}
	begun := s.uptime()
	written, err := s.writeChair(ctx, mine, c.rev)
	if err != nil {
		return fmt.Errorf("take the seat: %w", err)
	}
	if vacant == 0 {
		vacant = s.uptime() // the swap has returned, so whoever held the seat before reads it as lost from now on
	}
	s.beginOffice(written, begun, vacant)
	return nil
}

// resign ends the term in office and then empties the seat.
func (s *Store) resign(ctx context.Context, g *office) error {
	s.lose(g)
	for {
		c, err := s.readChair(ctx)
		if err != nil {
			return fmt.Errorf("give the seat back: %w", err)
		}
		if !s.mine(c) || c.Term != g.term {
			return nil
		}
		empty := chair{Deployment: c.Deployment, Term: c.Term}
		if _, err = s.writeChair(ctx, empty, c.rev); err == nil {
			return nil
		}
		if unlike(err) || ctx.Err() != nil {
			return fmt.Errorf("give the seat back: %w", err)
		}
		s.pause(nil, retry) // an unknown outcome, or a doubt was faster: look again
	}
}

// Campaign implements coord.Election. All members stand for election all the time; it waits until this one is in office.
func (s *Store) Campaign(ctx context.Context) (coord.Lease, error) {
	for {
		next := s.news.Next()
		if err := s.gone(); err != nil {
			return nil, fmt.Errorf("campaign: %w", err)
		}
		if g := s.office.Load(); g != nil {
			return lease{s, g}, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, fmt.Errorf("campaign: %w", ctx.Err())
		case <-s.ctx.Done():
		}
	}
}

// Controller implements coord.Election: the one that this member has a stream to.
func (s *Store) Controller() string {
	if s.gone() != nil {
		return ""
	}
	if s.office.Load() != nil {
		return s.opts.ID
	}
	if l := s.link.Load(); l != nil {
		return l.id
	}
	return ""
}

// lease implements coord.Lease.
type lease struct {
	s *Store
	*office
}

// Term implements coord.Lease.
func (l lease) Term() uint64 { return l.term }

// Lost implements coord.Lease.
func (l lease) Lost() <-chan struct{} { return l.lost }

// Release empties the seat and leaves it to others for a second. A single member takes it again at once.
func (l lease) Release(ctx context.Context) error {
	if l.s.office.Load() != l.office {
		return nil
	}
	if r := l.s.roll.Load(); r != nil && len(r.Members) > 1 {
		l.s.abstain.Store(int64(l.s.uptime() + releaseTime))
	}
	ctx, cancel := context.WithTimeout(ctx, l.s.opts.Timing.Request)
	defer cancel()
	return l.s.resign(ctx, l.office)
}
