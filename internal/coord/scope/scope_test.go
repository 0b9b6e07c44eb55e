// SPDX-License-Identifier: Apache-2.0

package scope_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/coord/scope"
	"redoubt/internal/topo"
)

func open(t testing.TB, s scope.Shared, shards ...string) *scope.Hall {
	t.Helper()
	h, err := scope.Open(s, shards...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// closing is a shard's store whose Close closes the shared one, as the contract of a store of one's own wants it.
type closing struct {
	*scope.Store
	shared coord.Store
}

func (c closing) Close() error { return c.shared.Close() }

func TestAScopeKeepsTheContract(t *testing.T) {
	coordtest.Run(t, func(t testing.TB, n int) *coordtest.Cluster {
		var ids []string
		for i := range n {
			ids = append(ids, fmt.Sprint("m", i+1))
		}
		cl := memstore.New(clock.Real{}, ids...)
		c := &coordtest.Cluster{IDs: ids, Depose: func(_ testing.TB, id string) { cl.Cut(id) }}
		for _, id := range ids {
			c.Stores = append(c.Stores, closing{open(t, cl.Member(id), "a", "b").Of("b"), cl.Member(id)})
		}
		return c
	})
}

// halls are those of two members with two shards, of whom the first is the controller.
func halls(t *testing.T) (context.Context, *memstore.Cluster, *scope.Hall, *scope.Hall) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	cl := memstore.New(clock.Real{}, "m1", "m2")
	h1, h2 := open(t, cl.Member("m1"), "a", "b"), open(t, cl.Member("m2"), "a", "b")
	if _, err := cl.Member("m1").Campaign(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, cl, h1, h2
}

// TestShardsDoNotMix: reports about nodes and questions stay in their shard; what concerns a member is everybody's.
func TestShardsDoNotMix(t *testing.T) {
	ctx, cl, h1, h2 := halls(t)
	for shard, body := range map[string]string{"a": "1", "b": "2"} {
		if err := h2.Of(shard).Send(ctx, topo.BeatNode+"m2", []byte(body), time.Minute); err != nil {
			t.Fatal(err)
		}
		<-h1.Of(shard).Arrived()
	}
	if err := h2.Of("a").Send(ctx, topo.BeatMember+"m2", []byte("3"), time.Minute); err != nil {
		t.Fatal(err)
	}
	for shard, want := range map[string]string{"a": "1", "b": "2"} {
		all, err := h1.Of(shard).All(ctx)
		if err != nil || len(all) != 2 || string(all[topo.BeatNode+"m2"].Body) != want || string(all[topo.BeatMember+"m2"].Body) != "3" {
			t.Errorf("shard %s: %v, %v", shard, all, err)
		}
	}
	h2.Of("b").Answer(func(from string, q []byte) []byte { return []byte(from + " asks " + string(q)) })
	if got, err := h1.Of("b").Ask(ctx, "m2", []byte("x\ny")); err != nil || string(got) != "m1 asks x\ny" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := h1.Of("a").Ask(ctx, "m2", []byte("x")); err == nil {
		t.Errorf("nobody answers for shard a, but %q", got)
	}
	if _, err := scope.Open(cl.Member("m1"), "a", "a"); err == nil {
		t.Error("one name for two shards was taken")
	}
}

// TestAShardIsWokenForItsOwnReports, and not for those about another shard's nodes: with twenty shards, what controllers do would grow with the
// square of their number.
func TestAShardIsWokenForItsOwnReports(t *testing.T) {
	ctx, _, h1, h2 := halls(t)
	for _, s := range []string{topo.BeatNode + "m2", topo.BeatController + "a", topo.BeatMember + "m2"} { // the last one is everybody's
		select {
		case <-h1.Of("b").Arrived():
			t.Errorf("shard b is woken for what is reported about shard a, by %s", s)
		default:
		}
		if err := h2.Of("a").Send(ctx, s, []byte("1"), time.Minute); err != nil {
			t.Fatal(err)
		}
		<-h1.Of("a").Arrived()
	}
	<-h1.Of("b").Arrived()
}
