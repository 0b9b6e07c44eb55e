// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"sync"

	"redoubt/internal/coord"
)

// hub hands new versions to the watches of this process, whichever way they come: from the local log or pushed by the
// controller. It never goes back.
type hub struct {
	mu     sync.Mutex
	closed bool
	known  map[string]coord.Doc
	subs   map[string]map[*sub]struct{}
}

type sub struct{ ch chan coord.Doc }

func newHub() *hub {
	return &hub{known: map[string]coord.Doc{}, subs: map[string]map[*sub]struct{}{}}
}

func clone(d coord.Doc) coord.Doc {
	d.Value = bytes.Clone(d.Value)
	return d
}

// learn takes a committed version.
func (h *hub) learn(doc coord.Doc) {
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
		w.ch <- clone(doc) // never blocks: capacity one, and all senders hold the lock
	}
}

// watch begins a watch that ends with ctx or the store.
func (h *hub) watch(ctx context.Context, key string) <-chan coord.Doc {
	w := &sub{ch: make(chan coord.Doc, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || ctx.Err() != nil {
		close(w.ch)
		return w.ch
	}
	if doc, ok := h.known[key]; ok {
		w.ch <- clone(doc)
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

func (h *hub) close() {
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
