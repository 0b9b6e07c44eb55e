// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// The rules of a shard that has a primary: trouble, planned moves, enrolment.

func (f *facts) hasPrimary() bool {
	return f.a.Phase == topo.PhaseServing || f.a.Phase == topo.PhaseDraining
}

// replIDChanged: the primary writes a history that nobody recorded; offsets in it mean nothing to an election.
func replIDChanged(f *facts) (bool, string) {
	last, ok := f.a.Latest()
	s, fresh := f.fresh(f.a.Primary)
	if !f.hasPrimary() || !ok || !fresh || s.Role != topo.RolePrimary || s.RunID != f.a.RunID || s.Health != topo.HealthUp {
		return false, "no serving primary to compare"
	}
	return s.Pos.ReplID != last.ReplID, f.say("%s writes history %s, recorded is %s", s.Node, short(s.Pos.ReplID), short(last.ReplID))
}

// gone says why the promoted process certainly is not the primary any more; empty when it is, or when nobody knows.
func (f *facts) gone() string {
	s, ok := f.fresh(f.a.Primary)
	switch {
	case !f.hasPrimary() || !ok:
		return ""
	case s.Health == topo.HealthExited:
		return fmt.Sprintf("the server of %s exited", s.Node)
	case s.RunID != "" && s.RunID != f.a.RunID:
		return fmt.Sprintf("the server of %s restarted: it is not the process that was promoted", s.Node)
	case f.a.Phase == topo.PhaseServing && s.Phase == topo.PhaseServing && s.Health == topo.HealthUp && s.Role == topo.RoleReplica:
		return fmt.Sprintf("%s is not a primary any more (it fenced itself, or somebody demoted it)", s.Node)
	}
	return ""
}

// primaryGone: waiting cannot help, because the shard cannot accept a write in any case; so spacing does not apply.
func primaryGone(f *facts) (bool, string) {
	why := f.gone()
	if f.a.Paused != nil {
		return false, "automation is paused"
	}
	if why == "" {
		return false, "nothing says that the promoted process is gone"
	}
	return true, why
}

func troubledButPaused(f *facts) (bool, string) {
	if f.a.Paused == nil {
		return false, "automation is on"
	}
	trouble := f.trouble
	if gone := f.gone(); gone != "" && f.a.Intent == nil {
		trouble = gone
	}
	if trouble == "" {
		return false, "paused, and the primary is well"
	}
	return f.a.Intent == nil, f.say("%s is in trouble (%s), and %s paused automation: redoubt resume, or redoubt failover", f.a.Primary, trouble, orSomebody(f.a.Paused.By))
}

// troubledButNobodyBetter: a fence would only make things worse while too few others could elect.
func troubledButNobodyBetter(f *facts) (bool, string) {
	if f.trouble == "" {
		return false, "the primary is not in trouble"
	}
	n, missing := f.others()
	return n < f.needed, f.say("%s is %s; %d other enrolled nodes are up and %d are needed to go on without it; missing: %s", f.a.Primary, f.trouble, n, f.needed, list(missing))
}

// troubledButTooSoon spaces automatic failovers of one shard once a burst of them has happened within a minute.
func troubledButTooSoon(f *facts) (bool, string) {
	if f.trouble == "" {
		return false, "the primary is not in trouble"
	}
	recent, left := f.spacing()
	if recent < f.spec.Timing.Burst {
		return false, f.say("%d automatic failovers within a minute, fewer than %d", recent, f.spec.Timing.Burst)
	}
	f.recheck = left
	return left > 0, f.say("%d automatic failovers within a minute; the next one in %s", recent, left.Round(time.Millisecond))
}

// spacing counts the automatic failovers within the last minute, and says how long the next one has to wait.
func (f *facts) spacing() (recent int, left time.Duration) {
	for _, at := range f.a.Recent {
		if f.WallMS-at < time.Minute.Milliseconds() {
			recent++
		}
	}
	t := f.spec.Timing
	if recent < t.Burst {
		return recent, 0
	}
	left = t.Recovery.D() - time.Duration(f.WallMS-f.a.Recent[len(f.a.Recent)-1])*time.Millisecond
	if left > t.Recovery.D() { // the wall clock went back: a wait must never be longer than the spacing
		left = 0
	}
	return recent, max(left, 0)
}

// noteAutomatic remembers an automatic move for the spacing of the next ones.
func (f *facts) noteAutomatic(next *topo.Assigned) {
	next.Recent = append(next.Recent, f.WallMS)
	if extra := len(next.Recent) - f.spec.Timing.Burst; extra > 0 {
		next.Recent = next.Recent[extra:]
	}
}

func primarySilent(f *facts) (bool, string) {
	if f.trouble != "silent" {
		return false, "the primary is heard"
	}
	return true, f.say("%s was last heard %s ago (limit %s)", f.a.Primary, f.silent.Round(time.Millisecond), f.spec.Timing.Silence)
}

