// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"cmp"
	"fmt"

	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// The rules of a change of the specification (SAFETY A7): strength is promised only once it is there. All of them need a
// serving primary; a change outlives a failover and is taken up again by the next primary.

func (f *facts) change(kinds ...topo.ChangeKind) *topo.Change {
	if f.a.Phase != topo.PhaseServing || f.a.Change == nil {
		return nil
	}
	for _, k := range kinds {
		if f.a.Change.Kind == k {
			return f.a.Change
		}
	}
	return nil
}

// confirms reports whether the primary's process says that the barrier of the change is held, in this epoch.
func (f *facts) confirms(c *topo.Change) bool {
	s, ok := f.fresh(f.a.Primary)
	return ok && s.RunID == f.a.RunID && s.Phase == topo.PhaseServing && s.Health == topo.HealthUp && s.Barrier == c.ID
}

// follows reports whether a node is up and replicates in step with nothing in its way.
func (f *facts) follows(id topo.NodeID) (Seen, bool) {
	s, ok := f.fresh(id)
	return s, ok && s.Health == topo.HealthUp && s.Role == topo.RoleReplica && s.LinkUp && s.Whole && len(s.Settings) == 0
}

// away says why a replica holds writes up; empty when it does not, or not for long enough.
func (f *facts) away(id topo.NodeID) string {
	t := f.spec.Timing
	s, ok := f.Sightings[id]
	switch silent := f.silence(id); {
	case silent > t.Silence.D():
		return f.word("nothing was heard from its agent for %s", silent.Round(time.Millisecond))
	case !ok:
		return ""
	case s.Health != topo.HealthUp && s.HealthFor.D()+s.Age.D() > t.Hang.D():
		return f.word("it has been %s for %s", s.Health, (s.HealthFor.D() + s.Age.D()).Round(time.Millisecond))
	case s.Health == topo.HealthUp && s.Unlinked > 0 && s.Unlinked.D()+s.Age.D() > t.Silence.D():
		return f.word("its link to the primary has been down for %s", (s.Unlinked.D() + s.Age.D()).Round(time.Millisecond))
	}
	return ""
}

// word is say for a sentence whose being empty means something.
func (f *facts) word(format string, args ...any) string {
	if f.quiet {
		return format
	}
	return f.say(format, args...)
}

// lackOfOthers names the others without which too few are left for the set to be more than the primary; "" when enough are.
func (f *facts) lackOfOthers() string {
	missing, why := 0, ""
	for _, n := range f.spec.Nodes {
		if n.ID == f.a.Primary {
			continue
		}
		if w := f.away(n.ID); w != "" {
			missing++
			why = f.word("%s: %s", n.ID, w)
		}
	}
	if len(f.spec.Nodes)-1-missing >= f.spec.AckReplicas {
		return ""
	}
	return why
}

// changeVoid: the change cannot be carried out any more.
func changeVoid(f *facts) (bool, string) {
	c := f.change(topo.ChangeRemove, topo.ChangeRejoin, topo.ChangeAdd)
	switch {
	case c == nil || c.Kind == topo.ChangeAdd && !c.Void:
		return false, "no change can become impossible"
	case c.Kind == topo.ChangeAdd:
		s, ok := f.fresh(c.Node.ID)
		still := ok && s.Health == topo.HealthUp && s.Frozen && s.Change == c.ID
		return still || c.Via != f.a.Primary || f.a.Epoch > c.Epoch && f.a.Secret != "", f.say("%s does not join after all", c.Node.ID)
	case c.Kind == topo.ChangeRemove && c.Node.ID == f.a.Primary:
		return true, f.say("%s has become the primary and cannot be removed: redoubt switchover first", c.Node.ID)
	case c.Kind == topo.ChangeRejoin && f.a.Alone == "":
		return true, "there is more than one copy already"
	case c.Kind == topo.ChangeRejoin:
		why := f.lackOfOthers()
		return why != "", f.say("%s goes on alone: %s", f.a.Primary, why)
	}
	return false, "the change can be carried out"
}

func dropChange(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	next.Change = nil
	return &next
}

