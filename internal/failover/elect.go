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

// The rules of PhaseFencing: nobody may write; find the node that has every acknowledged write.

func fencing(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseFencing {
		return false, "phase is " + string(f.a.Phase)
	}
	if len(f.witnesses) == 0 {
		return false, "no frozen, enrolled node"
	}
	best := f.witnesses[0]
	return true, f.say("%s has the best of %d positions (%d needed): epoch %d, offset %d", best.Node, len(f.witnesses), f.needed, best.at.Epoch, best.at.Offset)
}

// oldPrimaryMayWrite holds the election back until the old primary confirmed its fence, or its lease is over.
func oldPrimaryMayWrite(f *facts) (bool, string) {
	switch {
	case f.a.Phase != topo.PhaseFencing:
		return false, "phase is " + string(f.a.Phase)
	case f.fenced:
		return false, f.say("%s confirmed that it takes no write", f.a.Primary)
	case f.leaseLeft <= 0:
		return false, f.say("the lease of %s is over", f.a.Primary)
	case invariant.Planted("promotion-before-fence"):
		return false, "planted"
	}
	f.recheck = f.leaseLeft
	return true, f.say("%s may still accept writes for %s: its fence is not confirmed", f.a.Primary, f.leaseLeft.Round(time.Millisecond))
}

// forcedByOperator lets an operator give up on missing nodes, never on the fence.
func forcedByOperator(f *facts) (bool, string) {
	i := f.a.Intent
	if f.a.Phase != topo.PhaseFencing || i == nil || !i.AcceptDataLoss {
		return false, "no operator accepted data loss"
	}
	if len(f.forcedCandidates()) == 0 {
		return false, "data loss is accepted, but no frozen node (of those allowed) is there"
	}
	return true, f.say("%s accepted data loss; missing: %s", orSomebody(i.By), list(f.missing))
}

func (f *facts) forcedCandidates() []rank {
	var out []rank
	for _, s := range f.present {
		if to := f.a.Intent.To; to != "" && s.Node != to {
			continue
		}
		at, _ := f.place(s.Pos)
		if !s.Whole {
			at = topo.Placed{} // taken only when nothing better is there
		}
		out = append(out, rank{s, at})
	}
	return out
}

// everyoneForgot is a start after a stop of so many nodes that no election by witnesses is possible: all seats must be
// there, and then one of them must certainly hold everything (SAFETY A9).
func everyoneForgot(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseFencing || len(f.a.History) == 0 {
		return false, "phase is " + string(f.a.Phase)
	}
	if len(f.witnesses) >= f.needed || len(f.unplaced) > 0 {
		return false, f.say("%d enrolled witnesses are enough", len(f.witnesses))
	}
	seats := len(f.spec.Nodes)
	if f.spec.Durability == topo.Async && f.PhaseFor.D() > f.spec.Timing.Loading.D() {
		seats = 1 // availability first: the best of those that came back in time
	}
	if invariant.Planted("cold-start-with-n-k") {
		seats = f.needed
	}
	if len(f.present) < seats {
		return false, f.say("%d of %d seats are there; missing: %s", len(f.present), seats, list(f.missing))
	}
	if who, waits := f.unread(); waits && f.PhaseFor.D() < markPatience {
		f.recheck = markPatience - f.PhaseFor.D()
		return false, f.say("all seats are there; the commit marker of %s is not read yet", who)
	}
	c := f.coldBest()
	if c.lossy != "" {
		c.why = f.say("%s (%s)", c.why, c.lossy)
	}
	return c.seat != nil, c.why
}

// choice is the seat that a cold start goes on with.
type choice struct {
	seat  *Seen // nil: nobody can tell, and a person has to
	why   string
	lossy string // what may be lost; empty when nothing can be
}

