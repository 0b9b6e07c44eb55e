// SPDX-License-Identifier: Apache-2.0

package reshard

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"
)

func ms(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }

// world is what a step changes, in small: one slot, two shards of a primary and a replica each, clients that write whenever nobody
// keeps them from it, and one that comes directly and waits for nobody. Marks live on primaries only, as with Redis 7.0. The next primary of the
// source is promoted with the slot, or without it, as the stage that is stored says.
type world struct {
	rng    *rand.Rand
	truth  map[string]int // what clients were told
	side   [2]struct{ primary, replica map[string]int }
	marked [2]bool
	owner  [2]int // by each primary's word: 0 the source, 1 the target, 2 nobody
	tenure [2]int
	down   bool // the source has no primary
	flow   int  // whom clients are sent to; -1: they wait
	dirty  map[string]bool
	n      int
}

func newWorld(rng *rand.Rand) *world {
	w := &world{rng: rng, truth: map[string]int{}, dirty: map[string]bool{}}
	for i := range w.side {
		w.side[i].primary, w.side[i].replica = map[string]int{}, map[string]int{}
	}
	for range 5 {
		w.write()
	}
	if rng.IntN(3) == 0 { // leftovers of an earlier time
		w.side[1].replica["k0"] = -1
	}
	return w
}

// write is what clients do between two steps.
func (w *world) write() {
	for range w.rng.IntN(4) {
		k, at := fmt.Sprintf("k%d", w.rng.IntN(6)), w.flow
		if w.rng.IntN(6) == 0 && (w.flow >= 0 || w.owner[0] == 0) {
			at = w.rng.IntN(2) // it comes directly. At the target, before that is stored, it would be unprotected
		}
		if at < 0 || w.owner[at] != at || at == 0 && w.down {
			continue // it waits, or the server refuses
		}
		s := &w.side[at]
		if w.dirty[k] = true; w.rng.IntN(3) == 0 {
			delete(w.truth, k)
			delete(s.primary, k)
			delete(s.replica, k)
			continue
		}
		w.n++
		w.truth[k], s.primary[k], s.replica[k] = w.n, w.n, w.n
	}
}

func (w *world) look(f *Facts) {
	own := [3]Owner{BySource, ByTarget, Nobody}
	f.Seen, f.Settled = true, w.rng.IntN(3) > 0
	f.Source = Side{Owner: own[w.owner[0]], Marked: w.marked[0], AnyMark: w.marked[0], Keys: int64(len(w.side[0].primary)), Left: int64(len(w.side[0].replica))}
	f.Target = Side{Owner: own[w.owner[1]], Marked: w.marked[1], AnyMark: w.marked[1], Keys: int64(len(w.side[1].primary)), Left: int64(len(w.side[1].replica))}
}

// copy brings some keys over; replicas of the target get them when WAIT says so.
func (w *world) copy(keys map[string]bool) {
	for k := range keys {
		if v, ok := w.side[0].primary[k]; ok {
			w.side[1].primary[k] = v
		} else {
			delete(w.side[1].primary, k)
		}
	}
}

func (w *world) do(t *testing.T, m *Move, f *Facts, s Step) {
	defer func() {
		keep := w.side[1].primary
		effect(m, f, s)
		f.Copy.Dirty, f.Copy.Bytes = int64(len(w.dirty)), int64(len(w.dirty))
		f.Target.Keys, f.Source.Keys = int64(len(keep)), int64(len(w.side[0].primary))
	}()
	switch s.Do {
	case Look:
		w.look(f)
	case Import:
		w.marked[1] = true
	case Purge:
		if !w.marked[1] || w.owner[1] == 1 {
			t.Fatalf("purge without the mark, or of the owner (rule %s)", s.Rule)
		}
		clear(w.side[1].primary)
		clear(w.side[1].replica)
	case Track:
		clear(w.dirty)
	case CopyAll:
		all := map[string]bool{}
		for k := range w.side[0].primary {
			all[k] = true
		}
		w.copy(all)
	case CopyDirty:
		w.copy(w.dirty)
		clear(w.dirty)
	case Park:
		w.flow = -1
	case Drain:
		w.copy(w.dirty)
		clear(w.dirty)
		w.side[1].replica = maps.Clone(w.side[1].primary)
		w.owner[0] = 2
	case Readmit:
		if w.owner[1] == 1 {
			t.Fatal("two owners")
		}
		w.owner[0] = 0
	case Flip:
		if !w.marked[1] || w.owner[0] == 0 {
			t.Fatalf("flip with mark %v, the source's word is %d (rule %s)", w.marked[1], w.owner[0], s.Rule)
		}
		w.owner[1], w.marked[1] = 1, false
	case Flow:
		w.flow = map[string]int{m.From: 0, m.To: 1}[s.Owner]
		if w.flow == 0 && w.owner[1] == 1 { // at the target they wait until it owns it
			t.Fatalf("clients are sent to %s, who does not own the slot", s.Owner)
		}
	case Tell:
		w.owner[0], w.marked[0] = 1, false
	case Clean:
		clear(w.side[0].primary)
		clear(w.side[0].replica)
	case Recall:
		f.Target.Owner = []Owner{BySource, ByTarget}[w.owner[1]]
	case Stable:
		w.marked[1] = false
	case Halt:
		t.Fatalf("a person is needed: %s", s.Why)
	}
}

