// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"context"
	"errors"
	"fmt"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

const followingMax = 1024 // documents that one process follows

// call has the controller answer a question, here or elsewhere, and asks again as long as ctx allows.
func (s *Store) call(ctx context.Context, f kit.Frame) (kit.Frame, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.Request)
	defer cancel()
	var last error
	for {
		next := s.news.Next()
		if err := s.gone(); err != nil {
			return kit.Frame{}, err
		}
		reply, asked := kit.Frame{}, true
		var err error
		if g := s.office.Load(); g != nil {
			if f.Kind == kit.KindGet {
				g.ages.Note(s.opts.ID, f.Key, s.hub.Rev(f.Key), s.uptime())
			}
			reply = s.answer(ctx, g, f)
		} else if l := s.link.Load(); l != nil {
			reply, err = l.Ask(ctx, f)
		} else {
			asked = false
		}
		if asked {
			if err == nil {
				err = reply.Err()
			}
			if err == nil || !errors.Is(err, coord.ErrUnavailable) && !errors.Is(err, kit.ErrNotSent) && !errors.Is(err, kit.ErrLinkLost) && ctx.Err() == nil {
				return reply, err
			}
			if last == nil || ctx.Err() == nil {
				last = err // that the time is up says less than what came before
			}
			s.pauseIn(ctx, next, retry)
		} else {
			s.pauseIn(ctx, next, time.Second)
		}
		if ctx.Err() != nil {
			if err := s.gone(); err != nil {
				return kit.Frame{}, err
			}
			return kit.Frame{}, fmt.Errorf("no controller answers: %w: %w", coord.ErrUnavailable, errors.Join(ctx.Err(), last))
		}
	}
}

// pauseIn is pause, but for ctx.
func (s *Store) pauseIn(ctx context.Context, early <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}

// answer carries out a question as the controller.
func (s *Store) answer(ctx context.Context, g *office, f kit.Frame) kit.Frame {
	switch f.Kind {
	case kit.KindGet:
		d, err := g.read(ctx, f.Key)
		if err == nil {
			d = s.newest(ctx, d)
		}
		return kit.Outcome(err, kit.Frame{Key: d.Key, Value: d.Value, Rev: uint64(d.Rev)})
	case kit.KindAll:
		return kit.Frame{Value: kit.EncodeBeats(g.beats.Some(nil))}
	default:
		return kit.Outcome(fmt.Errorf("request %d is unknown to this version; upgrade all members", f.Kind), kit.Frame{})
	}
}

// holdMax bounds how long an answer waits for a swap of the controller's own.
const holdMax = 50 * time.Millisecond