// coldBest picks the seat to go on with after so many restarted that no election is possible. All seats are there, so
// nothing that is missing now can come back: the best that is left goes on, and the report says what that may have cost.
func (f *facts) coldBest() choice {
	marks, settled := f.byMark()
	if settled {
		return marks
	}
	last, _ := f.a.Latest()
	empty, placed := true, true
	var best *rank
	for i := range f.present {
		s := f.present[i]
		if s.Node == last.Node && s.Kept {
			return choice{&f.present[i], f.say("all seats are there; %s served last and its append-only file is intact", s.Node), ""}
		}
		empty = empty && s.Keys == 0
		at, ok := f.place(s.Pos)
		placed = placed && (ok || s.Keys == 0) // an empty data set is older than any other
		// An aborted load or sync leaves partial data under an old position: such a seat is known, but cannot lead.
		if r := (rank{s, at}); ok && s.Whole && (best == nil || f.better(r, *best) < 0) {
			best = &r
		}
	}
	if f.maybeNewer(best) {
		return choice{why: "a seat with an aborted sync may hold newer data than every other: look at it, and choose with redoubt failover --to NODE --accept-data-loss; " + f.holdings()}
	}
	switch {
	case invariant.Planted("cold-start-with-n-k") && best == nil:
		return choice{&f.present[0], "planted", ""}
	case placed && best != nil:
		return choice{&best.Seen, f.say("all seats are there; %s has the newest of the positions that are left: epoch %d, offset %d", best.Node, best.at.Epoch, best.at.Offset),
			"too many nodes forgot what they had acknowledged: writes after this position are lost"}
	case empty:
		return choice{&f.present[0], "all seats are there and none holds a key", "everything, if there was anything: no server kept its data"}
	case f.spec.Durability == topo.Async:
		most := slices.MaxFunc(f.present, func(x, y Seen) int { return cmp.Compare(x.Keys, y.Keys) })
		return choice{&most, f.say("asynchronous, so %s with the most keys (%d) goes on", most.Node, most.Keys), "the newest data set cannot be proven"}
	}
	if f.spec.Durability.OnDisk() {
		return choice{why: f.say("all seats are there and nobody can tell which data set is the newest (%s); every write that was acknowledged while %s served is on the disk of %s: "+
			"if that disk is as it was, choose it with redoubt failover --to %s --accept-data-loss; %s", marks.why, last.Node, last.Node, last.Node, f.holdings())}
	}
	return choice{why: f.say("all seats are there and nobody can tell which data set is the newest (%s): compare them and choose with redoubt failover --to NODE --accept-data-loss; %s", marks.why, f.holdings())}
}

// maybeNewer reports whether a seat that has forgotten nothing, but was in the middle of a sync, stands beyond best. Its
// data may be whole (the sync never began to load) or half; only a person can tell, and in quorum mode nobody guesses.
func (f *facts) maybeNewer(best *rank) bool {
	for _, s := range f.present {
		at, ok := f.place(s.Pos)
		if ok && !s.Whole && s.Keys > 0 && f.spec.Durability.Waits() && f.a.Enrolled[s.Node] == s.RunID && (best == nil || best.at.Less(at)) {
			return true
		}
	}
	return false
}

// ackedWriteCouldHide waits for more witnesses, and names those that are missing.
func ackedWriteCouldHide(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseFencing {
		return false, "phase is " + string(f.a.Phase)
	}
	got := len(f.witnesses) + len(f.unplaced)
	if got >= f.needed {
		return false, f.say("%d of %d needed positions are known", got, f.needed)
	}
	advice := ""
	if !f.quiet && len(f.present) == len(f.spec.Nodes) {
		if c := f.coldBest(); c.seat == nil {
			advice = "; " + c.why
		}
	}
	return true, f.say("%d of %d needed positions are known; an acknowledged write could be on a node that is missing: %s%s", got, f.needed, list(f.missing), advice)
}

func idNobodyRecorded(f *facts) (bool, string) {
	if len(f.unplaced) == 0 {
		return false, "every position lies in a recorded history"
	}
	return true, f.say("%s has a replication id that nobody recorded, so it cannot be compared: inspect it, then redoubt failover --to NODE --accept-data-loss", f.unplaced[0])
}

