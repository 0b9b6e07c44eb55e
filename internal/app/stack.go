// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// slowStop is when a part that does not end is named in the log. It is waited for all the same.
const slowStop = 3 * time.Second

// part is one running loop or face.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// stack holds the running parts in the order of their start. One goroutine starts and stops them.
type stack struct {
	parts  []part
	failed chan error // a part that ended without being asked to
}

// start runs a part in its own goroutine. It gets its own context, so that parts stop in order, not all at once.
func (s *stack) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := part{name, cancel, make(chan struct{})}
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
	for _, p := range slices.Backward(s.parts) {
		if slices.Contains(except, p.name) {
			kept = append(kept, p)
			continue
		}
		p.cancel()
		p.wait(log)
	}
	slices.Reverse(kept)
	s.parts = kept
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
