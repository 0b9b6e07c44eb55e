// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
)

// quantiles reports the median, the 99th percentile and the worst of the durations, in microseconds.
func quantiles(b *testing.B, what string, d []time.Duration) {
	slices.Sort(d)
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	b.ReportMetric(us(d[len(d)/2]), what+"-p50-µs")
	b.ReportMetric(us(d[len(d)*99/100]), what+"-p99-µs")
	b.ReportMetric(us(d[len(d)-1]), what+"-max-µs")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSwap swaps a document of 4 KiB on three members, once at the controller and once through another member, and
// measures when a third one saw it.
func BenchmarkSwap(b *testing.B) {
	p := newParty(b, 3)
	ctx := context.Background()
	coordtest.Put(b, p.stores[0], "k", "v")
	i := p.controller()
	value := make([]byte, 4<<10)
	for name, s := range map[string]*Store{"controller": p.stores[i], "other": p.stores[p.other(i)]} {
		b.Run(name, func(b *testing.B) {
			watch := p.stores[(i+2)%3].Watch(ctx, "k")
			doc, err := s.Get(ctx, "k")
			if err != nil {
				b.Fatal(err)
			}
			var swaps, pushes, gets []time.Duration
			for b.Loop() {
				t := time.Now()
				pushed := make(chan time.Time, 1)
				go func() {
					for d := range watch {
						if d.Rev > doc.Rev {
							pushed <- time.Now()
							return
						}
					}
				}()
				rev, err := s.Swap(ctx, "k", value, doc.Rev)
				if err != nil {
					b.Fatal(err)
				}
				swaps = append(swaps, time.Since(t))
				pushes = append(pushes, (<-pushed).Sub(t))
				doc.Rev = rev
				t = time.Now()
				if _, err := s.Get(ctx, "k"); err != nil {
					b.Fatal(err)
				}
				gets = append(gets, time.Since(t))
			}
			quantiles(b, "swap", swaps)
			quantiles(b, "seen", pushes)
			quantiles(b, "get", gets)
		})
	}
}

// BenchmarkBeat measures from Send at another member to the controller's notice.
func BenchmarkBeat(b *testing.B) {
	p := newParty(b, 3)
	coordtest.Put(b, p.stores[0], "k", "v")
	i := p.controller()
	s, to := p.stores[p.other(i)], p.stores[i]
	coordtest.Until(b, "reports get through", func() bool {
		return s.Send(context.Background(), "x", nil, time.Minute) == nil
	})
	<-to.Arrived()
	var beats []time.Duration
	for b.Loop() {
		t := time.Now()
		if err := s.Send(context.Background(), "x", make([]byte, 500), time.Minute); err != nil {
			b.Fatal(err)
		}
		<-to.Arrived()
		beats = append(beats, time.Since(t))
	}
	quantiles(b, "beat", beats)
}

// BenchmarkElection cuts the controller off, again and again, and measures until another member has taken a swap.
func BenchmarkElection(b *testing.B) {
	p := newParty(b, 3)
	coordtest.Put(b, p.stores[0], "k", "v")
	var times []time.Duration
	for b.Loop() {
		i := p.controller()
		s := p.stores[p.other(i)]
		doc, err := s.Get(context.Background(), "k")
		if err != nil {
			b.Fatal(err)
		}
		t := time.Now()
		p.nets[i].setCut(true)
		for {
			_, err := s.Swap(context.Background(), "k", fmt.Append(nil, t), doc.Rev)
			if err == nil || errors.Is(err, coord.ErrConflict) { // a conflict: an unsure one happened
				break
			}
		}
		times = append(times, time.Since(t))
		p.nets[i].setCut(false)
		coordtest.Until(b, "the old controller is back", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := p.stores[i].Get(ctx, "k")
			return err == nil
		})
	}
	quantiles(b, "election", times)
}
