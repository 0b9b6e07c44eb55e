// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// route returns the way to the controller: our own reign or a stream. It waits for one until ctx ends.
func (s *Store) route(ctx context.Context) (*reign, *kit.Link, error) {
	for {
		next := s.news.Next()
		if err := s.gone(); err != nil {
			return nil, nil, err
		}
		if g := s.reign.Load(); g != nil {
			return g, nil, nil
		}
		if l := s.link.Load(); l != nil {
			return nil, l, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("no controller: %w: %w", coord.ErrUnavailable, ctx.Err())
		case <-s.ctx.Done():
		}
	}
}

// call carries a request out, here or at the controller, and tries again as long as ctx allows where that cannot do
// harm: always if repeatable, otherwise only if the request was surely not carried out.
func (s *Store) call(ctx context.Context, repeatable bool, f kit.Frame) (kit.Frame, error) {
	if err := s.gone(); err != nil {
		return kit.Frame{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.Request)
	defer cancel()
	var last error
	for try := 0; ; try++ {
		g, l, err := s.route(ctx)
		if err != nil {
			return kit.Frame{}, errors.Join(err, last)
		}
		next := s.news.Next()
		reply, err := s.once(ctx, g, l, f)
		if err == nil {
			err = reply.Err()
		}
		if err == nil || errors.Is(err, coord.ErrConflict) {
			return reply, err
		}
		switch {
		case errors.Is(err, coord.ErrNotFound) && f.Kind == kit.KindRemove && try > 0:
			return reply, nil // the try before did it
		case errors.Is(err, kit.ErrNotSent) || errors.Is(err, coord.ErrUnavailable):
			err = fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
		case errors.Is(err, kit.ErrLinkLost) || errors.Is(err, coord.ErrUnsure) || ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", map[bool]error{true: coord.ErrUnavailable, false: coord.ErrUnsure}[repeatable], err)
		default:
			return kit.Frame{}, err
		}
		if last = err; ctx.Err() != nil || !errors.Is(err, coord.ErrUnavailable) {
			return kit.Frame{}, err
		}
		s.pause(ctx, next, retry)
	}
}

func (s *Store) once(ctx context.Context, g *reign, l *kit.Link, f kit.Frame) (kit.Frame, error) {
	if l != nil {
		return l.Ask(ctx, f)
	}
	if f.Kind == kit.KindGet {
		arrived := s.opts.Clock.Uptime()
		doc, _ := s.machine.get(f.Key)
		g.ages.Note(s.opts.ID, f.Key, doc.Rev, arrived)
	}
	return s.answerWithin(ctx, g, f), nil
}

// Get implements coord.Docs.
func (s *Store) Get(ctx context.Context, key string) (coord.Doc, error) {
	reply, err := s.call(ctx, true, kit.Frame{Kind: kit.KindGet, Key: key})
	if err != nil {
		return coord.Doc{}, fmt.Errorf("get %s: %w", key, err)
	}
	return kit.Clone(coord.Doc{Key: key, Value: reply.Value, Rev: coord.Rev(reply.Rev)}), nil
}

// Swap implements coord.Docs.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if len(value) > coord.DocMax {
		return 0, fmt.Errorf("swap %s: document has %d bytes, the limit is %d", key, len(value), coord.DocMax)
	}
	if len(key) > kit.NameMax {
		return 0, fmt.Errorf("swap: key has %d bytes, the limit is %d", len(key), kit.NameMax)
	}
	reply, err := s.call(ctx, false, kit.Frame{Kind: kit.KindSwap, Key: key, Value: value, Rev: uint64(old)})
	if err != nil {
		return 0, fmt.Errorf("swap %s: %w", key, err)
	}
	return coord.Rev(reply.Rev), nil
}

// Watch implements coord.Docs. New versions come from the controller's push or the local log, whichever is first.
func (s *Store) Watch(ctx context.Context, key string) <-chan coord.Doc { return s.hub.Watch(ctx, key) }

// readHere answers a Get as the controller. Its arrival was noted before.
func (s *Store) readHere(ctx context.Context, g *reign, key string) (coord.Doc, error) {
	if err := g.confirm(ctx); err != nil {
		return coord.Doc{}, err
	}
	doc, ok := s.machine.get(key)
	if !ok {
		return coord.Doc{}, coord.ErrNotFound
	}
	return doc, nil
}

// swapHere carries a Swap out as the controller.
func (s *Store) swapHere(ctx context.Context, g *reign, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if len(value) > coord.DocMax || len(key) > kit.NameMax {
		return 0, errors.New("key or document is too large")
	}
	if doc, _ := s.machine.get(key); doc.Rev > old { // committed, and revisions only grow: no need to ask anybody
		return 0, fmt.Errorf("revision is %d, not %d: %w", doc.Rev, old, coord.ErrConflict)
	}
	answer, err := s.apply(ctx, g, swapCommand(key, value, old))
	if err != nil {
		return 0, err
	}
	switch out := answer.(type) {
	case swapped:
		if !out.ok {
			return 0, fmt.Errorf("revision is %d, not %d: %w", out.rev, old, coord.ErrConflict)
		}
		return out.rev, nil
	case error:
		return 0, out
	default:
		return 0, fmt.Errorf("unexpected answer %T of the replicated state", answer)
	}
}

// apply commits a command. Its error says whether it may have happened.
func (s *Store) apply(ctx context.Context, g *reign, command []byte) (any, error) {
	select {
	case <-g.lost:
		return nil, errNotInOffice
	default:
	}
	type result struct {
		answer any
		err    error
	}
	done := make(chan result, 1)
	if !s.spawn(func() {
		f := s.raft.Load().Apply(command, s.opts.Timing.Election)
		if err := f.Error(); err != nil {
			done <- result{err: err}
			return
		}
		done <- result{answer: f.Response()}
	}) {
		return nil, coord.ErrClosed
	}
	select {
	case r := <-done:
		if r.err == nil {
			return r.answer, nil
		}
		if surelyNot(r.err) {
			return nil, fmt.Errorf("%w: %w", coord.ErrUnavailable, r.err)
		}
		return nil, fmt.Errorf("%w: %w", coord.ErrUnsure, r.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", coord.ErrUnsure, ctx.Err())
	}
}

// Send implements coord.Beats. It queues the report for the controller and does not wait for an answer; without a
// controller, or with a full queue, it answers ErrUnavailable at once.
func (s *Store) Send(_ context.Context, from string, body []byte, ttl time.Duration) error {
	if err := s.gone(); err != nil {
		return fmt.Errorf("send report of %s: %w", from, err)
	}
	var here *kit.Beats
	if g := s.reign.Load(); g != nil {
		here = g.beats
	}
	return s.inbox.Send(here, s.link.Load(), from, body, ttl)
}

// All implements coord.Beats.
func (s *Store) All(ctx context.Context) (map[string]coord.Beat, error) { return s.Some(ctx, nil) }

// Some implements coord.Sieve.
func (s *Store) Some(ctx context.Context, want func(name string) bool) (map[string]coord.Beat, error) {
	if g := s.reign.Load(); g != nil && s.gone() == nil {
		return g.beats.Some(want), nil
	}
	reply, err := s.call(ctx, true, kit.Frame{Kind: kit.KindAll})
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