// morePositionsExpected gives an asynchronous shard a short time to hear more positions: the best of those reachable.
func morePositionsExpected(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseFencing || f.spec.Durability.Waits() {
		return false, "enough positions intersect every acknowledged write"
	}
	left := f.spec.Timing.Gather.D() - f.PhaseFor.D()
	if left <= 0 {
		return false, f.say("waited %s", f.spec.Timing.Gather)
	}
	for _, n := range f.spec.Nodes {
		s, ok := f.Sightings[n.ID]
		alive := ok && s.Age.D() <= f.spec.Timing.Silence.D() && s.Health == topo.HealthUp && f.a.Enrolled[n.ID] == s.RunID
		if alive && !f.isWitness(n.ID) {
			f.recheck = left
			return true, f.say("%s is alive and has not reported its position yet; waiting %s at most", n.ID, left)
		}
	}
	return false, "every node that is alive has reported"
}

func (f *facts) isWitness(id topo.NodeID) bool {
	for _, w := range f.witnesses {
		if w.Node == id {
			return true
		}
	}
	return false
}

func electBest(f *facts, rule string) *topo.Assigned {
	if rule == "elect-forced" {
		c := f.forcedCandidates()
		best := c[0]
		for _, r := range c[1:] {
			if f.better(r, best) < 0 {
				best = r
			}
		}
		return f.elect(best.Seen, best.at.Epoch, "operator accepted data loss; missing: "+list(f.missing))
	}
	best := f.witnesses[0]
	lossy := ""
	if !f.spec.Durability.Waits() && !f.isWitness(f.a.Primary) {
		lossy = "asynchronous: writes that had not reached " + string(best.Node) + " are lost"
	}
	next := f.elect(best.Seen, best.at.Epoch, lossy)
	f.recordBranch(next, best)
	return next
}

// recordBranch records the history of an earlier promotion that nobody had recorded, at the moment its holder is elected
// again: a further promotion shifts it out of replid2, and then nobody could place the node any more (SAFETY A3). No proxy
// ever wrote to it, and its holder has just been found to hold every acknowledged write, so it ranks above every history
// before it. It takes the epoch of this fencing, which no tenure can have.
func (f *facts) recordBranch(next *topo.Assigned, best rank) {
	if invariant.Planted("branch-unrecorded") {
		return
	}
	if slices.ContainsFunc(next.History, func(h topo.HistoryEntry) bool { return h.ReplID == best.Pos.ReplID }) {
		return
	}
	next.History = append(next.History, topo.HistoryEntry{
		Epoch: f.a.Epoch, ReplID: best.Pos.ReplID, Start: best.at.Offset, Parent: best.at.Epoch, Node: best.Node,
	})
	if extra := len(next.History) - topo.HistoryMax; extra > 0 {
		next.History = next.History[extra:]
	}
	next.Elected.Parent = f.a.Epoch
}

func electColdBest(f *facts, _ string) *topo.Assigned {
	c := f.coldBest()
	at, _ := f.place(c.seat.Pos)
	next := f.elect(*c.seat, at.Epoch, c.lossy)
	next.Elected.Anew = true
	if placed, ok := f.place(c.seat.Pos); ok {
		f.recordBranch(next, rank{*c.seat, placed})
	}
	return next
}

// elect names the one process and position that may be promoted, and begins a tenure with a replication secret of its own:
// what followed an earlier primary can neither acknowledge for this one nor be wiped by it (SAFETY A7).
func (f *facts) elect(s Seen, parent topo.Epoch, lossy string) *topo.Assigned {
	next := f.a.Clone()
	next.Epoch++
	next.Phase = topo.PhasePromoting
	next.Primary = s.Node
	next.RunID = s.RunID
	next.Secret = f.Nonce
	switch {
	case s.Open:
		next.Secret = ""
	case invariant.Planted("secret-outlives-epoch"):
		next.Secret = "planted"
	}
	next.Elected = &topo.Elected{Node: s.Node, RunID: s.RunID, ReplID: s.Pos.ReplID, Offset: s.Pos.Offset, Parent: parent, Lossy: lossy}
	return &next
}

func list(missing []string) string {
	if len(missing) == 0 {
		return "nobody"
	}
	return strings.Join(missing, ", ")
}

func orSomebody(who string) string {
	if who == "" {
		return "an operator"
	}
	return who
}
