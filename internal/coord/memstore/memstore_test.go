// SPDX-License-Identifier: Apache-2.0

package memstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/internal/coord/memstore"
)

func start(_ testing.TB, n int) *coordtest.Cluster {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprint("m", i+1))
	}
	cl := memstore.New(clock.Real{}, ids...)
	c := &coordtest.Cluster{IDs: ids, Depose: func(_ testing.TB, id string) { cl.Cut(id) }}
	for _, id := range ids {
		c.Stores = append(c.Stores, cl.Member(id))
	}
	return c
}

func TestMemstoreKeepsTheContract(t *testing.T) { coordtest.Run(t, start) }

func TestCutMembersAreUnavailableAndCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		cl := memstore.New(nil, "a", "b")
		a, b := cl.Member("a"), cl.Member("b")
		lease, err := a.Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		seen := b.Watch(ctx, "k")
		cl.Cut("b")
		if _, err := a.Swap(ctx, "k", []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(ctx, "k"); !errors.Is(err, coord.ErrUnavailable) {
			t.Fatalf("get of a cut member: %v", err)
		}
		select {
		case doc := <-seen:
			t.Fatalf("a cut member saw %v", doc)
		default:
		}
		cl.Heal("b")
		if doc := <-seen; string(doc.Value) != "v" {
			t.Fatalf("healed member saw %q", doc.Value)
		}
		cl.Outage(true)
		<-lease.Lost()
		if err := a.Send(ctx, "a", nil, time.Second); !errors.Is(err, coord.ErrUnavailable) {
			t.Fatalf("send in an outage: %v", err)
		}
	})
}

func TestSwapsOfUnknownOutcomeMayOrMayNotHappen(t *testing.T) {
	for _, applied := range []bool{true, false} {
		cl := memstore.New(nil, "a")
		cl.NextSwapUnsure(applied)
		if _, err := cl.Member("a").Swap(context.Background(), "k", []byte("v"), 0); !errors.Is(err, coord.ErrUnsure) {
			t.Fatalf("swap: %v", err)
		}
		if _, ok := cl.Doc("k"); ok != applied {
			t.Fatalf("document exists: %t, want %t", ok, applied)
		}
	}
}

func TestMovedControllerLosesItsReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		cl := memstore.New(nil, "a", "b")
		first, err := cl.Member("a").Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.Member("b").Send(ctx, "b", []byte("x"), time.Minute); err != nil {
			t.Fatal(err)
		}
		cl.MoveController("b")
		<-first.Lost()
		second, err := cl.Member("b").Campaign(ctx)
		if err != nil || second.Term() <= first.Term() {
			t.Fatalf("second lease: %v", err)
		}
		if all, err := cl.Member("a").All(ctx); err != nil || len(all) != 0 {
			t.Fatalf("reports after the move: %v, %v", all, err)
		}
	})
}
