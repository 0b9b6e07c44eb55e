// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"redoubt/internal/coord"
)

// route returns the way to the controller: our own reign or a stream. It waits for one until ctx ends.
func (s *Store) route(ctx context.Context) (*reign, *link, error) {
	for {
		next := s.news.next()
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
func (s *Store) call(ctx context.Context, repeatable bool, f frame) (frame, error) {
	if err := s.gone(); err != nil {
		return frame{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.Request)
	defer cancel()
	var last error
	for try := 0; ; try++ {
		g, l, err := s.route(ctx)
		if err != nil {
			return frame{}, errors.Join(err, last)
		}
		next := s.news.next()
		reply, err := s.once(ctx, g, l, f)
		if err == nil {
			err = reply.err()
		}
		if err == nil || errors.Is(err, coord.ErrConflict) {
			return reply, err
		}
		switch {
		case errors.Is(err, coord.ErrNotFound) && f.Kind == kindRemove && try > 0:
			return reply, nil // the try before did it
		case errors.Is(err, errNotSent) || errors.Is(err, coord.ErrUnavailable):
			err = fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
		case errors.Is(err, errLinkLost) || errors.Is(err, coord.ErrUnsure) || ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", map[bool]error{true: coord.ErrUnavailable, false: coord.ErrUnsure}[repeatable], err)
		default:
			return frame{}, err
		}
		if last = err; ctx.Err() != nil || !errors.Is(err, coord.ErrUnavailable) {
			return frame{}, err
		}
		s.pause(ctx, next, retry)
	}
}

func (s *Store) once(ctx context.Context, g *reign, l *link, f frame) (frame, error) {
	if l != nil {
		return l.ask(ctx, f)
	}
	if f.Kind == kindGet {
		arrived := s.opts.Clock.Uptime()
		doc, _ := s.machine.get(f.Key)
		g.ages.note(s.opts.ID, f.Key, doc.Rev, arrived)
	}
	return s.answerWithin(ctx, g, f), nil
}

// Get implements coord.Docs.
func (s *Store) Get(ctx context.Context, key string) (coord.Doc, error) {
	reply, err := s.call(ctx, true, frame{Kind: kindGet, Key: key})
	if err != nil {
		return coord.Doc{}, fmt.Errorf("get %s: %w", key, err)
	}
	return clone(coord.Doc{Key: key, Value: reply.Value, Rev: coord.Rev(reply.Rev)}), nil
}

// Swap implements coord.Docs.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if len(value) > coord.DocMax {
		return 0, fmt.Errorf("swap %s: document has %d bytes, the limit is %d", key, len(value), coord.DocMax)
	}
	if len(key) > keyMax {
		return 0, fmt.Errorf("swap: key has %d bytes, the limit is %d", len(key), keyMax)
	}
	reply, err := s.call(ctx, false, frame{Kind: kindSwap, Key: key, Value: value, Rev: uint64(old)})
	if err != nil {
		return 0, fmt.Errorf("swap %s: %w", key, err)
	}
	return coord.Rev(reply.Rev), nil
}

// keyMax bounds a document's key and a report's name, in bytes.
const keyMax = 1024

// Watch implements coord.Docs. New versions come from the controller's push or the local log, whichever is first.
func (s *Store) Watch(ctx context.Context, key string) <-chan coord.Doc { return s.hub.watch(ctx, key) }

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
	if len(value) > coord.DocMax || len(key) > keyMax {
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
	if len(body) > coord.BeatMax || len(from) > keyMax {
		return fmt.Errorf("send report of %.40s: %d bytes, the limit is %d", from, len(body), coord.BeatMax)
	}
	if err := s.gone(); err != nil {
		return fmt.Errorf("send report of %s: %w", from, err)
	}
	if g := s.reign.Load(); g != nil {
		if s.beatHere(g, from, append([]byte(nil), body...), ttl) {
			return nil
		}
		return fmt.Errorf("send report of %s: too many reporters: %w", from, coord.ErrUnavailable)
	}
	l := s.link.Load()
	if l == nil {
		return fmt.Errorf("send report of %s: no controller: %w", from, coord.ErrUnavailable)
	}
	select {
	case <-l.ended:
	case l.out <- frame{Kind: kindBeat, Key: from, Value: body, Rev: uint64(max(0, ttl))}.encode():
		return nil
	default:
	}
	return fmt.Errorf("send report of %s: the stream to the controller is blocked: %w", from, coord.ErrUnavailable)
}

func (s *Store) beatHere(g *reign, from string, body []byte, ttl time.Duration) bool {
	if !g.beats.put(from, body, ttl) {
		return false
	}
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	return true
}

// All implements coord.Beats.
func (s *Store) All(ctx context.Context) (map[string]coord.Beat, error) {
	if g := s.reign.Load(); g != nil && s.gone() == nil {
		return g.beats.all(), nil
	}
	reply, err := s.call(ctx, true, frame{Kind: kindAll})
	if err != nil {
		return nil, fmt.Errorf("read reports: %w", err)
	}
	return decodeBeats(reply.Value)
}

// Arrived implements coord.Beats.
func (s *Store) Arrived() <-chan struct{} { return s.arrived }
