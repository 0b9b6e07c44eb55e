// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
)

// Endpoints are the addresses of a store outside, each with a client of its own. One is used until it fails, then the next.
// Safe for concurrent use.
type Endpoints[C any] struct {
	kind, prefix string
	log          *slog.Logger
	list         []*Endpoint[C]
	ctx          context.Context // ends with the store
	cancel       context.CancelFunc
	probing      sync.WaitGroup

	reads, swaps, failures atomic.Uint64

	mu    sync.Mutex
	at    int                // index of the one in use
	stay  context.Context    // ends when another one is
	leave context.CancelFunc // ends it
}

// Endpoint is one address and its client.
type Endpoint[C any] struct {
	Addr   string
	Client C

	mu  sync.Mutex
	err error // of the latest attempt; nil: it answered

	silent bool // the log has it that it does not answer; of the goroutine that asks
}

// How endpoints that are not in use are asked how they are, for people; and the pause after all have failed.
const (
	probeEvery = 5 * time.Second
	probeTime  = time.Second
	pauseTry   = 20 * time.Millisecond
)

// NewEndpoints begins with the first address. Close ends the context that Current gives out.
func NewEndpoints[C any](kind, prefix string, log *slog.Logger, addrs []string, client func(addr string) (C, error)) (*Endpoints[C], error) {
	e := &Endpoints[C]{kind: kind, prefix: prefix, log: log}
	for _, addr := range addrs {
		c, err := client(addr)
		if err != nil {
			return nil, err
		}
		e.list = append(e.list, &Endpoint[C]{Addr: addr, Client: c})
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.stay, e.leave = context.WithCancel(e.ctx)
	return e, nil
}

// Probe asks all endpoints again and again, in a goroutine that Close waits for.
func (e *Endpoints[C]) Probe(ask func(ctx context.Context, client C) error) {
	e.probing.Go(func() {
		t := time.NewTimer(0)
		defer t.Stop()
		for {
			select {
			case <-e.ctx.Done():
				return
			case <-t.C:
			}
			var all sync.WaitGroup
			for _, x := range e.list {
				all.Go(func() {
					ctx, cancel := context.WithTimeout(e.ctx, probeTime)
					defer cancel()
					err := ask(ctx, x.Client)
					x.note(err)
					if e.ctx.Err() == nil {
						e.tell(x, err)
					}
				})
			}
			all.Wait()
			t.Reset(probeEvery)
		}
	})
}

// tell has it in the log when an endpoint stops answering, and when it answers again.
func (e *Endpoints[C]) tell(x *Endpoint[C], err error) {
	switch {
	case err != nil && !x.silent:
		e.log.Warn("an endpoint of the store does not answer", "store", e.kind, "endpoint", x.Addr, "err", err)
	case err == nil && x.silent:
		e.log.Info("an endpoint of the store answers again", "store", e.kind, "endpoint", x.Addr)
	}
	x.silent = err != nil
}

// Close ends what is under way and gives each client to close.
func (e *Endpoints[C]) Close(close func(C)) {
	e.cancel()
	e.probing.Wait()
	for _, x := range e.list {
		close(x.Client)
	}
}

// All are the endpoints in the order of their addresses.
func (e *Endpoints[C]) All() []*Endpoint[C] { return e.list }

// Current returns the endpoint in use, and what ends when another one is, or with the store.
func (e *Endpoints[C]) Current() (*Endpoint[C], context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.list[e.at], e.stay
}

// Reading counts a read, whatever becomes of it.
func (e *Endpoints[C]) Reading() { e.reads.Add(1) }

// Swapping counts a write.
func (e *Endpoints[C]) Swapping() { e.swaps.Add(1) }

// Answered notes that an endpoint answered.
func (e *Endpoints[C]) Answered(x *Endpoint[C]) { x.note(nil) }

// Failed notes that an endpoint failed, and uses the next one if it was the one in use. It is the attempt with that number,
// counted from one; after one at each endpoint it waits for a moment.
func (e *Endpoints[C]) Failed(ctx context.Context, x *Endpoint[C], attempt int, err error) {
	e.failures.Add(1)
	x.note(err)
	e.mu.Lock()
	if e.list[e.at] == x && len(e.list) > 1 {
		e.at = (e.at + 1) % len(e.list)
		e.log.Debug("another endpoint of the store is used", "store", e.kind, "was", x.Addr, "is", e.list[e.at].Addr, "err", err)
		e.leave()
		e.stay, e.leave = context.WithCancel(e.ctx)
	}
	e.mu.Unlock()
	if attempt%len(e.list) == 0 {
		Pause(ctx, pauseTry)
	}
}

func (x *Endpoint[C]) note(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = err
}

// Health implements coord.Outside.
func (e *Endpoints[C]) Health() coord.Health {
	h := coord.Health{Kind: e.kind, Prefix: e.prefix, Reads: e.reads.Load(), Swaps: e.swaps.Load(), Failures: e.failures.Load()}
	for _, x := range e.list {
		x.mu.Lock()
		y := coord.Endpoint{Addr: x.Addr, Up: x.err == nil}
		if x.err != nil {
			y.Err = x.err.Error()
		}
		x.mu.Unlock()
		h.Endpoints = append(h.Endpoints, y)
	}
	return h
}

// Retry does something again and again until ctx ends, with a moment between after an error, which is told.
func (e *Endpoints[C]) Retry(ctx context.Context, what string, do func() error) {
	for ctx.Err() == nil {
		if err := do(); err != nil && ctx.Err() == nil {
			e.log.Debug(what, "store", e.kind, "err", err)
			Pause(ctx, pauseTry)
		}
	}
}

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
