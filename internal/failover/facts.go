// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// facts is what the rules read: derived once from a State, so that no rule does arithmetic of its own.
type facts struct {
	State
	a         topo.Assigned
	spec      topo.Spec
	recheck   time.Duration
	quiet     bool // sentences are not wanted yet: most rules do not match, and words cost more than facts
	primary   Seen // latest sighting of a.Primary; zero if none
	seen      bool // there is such a sighting
	silent    time.Duration
	needed    int    // witnesses that an election needs
	witnesses []rank // frozen, enrolled, promised; best first; only in PhaseFencing
	unplaced  []topo.NodeID
	present   []Seen   // frozen under this epoch, enrolled or not, in order of id
	missing   []string // why each of the others is no witness
	fenced    bool     // the old primary confirmed its fence in this phase
	leaseLeft time.Duration
	trouble   string     // what is wrong with the primary; empty when nothing is
	next      *topo.Spec // what the specification becomes
}

// rank is a witness with its comparable position.
type rank struct {
	Seen
	at topo.Placed
}

func derive(s State, quiet bool) *facts {
	f := &facts{quiet: quiet, State: s, a: s.Shard.Assigned, spec: s.Shard.Spec}
	f.needed = f.spec.Witnesses()
	if f.a.Alone != "" {
		f.needed = 1 // that one, and nobody else
	}
	if invariant.Planted("too-few-witnesses") {
		f.needed = 1
	}
	f.primary, f.seen = s.Sightings[f.a.Primary]
	f.silent = f.silence(f.a.Primary)
	f.deriveFence()
	f.deriveWitnesses()
	f.trouble = f.troubleOf()
	return f
}

// silence is how long nothing was heard from a node. What a new controller did not hear itself counts from the last word
// of the one before: a host that was lost together with its controller is not waited for twice. Half of the limit is left
// to the agents for finding the new controller.
func (f *facts) silence(id topo.NodeID) time.Duration {
	if s, ok := f.Sightings[id]; ok {
		return s.Age.D()
	}
	return max(f.LedFor.D(), min(f.VacantFor.D(), f.LedFor.D()+f.spec.Timing.Silence.D()/2))
}

// fresh returns a node's sighting if its agent is heard and obeys the present epoch.
func (f *facts) fresh(id topo.NodeID) (Seen, bool) {
	s, ok := f.Sightings[id]
	if !ok || s.Age.D() > f.spec.Timing.Silence.D() {
		return s, false
	}
	return s, s.Epoch == f.a.Epoch || invariant.Planted("stale-beat-counted")
}

// deriveFence answers: may the node named by a.Primary still be writing?
func (f *facts) deriveFence() {
	s, ok := f.fresh(f.a.Primary)
	inPhase := s.Phase == f.a.Phase || invariant.Planted("stale-beat-counted")
	f.fenced = f.a.Primary == "" || ok && inPhase && s.Fenced && s.Promised >= f.promiseNeeded()
	lease := f.spec.Timing.Lease.D() + f.spec.Timing.Margin.D()
	f.leaseLeft = lease - f.PhaseFor.D()
	if age, ok := f.ReadAge[f.a.Primary]; ok {
		// Any read that still saw the order before this phase began at least this long ago, or before the swap.
		f.leaseLeft = min(f.leaseLeft, lease-age.D())
	}
}

// promiseNeeded is the epoch that a node must have promised for its frozen state to count. In a switchover only the
// fence counts, and no freeze was ordered.
func (f *facts) promiseNeeded() topo.Epoch {
	if f.a.Phase == topo.PhaseFencing && !invariant.Planted("stale-beat-counted") {
		return f.a.Epoch
	}
	return 0
}

func (f *facts) deriveWitnesses() {
	if f.a.Phase != topo.PhaseFencing && f.a.Phase != topo.PhaseNew {
		return
	}
	for _, n := range f.spec.Nodes {
		s, ok := f.fresh(n.ID)
		frozen := ok && s.Frozen && s.Health == topo.HealthUp && s.Promised >= f.promiseNeeded()
		if invariant.Planted("no-freeze-before-measuring") {
			frozen = ok && s.Role == topo.RoleReplica && s.Health == topo.HealthUp
		}
		if frozen {
			f.present = append(f.present, s)
		}
		at, placed := f.place(s.Pos)
		enrolled := f.a.Enrolled[n.ID] == s.RunID || placed && invariant.Planted("vote-without-enrolment")
		switch {
		case !frozen:
			f.missing = append(f.missing, f.say("%s (%s)", n.ID, f.absence(n.ID)))
		case !enrolled:
			f.missing = append(f.missing, f.say("%s (restarted: it may have forgotten acknowledged writes)", n.ID))
		case f.a.Alone != "" && n.ID != f.a.Alone:
			f.missing = append(f.missing, f.say("%s (%s went on alone: it may lack acknowledged writes)", n.ID, f.a.Alone))
		case !s.Whole:
			f.missing = append(f.missing, f.say("%s (an aborted load or sync left its data incomplete)", n.ID))
		case !placed:
			f.unplaced = append(f.unplaced, n.ID)
		default:
			f.witnesses = append(f.witnesses, rank{s, at})
		}
	}
	slices.SortStableFunc(f.witnesses, f.better)
}

