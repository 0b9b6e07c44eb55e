// SPDX-License-Identifier: Apache-2.0

package reshard

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// SlotCount is how many slots a cluster has.
const SlotCount = 16384

// Shard is one shard of a plan.
type Shard struct {
	ID     string
	Zone   string  // of its primary; only decides who gives to whom where that is free
	Weight float64 // its part of the whole; 0: it is to be drained
}

// Measure is what is balanced.
type Measure string

// The measures.
const (
	BySlots      Measure = "slots"
	ByBytes      Measure = "bytes"
	ByOperations Measure = "operations per second"
)

// Request is what a plan is made of.
type Request struct {
	Shards  []Shard
	Owner   [SlotCount]int // index of the shard that has the slot; -1: nobody
	Measure Measure
	Cost    []float64 // of each slot, in the unit of the measure; not for BySlots
	// Tolerance is how far from its part a shard may stay when bytes or operations are balanced, as a part of its part. 0: 2 %.
	Tolerance float64
}

// Transfer is what one shard gives to another.
type Transfer struct {
	From, To int // shards
	Slots    []int
	Cost     float64
}

// Plan is what is to be moved, and what that leads to.
type Plan struct {
	Shards    []Shard
	Measure   Measure
	Before    []Load
	After     []Load
	Transfers []Transfer
}

// Load is what a shard has.
type Load struct {
	Slots int
	Cost  float64
	Want  float64 // its part by weight, in the unit of the measure
}

// Moved returns how many slots move.
func (p Plan) Moved() (n int) {
	for _, t := range p.Transfers {
		n += len(t.Slots)
	}
	return n
}

// Balance makes the plan that reaches the parts of the weights and moves as little as possible.
//
// By slots it is exact: every shard ends within one slot of its part, and no plan that does so moves fewer. By cost
// it moves slots, the most expensive that fit first, until every shard is within the tolerance, or no slot fits any more.
func Balance(r Request) (Plan, error) {
	if err := r.check(); err != nil {
		return Plan{}, err
	}
	p := Plan{Shards: slices.Clone(r.Shards), Measure: r.Measure}
	give := make([][]int, len(r.Shards)) // slots that a shard has
	for s, o := range r.Owner {
		give[o] = append(give[o], s)
	}
	p.Before = r.loads(give)
	var want []int // slots that each shard is to give (negative) or get
	if r.Measure == BySlots {
		want = r.slotDebts(give)
		p.Transfers = r.pair(give, want)
	} else {
		p.Transfers = r.byCost(give, p.Before)
	}
	p.After = r.after(p)
	return p, nil
}

func (r *Request) check() error {
	var sum float64
	for i, s := range r.Shards {
		if s.Weight < 0 || math.IsNaN(s.Weight) || math.IsInf(s.Weight, 0) {
			return fmt.Errorf("weight of shard %s: %v is not a number of 0 or more", s.ID, s.Weight)
		}
		if slices.ContainsFunc(r.Shards[:i], func(o Shard) bool { return o.ID == s.ID }) {
			return fmt.Errorf("shard %s is there twice", s.ID)
		}
		sum += s.Weight
	}
	if sum <= 0 || math.IsInf(sum, 0) {
		return errors.New("no shard is left to hold the slots: give one a weight above 0")
	}
	for s, o := range r.Owner {
		if o < 0 || o >= len(r.Shards) {
			return fmt.Errorf("slot %d belongs to no shard: give it to one first", s)
		}
	}
	switch r.Measure {
	case BySlots:
	case ByBytes, ByOperations:
		if len(r.Cost) != SlotCount {
			return fmt.Errorf("%s of %d slots are known, %d are needed", r.Measure, len(r.Cost), SlotCount)
		}
		for s, c := range r.Cost {
			if !(c >= 0) || math.IsInf(c, 0) {
				return fmt.Errorf("%s of slot %d: %v is not a number of 0 or more", r.Measure, s, c)
			}
		}
	default:
		return fmt.Errorf("unknown measure %q", r.Measure)
	}
	if r.Tolerance < 0 || r.Tolerance >= 1 {
		return fmt.Errorf("tolerance %v: give a part between 0 and 1", r.Tolerance)
	}
	return nil
}

func (r *Request) cost(slot int) float64 {
	if r.Measure == BySlots {
		return 1
	}
	return r.Cost[slot]
}

func (r *Request) loads(have [][]int) []Load {
	out := make([]Load, len(r.Shards))
	var sum, weights float64
	for i, slots := range have {
		out[i].Slots = len(slots)
		for _, s := range slots {
			out[i].Cost += r.cost(s)
		}
		sum += out[i].Cost
		weights += r.Shards[i].Weight
	}
	for i := range out {
		out[i].Want = sum * (r.Shards[i].Weight / weights)
	}
	return out
}

func (r *Request) after(p Plan) []Load {
	owner := r.Owner
	for _, t := range p.Transfers {
		for _, s := range t.Slots {
			owner[s] = t.To
		}
	}
	have := make([][]int, len(r.Shards))
	for s, o := range owner {
		have[o] = append(have[o], s)
	}
	return r.loads(have)
}