func primaryHung(f *facts) (bool, string) {
	hung := f.trouble != "" && f.trouble != "silent" && f.trouble != "loading" && f.trouble != "busy"
	if !hung {
		return false, "the primary's server does not hang"
	}
	return true, f.say("%s has been %s for %s (limit %s)", f.a.Primary, f.primary.Health, f.primary.HealthFor.D().Round(time.Millisecond), f.spec.Timing.Hang)
}

func primaryLoading(f *facts) (bool, string) {
	if f.trouble != "loading" {
		return false, "the primary does not load for too long"
	}
	return true, f.say("%s has been loading for %s (limit %s)", f.a.Primary, f.primary.HealthFor.D().Round(time.Millisecond), f.spec.Timing.Loading)
}

func primaryBusy(f *facts) (bool, string) {
	if f.trouble != "busy" {
		return false, "the primary is not busy for too long"
	}
	return true, f.say("%s has been busy with one command for %s (limit %s)", f.a.Primary, f.primary.HealthFor.D().Round(time.Millisecond), f.spec.Timing.Busy)
}

// fence begins an election: nobody may write, everybody freezes. a.Primary stays the one who may still be writing.
func fence(f *facts, rule string) *topo.Assigned {
	next := f.a.Clone()
	next.Epoch++
	next.Phase = topo.PhaseFencing
	next.Elected = nil
	next.Secret = "" // nobody follows anybody until there is a primary again
	switch rule {
	case "switchover-abandon":
		next.Outcome = &topo.Outcome{ID: f.a.Intent.ID, Why: f.say("abandoned: %s did not finish within %s", f.a.Intent.Kind, f.a.Intent.Budget)}
		next.Intent = nil
	case "failover-intent":
	default:
		f.noteAutomatic(&next)
	}
	return &next
}

func draining(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseDraining {
		return false, "phase is " + string(f.a.Phase)
	}
	f.recheck = f.a.Intent.Budget.D() - f.PhaseFor.D()
	return true, f.say("waiting for %s to fence itself and for %s to reach its final offset", f.a.Primary, f.a.Elected.Node)
}

// drained: the old primary takes no write, so its offset is final (SAFETY C1). The candidate is elected at exactly that
// offset: it drains the rest of the stream from the demoted server and may not be promoted before it is there.
func drained(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseDraining {
		return false, "phase is " + string(f.a.Phase)
	}
	p, okP := f.fresh(f.a.Primary)
	c, okC := f.fresh(f.a.Elected.Node)
	fenced := f.fenced && p.Frozen && p.RunID == f.a.RunID
	if invariant.Planted("switchover-fenced-by-pause") {
		fenced = p.Epoch == f.a.Epoch && p.Phase == topo.PhaseDraining && p.RunID == f.a.RunID
	}
	switch {
	case !okP || !okC || !fenced:
		return false, f.say("%s has not confirmed its fence", f.a.Primary)
	case c.RunID != f.a.Elected.RunID || c.Health != topo.HealthUp || !c.Whole:
		return false, f.say("%s is not ready", c.Node)
	case c.Pos.ReplID != p.Pos.ReplID || c.Pos.Offset > p.Pos.Offset && !invariant.Planted("switchover-fenced-by-pause"):
		return false, f.say("%s is at %s %d, the final position is %s %d", c.Node, short(c.Pos.ReplID), c.Pos.Offset, short(p.Pos.ReplID), p.Pos.Offset)
	}
	return true, f.say("%s is fenced at its final offset %d; %s takes over there", p.Node, p.Pos.Offset, c.Node)
}

func electDrained(f *facts, _ string) *topo.Assigned {
	c := f.Sightings[f.a.Elected.Node]
	c.Pos.Offset = f.primary.Pos.Offset
	last, _ := f.a.Latest()
	return f.elect(c, last.Epoch, "")
}

func drainedTooLong(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseDraining {
		return false, "phase is " + string(f.a.Phase)
	}
	return f.PhaseFor.D() > f.a.Intent.Budget.D(), f.say("the switchover has taken %s of %s", f.PhaseFor.D().Round(time.Millisecond), f.a.Intent.Budget)
}

// lyingReplica takes the vote from a node whose settings let it acknowledge what it does not keep (SAFETY A10).
func lyingReplica(f *facts) (bool, string) {
	for _, n := range f.spec.Nodes {
		s, ok := f.fresh(n.ID)
		if ok && n.ID != f.a.Primary && len(s.Settings) > 0 && f.a.Enrolled[n.ID] != "" {
			return true, f.say("%s has settings under which its word means nothing: %s", n.ID, s.Settings[0])
		}
	}
	return false, "every enrolled replica has the settings that safety needs"
}

func unenrol(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	for _, n := range f.spec.Nodes {
		if s, ok := f.fresh(n.ID); ok && n.ID != f.a.Primary && len(s.Settings) > 0 {
			delete(next.Enrolled, n.ID)
		}
	}
	return &next
}

// inSync returns the replicas that may be enrolled now: they follow this epoch's primary, and have reached an offset of
// it that was read after their link came up (SAFETY A1).
func (f *facts) inSync() []Seen {
	var out []Seen
	for _, n := range f.spec.Nodes {
		s, ok := f.fresh(n.ID)
		ready := ok && n.ID != f.a.Primary && s.Health == topo.HealthUp && s.Role == topo.RoleReplica && s.InSync == f.a.Epoch &&
			s.Phase == topo.PhaseServing && s.Whole && len(s.Settings) == 0
		if ready && f.a.Enrolled[n.ID] != s.RunID {
			out = append(out, s)
		}
	}
	return out
}