func (f *facts) place(p topo.Position) (topo.Placed, bool) {
	switch {
	case invariant.Planted("offset-before-history"):
		return topo.Placed{Offset: p.Offset}, true
	case invariant.Planted("literal-history-before-offset"):
		for _, h := range f.a.History {
			if h.ReplID == p.ReplID {
				return topo.Placed{Epoch: h.Epoch, Offset: p.Offset}, true
			}
		}
	}
	if invariant.Planted("unknown-history-ranked-last") {
		p.ReplID2 = ""
		at, _ := topo.Place(f.a.History, p)
		return at, true
	}
	return topo.Place(f.a.History, p)
}

// better orders witnesses: history, offset, then what the operator asked for, priority and id.
func (f *facts) better(x, y rank) int {
	if x.at != y.at {
		if y.at.Less(x.at) {
			return -1
		}
		return 1
	}
	return f.preferred(x.Node, y.Node)
}

// preferred orders nodes that are equally good.
func (f *facts) preferred(x, y topo.NodeID) int {
	if i := f.a.Intent; i != nil && i.Kind == topo.IntentFailover {
		if (x == i.To) != (y == i.To) {
			return boolFirst(x == i.To)
		}
		if (x == f.a.Primary) != (y == f.a.Primary) {
			return boolFirst(y == f.a.Primary)
		}
	}
	if f.impaired(x) != f.impaired(y) {
		return boolFirst(f.impaired(y))
	}
	nx, _ := f.spec.Node(x)
	ny, _ := f.spec.Node(y)
	if nx.Priority != ny.Priority {
		return nx.Priority - ny.Priority
	}
	return strings.Compare(string(x), string(y))
}

func boolFirst(first bool) int {
	if first {
		return -1
	}
	return 1
}

// absence says why a node is not there, for people.
func (f *facts) absence(id topo.NodeID) string {
	s, ok := f.Sightings[id]
	switch {
	case !ok:
		return "nothing heard from its agent"
	case s.Age.D() > f.spec.Timing.Silence.D():
		return f.say("silent for %s", s.Age.D().Round(time.Millisecond))
	case s.Health != topo.HealthUp:
		return string(s.Health)
	case s.Epoch != f.a.Epoch:
		return f.say("still at epoch %d", s.Epoch)
	case s.Refused != "":
		return "refused: " + s.Refused
	}
	return "not frozen yet"
}

// others counts the nodes besides the primary that an election could use, if it were held now, and says why not the rest.
func (f *facts) others() (n int, missing []string) {
	for _, node := range f.spec.Nodes {
		if node.ID == f.a.Primary {
			continue
		}
		s, ok := f.fresh(node.ID)
		switch {
		case !ok || s.Health != topo.HealthUp:
			missing = append(missing, f.say("%s (%s)", node.ID, f.absence(node.ID)))
		case f.a.Enrolled[node.ID] != s.RunID:
			missing = append(missing, f.say("%s (restarted: it may have forgotten acknowledged writes)", node.ID))
		case f.a.Alone != "" && node.ID != f.a.Alone:
			missing = append(missing, f.say("%s (%s went on alone: it may lack acknowledged writes)", node.ID, f.a.Alone))
		default:
			n++
		}
	}
	return n, missing
}

// troubleOf names what is wrong with a serving primary.
func (f *facts) troubleOf() string {
	if f.a.Phase != topo.PhaseServing && f.a.Phase != topo.PhaseDraining {
		return ""
	}
	t := f.spec.Timing
	switch p := f.primary; {
	case f.silent > t.Silence.D():
		return "silent"
	case !f.seen:
		return ""
	case p.Health == topo.HealthStopped || p.Health == topo.HealthHung || p.Health == topo.HealthDenied || p.Health == topo.HealthUnreachable:
		return over(string(p.Health), p, t.Hang)
	case p.Health == topo.HealthLoading:
		return over("loading", p, t.Loading)
	case p.Health == topo.HealthBusy:
		return over("busy", p, t.Busy)
	}
	return ""
}

func over(name string, p Seen, budget topo.Duration) string {
	if p.HealthFor.D()+p.Age.D() > budget.D() {
		return name
	}
	return ""
}

// say is fmt.Sprintf for a rule's sentence.
func (f *facts) say(format string, args ...any) string {
	if f.quiet {
		return ""
	}
	return fmt.Sprintf(format, args...)
}
