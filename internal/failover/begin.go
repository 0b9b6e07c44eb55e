// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"slices"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// The rules of taking office, of the first primary, and of a promotion under way.

func deposed(f *facts) (bool, string) {
	return f.a.Term > f.Term, f.say("the document's term is %d, ours is %d", f.a.Term, f.Term)
}

// newController makes the new controller's first act a swap of its term into the document: from then on a swap by its
// predecessor can only meet a conflict.
func newController(f *facts) (bool, string) {
	return f.a.Term < f.Term, f.say("the document's term is %d, ours is %d", f.a.Term, f.Term)
}

func claimTerm(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	return &next
}

// unborn: the shard never had a primary that served.
func (f *facts) unborn() bool {
	return len(f.a.History) == 0 && (f.a.Phase == topo.PhaseNew || f.a.Phase == topo.PhaseFencing)
}

func bootstrapIncomplete(f *facts) (bool, string) {
	if !f.unborn() {
		return false, "the shard has a history"
	}
	if f.a.Phase == topo.PhaseFencing && !f.fenced && f.leaseLeft > 0 {
		f.recheck = f.leaseLeft
		return true, f.say("the first promotion failed; %s may still accept writes for %s", f.a.Primary, f.leaseLeft.Round(time.Millisecond))
	}
	if len(f.present) < len(f.spec.Nodes) {
		return true, f.say("%d of %d nodes are there; the first primary is chosen when all are; missing: %s", len(f.present), len(f.spec.Nodes), list(f.notPresent()))
	}
	return false, "all nodes are there"
}

func (f *facts) notPresent() []string {
	var out []string
	for _, n := range f.spec.Nodes {
		if !slices.ContainsFunc(f.present, func(s Seen) bool { return s.Node == n.ID }) {
			out = append(out, f.say("%s (%s)", n.ID, f.absence(n.ID)))
		}
	}
	return out
}

// bootstrapWithoutDisk refuses to begin with a promise that a server cannot keep.
func bootstrapWithoutDisk(f *facts) (bool, string) {
	if !f.unborn() || !f.spec.Durability.OnDisk() {
		return false, "nothing is promised about disks, or the shard has a history"
	}
	for _, s := range f.present {
		if why := lackOfDisk(s.Sighting, topo.DiskAble); why != "" {
			return true, f.say("durability %s: %s", f.spec.Durability, why)
		}
	}
	return false, "every node that is there can say what is on its disk"
}

// bootstrapConflict refuses to choose between two data sets: the loser's would be erased. A primary and its replicas from before
// Redoubt are one: who shares its replication id has a part of its stream.
func bootstrapConflict(f *facts) (bool, string) {
	if !f.unborn() {
		return false, "the shard has a history"
	}
	var with []string
	ids := map[string]bool{}
	for _, s := range f.present {
		if s.Keys > 0 {
			with = append(with, f.say("%s (%d keys)", s.Node, s.Keys))
			ids[s.Pos.ReplID] = true
		}
	}
	if len(with) > 1 && len(ids) == 1 {
		return false, f.say("%d nodes hold keys, of one history: %s", len(with), list(with))
	}
	if i := f.a.Intent; len(with) > 1 && i != nil && i.AcceptDataLoss && i.To != "" {
		return false, f.say("several nodes hold keys, and %s chose %s", orSomebody(i.By), i.To)
	}
	return len(with) > 1, f.say("%d nodes hold keys: %s; at most one may: empty the others, or redoubt failover --to NODE --accept-data-loss", len(with), list(with))
}

func bootstrapReady(f *facts) (bool, string) {
	if !f.unborn() {
		return false, "the shard has a history"
	}
	if len(f.present) == 0 {
		return false, "no node is there"
	}
	s := f.first()
	return true, f.say("all %d nodes are there and %s goes first (%d keys)", len(f.spec.Nodes), s.Node, s.Keys)
}

// first is the node that an operator chose, else the one with keys, of several that with the most of their history, else the
// preferred one.
func (f *facts) first() Seen {
	best := f.present[0]
	for _, s := range f.present {
		if f.a.Intent != nil && f.a.Intent.AcceptDataLoss && s.Node == f.a.Intent.To {
			return s
		}
		if f.before(s, best) {
			best = s
		}
	}
	return best
}

// before tells whether a goes first rather than b. Where both hold keys, their histories are one (bootstrapConflict).
func (f *facts) before(a, b Seen) bool {
	switch {
	case (a.Keys > 0) != (b.Keys > 0):
		return a.Keys > 0
	case a.Keys > 0 && a.Pos.Offset != b.Pos.Offset:
		return a.Pos.Offset > b.Pos.Offset
	}
	return f.preferred(a.Node, b.Node) < 0
}