// mustGoAlone: of two nodes the replica is gone, and the specification allows one copy. That is agreed first; only then may a
// proxy acknowledge by it.
func mustGoAlone(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseServing || !f.spec.MayShrink() || f.a.Alone != "" {
		return false, "the set of nodes that hold every write does not shrink"
	}
	p, ok := f.fresh(f.a.Primary)
	if !ok || p.Health != topo.HealthUp || p.RunID != f.a.RunID || p.Role != topo.RolePrimary {
		return false, "the primary is not well"
	}
	why := f.lackOfOthers()
	return why != "", f.say("%s goes on alone, with one copy: %s", f.a.Primary, why)
}

func goAlone(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	next.Alone = f.a.Primary
	return &next
}

// mayRejoin: enough replicas are enrolled and follow, so that the stronger rule would not hold writes up.
func mayRejoin(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseServing || f.a.Alone == "" || f.a.Change != nil {
		return false, "nobody is alone, or a change is under way"
	}
	n := 0
	for _, node := range f.spec.Nodes {
		if s, ok := f.follows(node.ID); ok && node.ID != f.a.Primary && f.a.Enrolled[node.ID] == s.RunID {
			n++
		}
	}
	return n >= f.spec.AckReplicas && n > 0, f.say("%d enrolled replicas follow %s, %d are needed for more than one copy", n, f.a.Primary, f.spec.AckReplicas)
}

func rejoin(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	next.Begin(topo.Change{Kind: topo.ChangeRejoin, By: "redoubt"})
	return &next
}

// leaverStands: the node that is to go can acknowledge nothing more, so that the others can be asked for all it had. It is frozen by
// the change; or a tenure has begun since, whose secret no order lets it present.
func leaverStands(f *facts) (bool, string) {
	c := f.change(topo.ChangeRemove)
	if c == nil || c.Cut {
		return false, "no node is about to leave"
	}
	if f.a.Epoch > c.Epoch && f.a.Secret != "" {
		return true, f.say("%s has not been let in since epoch %d began", c.Node.ID, f.a.Epoch)
	}
	if lost := f.silence(c.Node.ID); f.Shard.Acks() == 0 && lost > f.spec.Timing.Silence.D() {
		return true, f.say("nothing was heard from %s for %s, and nobody waits for what it has", c.Node.ID, lost.Round(time.Millisecond))
	}
	s, ok := f.fresh(c.Node.ID)
	if !ok || s.Health != topo.HealthUp || !s.Frozen || s.Change != c.ID {
		return false, f.say("%s is not frozen for its removal yet", c.Node.ID)
	}
	return true, f.say("%s stands still and acknowledges nothing more", c.Node.ID)
}

func cutLeaver(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	next.Change.Cut = true
	return &next
}

// viaWanted: who joins follows a replica, which does not count in WAIT; where nothing is waited for, the primary will do.
func viaWanted(f *facts) (bool, string) {
	c := f.change(topo.ChangeAdd)
	if c == nil || c.Void {
		return false, "no node is about to join"
	}
	via := f.viaFor(c)
	switch {
	case via == c.Via, via == "" && c.Via != f.a.Primary: // one that has a moment of weakness is not given up
		return false, f.say("%s follows %s meanwhile", c.Node.ID, c.Via)
	case via == "":
		return true, f.say("%s has become the primary: %s may not follow it", c.Via, c.Node.ID)
	}
	return true, f.say("%s follows %s until it has everything", c.Node.ID, via)
}

// viaFor returns whom the newcomer follows; empty: nobody will do at the moment.
func (f *facts) viaFor(c *topo.Change) topo.NodeID {
	good := func(id topo.NodeID) bool {
		s, ok := f.follows(id)
		return ok && id != f.a.Primary && f.a.Enrolled[id] == s.RunID
	}
	direct := f.Shard.Acks() == 0
	switch {
	case c.Direct && direct:
		return f.a.Primary
	case c.Direct:
		return "" // it would count in WAIT: it joins first, without a vote, and copies then
	}
	if good(c.Via) || direct && c.Via == f.a.Primary {
		return c.Via
	}
	for _, n := range f.spec.Nodes {
		if good(n.ID) {
			return n.ID
		}
	}
	if direct {
		return f.a.Primary
	}
	return ""
}

