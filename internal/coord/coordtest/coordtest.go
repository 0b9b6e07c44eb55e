// SPDX-License-Identifier: Apache-2.0

// Package coordtest is the contract of coord.Store as a suite that every store must pass. It is not for the speed of a
// store, nor for what happens when its processes crash: each store tests that itself. Its invariant: it uses nothing
// but the port, and waits for conditions, never for time. Its goroutines end with the test that started them.
package coordtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"redoubt/internal/coord"
)

// Cluster is a running store, seen through its members.
type Cluster struct {
	IDs    []string
	Stores []coord.Store // by the order of IDs
	// Depose takes the seat from the controller by a fault that other members survive; nil when it cannot.
	Depose func(t testing.TB, id string)
}

// Factory starts a store of n members that ends with t.
type Factory func(t testing.TB, n int) *Cluster

// patience bounds every wait of the suite.
const patience = 15 * time.Second

// Run runs the suite with clusters of one and three members.
func Run(t *testing.T, start Factory) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d members", n), func(t *testing.T) { RunSize(t, start, n) })
	}
}

// RunSize runs the suite with clusters of n members.
func RunSize(t *testing.T, start Factory, n int) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *Cluster)
	}{
		{"a swap needs the present revision", swapNeedsPresentRevision},
		{"a read after an acknowledged swap sees it through every member", readSeesSwap},
		{"limits are errors and change nothing", limits},
		{"a watch begins with the present version and never goes back", watchOrder},
		{"a watch ends with its context", watchEnds},
		{"concurrent swaps of one revision have one winner", oneWinner},
		{"there is one controller and terms grow", oneController},
		{"a deposed controller learns it and another one takes over", deposed},
		{"reports are seen by all members and expire", beats},
		{"the controller is told that a report arrived", arrived},
		{"the age of a read counts reads of older revisions only", readAges},
		{"members are listed with their controller", members},
		{"members answer each other", peersAnswer},
		{"a closed store answers that it is closed", closed},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, start(t, n)) })
	}
}

// Until polls cond until it holds and fails the test when it does not in time.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %s in vain until %s", patience, what)
		}
	}
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Put swaps value into key whatever is there, and returns the new revision. It is for tests' beginnings.
func Put(t testing.TB, s coord.Store, key, value string) coord.Rev {
	t.Helper()
	var rev coord.Rev
	Until(t, "the store takes a swap of "+key, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		doc, err := s.Get(ctx, key)
		if err != nil && !errors.Is(err, coord.ErrNotFound) {
			return false
		}
		rev, err = s.Swap(ctx, key, []byte(value), doc.Rev)
		return err == nil
	})
	return rev
}

func read(t testing.TB, s coord.Store, key string) coord.Doc {
	t.Helper()
	var doc coord.Doc
	Until(t, "the store answers a read of "+key, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		d, err := s.Get(ctx, key)
		doc = d
		return err == nil
	})
	return doc
}

func swapNeedsPresentRevision(t *testing.T, c *Cluster) {
	s, ctx := c.Stores[0], bounded(t)
	first := Put(t, s, "k", "one")
	if first == 0 {
		t.Fatal("the revision of an existing document is zero")
	}
	if _, err := s.Get(ctx, "absent"); !errors.Is(err, coord.ErrNotFound) {
		t.Fatalf("get of an absent document: %v", err)
	}
	if _, err := s.Swap(ctx, "k", []byte("two"), 0); !errors.Is(err, coord.ErrConflict) {
		t.Fatalf("creating an existing document: %v", err)
	}
	if _, err := s.Swap(ctx, "absent", []byte("x"), 7); !errors.Is(err, coord.ErrConflict) {
		t.Fatalf("swapping an absent document: %v", err)
	}
	second, err := s.Swap(ctx, "k", []byte("two"), first)
	if err != nil || second <= first {
		t.Fatalf("swap: revision %d after %d, %v", second, first, err)
	}
	if _, err := s.Swap(ctx, "k", []byte("three"), first); !errors.Is(err, coord.ErrConflict) {
		t.Fatalf("swap with an old revision: %v", err)
	}
	if doc := read(t, s, "k"); string(doc.Value) != "two" || doc.Rev != second || doc.Key != "k" {
		t.Fatalf("read %+v", doc)
	}
}

