// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
)

// supplier is what the view, the agent and the proxy need of a store.
type supplier interface {
	coord.Docs
	coord.Beats
}

// source is the supplier of the moment. While a member is handed over its store is closed, and what still runs in the old
// process reads through the new one. Safe for concurrent use.
type source struct {
	mu      sync.Mutex // guards what follows
	now     supplier   // nil: none
	changed chan struct{}
}

func newSource(s supplier) *source { return &source{now: s, changed: make(chan struct{})} }

func (s *source) set(to supplier) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = to
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) get() (supplier, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

// Get implements coord.Docs.
func (s *source) Get(ctx context.Context, key string) (coord.Doc, error) {
	if now, _ := s.get(); now != nil {
		return now.Get(ctx, key)
	}
	return coord.Doc{}, coord.ErrUnavailable
}

// Swap implements coord.Docs.
func (s *source) Swap(ctx context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	if now, _ := s.get(); now != nil {
		return now.Swap(ctx, key, value, old)
	}
	return 0, coord.ErrUnavailable
}

// Watch implements coord.Docs.
func (s *source) Watch(ctx context.Context, key string) <-chan coord.Doc {
	out := make(chan coord.Doc)
	go func() { // ends with ctx
		defer close(out)
		for ctx.Err() == nil {
			now, changed := s.get()
			watching, cancel := context.WithCancel(ctx)
			var pushed <-chan coord.Doc
			if now != nil {
				pushed = now.Watch(watching, key)
			}
			s.pass(ctx, pushed, changed, out)
			cancel()
		}
	}()
	return out
}

// pass hands versions on until the supplier changes or ctx ends.
func (s *source) pass(ctx context.Context, from <-chan coord.Doc, changed <-chan struct{}, out chan<- coord.Doc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			return
		case doc, ok := <-from:
			if !ok {
				from = nil
				continue
			}
			select {
			case out <- doc:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Send implements coord.Beats.
func (s *source) Send(ctx context.Context, from string, body []byte, ttl time.Duration) error {
	if now, _ := s.get(); now != nil {
		return now.Send(ctx, from, body, ttl)
	}
	return coord.ErrUnavailable
}

// All implements coord.Beats.
func (s *source) All(ctx context.Context) (map[string]coord.Beat, error) {
	if now, _ := s.get(); now != nil {
		return now.All(ctx)
	}
	return nil, coord.ErrUnavailable
}

// Arrived implements coord.Beats.
func (s *source) Arrived() <-chan struct{} {
	if now, _ := s.get(); now != nil {
		return now.Arrived()
	}
	return nil
}

// question is what the old process asks the new one.
type question struct {
	N   uint64 `json:"n"`
	Key string `json:"key,omitempty"` // of a document; empty: the reports

	Shard string `json:"shard,omitempty"` // as which the reports are read; empty: as the whole store
}

type reply struct {
	N     uint64                `json:"n"`
	OK    bool                  `json:"ok"`
	Doc   coord.Doc             `json:"doc"`
	Beats map[string]coord.Beat `json:"beats,omitempty"`
}

const relayTime = time.Second // the view asks again by then

// relay is the store as the new process sees it. A read begins here before it begins there, so leases count as ever.
type relay struct {
	h  *hatch
	n  atomic.Uint64
	mu sync.Mutex // guards what follows
	to map[uint64]chan reply
}

func newRelay(h *hatch) *relay { return &relay{h: h, to: map[uint64]chan reply{}} }

// answered hands an answer to who waits for it.
func (r *relay) answered(f frame) {
	var a reply
	if json.Unmarshal(f.body, &a) != nil {
		return
	}
	r.mu.Lock()
	ch := r.to[a.N]
	delete(r.to, a.N)
	r.mu.Unlock()
	if ch != nil {
		ch <- a
	}
}

func (r *relay) ask(ctx context.Context, q question) (reply, error) {
	q.N = r.n.Add(1)
	n, ch := q.N, make(chan reply, 1)
	r.mu.Lock()
	r.to[n] = ch
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.to, n)
		r.mu.Unlock()
	}()
	if err := r.h.send(whatAsk, q); err != nil {
		return reply{}, coord.ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, relayTime)
	defer cancel()
	select {
	case a := <-ch:
		if a.OK {
			return a, nil
		}
	case <-ctx.Done():
	}
	return reply{}, coord.ErrUnavailable
}

// Get implements coord.Docs.
func (r *relay) Get(ctx context.Context, key string) (coord.Doc, error) {
	a, err := r.ask(ctx, question{Key: key})
	return a.Doc, err
}

// Swap implements coord.Docs: the old process decides nothing any more.
func (r *relay) Swap(context.Context, string, []byte, coord.Rev) (coord.Rev, error) {
	return 0, coord.ErrUnavailable
}

// Watch implements coord.Docs: the view's reads are what moves the old process.
func (r *relay) Watch(context.Context, string) <-chan coord.Doc { return nil }

// Send implements coord.Beats: the new process reports.
func (r *relay) Send(context.Context, string, []byte, time.Duration) error {
	return coord.ErrUnavailable
}

// All implements coord.Beats.
func (r *relay) All(ctx context.Context) (map[string]coord.Beat, error) {
	a, err := r.ask(ctx, question{})
	return a.Beats, err
}

// of is the relay as one shard sees the store.
func (r *relay) of(shard string) supplier { return shardRelay{r, shard} }

type shardRelay struct {
	*relay
	shard string
}

// All implements coord.Beats.
func (r shardRelay) All(ctx context.Context) (map[string]coord.Beat, error) {
	a, err := r.ask(ctx, question{Shard: r.shard})
	return a.Beats, err
}

// Arrived implements coord.Beats.
func (r *relay) Arrived() <-chan struct{} { return nil }

// answerFor reads the store for the old process.
func (m *member) answerFor(ctx context.Context, q question) reply {
	var s supplier = m.store
	if of := m.hall; of != nil && q.Shard != "" && of.Of(q.Shard) != nil {
		s = of.Of(q.Shard)
	}
	ctx, cancel := context.WithTimeout(ctx, relayTime)
	defer cancel()
	a := reply{N: q.N}
	var err error
	if q.Key == "" {
		a.Beats, err = s.All(ctx)
	} else {
		a.Doc, err = s.Get(ctx, q.Key)
	}
	a.OK = err == nil
	return a
}
