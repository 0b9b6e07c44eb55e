// SPDX-License-Identifier: Apache-2.0

package memstore

import (
	"context"
	"fmt"
	"sort"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Store is one member's handle. It implements coord.Store, coord.ReadAges and coord.Members.
type Store struct {
	c  *Cluster
	id string

	// Guarded by c.mu.
	cut, closed bool
	severed     bool
	answer      func(from string, question []byte) []byte // nil: nobody
	known       map[string]coord.Doc
	subs        map[*sub]struct{}
	news        *kit.News
}

var (
	_ coord.Store    = (*Store)(nil)
	_ coord.ReadAges = (*Store)(nil)
	_ coord.Members  = (*Store)(nil)
)

type sub struct {
	key string
	ch  chan coord.Doc
}

// use reports why s cannot use the store, and nil when it can. Callers hold c.mu.
func (s *Store) use(ctx context.Context) error {
	switch {
	case s.closed:
		return coord.ErrClosed
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", coord.ErrUnavailable, ctx.Err())
	case !s.c.reachable(s):
		return fmt.Errorf("member %s: %w", s.id, coord.ErrUnavailable)
	}
	return nil
}

// Get implements coord.Docs.
func (s *Store) Get(ctx context.Context, key string) (coord.Doc, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return coord.Doc{}, err
	}
	doc, ok := s.c.docs[key]
	s.c.noteRead(s.id, key, doc.Rev)
	if !ok {
		return coord.Doc{}, fmt.Errorf("get %s: %w", key, coord.ErrNotFound)
	}
	return copyDoc(doc), nil
}

// Swap implements coord.Docs.
func (s *Store) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if len(value) > coord.DocMax {
		return 0, fmt.Errorf("swap %s: document has %d bytes, the limit is %d", key, len(value), coord.DocMax)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return 0, err
	}
	now := s.c.docs[key].Rev
	if now != old {
		return 0, fmt.Errorf("swap %s: revision is %d, not %d: %w", key, now, old, coord.ErrConflict)
	}
	apply, unsure := true, len(s.c.unsure) > 0
	if unsure {
		apply, s.c.unsure = s.c.unsure[0], s.c.unsure[1:]
	}
	if apply {
		doc := copyDoc(coord.Doc{Key: key, Value: value, Rev: now + 1})
		s.c.docs[key] = doc
		for _, m := range s.c.members {
			if s.c.reachable(m) {
				m.learn(doc)
			}
		}
	}
	if unsure {
		return 0, fmt.Errorf("swap %s: %w", key, coord.ErrUnsure)
	}
	return now + 1, nil
}

// Watch implements coord.Docs.
func (s *Store) Watch(ctx context.Context, key string) <-chan coord.Doc {
	w := &sub{key: key, ch: make(chan coord.Doc, 1)}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed || ctx.Err() != nil {
		close(w.ch)
		return w.ch
	}
	if doc, ok := s.known[key]; ok {
		w.ch <- copyDoc(doc)
	}
	s.subs[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		s.drop(w)
	})
	return w.ch
}

// drop ends a watch. Callers hold c.mu.
func (s *Store) drop(w *sub) {
	if _, ok := s.subs[w]; ok {
		delete(s.subs, w)
		close(w.ch)
	}
}

// learn records a newer version and hands it to the watches. Callers hold c.mu.
func (s *Store) learn(doc coord.Doc) {
	if s.known[doc.Key].Rev >= doc.Rev {
		return
	}
	s.known[doc.Key] = doc
	for w := range s.subs {
		if w.key != doc.Key {
			continue
		}
		select {
		case <-w.ch:
		default:
		}
		w.ch <- copyDoc(doc)
	}
}

// Send implements coord.Beats.
func (s *Store) Send(ctx context.Context, from string, body []byte, ttl time.Duration) error {
	if len(body) > coord.BeatMax {
		return fmt.Errorf("send report of %s: %d bytes, the limit is %d", from, len(body), coord.BeatMax)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return err
	}
	if s.c.seat == nil {
		return fmt.Errorf("send report of %s: no controller: %w", from, coord.ErrUnavailable)
	}
	s.c.beats[from] = beat{body: append([]byte(nil), body...), arrived: time.Now(), ttl: ttl}
	s.c.seat.s.news.Note(from)
	return nil
}

// All implements coord.Beats.
func (s *Store) All(ctx context.Context) (map[string]coord.Beat, error) { return s.Some(ctx, nil) }

// Some implements coord.Sieve.
func (s *Store) Some(ctx context.Context, want func(name string) bool) (map[string]coord.Beat, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return nil, err
	}
	if s.c.seat == nil {
		return nil, fmt.Errorf("read reports: no controller: %w", coord.ErrUnavailable)
	}
	all := map[string]coord.Beat{}
	for from, b := range s.c.beats {
		age := time.Since(b.arrived)
		if age >= b.ttl {
			delete(s.c.beats, from)
			continue
		}
		if want == nil || want(from) {
			all[from] = coord.Beat{Body: append([]byte(nil), b.body...), Age: age}
		}
	}
	return all, nil
}

// Arrived implements coord.Beats.
func (s *Store) Arrived() <-chan struct{} { return s.news.Arrived() }

// Fresh implements coord.Sieve.
func (s *Store) Fresh() (names []string, all bool) { return s.news.Fresh() }

// Members implements coord.Members.
func (s *Store) Members(ctx context.Context) ([]coord.Member, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return nil, err
	}
	var ms []coord.Member
	for id, addr := range s.c.addrs {
		ms = append(ms, coord.Member{ID: id, Addr: addr, Controller: s.c.seat != nil && s.c.seat.s.id == id})
	}
	sort.Slice(ms, func(i, j int) bool { return ms[i].ID < ms[j].ID })
	return ms, nil
}

// AddMember implements coord.Members. The new member's handle is Cluster.Member.
func (s *Store) AddMember(ctx context.Context, m coord.Member) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return err
	}
	s.c.addrs[m.ID] = m.Addr
	return nil
}

// RemoveMember implements coord.Members. The removed member is cut for good.
func (s *Store) RemoveMember(ctx context.Context, id string) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.use(ctx); err != nil {
		return err
	}
	if _, ok := s.c.addrs[id]; !ok {
		return fmt.Errorf("remove member %s: %w", id, coord.ErrNotFound)
	}
	delete(s.c.addrs, id)
	if m := s.c.members[id]; m != nil {
		m.cut = true
	}
	s.c.settle()
	return nil
}

// Close implements coord.Store: it gives up the seat and ends all watches.
func (s *Store) Close() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for w := range s.subs {
		s.drop(w)
	}
	for i := len(s.c.queue) - 1; i >= 0; i-- {
		if k := s.c.queue[i]; k.s == s {
			s.c.queue = append(s.c.queue[:i:i], s.c.queue[i+1:]...)
			close(k.won)
		}
	}
	s.c.settle()
	return nil
}