func readSeesSwap(t *testing.T, c *Cluster) {
	for i := range 10 {
		for j, w := range c.Stores {
			want := fmt.Sprint(i, j)
			rev := Put(t, w, "k", want)
			for m, r := range c.Stores {
				doc, err := r.Get(bounded(t), "k")
				if err != nil || string(doc.Value) != want || doc.Rev != rev {
					t.Fatalf("%s reads %q at %d (%v) after %s swapped %q at %d", c.IDs[m], doc.Value, doc.Rev, err, c.IDs[j], want, rev)
				}
			}
		}
	}
}

func limits(t *testing.T, c *Cluster) {
	for i, s := range c.Stores {
		key := fmt.Sprint("k", i)
		rev := Put(t, s, key, "small")
		if _, err := s.Swap(bounded(t), key, make([]byte, coord.DocMax+1), rev); err == nil {
			t.Fatal("a document above the limit was taken")
		}
		if rev2, err := s.Swap(bounded(t), key, make([]byte, coord.DocMax), rev); err != nil || rev2 <= rev {
			t.Fatalf("a document of the largest size: %v", err)
		}
		if err := s.Send(bounded(t), "n", make([]byte, coord.BeatMax+1), time.Minute); err == nil {
			t.Fatal("a report above the limit was taken")
		}
	}
}

func watchOrder(t *testing.T, c *Cluster) {
	const rounds = 50
	ctx := bounded(t)
	Put(t, c.Stores[0], "k", "0")
	var wg sync.WaitGroup
	defer wg.Wait()
	errs := make(chan error, len(c.Stores))
	for i, s := range c.Stores {
		Until(t, "the present version is delivered first", func() bool {
			wctx, cancel := context.WithCancel(ctx)
			defer cancel()
			select {
			case doc := <-s.Watch(wctx, "k"):
				return string(doc.Value) == "0"
			default:
				return false
			}
		})
		ch := s.Watch(ctx, "k")
		wg.Add(1)
		go func() {
			defer wg.Done()
			var last coord.Rev
			for doc := range ch {
				if doc.Rev <= last {
					errs <- fmt.Errorf("%s saw revision %d after %d", c.IDs[i], doc.Rev, last)
					return
				}
				if last = doc.Rev; string(doc.Value) == fmt.Sprint(rounds) {
					errs <- nil
					return
				}
			}
			errs <- fmt.Errorf("%s: the watch ended early", c.IDs[i])
		}()
	}
	for i := 1; i <= rounds; i++ {
		Put(t, c.Stores[i%len(c.Stores)], "k", fmt.Sprint(i))
	}
	for range c.Stores {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

func watchEnds(t *testing.T, c *Cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := c.Stores[0].Watch(ctx, "nothing")
	cancel()
	select {
	case _, ok := <-ch:
		if ok {
			t.Fatal("a watch of nothing delivered something")
		}
	case <-bounded(t).Done():
		t.Fatal("the watch did not end with its context")
	}
}

func oneWinner(t *testing.T, c *Cluster) {
	rev := Put(t, c.Stores[0], "k", "start")
	const each = 4
	results := make(chan error, each*len(c.Stores))
	for _, s := range c.Stores {
		for range each {
			go func() {
				_, err := s.Swap(bounded(t), "k", []byte("mine"), rev)
				results <- err
			}()
		}
	}
	won := 0
	for range cap(results) {
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.Is(err, coord.ErrConflict):
			t.Errorf("swap: %v", err)
		}
	}
	if won != 1 {
		t.Fatalf("%d swaps of one revision won", won)
	}
}

func closed(t *testing.T, c *Cluster) {
	s := c.Stores[0]
	Put(t, s, "k", "v")
	ch := s.Watch(context.Background(), "k")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	Until(t, "its watches end", func() bool {
		select {
		case _, ok := <-ch:
			return !ok
		default:
			return false
		}
	})
	if _, err := s.Get(bounded(t), "k"); !errors.Is(err, coord.ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Swap(bounded(t), "k", nil, 1); !errors.Is(err, coord.ErrClosed) {
		t.Errorf("swap: %v", err)
	}
	if err := s.Send(bounded(t), "n", nil, time.Minute); !errors.Is(err, coord.ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if _, err := s.Campaign(bounded(t)); !errors.Is(err, coord.ErrClosed) {
		t.Errorf("campaign: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}
