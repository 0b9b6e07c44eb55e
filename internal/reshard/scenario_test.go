// SPDX-License-Identifier: Apache-2.0

package reshard

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"redoubt/internal/storytest"
)

// TestScenarios plays the stories in testdata. Each file is one batch of slots, or one cluster to be balanced:
//
//	move slots=(1,2) [from=a] [to=b] [stage=copying] [wish=pause] [force]
//	source|target [owner=source|target|mixed|nobody|other] [keys=5] [left=2] [marked|unmarked]     what a side is like, seen from now on
//	copy [tracked] [listed] [dirty=5] [bytes=100] [rounds=3]
//	now [tenure=2] [confirmed] [late] [parked|flowing] [drained] [told] [counted] [tried=1] [unsettled] [busy=why|idle]
//	crash                                   nothing is known any more but what is stored
//	next [times=3]                          what Next says; what it stores becomes what is stored, and each other step has the effect that it should have
//	say                                     what Next says, with no effect
//	cluster a=0-99,200 b=… [zones=(a=z1,b=z2)] [weights=(a=1,b=0)]
//	balance [measure=bytes] [cost=(0-99=5,…)] [tolerance=0.1] [batch=50]
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := &story{}
		datadriven.RunTest(t, path, w.run)
	})
}

type story struct {
	m Move
	f Facts
	r Request
}

