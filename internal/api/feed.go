// SPDX-License-Identifier: Apache-2.0

package api

import (
	"sync"

	"redoubt/internal/event"
)

// feedMax bounds the events that are kept for streams that begin, or come back.
const feedMax = 256

// Feed is what happened on this member lately, numbered. Its methods are safe for concurrent use, and Note never blocks.
type Feed struct {
	mu      sync.Mutex // guards what follows
	latest  uint64     // number of the newest event
	kept    []event.Event
	changed chan struct{} // closed at each new event
}

// NewFeed returns an empty feed.
func NewFeed() *Feed { return &Feed{changed: make(chan struct{})} }

// Note adds an event; the oldest gives way.
func (f *Feed) Note(e event.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kept) == feedMax {
		f.kept = f.kept[1:]
	}
	f.kept = append(f.kept, e)
	f.latest++
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Feed) newest() uint64 {
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.latest
}

// after returns the events that are newer than number n, the number of the first of them, and what tells of the next. A nil feed
// has none.
func (f *Feed) after(n uint64) (events []event.Event, first uint64, next <-chan struct{}) {
	if f == nil {
		return nil, n + 1, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	oldest := f.latest - uint64(len(f.kept)) + 1
	first = max(n+1, oldest)
	if first <= f.latest {
		events = append(events, f.kept[first-oldest:]...)
	}
	return events, first, f.changed
}
