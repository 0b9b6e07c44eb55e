// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// slowStop is when a part that does not end is named in the log. It is waited for all the same.
const slowStop = 3 * time.Second

// part is one running loop or face.
type part struct {
	of     string // the shard that it is a part of; empty: the member
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// stack holds the running parts in the order of their start. Parts may be started by any goroutine; one stops them.
type stack struct {
	failed chan error // a part that ended without being asked to

	mu    sync.Mutex // guards what follows
	parts []part
	ended bool // nothing is started any more
}

// end has nothing be started any more.
func (s *stack) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// start runs a part in its own goroutine. It gets its own context, so that parts stop in order, not all at once.
func (s *stack) start(name string, run func(context.Context) error) { s.startFor("", name, run) }

// startFor is start for a part of one shard, which stopOf ends.
func (s *stack) startFor(of, name string, run func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := part{of, name, cancel, make(chan struct{})}
	s.parts = append(s.parts, p)
	go func() {
		defer close(p.done)
		err := run(ctx)
		if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return
		}
		select {
		case s.failed <- fmt.Errorf("%s: %w", name, err):
		default: // the first failures are reported; one is enough to stop
		}
	}()
}

// stopAll ends all parts, the latest first, except those that are named.
func (s *stack) stopAll(log *slog.Logger, except ...string) {
	var kept []part
	s.mu.Lock()
	parts := s.parts
	s.mu.Unlock()
	for _, p := range slices.Backward(parts) {
		if slices.Contains(except, p.name) {
			kept = append(kept, p)
			continue
		}
		p.cancel()
		p.wait(log)
	}
	slices.Reverse(kept)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = kept
}

// stopOf ends the parts of one shard, the latest first, except those that are named. The others go on.
func (s *stack) stopOf(log *slog.Logger, of string, except ...string) {
	s.mu.Lock()
	var ending []part
	s.parts = slices.DeleteFunc(slices.Clone(s.parts), func(p part) bool {
		ends := p.of == of && !slices.Contains(except, p.name)
		if ends {
			ending = append(ending, p)
		}
		return ends
	})
	s.mu.Unlock()
	for _, p := range slices.Backward(ending) {
		p.cancel()
		p.wait(log)
	}
}

// stop ends the parts with these names, the latest first.
func (s *stack) stop(log *slog.Logger, names ...string) {
	var others []string
	for _, p := range s.parts {
		if !slices.Contains(names, p.name) {
			others = append(others, p.name)
		}
	}
	s.stopAll(log, others...)
}

func (p part) wait(log *slog.Logger) {
	slow := time.NewTimer(slowStop)
	defer slow.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-slow.C:
			log.Warn("a part takes long to stop", "part", p.name)
		}
	}
}