func electFirst(f *facts, _ string) *topo.Assigned {
	s := f.first()
	next := f.elect(s, 0, "")
	next.Elected.Anew = true
	return next
}

func promoting(f *facts) (bool, string) {
	if f.a.Phase != topo.PhasePromoting {
		return false, "phase is " + string(f.a.Phase)
	}
	f.recheck = f.promotionLimit() - f.PhaseFor.D()
	return true, f.say("waiting for %s to become primary at offset %d", f.a.Elected.Node, f.a.Elected.Offset)
}

// promoted: the elected process is a primary and its new history is final, so it can be recorded. No proxy sends a write
// before that (SAFETY A3).
func promoted(f *facts) (bool, string) {
	if f.a.Phase != topo.PhasePromoting {
		return false, "phase is " + string(f.a.Phase)
	}
	s, ok := f.fresh(f.a.Elected.Node)
	switch {
	case !ok:
		return false, f.say("%s: %s", f.a.Elected.Node, f.absence(f.a.Elected.Node))
	case s.RunID != f.a.Elected.RunID:
		return false, "another process answers than the elected one"
	case s.Role != topo.RolePrimary || s.Phase != topo.PhasePromoting:
		return false, f.say("%s is not a primary yet", s.Node)
	case !s.Backlog && !invariant.Planted("serving-before-history"):
		return false, f.say("%s has no replication backlog yet: its replication id is not final", s.Node)
	}
	cost := ""
	if f.a.Elected.Lossy != "" {
		cost = "; " + f.a.Elected.Lossy
	}
	return true, f.say("%s is primary; history %s begins at offset %d%s", s.Node, short(s.Pos.ReplID), f.a.Elected.Offset, cost)
}

func serve(f *facts, _ string) *topo.Assigned {
	s := f.primary
	next := f.a.Clone()
	next.Phase = topo.PhaseServing
	replid := s.Pos.ReplID
	next.History = append(next.History, topo.HistoryEntry{
		Epoch: f.a.Epoch, ReplID: replid, Start: f.a.Elected.Offset, Parent: f.a.Elected.Parent, Node: s.Node,
	})
	if extra := len(next.History) - topo.HistoryMax; extra > 0 {
		next.History = next.History[extra:]
	}
	if i := next.Intent; i != nil {
		done := i.To == "" || i.To == s.Node
		next.Outcome = &topo.Outcome{ID: i.ID, OK: done, Why: f.say("%s is primary at epoch %d", s.Node, next.Epoch)}
		next.Intent = nil
	}
	if f.a.Elected.Anew {
		next.Enrolled = map[topo.NodeID]string{}
	}
	next.Enrolled[s.Node] = s.RunID
	if next.Alone != "" {
		next.Alone = s.Node // whoever it is, nobody else is known to have everything
	}
	next.Elected = nil
	return &next
}

// startingFor is how much longer a promotion may take in a cluster when the elected server has just begun: it answers CLUSTERDOWN for
// two seconds (CLUSTER_WRITABLE_DELAY, Redis 7.0 to 8, Valkey 7.2 to 9).
const startingFor = 2500 * time.Millisecond

func (f *facts) promotionLimit() time.Duration {
	limit := f.spec.Timing.Promote.D()
	if s, ok := f.fresh(f.a.Elected.Node); ok && s.Starting && s.Epoch == f.a.Epoch {
		limit += startingFor
	}
	return limit
}

// promotionFailed gives an elected node up; it is then the one that may be writing, and must be fenced first.
func promotionFailed(f *facts) (bool, string) {
	if f.a.Phase != topo.PhasePromoting {
		return false, "phase is " + string(f.a.Phase)
	}
	e := f.a.Elected
	s, ok := f.fresh(e.Node)
	limit := f.promotionLimit()
	switch {
	case f.PhaseFor.D() > limit:
		return true, f.say("%s did not become primary within %s (%s)", e.Node, limit, f.absence(e.Node))
	case f.silent > f.spec.Timing.Silence.D():
		return true, f.say("%s was elected and fell silent", e.Node)
	case ok && s.Refused != "":
		return true, f.say("%s refused: %s", e.Node, s.Refused)
	case ok && s.Health == topo.HealthExited:
		return true, f.say("%s was elected and exited", e.Node)
	case ok && s.RunID != "" && s.RunID != e.RunID:
		return true, f.say("%s restarted after it was elected", e.Node)
	}
	return false, f.say("%s has %s left", e.Node, (limit - f.PhaseFor.D()).Round(time.Millisecond))
}

func always(*facts) (bool, string) { return true, "nothing to do" }

func short(replid string) string {
	if len(replid) > 8 {
		return replid[:8]
	}
	return replid
}
