// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/topk"
)

// TestTheLoadIsMeasuredWhileSomebodyAsks: commands, frequent keys and large values, as they pass; nothing before and nothing behind.
func TestTheLoadIsMeasuredWhileSomebodyAsks(t *testing.T) {
	s := newShard(t, 0, nil)
	c := s.client()
	c.want("OK", "SET", "before", "x")
	type result struct {
		topk.Load
		err error
	}
	done := make(chan result)
	go func() {
		l, err := s.p.Watch(t.Context(), time.Second)
		done <- result{l, err}
	}()
	waitFor(t, "it is measured", func() bool { return s.p.crowd.Load() != nil })
	if _, err := s.p.Watch(t.Context(), time.Second); !errors.Is(err, ErrWatched) {
		t.Errorf("a second one: %v", err)
	}
	large := strings.Repeat("v", 10_000)
	huge := strings.Repeat("h", 3<<20)
	for i := range 100 {
		c.want("OK", "SET", "hot", "v")
		c.want("v", "GET", "hot")
		c.want("OK", "SET", fmt.Sprint("cold:", i), "v")
	}
	c.do("MGET", "hot", "cold:1")
	c.want("OK", "SET", "large", large)
	c.want("OK", "SET", "huge", huge)
	c.want(huge, "GET", "huge")
	c.want("PONG", "PING")
	c.want("OK", "MULTI")
	c.want("QUEUED", "INCR", "in a transaction")
	c.do("EXEC")
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	if got.Commands < 303 || got.Commands > 320 || got.Reads+got.Writes < 303 || got.Reads+got.Writes > 330 {
		t.Errorf("%d commands, %d reads, %d writes", got.Commands, got.Reads, got.Writes)
	}
	if h := got.Hot[0]; h.Key != "hot" || h.Hits < 140 || h.Hits > 260 || h.Over != 0 || h.Reads+h.Writes != h.Hits || h.Reads < 50 || h.Writes < 50 || h.Bytes < h.Hits*20 {
		t.Errorf("the most frequent: %+v", h)
	}
	want := []topk.Size{{Key: "huge", Bytes: int64(len(huge))}, {Key: "large", Bytes: int64(len(large))}}
	for i, w := range want {
		if i >= len(got.Big) || got.Big[i].Key != w.Key || got.Big[i].Bytes < w.Bytes || got.Big[i].Bytes > w.Bytes+100 {
			t.Errorf("number %d of the large ones: %+v", i, got.Big)
		}
	}
	for _, h := range got.Hot {
		if h.Key == "before" {
			t.Error("what was there before is counted")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.p.Watch(ctx, time.Minute); !errors.Is(err, context.Canceled) || s.p.crowd.Load() != nil {
		t.Errorf("given up: %v", err)
	}
}

// TestWhatRepeatsItselfIsMeasuredAsItIs: clients that send the same pipeline again and again are looked at at all of its commands.
func TestWhatRepeatsItselfIsMeasuredAsItIs(t *testing.T) {
	c := &crowd{parts: []*crowdPart{newCrowdPart(time.Now(), true)}}
	table := route.Builtin()
	c.table = func() *route.Table { return table }
	part := c.parts[0]
	part.stride = 8
	s := &session{sock: &sock{loop: &loop{}}}
	const keys, rounds = 24, 20_000
	for i := range keys * rounds {
		part.since = time.Now().Add(-2 * tapPause) // the stride stays
		c.see(s, resp.AppendCommand(nil, "INCR", fmt.Sprintf("key:%d", i%keys)), 4)
	}
	l := c.sum(time.Second)
	if l.Writes < keys*rounds*99/100 || l.Writes > keys*rounds*101/100 {
		t.Errorf("%d commands seem to be %d", keys*rounds, l.Writes)
	}
	if len(l.Hot) != keys {
		t.Fatalf("of %d keys %d are seen", keys, len(l.Hot))
	}
	for _, h := range l.Hot {
		if h.Hits < rounds*8/10 || h.Hits > rounds*12/10 {
			t.Errorf("%s is used %d times, and seems to be %d times", h.Key, rounds, h.Hits)
		}
	}
}

// BenchmarkSee is what one reply costs while somebody watches.
func BenchmarkSee(b *testing.B) {
	c := &crowd{parts: []*crowdPart{newCrowdPart(time.Now(), false)}}
	table := route.Builtin()
	c.table = func() *route.Table { return table }
	s := &session{sock: &sock{loop: &loop{}}}
	rng := rand.New(rand.NewPCG(1, 1))
	var raw [][]byte
	for range 4096 {
		raw = append(raw, resp.AppendCommand(nil, "GET", fmt.Sprintf("key:%06d", int(rng.ExpFloat64()*5000))))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.see(s, raw[i%4096], 71)
	}
}
