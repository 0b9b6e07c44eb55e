// SPDX-License-Identifier: Apache-2.0

package reshard

import (
	"fmt"
	"time"
)

const (
	recheckBusy  = 20 * time.Millisecond
	recheckWish  = 100 * time.Millisecond
	recheckHot   = time.Second
	recheckEpoch = 5 * time.Millisecond // gossip's own pace
)

// rule is one row: it holds in one stage (everyStage: in all that are not over), when its condition does, and says what is then to be done.
type rule struct {
	stage Stage
	name  string
	when  func(Move, Facts) bool
	then  func(Move, Facts) Step
}

// everyStage is the stage of rules that hold in every stage.
const everyStage Stage = "*"

// rules is the list, in order; the first match wins. It never changes.
var rules = [...]rule{
	{everyStage, "over", over, do(Nothing, "it is over")},
	// before a server was touched
	{Planned, "never-begun", wished(Cancel), store(Cancelled, "it was cancelled before it began")},
	{Planned, "not-yet", wished(Pause), wait(recheckWish, "it is paused")},
	{Planned, "begin", always, store(Copying, "servers are about to be touched")},
	// a stop of clients that can be ended is ended first
	{Copying, "give-back", parkedInVain, flow(toSource, "clients do not wait for what cannot go on")},
	{Undoing, "give-back", parked, flow(toSource, "the move is taken back")},
	// behind the commit: clients flow, or it is taken back, without the source, which may be gone
	{Settling, "flow", parked, flow(toTarget, "the target owns the slots")},
	{LettingGo, "flipped", flipped, store(Settling, "the target owns the slots")},
	{LettingGo, "recall", interrupted, do(Recall, "the hand-over was interrupted: unless the target has taken the slots, they stay the source's")},
	{everyStage, "busy", busy, func(_ Move, f Facts) Step { return Step{Do: Wait, Recheck: recheckBusy, Why: f.Busy} }},
	{everyStage, "look", unseen, do(Look, "nothing is known of the servers")},
	{everyStage, "foreign", foreign, func(m Move, f Facts) Step {
		return Step{Do: Halt, Why: fmt.Sprintf("the slots belong to %s by the word of %s, to %s by that of %s: somebody else changes slots", f.Source.Owner, m.From, f.Target.Owner, m.To)}
	}},
	// copying, which nobody sees
	{Copying, "there-already", flipped, store(Settling, "the target owns the slots")},
	{Copying, "readmit", disowned, do(Readmit, "the source gave up the slots, and nobody took them: they are its own again")},
	{Copying, "take-back", wished(Cancel), store(Undoing, "it is cancelled")},
	{Copying, "stand-still", wished(Pause), wait(recheckWish, "it is paused")},
	{Copying, "mark", unmarked, do(Import, "the target does not take keys of these slots yet")},
	{Copying, "purge", leftovers, func(_ Move, f Facts) Step {
		return Step{Do: Purge, Why: fmt.Sprintf("the target has %d keys of these slots, its replicas %d, from an earlier attempt or an earlier time", f.Target.Keys, f.Target.Left)}
	}},
	{Copying, "track", untracked, do(Track, "writes must be noticed before keys are copied")},
	{Copying, "copy", unlisted, do(CopyAll, "keys are missing at the target")},
	{Copying, "copy-more", worthARound, func(_ Move, f Facts) Step {
		return Step{Do: CopyDirty, Why: fmt.Sprintf("%d keys (about %d bytes) were written meanwhile", f.Copy.Dirty, f.Copy.Bytes)}
	}},
	{Copying, "hot", hot, func(_ Move, f Facts) Step {
		return Step{Do: CopyDirty, Recheck: recheckHot, Why: fmt.Sprintf("after %d rounds %d keys of about %d bytes are still written faster than copied; clients would wait for too long: move these slots in a quieter time, or by force", f.Copy.Rounds, f.Copy.Dirty, f.Copy.Bytes)}
	}},
	{Copying, "epochs", unsettled, func(Move, Facts) Step {
		return Step{Do: Look, Recheck: recheckEpoch, Why: "the target has not heard of the source's latest epoch, or has the same: what it takes now could be taken back"}
	}},
	{Copying, "let-go", always, store(LettingGo, "the target is about to take the slots")},
	// the hand-over
	{LettingGo, "confirm", unconfirmed, do(Confirm, "whoever was elected before that was stored does not know of it")},
	{LettingGo, "copy-again", late, store(Copying, "the clients would have waited for too long")},
	{LettingGo, "park", unparked, func(_ Move, f Facts) Step {
		return Step{Do: Park, Why: fmt.Sprintf("%d keys are left to copy", f.Copy.Dirty)}
	}},
	{LettingGo, "drain", undrained, do(Drain, "what was written last is copied and acknowledged by the target's replicas, and the source gives up the slots")},
	{LettingGo, "flip", always, do(Flip, "the source claims nothing: the target takes the slots")},
	// it is done; others must know
	{Settling, "flip-lost", unflippedUnmarked, do(Import, "the target's primary does not know that it owns the slots: it was replaced")},
	{Settling, "flip-again", unflipped, do(Flip, "the target's primary does not own the slots: it was replaced")},
	{Settling, "tell", untold, do(Tell, "not to wait for gossip")},
	{Settling, "clean", sourceLeft, func(_ Move, f Facts) Step {
		return Step{Do: Clean, Why: fmt.Sprintf("the source has %d keys of these slots, its replicas %d: they would come back to life with the slots", f.Source.Keys, f.Source.Left)}
	}},
	{Settling, "count", uncounted, do(Count, "the target's replicas must have what their primary has")},
	{Settling, "finish", always, store(Done, "nothing is left to do")},
	// back
	{Undoing, "too-late", flipped, store(Settling, "the target owns the slots: it cannot be taken back")},
	{Undoing, "mark-to-purge", copiesUnmarked, do(Import, "copies can only be deleted under the mark")},
	{Undoing, "purge", copies, do(Purge, "the copies are deleted")},
	{Undoing, "unmark", anyMark, do(Stable, "the target takes no more keys")},
	{Undoing, "cancelled", always, store(Cancelled, "nothing is left of it")},
	{everyStage, "unknown-stage", always, func(m Move, _ Facts) Step {
		return Step{Do: Halt, Why: fmt.Sprintf("the stage %q was stored by another version", m.Stage)}
	}},
}