func chooseVia(f *facts, _ string) *topo.Assigned {
	next := f.a.Clone()
	next.Change.Via = f.viaFor(f.a.Change)
	return &next
}

// changeReady: what the change promises is there.
func changeReady(f *facts) (bool, string) {
	c := f.a.Change
	if c == nil || f.a.Phase != topo.PhaseServing {
		return false, "no change is under way"
	}
	switch c.Kind {
	case topo.ChangeAdd:
		s, ok := f.follows(c.Node.ID)
		if p, heard := f.fresh(f.a.Primary); !heard || p.Change != c.ID { // it could count on the pledges of all others, but not of this one
			return false, f.say("%s has not heard yet that %s joins", f.a.Primary, c.Node.ID)
		}
		if c.Direct && f.Shard.Acks() > 0 {
			still := s.Health == topo.HealthUp && s.Frozen && s.Change == c.ID && !c.Void && f.heardLately(c.Node.ID)
			return still, f.say("%s joins as a node that has nothing yet: it has no vote before it has everything", c.Node.ID)
		}
		ready := ok && !c.Void && s.Change == c.ID && s.InSync == f.a.Epoch && s.Phase == topo.PhaseServing
		if ready && f.spec.Durability.OnDisk() && s.Disk != topo.DiskSynced {
			return false, lackOfDisk(s.Sighting, topo.DiskSynced)
		}
		return ready, f.say("%s has everything that epoch %d had when it asked", c.Node.ID, f.a.Epoch)
	case topo.ChangeRemove:
		if !c.Cut && !invariant.Planted("remove-without-barrier") {
			return false, f.say("%s is not frozen for its removal yet", c.Node.ID)
		}
		if invariant.Planted("remove-without-barrier") {
			return c.Node.ID != f.a.Primary, "planted"
		}
	}
	if why := unready(f.Shard, f.heard); why != "" {
		return false, why
	}
	return f.confirms(c), f.say("%d replicas hold everything that was acknowledged before (change %d: %s)", f.Shard.Acks(), c.ID, c)
}

// applyChange makes the specification what it was to become.
func applyChange(f *facts, _ string) *topo.Assigned {
	c := f.a.Change
	spec := c.Apply(f.spec)
	f.next = &spec
	next := f.a.Clone()
	next.Change = nil
	switch c.Kind {
	case topo.ChangeRejoin:
		next.Alone = ""
	case topo.ChangeAdd:
		if _, ok := f.follows(c.Node.ID); ok || !c.Direct {
			next.Enrolled[c.Node.ID] = f.Sightings[c.Node.ID].RunID
		}
	case topo.ChangeRemove:
		delete(next.Enrolled, c.Node.ID)
	}
	return &next
}

// changeUnderWay says what a change waits for.
func changeUnderWay(f *facts) (bool, string) {
	c := f.a.Change
	if c == nil {
		return false, "no change is under way"
	}
	return true, f.say("%s: %s", c, ChangeWaits(f.Shard, f.heard))
}

// heardLately reports whether a node's agent is heard, whatever it obeys.
func (f *facts) heardLately(id topo.NodeID) bool {
	_, ok := f.heard(id)
	return ok
}

// heard returns a node's report, if it is not too old.
func (f *facts) heard(id topo.NodeID) (topo.Sighting, bool) {
	s, ok := f.Sightings[id]
	return s.Sighting, ok && s.Age.D() <= f.spec.Timing.Silence.D()
}

// lackOfDisk says why a node's word about its disk counts for less than is wanted; empty when it does not.
func lackOfDisk(s topo.Sighting, want topo.DiskState) string {
	switch {
	case s.Disk == topo.DiskUnable:
		return string(s.Node) + ": " + s.NoDisk
	case s.Disk == topo.DiskUnknown:
		return string(s.Node) + ": its agent does not say whether its server can confirm what is on its disk"
	case want == topo.DiskSynced && s.Disk != topo.DiskSynced:
		return string(s.Node) + ": it does not sync every write yet"
	}
	return ""
}