// slotDebts says how many slots each shard gets (positive) or gives. Parts are whole numbers: each shard gets its part rounded down,
// and what is left over goes first to those that have more than that already, so that it need not move.
func (r *Request) slotDebts(have [][]int) []int {
	loads := r.loads(have)
	part := make([]int, len(loads))
	left := SlotCount
	order := make([]int, 0, len(loads))
	for i, l := range loads {
		part[i] = int(math.Floor(l.Want + 1e-9))
		left -= part[i]
		if r.Shards[i].Weight > 0 {
			order = append(order, i)
		}
	}
	fraction := func(i int) float64 { return loads[i].Want - float64(part[i]) }
	slices.SortStableFunc(order, func(a, b int) int {
		if x, y := loads[a].Slots > part[a], loads[b].Slots > part[b]; x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Compare(fraction(b), fraction(a))
	})
	// A part that is whole gets nothing of what is left over while others have a fraction: it would be a slot off.
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(btoi(fraction(a) < 1e-6), btoi(fraction(b) < 1e-6))
	})
	for k := 0; left > 0; k++ {
		part[order[k%len(order)]]++
		left--
	}
	for i := range part {
		part[i] -= len(have[i])
	}
	return part
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pair decides who gives to whom: within a zone first, and in as few pairs as come of taking the largest ones first. Slots are
// taken from the end of what a shard has, so that ranges stay whole.
func (r *Request) pair(have [][]int, debt []int) []Transfer {
	var out []Transfer
	for _, sameZone := range []bool{true, false} {
		for {
			from, to, n := -1, -1, 0
			for a, da := range debt {
				for b, db := range debt {
					if da >= 0 || db <= 0 || sameZone && !r.sameZone(a, b) {
						continue
					}
					if m := min(-da, db); m > n {
						from, to, n = a, b, m
					}
				}
			}
			if n == 0 {
				break
			}
			cut := len(have[from]) - n
			t := Transfer{From: from, To: to, Slots: slices.Clone(have[from][cut:]), Cost: float64(n)}
			have[from] = have[from][:cut]
			debt[from] += n
			debt[to] -= n
			out = append(out, t)
		}
	}
	return out
}

func (r *Request) sameZone(a, b int) bool {
	return r.Shards[a].Zone != "" && r.Shards[a].Zone == r.Shards[b].Zone
}

// byCost moves the most expensive slot that fits from whoever has too much to whoever has too little.
func (r *Request) byCost(have [][]int, loads []Load) []Transfer {
	tolerance := r.Tolerance
	if tolerance == 0 {
		tolerance = 0.02
	}
	now := slices.Clone(loads)
	out := map[[2]int]*Transfer{}
	for i := range have { // the most expensive first; equals in the order of their numbers
		slices.SortStableFunc(have[i], func(a, b int) int { return cmp.Compare(r.Cost[b], r.Cost[a]) })
	}
	give := func(from, at, to int) {
		s := have[from][at]
		have[from] = slices.Delete(have[from], at, at+1)
		now[from].Cost -= r.Cost[s]
		now[to].Cost += r.Cost[s]
		now[from].Slots--
		now[to].Slots++
		t := out[[2]int{from, to}]
		if t == nil {
			t = &Transfer{From: from, To: to}
			out[[2]int{from, to}] = t
		}
		t.Slots = append(t.Slots, s)
		t.Cost += r.Cost[s]
	}
	r.drainByCost(have, now, give)
	for i := range have {
		if r.Shards[i].Weight == 0 {
			continue
		}
		bound := now[i].Want * tolerance
		for at := 0; at < len(have[i]) && now[i].Cost-now[i].Want > bound; {
			cost := r.Cost[have[i][at]]
			if to := r.neediest(now, i); cost > 0 && to >= 0 && cost <= now[i].Cost-now[i].Want+bound && cost <= now[to].Want-now[to].Cost+now[to].Want*tolerance {
				give(i, at, to)
				continue
			}
			at++
		}
	}
	return collect(out)
}

// drainByCost empties the shards of weight 0, the most expensive slots first, each to whoever then lacks most.
func (r *Request) drainByCost(have [][]int, now []Load, give func(from, at, to int)) {
	for i := range have {
		for r.Shards[i].Weight == 0 && len(have[i]) > 0 {
			give(i, 0, r.neediest(now, i))
		}
	}
}

// neediest is the shard that lacks most; among equals one of the giver's zone, then the one with the fewest slots for its weight.
func (r *Request) neediest(now []Load, from int) int {
	best := -1
	for i, s := range r.Shards {
		if s.Weight == 0 || i == from {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		lack, most := now[i].Want-now[i].Cost, now[best].Want-now[best].Cost
		switch {
		case lack != most:
			if lack > most {
				best = i
			}
		case r.sameZone(from, i) != r.sameZone(from, best):
			if r.sameZone(from, i) {
				best = i
			}
		case float64(now[i].Slots)/s.Weight < float64(now[best].Slots)/r.Shards[best].Weight:
			best = i
		}
	}
	return best
}

func collect(m map[[2]int]*Transfer) []Transfer {
	out := make([]Transfer, 0, len(m))
	for _, t := range m {
		slices.Sort(t.Slots)
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b Transfer) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return out
}
