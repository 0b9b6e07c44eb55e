// SPDX-License-Identifier: Apache-2.0

package reshard

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// TestPlansMoveEachSlotOnceAndNoMoreThanTheyMust compares random plans with all that could have been made.
func TestPlansMoveEachSlotOnceAndNoMoreThanTheyMust(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := randomRequest(rng, BySlots)
		p, err := Balance(r)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkTransfers(t, seed, r, p)
		have := make([]int, len(r.Shards))
		for _, o := range r.Owner {
			have[o]++
		}
		for i, l := range p.After {
			if math.Abs(float64(l.Slots)-l.Want) >= 1+1e-6 {
				t.Fatalf("seed %d: shard %d ends with %d slots, its part is %f", seed, i, l.Slots, l.Want)
			}
		}
		if least := leastMoves(p, have); p.Moved() != least {
			t.Fatalf("seed %d: %d slots move, %d would do\n%s", seed, p.Moved(), least, p)
		}
		// Zones never cost a move, and never more between zones than when nobody asks.
		blind := r
		blind.Shards = append([]Shard(nil), r.Shards...)
		for i := range blind.Shards {
			blind.Shards[i].Zone = ""
		}
		q, err := Balance(blind)
		if err != nil || q.Moved() != p.Moved() {
			t.Fatalf("seed %d: zones cost %d moves (%v)", seed, p.Moved()-q.Moved(), err)
		}
		if across(r, p) > across(r, q) {
			t.Fatalf("seed %d: %d slots change zone, without knowing zones %d", seed, across(r, p), across(r, q))
		}
		// What was balanced stays.
		for _, tr := range p.Transfers {
			for _, s := range tr.Slots {
				r.Owner[s] = tr.To
			}
		}
		if again, err := Balance(r); err != nil || again.Moved() != 0 {
			t.Fatalf("seed %d: a balanced cluster is moved again: %v\n%s", seed, err, again)
		}
	}
}

func across(r Request, p Plan) (n int) {
	for _, t := range p.Transfers {
		if !r.sameZone(t.From, t.To) {
			n += len(t.Slots)
		}
	}
	return n
}

// leastMoves tries every way to round the parts.
func leastMoves(p Plan, have []int) int {
	n := len(p.Before)
	floor, left, fractional := make([]int, n), SlotCount, 0
	for i, l := range p.Before {
		floor[i] = int(math.Floor(l.Want + 1e-9))
		left -= floor[i]
		if l.Want-float64(floor[i]) > 1e-6 {
			fractional |= 1 << i
		}
	}
	best := math.MaxInt
	for up := range 1 << n {
		if up&^fractional != 0 || bits.OnesCount(uint(up)) != left {
			continue
		}
		moves := 0
		for i := range n {
			moves += max(0, have[i]-floor[i]-up>>i&1)
		}
		best = min(best, moves)
	}
	return best
}

func TestPlansByCostComeNearer(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 2))
		r := randomRequest(rng, ByBytes)
		p, err := Balance(r)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkTransfers(t, seed, r, p)
		dearest, sum := 0.0, 0.0
		for _, c := range r.Cost {
			dearest, sum = max(dearest, c), sum+c
		}
		for i, l := range p.After {
			was := p.Before[i]
			if r.Shards[i].Weight == 0 && l.Slots > 0 {
				t.Fatalf("seed %d: shard %d is drained and keeps %d slots", seed, i, l.Slots)
			}
			// Nobody ends above its part by more than it began with, or than one slot and the tolerance.
			if over := l.Cost - l.Want; over > max(was.Cost-was.Want, dearest+0.03*l.Want)+1e-6*sum {
				t.Fatalf("seed %d: shard %d ends %.0f above its part of %.0f (the dearest slot is %.0f)\n%s", seed, i, over, l.Want, dearest, p)
			}
		}
	}
}

func checkTransfers(t *testing.T, seed uint64, r Request, p Plan) {
	t.Helper()
	seen := map[int]bool{}
	for _, tr := range p.Transfers {
		for _, s := range tr.Slots {
			if seen[s] || r.Owner[s] != tr.From || tr.From == tr.To || r.Shards[tr.To].Weight == 0 {
				t.Fatalf("seed %d: slot %d moves from %d to %d, its owner is %d, moved before %v", seed, s, tr.From, tr.To, r.Owner[s], seen[s])
			}
			seen[s] = true
		}
	}
	total, batches := 0, p.Moves(37)
	for _, m := range batches {
		total += len(m.Slots)
		if len(m.Slots) > 37 {
			t.Fatalf("seed %d: a batch of %d slots", seed, len(m.Slots))
		}
	}
	if total != p.Moved() {
		t.Fatalf("seed %d: batches have %d slots, the plan %d", seed, total, p.Moved())
	}
}

func randomRequest(rng *rand.Rand, m Measure) Request {
	r := Request{Measure: m}
	n := 1 + rng.IntN(8)
	equal := rng.IntN(2) == 0
	for i := range n {
		s := Shard{ID: fmt.Sprintf("s%d", i), Zone: []string{"", "z1", "z2"}[rng.IntN(3)], Weight: 1}
		if !equal && i > 0 {
			s.Weight = float64(rng.IntN(5)) / 2
		}
		r.Shards = append(r.Shards, s)
	}
	o := 0
	for s := range r.Owner {
		if rng.IntN(300) == 0 {
			o = rng.IntN(n)
		}
		r.Owner[s] = o
	}
	if m != BySlots {
		r.Cost = make([]float64, SlotCount)
		for s := range r.Cost {
			if rng.IntN(3) > 0 {
				r.Cost[s] = float64(rng.IntN(1000))
			}
			if rng.IntN(2000) == 0 {
				r.Cost[s] = 100000
			}
		}
	}
	return r
}

func TestARestKeepsTheRate(t *testing.T) {
	for _, c := range []struct {
		rate        Rate
		keys, bytes int64
		took, want  float64 // ms
	}{
		{Rate{}, 100, 1000, 5, 0},
		{Rate{KeysPerSecond: 1000}, 100, 0, 40, 60},
		{Rate{KeysPerSecond: 1000, BytesPerSecond: 1000}, 100, 1000, 40, 960},
		{Rate{KeysPerSecond: 1000}, 10, 0, 40, 0},
		{Rate{Stall: 2e6}, 10, 0, 1, 0},
		{Rate{Stall: 2e6}, 10, 0, 5, 5},
		{Rate{Stall: 2e6}, 10, 0, 5000, 1000},
	} {
		if got := c.rate.Rest(c.keys, c.bytes, ms(c.took)); got != ms(c.want) {
			t.Errorf("%+v: rest %s, want %s", c, got, ms(c.want))
		}
	}
}
