// SPDX-License-Identifier: Apache-2.0

// Package scope lets several shards share one store, each as if it had it alone: in every shard a data node has its
// member's id, so reports about nodes and questions between members carry the name of their shard.
//
// It is not for documents, whose keys name their shard already, nor for the election: one controller decides for all
// shards. Its invariant: what one scope sends, no other scope sees, but for what concerns the member as a whole. Its
// goroutine passes on the news that reports have arrived; it ends with Close, which leaves the shared store open.
package scope

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// Shared is a store that shards can share.
type Shared interface {
	coord.Store
	coord.Peers
	coord.ReadAges
	coord.Members
	coord.Sieve
}

// mark stands between a name and its shard; ids of members and shards have none.
const mark = "@"

// Hall is what the scopes of one store have in common. Safe for concurrent use.
type Hall struct {
	store Shared
	stop  context.CancelFunc
	done  chan struct{}

	mu     sync.Mutex // guards what follows
	scopes map[string]*Store
	answer map[string]func(from string, question []byte) []byte
}

// Open begins to share a store between the shards with these ids. Close ends it.
func Open(store Shared, shards ...string) (*Hall, error) {
	ctx, cancel := context.WithCancel(context.Background())
	h := &Hall{store: store, stop: cancel, done: make(chan struct{}), scopes: map[string]*Store{}, answer: map[string]func(string, []byte) []byte{}}
	for _, id := range shards {
		if err := h.Add(id); err != nil {
			cancel()
			return nil, err
		}
	}
	store.Answer(h.answered)
	go h.spread(ctx)
	return h, nil
}

// Add has one more shard share the store.
func (h *Hall) Add(id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id == "" || strings.ContainsAny(id, mark+"\n") || h.scopes[id] != nil {
		return fmt.Errorf("share the store: %q is no name for one more shard", id)
	}
	h.scopes[id] = &Store{Shared: h.store, hall: h, shard: id, arrived: make(chan struct{}, 1)}
	return nil
}

// Close ends the sharing; the store stays open.
func (h *Hall) Close() {
	h.store.Answer(nil)
	h.stop()
	<-h.done
}

// Of returns the store as a shard sees it; nil when nobody was told of that shard.
func (h *Hall) Of(shard string) *Store {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.scopes[shard]
}

// spread passes on that reports have arrived, to the shards that they are about.
func (h *Hall) spread(ctx context.Context) {
	defer close(h.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.store.Arrived():
		}
		names, all := h.store.Fresh()
		h.mu.Lock()
		for _, s := range h.scopes {
			if all || slices.ContainsFunc(names, s.concerns) {
				select {
				case s.arrived <- struct{}{}:
				default:
				}
			}
		}
		h.mu.Unlock()
	}
}

// concerns reports whether a report is about this shard or one of its nodes, or about a member as a whole.
func (s *Store) concerns(name string) bool {
	if shard, is := strings.CutPrefix(name, topo.BeatController); is {
		return shard == s.shard
	}
	return s.has(name)
}

// has reports whether a report is seen in this shard.
func (s *Store) has(name string) bool {
	if !ofShard(name) {
		return true
	}
	_, shard, _ := strings.Cut(name, mark)
	return shard == s.shard
}

// answered gives a question to its shard.
func (h *Hall) answered(from string, raw []byte) []byte {
	shard, question, ok := bytes.Cut(raw, []byte{'\n'})
	if !ok {
		return nil
	}
	h.mu.Lock()
	with := h.answer[string(shard)]
	h.mu.Unlock()
	if with == nil {
		return nil
	}
	return with(from, question)
}

// Store is the shared store as one shard sees it.
type Store struct {
	Shared
	hall    *Hall
	shard   string
	arrived chan struct{}
}

// ofShard reports whether a report is about a node, and not about a member or a shard as a whole.
func ofShard(name string) bool {
	return strings.HasPrefix(name, topo.BeatNode) || strings.HasPrefix(name, topo.BeatSalvage)
}

// Send implements coord.Beats.
func (s *Store) Send(ctx context.Context, from string, body []byte, ttl time.Duration) error {
	if ofShard(from) {
		from += mark + s.shard
	}
	return s.Shared.Send(ctx, from, body, ttl)
}

// All implements coord.Beats.
func (s *Store) All(ctx context.Context) (map[string]coord.Beat, error) { return s.Some(ctx, nil) }

// Some implements coord.Sieve.
func (s *Store) Some(ctx context.Context, want func(name string) bool) (map[string]coord.Beat, error) {
	all, err := s.Shared.Some(ctx, s.has)
	if err != nil {
		return nil, err
	}
	mine := make(map[string]coord.Beat, len(all))
	for name, b := range all {
		if ofShard(name) {
			name, _, _ = strings.Cut(name, mark)
		}
		if want == nil || want(name) {
			mine[name] = b
		}
	}
	return mine, nil
}

// Arrived implements coord.Beats: for reports that concern this shard.
func (s *Store) Arrived() <-chan struct{} { return s.arrived }

// Fresh implements coord.Sieve. It is not counted for each shard.
func (s *Store) Fresh() (names []string, all bool) { return nil, true }

// Ask implements coord.Peers.
func (s *Store) Ask(ctx context.Context, member string, question []byte) ([]byte, error) {
	answer, err := s.Shared.Ask(ctx, member, append([]byte(s.shard+"\n"), question...))
	if err == nil && len(answer) == 0 {
		err = fmt.Errorf("ask %s about shard %s: %w", member, s.shard, coord.ErrUnavailable)
	}
	return answer, err
}

// Answer implements coord.Peers.
func (s *Store) Answer(with func(from string, question []byte) []byte) {
	s.hall.mu.Lock()
	defer s.hall.mu.Unlock()
	s.hall.answer[s.shard] = with
}

// Close implements coord.Store. The store is not this shard's alone and stays open.
func (s *Store) Close() error { return nil }