func (w *story) run(t *testing.T, d *datadriven.TestData) string {
	a := storytest.Args{T: t, D: d}
	switch d.Cmd {
	case "move":
		w.move(a)
	case "source":
		w.side(a, &w.f.Source)
	case "target":
		w.side(a, &w.f.Target)
	case "copy":
		c := &w.f.Copy
		c.Tracked, c.Listed = c.Tracked || a.Has("tracked"), c.Listed || a.Has("listed")
		c.Dirty, c.Bytes, c.Rounds = a.Num("dirty", c.Dirty), a.Num("bytes", c.Bytes), int(a.Num("rounds", int64(c.Rounds)))
	case "now":
		f := &w.f
		f.Parked = (f.Parked || a.Has("parked")) && !a.Has("flowing")
		f.Confirmed, f.Late = f.Confirmed || a.Has("confirmed"), a.Has("late")
		f.Drained = (f.Drained || a.Has("drained")) && f.Parked
		f.Told, f.Counted = f.Told || a.Has("told"), f.Counted || a.Has("counted")
		f.Settled = f.Settled && !a.Has("unsettled")
		f.Tried = int(a.Num("tried", int64(f.Tried)))
		f.Tenure = a.Str("tenure", f.Tenure)
		if f.Busy = a.Str("busy", f.Busy); a.Has("idle") {
			f.Busy = ""
		}
	case "crash":
		w.f = Facts{Limits: DefaultLimits()}
	case "next":
		var b strings.Builder
		for range a.Num("times", 1) {
			b.WriteString(w.next(true))
		}
		return b.String()
	case "say":
		return w.next(false)
	case "cluster":
		w.cluster(a)
	case "balance":
		return w.balance(a)
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
	return ""
}

func (w *story) move(a storytest.Args) {
	if a.Has("slots") {
		w.m = Move{From: a.Str("from", "a"), To: a.Str("to", "b")}
		w.f = Facts{Limits: DefaultLimits()}
		for _, s := range a.List("slots") {
			w.m.Slots = append(w.m.Slots, int(storytest.Num(a.T, s)))
		}
	}
	w.m.Stage = Stage(a.Str("stage", string(w.m.Stage)))
	w.m.Wish = Wish(a.Str("wish", string(w.m.Wish)))
	if w.m.Wish == "go-on" {
		w.m.Wish = GoOn
	}
	w.m.Force = w.m.Force || a.Has("force")
}

func (w *story) side(a storytest.Args, s *Side) {
	if w.f.Source.Owner == "" {
		w.f.Source.Owner, w.f.Target.Owner = BySource, BySource
	}
	w.f.Seen, w.f.Settled = true, true
	s.Owner = Owner(strings.Replace(a.Str("owner", string(s.Owner)), "other", string(BySome), 1))
	s.Keys, s.Left = a.Num("keys", s.Keys), a.Num("left", s.Left)
	s.Marked = (s.Marked || a.Has("marked")) && !a.Has("unmarked")
	s.AnyMark = s.Marked
}

func (w *story) next(apply bool) string {
	s := Next(w.m, w.f)
	out := fmt.Sprintf("%s: %s", s.Rule, s.Do)
	switch s.Do {
	case Store:
		out += " " + string(s.Stage)
	case Flow:
		out += " to " + s.Owner
	}
	if s.Recheck > 0 {
		out += " in " + s.Recheck.String()
	}
	out += ": " + s.Why + "\n"
	if apply {
		effect(&w.m, &w.f, s)
	}
	return out
}

// effect is what a step does to the facts when all goes well.
func effect(m *Move, f *Facts, s Step) {
	switch s.Do {
	case Look:
		f.Settled = f.Settled || s.Recheck > 0
	case Store:
		if m.Stage, m.Tenure, f.Late, f.Confirmed = s.Stage, "", false, false; s.Stage == LettingGo {
			m.Tenure = f.Tenure
		}
	case Confirm:
		f.Confirmed = true
	case Import:
		f.Target.Marked, f.Target.AnyMark = true, true
	case Purge:
		f.Target.Keys, f.Target.Left = 0, 0
	case Track:
		f.Copy.Tracked = true
	case CopyAll:
		f.Copy.Listed, f.Target.Keys = true, f.Source.Keys
	case CopyDirty:
		f.Copy.Dirty, f.Copy.Bytes = 0, 0
		f.Copy.Rounds++
	case Park:
		f.Parked = true
	case Drain:
		f.Drained, f.Copy.Dirty, f.Copy.Bytes = true, 0, 0
		f.Source.Owner = Nobody
	case Readmit:
		f.Source.Owner, f.Drained = BySource, false
	case Recall:
		if m.Stage, m.Tenure = Copying, ""; f.Target.Owner == ByTarget {
			m.Stage = Settling
		}
		f.Seen, f.Copy = false, Copy{}
	case Flip:
		f.Target.Owner, f.Target.Marked, f.Target.AnyMark = ByTarget, false, false
	case Flow:
		f.Parked, f.Drained = false, false
	case Tell:
		f.Told, f.Source.Owner = true, ByTarget
	case Clean:
		f.Source.Keys, f.Source.Left = 0, 0
	case Count:
		f.Counted = true
	case Stable:
		f.Target.Marked, f.Target.AnyMark = false, false
	}
}

func (w *story) cluster(a storytest.Args) {
	w.r = Request{Measure: BySlots}
	for i := range w.r.Owner {
		w.r.Owner[i] = -1
	}
	for _, arg := range a.D.CmdArgs {
		if arg.Key == "zones" || arg.Key == "weights" {
			continue
		}
		for _, v := range arg.Vals {
			for _, s := range slotsOf(a.T, v) {
				w.r.Owner[s] = len(w.r.Shards)
			}
		}
		w.r.Shards = append(w.r.Shards, Shard{ID: arg.Key, Weight: 1})
	}
	each := func(list string, set func(*Shard, string)) {
		for _, v := range a.List(list) {
			id, value, _ := strings.Cut(v, "=")
			set(&w.r.Shards[slices.IndexFunc(w.r.Shards, func(s Shard) bool { return s.ID == id })], value)
		}
	}
	each("zones", func(s *Shard, v string) { s.Zone = v })
	each("weights", func(s *Shard, v string) { s.Weight, _ = strconv.ParseFloat(v, 64) })
}

func (w *story) balance(a storytest.Args) string {
	w.r.Measure = Measure(a.Str("measure", string(BySlots)))
	w.r.Tolerance, _ = strconv.ParseFloat(a.Str("tolerance", "0"), 64)
	w.r.Cost = nil
	if w.r.Measure != BySlots {
		w.r.Cost = make([]float64, SlotCount)
	}
	for _, v := range a.List("cost") {
		list, c, _ := strings.Cut(v, "=")
		for _, s := range slotsOf(a.T, list) {
			w.r.Cost[s] = float64(storytest.Num(a.T, c))
		}
	}
	p, err := Balance(w.r)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	out := p.String()
	if n := a.Num("batch", 0); n > 0 {
		for _, m := range p.Moves(int(n)) {
			out += m.String() + "\n"
		}
	}
	return out
}

func slotsOf(t *testing.T, s string) (out []int) {
	from, to, isRange := strings.Cut(s, "-")
	a := int(storytest.Num(t, from))
	b := a
	if isRange {
		b = int(storytest.Num(t, to))
	}
	for ; a <= b; a++ {
		out = append(out, a)
	}
	return out
}
