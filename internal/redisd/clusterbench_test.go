// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"slices"
	"testing"
	"time"

	"redoubt/internal/redis"
)

// BenchmarkMember measures the verbs of a cluster of three shards with a replica each: one shard's two nodes take turns. What is
// reported are medians in milliseconds; from the order on: write is the first write that the new primary takes, follow the link of
// the former one, frozen a look that shows the replica frozen.
func BenchmarkMember(b *testing.B) {
	f := cluster(b, 3, 2, nil)
	p, r := f.shards[1][0], f.shards[1][1]
	times := map[string][]time.Duration{}
	timed := func(name string, verb func() error) {
		began := time.Now()
		if err := verb(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		times[name] = append(times[name], time.Since(began))
	}
	for b.Loop() {
		put(b, p, f.keys[1], "v")
		caughtUp(b, r, p)
		ctx := within(b, 5*time.Second)
		timed("look", func() error { p.Observe(ctx); return nil })
		timed("freeze", func() error { return r.Freeze(ctx) })
		join(b, r, p)
		caughtUp(b, r, p)
		c := client(b, r.addr, "")
		timed("fence", func() error { return p.Fence(ctx) })
		final := see(b, p, "the fence", func(o redis.Observation) bool { return o.Frozen })
		o := see(b, r, "the rest of the stream", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
		began := time.Now()
		timed("promote", func() error { _, err := r.Promote(ctx, electedOf(o), tenure()); return err })
		must(b, c, "SET", f.keys[1], "w")
		times["write"] = append(times["write"], time.Since(began))
		join(b, p, r)
		times["follow"] = append(times["follow"], time.Since(began))
		p, r = r, p
	}
	for name, d := range times {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-ms")
		b.ReportMetric(float64(d[len(d)-1].Microseconds())/1000, name+"-max-ms")
	}
	b.ReportMetric(0, "ns/op")
}
