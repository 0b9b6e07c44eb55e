// SPDX-License-Identifier: Apache-2.0

// Package failover decides: from what was agreed and what was seen of a shard, what is to be agreed next.
//
// It is not a loop and touches nothing: the controller package gathers a State, calls Decide and swaps the result into
// the store. Its invariant: the same State gives the same Decision, on every machine, for ever. The rules are the list
// below, first match wins; Explain reads the list aloud. No goroutines.
package failover

import (
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// State is everything that a decision may depend on. A State saved from production is a test case.
type State struct {
	WallMS    int64                         `json:"wall_ms"`         // wall clock, Unix ms; only for spacing recoveries
	Term      uint64                        `json:"term"`            // of this controller
	LedFor    topo.Duration                 `json:"led_for"`         // since this controller was elected
	PhaseFor  topo.Duration                 `json:"phase_for"`       // since this controller first knew the present epoch and phase
	Nonce     topo.Secret                   `json:"nonce,omitempty"` // fresh random bytes: the secret of the next tenure, if this decision begins one
	Shard     topo.Shard                    `json:"shard"`
	Sightings map[topo.NodeID]Seen          `json:"sightings"`
	ReadAge   map[topo.NodeID]topo.Duration `json:"read_age,omitempty"`   // see coord.ReadAges; absent: unknown
	VacantFor topo.Duration                 `json:"vacant_for,omitempty"` // since an earlier controller can have answered anything, see coord.ReadAges; zero: unknown
}

// Seen is a sighting and how long ago it arrived.
type Seen struct {
	topo.Sighting
	Age topo.Duration `json:"age"`
}

// Decision is what to do now: usually nothing, or one swap.
type Decision struct {
	Rule    string         // name of the row that matched: log key, metric label, test name
	Why     string         // one sentence with the numbers in it
	Next    *topo.Assigned // what to swap in; nil: nothing
	Spec    *topo.Spec     // with Next: what the specification becomes; nil: it stays
	Recheck time.Duration  // look again by then even if nothing changes; zero: at the next regular look
}

// rule is one row. when says whether it matches, and in both cases the fact that settled it; then builds what is to be
// agreed next and is nil for rows that only wait.
type rule struct {
	name string
	when func(*facts) (bool, string)
	then func(*facts, string) *topo.Assigned
}

// rules is the whole of Redoubt's judgement, in order. It never changes.
var rules = [...]rule{
	// who decides
	{"deposed", deposed, nil},
	{"claim-term", newController, claimTerm},
	// the first primary
	{"bootstrap-incomplete", bootstrapIncomplete, nil},
	{"bootstrap-no-disk", bootstrapWithoutDisk, nil},
	{"bootstrap-conflict", bootstrapConflict, nil},
	{"bootstrap", bootstrapReady, electFirst},
	// a promotion under way
	{"record", promoted, serve},
	{"promotion-failed", promotionFailed, fence},
	{"promotion-pending", promoting, nil},
	// nobody may write: find the best
	{"fence-pending", oldPrimaryMayWrite, nil},
	{"elect-forced", forcedByOperator, electBest},
	{"cold-start", everyoneForgot, electColdBest},
	{"too-few-witnesses", ackedWriteCouldHide, nil},
	{"unknown-history", idNobodyRecorded, nil},
	{"gather", morePositionsExpected, nil},
	{"elect", fencing, electBest},
	// the primary is in trouble
	{"replid-changed", replIDChanged, fence},
	{"primary-gone", primaryGone, fence},
	{"primary-troubled-paused", troubledButPaused, nil},
	{"primary-troubled-alone", troubledButNobodyBetter, nil},
	{"primary-troubled-spacing", troubledButTooSoon, nil},
	{"primary-silent", primarySilent, fence},
	{"primary-hung", primaryHung, fence},
	{"primary-loading", primaryLoading, fence},
	{"primary-busy", primaryBusy, fence},
	// a switchover under way
	{"drained", drained, electDrained},
	{"switchover-abandon", drainedTooLong, fence},
	{"drain-pending", draining, nil},
	// in order
	{"un-enrol", lyingReplica, unenrol},
	{"enrol", replicaInSync, enrol},
	// the specification changes
	{"change-void", changeVoid, dropChange},
	{"go-alone", mustGoAlone, goAlone},
	{"change-cut", leaverStands, cutLeaver},
	{"change-via", viaWanted, chooseVia},
	{"change-done", changeReady, applyChange},
	{"rejoin", mayRejoin, rejoin},
	// what operators want
	{"intent-refused", intentImpossible, refuseIntent},
	{"failover-intent", failoverWanted, fence},
	{"switchover", switchoverWanted, drain},
	{"primary-impaired", primaryImpaired, moveAway},
	{"change-pending", changeUnderWay, nil},
	{"steady", always, nil},
}

// Decide returns what to do now.
func Decide(s State) Decision {
	quiet := derive(s, true)
	for _, r := range rules {
		if matched, _ := r.when(quiet); !matched {
			continue
		}
		f := derive(s, false)
		_, why := r.when(f)
		d := Decision{Rule: r.name, Why: why, Recheck: f.recheck}
		if r.then != nil {
			d.Next = finish(f, r.name, why, r.then(f, r.name))
			d.Spec = f.next
		}
		return d
	}
	panic("unreachable: the last rule always matches")
}

// finish stamps a new assignment, and checks what must hold for every one of them.
func finish(f *facts, name, why string, next *topo.Assigned) *topo.Assigned {
	next.Term = f.Term
	if next.Phase != f.a.Phase || next.Epoch != f.a.Epoch {
		next.Reason, next.Why = name, why
	}
	invariant.That(next.Epoch >= f.a.Epoch, "epoch went back from %d to %d", f.a.Epoch, next.Epoch)
	return next
}

// Explain evaluates every rule against s and says what settled it.
func Explain(s State) []topo.Trace {
	f := derive(s, false)
	out := make([]topo.Trace, 0, len(rules))
	reached := true
	for _, r := range rules {
		matched, why := r.when(f)
		out = append(out, topo.Trace{Rule: r.name, Matched: matched, Reached: reached, Why: why})
		if matched {
			reached = false
		}
	}
	return out
}