// unready says which of the nodes a change waits for, before the primary's word is asked for; empty: for none.
func unready(s topo.Shard, heard func(topo.NodeID) (topo.Sighting, bool)) string {
	return cmp.Or(unsynced(s, heard), strays(s, heard))
}

// strays names the nodes that may still serve a primary of an earlier tenure; empty: too few for it to be acknowledged by them. An
// election under a weaker promise leaves behind whoever it does not reach. With the stronger one, what such a primary and k of those replicas
// hold would count as acknowledged, although no election looks for it any more: so as many nodes as an election needs from now on have to be
// in sync with the present tenure first.
func strays(s topo.Shard, heard func(topo.NodeID) (topo.Sighting, bool)) string {
	next := s.Assigned.Change.Apply(s.Spec)
	if !next.Durability.Waits() || next.Replicas() <= s.Spec.Replicas() {
		return ""
	}
	var missing []string
	for _, n := range next.Nodes {
		seen, ok := heard(n.ID)
		if n.ID != s.Assigned.Primary && (!ok || seen.InSync != s.Assigned.Epoch) {
			missing = append(missing, string(n.ID))
		}
	}
	if len(missing) <= next.Replicas() {
		return ""
	}
	return fmt.Sprintf("waiting until all nodes but %d are in sync with epoch %d, so that no earlier primary can be acknowledged by the others: %s", next.Replicas(), s.Assigned.Epoch, list(missing))
}

// unsynced names a node whose word about its disk would be a lie under the change to quorum+disk; empty: there is none. A server
// that does not sync every write may say that it has (SAFETY A12), so all nodes do before anything is promised.
func unsynced(s topo.Shard, heard func(topo.NodeID) (topo.Sighting, bool)) string {
	if c := s.Assigned.Change; c == nil || c.Kind != topo.ChangeAck || !c.Durability.OnDisk() {
		return ""
	}
	for _, n := range s.Spec.Nodes {
		seen, ok := heard(n.ID)
		if !ok {
			return "waiting for a report of " + string(n.ID)
		}
		if why := lackOfDisk(seen, topo.DiskSynced); why != "" {
			return "waiting for " + why
		}
	}
	return ""
}

// ChangeWaits says what the change that is under way waits for. heard returns a node's report, if it is not too old.
func ChangeWaits(s topo.Shard, heard func(topo.NodeID) (topo.Sighting, bool)) string {
	a, c := s.Assigned, s.Assigned.Change
	switch {
	case a.Phase != topo.PhaseServing:
		return "waiting for a serving primary"
	case c.Kind == topo.ChangeAdd:
		n, ok := heard(c.Node.ID)
		switch {
		case c.Void:
			return "taken back; waiting until " + string(c.Node.ID) + " stands still; if it is lost: redoubt switchover"
		case !ok:
			return "waiting for a report of " + string(c.Node.ID) + ": start its member with store: {join: ADDRESS}"
		case n.Health != topo.HealthUp:
			return "waiting for the server of " + string(c.Node.ID) + ", which is " + string(n.Health)
		case s.Spec.Durability.OnDisk() && n.Disk == topo.DiskUnable:
			return "waiting for " + lackOfDisk(n, topo.DiskAble)
		case c.Via == "" && c.Direct:
			return "waiting until " + string(c.Node.ID) + " stands still, to join without a vote"
		case c.Via == "":
			return "waiting for a replica that " + string(c.Node.ID) + " can follow meanwhile"
		}
		return "waiting until " + string(c.Node.ID) + ", which follows " + string(c.Via) + " meanwhile, has everything"
	case c.Kind == topo.ChangeRemove && !c.Cut:
		return "waiting until " + string(c.Node.ID) + " stands still; if it is lost: redoubt switchover, whose primary will not let it in"
	}
	if why := unready(s, heard); why != "" {
		return why
	}
	if p, ok := heard(a.Primary); ok && p.Waits != "" {
		return p.Waits
	}
	return "waiting for " + string(a.Primary) + " to see the rule through"
}
