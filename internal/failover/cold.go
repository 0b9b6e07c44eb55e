// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// The commit markers at a cold start (SAFETY A9, ADR 0023). A marker is part of the data, and is written behind what was
// written before it. So of two data sets of one tenure, the one with the greater marker holds all of the other one. Equal
// markers leave open which one holds more: they were written at most a beat before both ended.

// markPatience is how long a cold start waits for the marker of a seat that did not restart: its agent reads the settings of its
// server, and the marker with them, once a second. One of an earlier version never does.
const markPatience = 2 * time.Second

// unread names a seat whose marker is not known yet, if others' are.
func (f *facts) unread() (topo.NodeID, bool) {
	var who topo.NodeID
	some := false
	for _, s := range f.present {
		if s.Mark == nil {
			who = s.Node
			continue
		}
		some = some || *s.Mark != topo.Mark{}
	}
	return who, some && who != ""
}

// marked returns the seats with the greatest commit marker; none, and why, when the markers do not speak of all seats.
func (f *facts) marked() (best []Seen, why string) {
	var top topo.Mark
	for _, s := range f.present {
		switch lost := s.Keys == 0 && !s.Kept; {
		case s.Mark == nil:
			return nil, f.say("the commit marker of %s was not read", s.Node)
		case *s.Mark == topo.Mark{} && lost:
			continue // its disk has nothing: older than any other
		case *s.Mark == topo.Mark{}:
			return nil, f.say("%s has no commit marker", s.Node) // removed by users (FLUSHALL and the like), or never written
		case len(best) == 0 || top.Less(*s.Mark):
			best, top = []Seen{s}, *s.Mark
		case top == *s.Mark:
			best = append(best, s)
		}
	}
	last, _ := f.a.Latest()
	switch {
	case len(best) == 0:
		return nil, "no seat has a commit marker"
	case top.Epoch != last.Epoch: // nobody is left who saw a marker of the latest tenure, which may have acknowledged writes
		return nil, f.say("the newest commit marker is of epoch %d, and epoch %d has served", top.Epoch, last.Epoch)
	}
	return best, ""
}

// forgot reports whether the seat may lack what it had acknowledged.
func (f *facts) forgot(s Seen) bool { return !s.Kept && f.a.Enrolled[s.Node] != s.RunID }

// byMark picks the seat with the greatest commit marker. settled is false when markers do not speak of all seats: then why says
// so, and positions decide. When it is true, no seat with a smaller marker may be taken, even if it served last.
func (f *facts) byMark() (c choice, settled bool) {
	best, why := f.marked()
	if best == nil || invariant.Planted("cold-start-ignores-marker") {
		return choice{why: why}, false
	}
	last, _ := f.a.Latest()
	kept := slices.DeleteFunc(slices.Clone(best), f.forgot)
	i := slices.IndexFunc(kept, func(s Seen) bool { return s.Node == last.Node })
	var one Seen
	switch {
	case f.a.Alone != "" && !slices.ContainsFunc(best, func(s Seen) bool { return s.Node == f.a.Alone }):
		return choice{why: f.say("%s went on alone and does not have the newest commit marker", f.a.Alone)}, false
	case i >= 0: // what its replicas got, it had written to its file before
		one = kept[i]
	case len(best) == 1:
		one = best[0]
	case len(kept) == 1:
		one = kept[0]
	default:
		ok := false
		if one, ok = f.behindMark(best); !ok {
			return choice{why: f.say("all seats are there; %s have the same commit marker, and may differ in what was written behind it: choose with redoubt failover --to NODE --accept-data-loss; %s", names(best), f.holdings())}, true
		}
	}
	return choice{&one, f.say("all seats are there; %s has the newest commit marker; %s", one.Node, f.holdings()), f.lossyMark(one, i >= 0)}, true
}

// behindMark picks one of several seats with the same marker: by their positions, if all have one; where availability comes
// first, by the number of their keys.
func (f *facts) behindMark(best []Seen) (Seen, bool) {
	var ranks []rank
	for _, s := range best {
		if at, ok := f.place(s.Pos); ok {
			ranks = append(ranks, rank{s, at})
		}
	}
	switch {
	case len(ranks) == len(best):
		return slices.MinFunc(ranks, f.better).Seen, true
	case f.spec.Durability == topo.Async:
		return slices.MaxFunc(best, func(x, y Seen) int { return cmp.Compare(x.Keys, y.Keys) }), true
	}
	return Seen{}, false
}

// lossyMark says what the choice of a seat by its marker may cost; empty when no acknowledged write can be missing: what was
// acknowledged was on k + 1 seats, and more seats than forgot anything have a marker that is no greater than this one.
func (f *facts) lossyMark(s Seen, primary bool) string {
	if primary {
		return ""
	}
	may := f.spec.AckReplicas
	if f.a.Alone != "" || !f.spec.Durability.Waits() {
		may = 0
	}
	lost := len(f.spec.Nodes) - len(f.present)
	for _, p := range f.present {
		if f.forgot(p) {
			lost++
		}
	}
	if lost <= may {
		return ""
	}
	return f.say("%d seats may have forgotten what they had acknowledged: writes that %s did not have are lost", lost, s.Node)
}

// holdings says what each seat has, for the person who may have to choose.
func (f *facts) holdings() string {
	if f.quiet {
		return ""
	}
	var out []string
	for _, s := range f.present {
		text := f.say("%s: %d keys", s.Node, s.Keys)
		switch {
		case s.Mark == nil:
			text += ", commit marker not read"
		case *s.Mark == topo.Mark{}:
			text += ", no commit marker"
		default:
			text += f.say(", commit marker %d/%d", s.Mark.Epoch, s.Mark.Offset)
		}
		if at, ok := f.place(s.Pos); ok {
			text += f.say(", position %d/%d", at.Epoch, at.Offset)
		}
		switch {
		case s.Mark == nil && !s.Whole:
			text += ", perhaps incomplete (an aborted sync)"
		case s.Kept:
			text += ", append-only file intact"
		case f.a.Enrolled[s.Node] == s.RunID:
			text += ", not restarted"
		default:
			text += ", restarted"
		}
		out = append(out, text)
	}
	return "seats hold: " + strings.Join(out, "; ")
}

func names(seats []Seen) string {
	var out []string
	for _, s := range seats {
		out = append(out, string(s.Node))
	}
	return strings.Join(out, " and ")
}
