// SPDX-License-Identifier: Apache-2.0

// Package looptest is what tests of loops share: a clock, and ways to run loops and to wait, inside a synctest bubble over
// a store in memory. It is for tests alone, and not for decisions, which need no time. Its invariant: it waits for
// conditions, in the bubble's time, with a bound. Its goroutines end with the function that Start returns.
package looptest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
)

// Clock counts on package time, which is fake inside a synctest bubble.
type Clock struct{ began time.Time }

// NewClock returns a clock of a machine that has been up for an hour.
func NewClock() Clock { return Clock{time.Now()} }

// Now returns the bubble's time.
func (c Clock) Now() time.Time { return time.Now() }

// Uptime goes on with the bubble's time.
func (c Clock) Uptime() time.Duration { return time.Hour + time.Since(c.began) }

// Nap implements clock.Clock.
func (Clock) Nap(d time.Duration) { <-time.After(d) }

// Start runs loops by their names. The function that it returns ends them, waits for them, and may be called again.
func Start(t *testing.T, loops map[string]func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for name, run := range loops {
		running.Go(func() {
			if err := run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%s ended with %v", name, err)
			}
		})
	}
	return func() { cancel(); running.Wait() }
}

// Pass lets time pass, and everybody finish what is due by then.
func Pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// Until lets time pass until cond holds, and returns how long that took. In vain, it fails the test and says what is known.
func Until(t *testing.T, what string, limit time.Duration, cond func() bool, known func() string) time.Duration {
	t.Helper()
	for began := time.Now(); ; <-time.After(time.Millisecond) {
		synctest.Wait()
		if cond() {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("not within %s: %s; %s", limit, what, known())
		}
	}
}

// Agreed returns what the document under key says.
func Agreed(t *testing.T, store *memstore.Cluster, key string) topo.Assigned {
	t.Helper()
	doc, _ := store.Doc(key)
	shard, err := topo.DecodeShard(doc.Value)
	if err != nil {
		t.Fatal(err)
	}
	return shard.Assigned
}
