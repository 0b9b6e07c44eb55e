// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bytes"
	"context"
	"sync"

	"redoubt/internal/coord"
)

// Hub hands new versions to the watches of this process, whichever way they come: from the store or pushed by the
// controller. It never goes back.
type Hub struct {
	mu     sync.Mutex
	closed bool
	known  map[string]coord.Doc
	subs   map[string]map[*sub]struct{}
}

type sub struct{ ch chan coord.Doc }

// NewHub returns one that knows nothing.
func NewHub() *Hub {
	return &Hub{known: map[string]coord.Doc{}, subs: map[string]map[*sub]struct{}{}}
}

// Clone copies a document, so that nobody shares its value.
func Clone(d coord.Doc) coord.Doc {
	d.Value = bytes.Clone(d.Value)
	return d
}

// Learn takes a committed version.
func (h *Hub) Learn(doc coord.Doc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.known[doc.Key].Rev >= doc.Rev {
		return
	}
	h.known[doc.Key] = doc
	for w := range h.subs[doc.Key] {
		select {
		case <-w.ch: // not taken yet: the newer version replaces it
		default:
		}
		w.ch <- Clone(doc) // never blocks: capacity one, and all senders hold the lock
	}
}

// Rev returns the latest revision of a document that was learned; zero: none.
func (h *Hub) Rev(key string) coord.Rev {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[key].Rev
}

// Latest returns the latest version of a document that was learned, which is nobody's to change; its revision is zero if there is
// none.
func (h *Hub) Latest(key string) coord.Doc {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[key]
}

// Watch begins a watch that ends with ctx or the store.
func (h *Hub) Watch(ctx context.Context, key string) <-chan coord.Doc {
	w := &sub{ch: make(chan coord.Doc, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || ctx.Err() != nil {
		close(w.ch)
		return w.ch
	}
	if doc, ok := h.known[key]; ok {
		w.ch <- Clone(doc)
	}
	if h.subs[key] == nil {
		h.subs[key] = map[*sub]struct{}{}
	}
	h.subs[key][w] = struct{}{}
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if _, ok := h.subs[key][w]; !ok {
			return // ended with the store
		}
		delete(h.subs[key], w)
		if len(h.subs[key]) == 0 {
			delete(h.subs, key)
		}
		close(w.ch)
	})
	return w.ch
}

// Close ends all watches.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, ws := range h.subs {
		for w := range ws {
			close(w.ch)
		}
	}
	clear(h.subs)
}