// fail replaces the primary of one side by its replica, or forgets everything that is not stored.
func (w *world) fail(f *Facts, stage Stage) {
	limits, is := f.Limits, f.Parked
	i := w.rng.IntN(4)
	if i == 0 && stage == Settling && w.owner[1] == 0 {
		i = 3 // both at once, right behind the hand-over, need a person
	}
	if i < 2 {
		w.tenure[i]++
		w.down = w.down || i == 0
		s := &w.side[i]
		w.marked[i] = false
		if i == 1 && w.flow < 0 && !w.down && w.rng.IntN(2) == 0 {
			w.owner[1] = 0 // its replica has not heard that it took the slot
		}
		if i == 1 && w.owner[1] == 0 {
			s.primary = maps.Clone(s.replica) // what had not reached it is gone
		}
		s.replica = maps.Clone(s.primary)
		if i == 0 {
			s.primary = maps.Clone(s.replica)
		}
	}
	*f = Facts{Limits: limits, Parked: is}
}

// elect gives the source its next primary, once it is known whether the slot is its.
func (w *world) elect(stage Stage) {
	if !w.down || w.rng.IntN(2) == 0 {
		return
	}
	switch {
	case w.owner[1] == 1: // gossip has told it
		w.owner[0], w.down = 1, false
	case stage != LettingGo && stage != Settling:
		w.owner[0], w.down = 0, false
	}
}

// TestNothingIsLostOrComesBackWhateverFailsWhen plays random failures, wishes and writes between the steps of a move.
func TestNothingIsLostOrComesBackWhateverFailsWhen(t *testing.T) {
	ends := map[Stage]int{}
	for seed := range uint64(4000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		w, m := newWorld(rng), Move{Slots: []int{7}, From: "a", To: "b"}
		f := Facts{Limits: Limits{ParkKeys: 2, ParkBytes: 100, Rounds: 3, HardKeys: 100, HardBytes: 100}}
		faults, steps, touched := rng.IntN(4), 0, false
		for ; !m.Over(); steps++ {
			if steps > 500 {
				t.Fatalf("seed %d: no end: stage %s, %+v", seed, m.Stage, Next(m, f))
			}
			w.write()
			f.Copy.Dirty = int64(len(w.dirty))
			if faults > 0 && rng.IntN(12) == 0 {
				faults--
				w.fail(&f, m.Stage)
			}
			w.elect(m.Stage)
			f.Tenure, f.Busy = fmt.Sprint(w.tenure), map[bool]string{true: "no primary"}[w.down]
			m.Wish = GoOn
			if rng.IntN(30) == 0 {
				m.Wish = []Wish{Pause, Cancel}[rng.IntN(2)]
			}
			w.do(t, &m, &f, Next(m, f))
			touched = touched || m.Stage == Copying
		}
		ends[m.Stage]++
		owner := map[Stage]int{Done: 1, Cancelled: 0}[m.Stage]
		if w.flow != owner || w.owner[1] != owner {
			t.Fatalf("seed %d: %s, clients go to %d, the owner is %d", seed, m.Stage, w.flow, w.owner[1])
		}
		if !maps.Equal(w.side[owner].primary, w.truth) {
			t.Fatalf("seed %d: %s: the owner has %v, clients were told %v", seed, m.Stage, w.side[owner].primary, w.truth)
		}
		if other := w.side[1-owner]; touched && len(other.primary)+len(other.replica) > 0 {
			t.Fatalf("seed %d: %s: the other shard still has %v", seed, m.Stage, other)
		}
	}
	t.Logf("%v", ends)
	if ends[Done] == 0 || ends[Cancelled] == 0 {
		t.Fatalf("only %v", ends)
	}
}