// newest is the answer to a question about d, which a round has shown since the question arrived. If this process is about to replace
// the document, it waits for that. What is newer than d was written after the question had arrived, too, so the question may be
// answered with it: who waits for the controller's next word then hears it together with the read that confirms it.
func (s *Store) newest(ctx context.Context, d coord.Doc) coord.Doc {
	s.mu.Lock()
	written, limit := s.writing[d.Key], s.hold
	s.mu.Unlock()
	if written != nil {
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-written:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if known := s.hub.Latest(d.Key); known.Rev > d.Rev {
		return known
	}
	return d
}

// beginWrite notes that this process is about to replace a document; what it returns notes the end. Of two swaps of one document at a
// time only the first is noted.
func (s *Store) beginWrite(key string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing[key] != nil {
		return func() {}
	}
	written := make(chan struct{})
	s.writing[key] = written
	return func() {
		s.mu.Lock()
		delete(s.writing, key)
		s.mu.Unlock()
		close(written)
	}
}

// Get implements coord.Docs. The controller reads, once for all who ask at a time.
func (s *Store) Get(ctx context.Context, key string) (coord.Doc, error) {
	known := s.hub.Rev(key) // was committed before the store is asked
	reply, err := s.call(ctx, kit.Frame{Kind: kit.KindGet, Key: key})
	if known > 0 && (errors.Is(err, coord.ErrNotFound) || err == nil && coord.Rev(reply.Rev) < known) {
		return coord.Doc{}, fmt.Errorf("get: %w", goneBack(key, known))
	}
	if err != nil {
		return coord.Doc{}, fmt.Errorf("get %s: %w", key, err)
	}
	d := kit.Clone(coord.Doc{Key: key, Value: reply.Value, Rev: coord.Rev(reply.Rev)})
	s.hub.Learn(kit.Clone(d))
	return d, nil
}

// Swap implements coord.Docs: at the store, without the controller.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if err := s.gone(); err != nil {
		return 0, fmt.Errorf("swap %s: %w", key, err)
	}
	if len(value) > coord.DocMax || len(key) > kit.NameMax {
		return 0, fmt.Errorf("swap %.40s: key has %d bytes and document %d, the limits are %d and %d", key, len(key), len(value), kit.NameMax, coord.DocMax)
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.Request)
	defer cancel()
	defer s.beginWrite(key)() // after everybody was told
	rev, err := s.back.Swap(ctx, key, value, old)
	if err != nil {
		if gone := s.gone(); gone != nil && !errors.Is(err, coord.ErrUnsure) {
			err = gone
		}
		return 0, fmt.Errorf("swap %s: %w", key, err)
	}
	d := kit.Clone(coord.Doc{Key: key, Value: value, Rev: rev})
	s.hub.Learn(d)
	if g := s.office.Load(); g != nil { // faster than the store's own word to the members
		g.push(kit.Frame{Kind: kit.KindDoc, Key: key, Value: value, Rev: uint64(rev)}.Encode())
	}
	return rev, nil
}

// Watch implements coord.Docs. New versions come from the controller's push or the store, whichever is first.
func (s *Store) Watch(ctx context.Context, key string) <-chan coord.Doc {
	s.mu.Lock()
	if !s.following[key] && len(s.following) < followingMax {
		s.following[key] = s.work.Spawn(func() { s.back.Follow(s.ctx, key, s.hub.Learn) })
	}
	s.mu.Unlock()
	return s.hub.Watch(ctx, key)
}

// Send implements coord.Beats. It queues the report for the controller and does not wait for an answer; without a
// controller, or with a full queue, it answers ErrUnavailable at once.
func (s *Store) Send(_ context.Context, from string, body []byte, ttl time.Duration) error {
	if err := s.gone(); err != nil {
		return fmt.Errorf("send report of %s: %w", from, err)
	}
	if e, _ := s.roll.Load().find(s.opts.ID); e.Run != s.run { // it may not be this process that is the member
		return fmt.Errorf("send report of %s: this process is not on the list of members yet: %w", from, coord.ErrUnavailable)
	}
	var here *kit.Beats
	if g := s.office.Load(); g != nil {
		here = g.beats
	}
	var there *kit.Link
	if l := s.link.Load(); l != nil {
		there = l.Link
	}
	return s.inbox.Send(here, there, from, body, ttl)
}

// All implements coord.Beats.
func (s *Store) All(ctx context.Context) (map[string]coord.Beat, error) { return s.Some(ctx, nil) }

// Some implements coord.Sieve.
func (s *Store) Some(ctx context.Context, want func(name string) bool) (map[string]coord.Beat, error) {
	if g := s.office.Load(); g != nil && s.gone() == nil {
		return g.beats.Some(want), nil
	}
	reply, err := s.call(ctx, kit.Frame{Kind: kit.KindAll})
	if err != nil {
		return nil, fmt.Errorf("read reports: %w", err)
	}
	all, err := kit.DecodeBeats(reply.Value)
	return kit.Sift(all, want), err
}

// Arrived implements coord.Beats.
func (s *Store) Arrived() <-chan struct{} { return s.inbox.Arrived() }

// Fresh implements coord.Sieve.
func (s *Store) Fresh() (names []string, all bool) { return s.inbox.Fresh() }