// Next returns what to do now about a batch.
func Next(m Move, f Facts) Step {
	for _, r := range rules {
		if (r.stage == everyStage || r.stage == m.Stage) && r.when(m, f) {
			s := r.then(m, f)
			s.Rule = r.name
			return s
		}
	}
	panic("unreachable: the last rule always matches")
}

func do(v Verb, why string) func(Move, Facts) Step {
	return func(Move, Facts) Step { return Step{Do: v, Why: why} }
}

func store(s Stage, why string) func(Move, Facts) Step {
	return func(Move, Facts) Step { return Step{Do: Store, Stage: s, Why: why} }
}

func wait(d time.Duration, why string) func(Move, Facts) Step {
	return func(Move, Facts) Step { return Step{Do: Wait, Recheck: d, Why: why} }
}

func flow(to func(Move) string, why string) func(Move, Facts) Step {
	return func(m Move, _ Facts) Step { return Step{Do: Flow, Owner: to(m), Why: why} }
}

func toSource(m Move) string { return m.From }
func toTarget(m Move) string { return m.To }

func always(Move, Facts) bool     { return true }
func over(m Move, _ Facts) bool   { return m.Over() }
func busy(_ Move, f Facts) bool   { return f.Busy != "" }
func unseen(_ Move, f Facts) bool { return !f.Seen }

func wished(w Wish) func(Move, Facts) bool {
	return func(m Move, _ Facts) bool { return m.Wish == w }
}

// parkedInVain: clients wait for a hand-over that does not follow. While it is not known whether the source has the slots they wait on.
func parkedInVain(_ Move, f Facts) bool {
	return f.Parked && (f.Busy != "" || f.Seen && f.Source.Owner == BySource)
}

// foreign: a side that owns, or names as the owner, somebody who is neither. Who was told late names the source: that is no conflict.
func foreign(_ Move, f Facts) bool { return f.Source.Owner == BySome || f.Target.Owner == BySome }

// interrupted: what is known here is not enough to hand over, or it is not wanted.
func interrupted(m Move, f Facts) bool {
	return f.Busy != "" || !f.Seen || m.Wish != GoOn || m.Tenure != f.Tenure || !f.Copy.Tracked || !f.Copy.Listed || !f.Target.Marked
}

// disowned: the source does not have all of the slots by its own word, and is to have them.
func disowned(_ Move, f Facts) bool { return f.Source.Owner != BySource }

func flipped(_ Move, f Facts) bool     { return f.Target.Owner == ByTarget }
func unflipped(_ Move, f Facts) bool   { return f.Target.Owner != ByTarget }
func unmarked(_ Move, f Facts) bool    { return !f.Target.Marked }
func untracked(_ Move, f Facts) bool   { return !f.Copy.Tracked }
func unlisted(_ Move, f Facts) bool    { return !f.Copy.Listed }
func parked(_ Move, f Facts) bool      { return f.Parked }
func late(_ Move, f Facts) bool        { return f.Late }
func unconfirmed(_ Move, f Facts) bool { return !f.Confirmed }
func unparked(_ Move, f Facts) bool    { return !f.Parked }
func unsettled(_ Move, f Facts) bool   { return !f.Settled }
func undrained(_ Move, f Facts) bool   { return !f.Drained }
func untold(_ Move, f Facts) bool      { return !f.Told }
func uncounted(_ Move, f Facts) bool   { return !f.Counted }
func anyMark(_ Move, f Facts) bool     { return f.Target.AnyMark }
func sourceLeft(_ Move, f Facts) bool  { return f.Source.Keys > 0 || f.Source.Left > 0 }
func copies(_ Move, f Facts) bool      { return f.Target.Keys > 0 || f.Target.Left > 0 }

func unflippedUnmarked(m Move, f Facts) bool { return unflipped(m, f) && unmarked(m, f) }
func copiesUnmarked(m Move, f Facts) bool    { return copies(m, f) && unmarked(m, f) }

// leftovers: what lies at the target although this process has copied nothing yet.
func leftovers(m Move, f Facts) bool { return !f.Copy.Tracked && copies(m, f) }

// worthARound: another round makes the stop shorter. After each park in vain fewer keys are waited for.
func worthARound(_ Move, f Facts) bool {
	l := f.Limits
	return !f.Parked && f.Copy.Rounds < l.Rounds && (f.Copy.Dirty > l.ParkKeys>>min(f.Tried, 6) || f.Copy.Bytes > l.ParkBytes)
}

// hot: too much is written for a stop that clients would not mind.
func hot(m Move, f Facts) bool {
	l := f.Limits
	return !m.Force && !f.Parked && (f.Copy.Dirty > l.HardKeys || f.Copy.Bytes > l.HardBytes)
}