func replicaInSync(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseServing {
		return false, "phase is " + string(f.a.Phase)
	}
	in := f.inSync()
	if len(in) == 0 {
		return false, "no further replica is in sync"
	}
	return true, f.say("%s is in sync with epoch %d", in[0].Node, f.a.Epoch)
}

func enrol(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	for _, s := range f.inSync() {
		next.Enrolled[s.Node] = s.RunID
	}
	return &next
}

// candidate is the replica that a planned move goes to; the string says why there is none.
func (f *facts) candidate() (Seen, string) {
	var ready []Seen
	why := "no replica is ready"
	for _, n := range f.spec.Nodes {
		if n.ID == f.a.Primary || f.a.Intent != nil && f.a.Intent.To != "" && n.ID != f.a.Intent.To {
			continue
		}
		s, ok := f.fresh(n.ID)
		switch {
		case !ok:
			why = fmt.Sprintf("%s: %s", n.ID, f.absence(n.ID))
		case s.Health != topo.HealthUp:
			why = fmt.Sprintf("%s is %s", n.ID, s.Health)
		case !s.LinkUp:
			why = fmt.Sprintf("%s is not connected to the primary", n.ID)
		case f.a.Enrolled[n.ID] != s.RunID:
			why = fmt.Sprintf("%s is not enrolled: it restarted and is not in sync yet", n.ID)
		default:
			ready = append(ready, s)
		}
	}
	if len(ready) == 0 {
		return Seen{}, why
	}
	best := slices.MaxFunc(ready, func(x, y Seen) int { return cmp.Compare(x.Pos.Offset, y.Pos.Offset) }).Pos.Offset
	return slices.MinFunc(ready, func(x, y Seen) int {
		if fx, fy := best-x.Pos.Offset > farBehind, best-y.Pos.Offset > farBehind; fx != fy {
			return boolFirst(fy)
		}
		return f.preferred(x.Node, y.Node)
	}), ""
}

// farBehind is how many bytes more than another a replica may lack before the other one is taken: a replica gets nothing of the
// stream in the second after its sync, until it acknowledges for the first time, and a planned move would wait for all of it.
const farBehind = 128 << 10

// intentImpossible answers an operator at once instead of letting a deadline pass.
func intentImpossible(f *facts) (bool, string) {
	i := f.a.Intent
	switch {
	case i == nil || f.a.Phase != topo.PhaseServing:
		return false, "no intent waits"
	case i.To == f.a.Primary:
		return true, f.say("%s is the primary already", i.To)
	}
	if _, known := f.spec.Node(i.To); i.To != "" && !known {
		return true, f.say("there is no node %q", i.To)
	}
	if i.Kind == topo.IntentSwitchover {
		if _, why := f.candidate(); why != "" && f.LedFor.D() > f.spec.Timing.Silence.D() {
			return true, why
		}
		if s, ok := f.fresh(f.a.Primary); f.LedFor.D() > f.spec.Timing.Silence.D() && (!ok || s.Health != topo.HealthUp) {
			return true, f.say("the primary %s is not well (%s); use failover instead", f.a.Primary, f.absence(f.a.Primary))
		}
	}
	return false, "the intent can be carried out"
}

func refuseIntent(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	_, why := intentImpossible(f)
	next.Outcome = &topo.Outcome{ID: f.a.Intent.ID, Why: why}
	next.Intent = nil
	return &next
}

// failoverWanted: an operator treats the primary as lost. A primary that is well is moved politely instead, which loses
// nothing; the fence follows only if that does not work.
func failoverWanted(f *facts) (bool, string) {
	i := f.a.Intent
	if i == nil || i.Kind != topo.IntentFailover || f.a.Phase != topo.PhaseServing {
		return false, "no failover was asked for"
	}
	s, ok := f.fresh(f.a.Primary)
	_, why := f.candidate()
	if ok && s.Health == topo.HealthUp && why == "" {
		return false, "the primary is well: a switchover does it without loss"
	}
	return true, f.say("%s asked for it", orSomebody(i.By))
}

func switchoverWanted(f *facts) (bool, string) {
	if f.a.Intent == nil || f.a.Phase != topo.PhaseServing {
		return false, "no switchover was asked for"
	}
	c, why := f.candidate()
	p, ok := f.fresh(f.a.Primary)
	if why == "" && (!ok || p.Health != topo.HealthUp) {
		why = "the primary is not well"
	}
	if why != "" {
		return false, why
	}
	return true, f.say("%s asked for it; %s takes over from %s", orSomebody(f.a.Intent.By), c.Node, f.a.Primary)
}

func drain(f *facts, _ string) *topo.Assigned {
	c, _ := f.candidate()
	next := f.a.Clone()
	next.Phase = topo.PhaseDraining
	next.Elected = &topo.Elected{Node: c.Node, RunID: c.RunID}
	return &next
}
