// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"redoubt/internal/failover"
	"redoubt/internal/topo"
)

// grace is how long two writable primaries may be seen when an agent or a server was not running shortly before: one
// loop of the agent, and the time that its fence takes (SAFETY B3).
const grace = 250 * time.Millisecond

// checkTick looks for two writable primaries.
func (w *world) checkTick() {
	w.after(10*time.Millisecond, w.checkTick)
	var writable []*host
	for _, h := range w.hosts {
		running := h.agentUp && !h.asleep() && w.now >= h.stallUntil && !h.srv.stopped
		if !running {
			h.ranSince = w.now
		}
		if h.srv.alive && h.srv.primary && !h.srv.stopped && !h.asleep() {
			writable = append(writable, h)
		}
		if e := h.view.doc.Assigned.Epoch; h.view.known && e > w.epochSeen {
			w.epochSeen = e
		}
	}
	if len(writable) < 2 {
		return
	}
	for _, h := range writable {
		if w.now-h.ranSince < grace {
			return
		}
	}
	w.fail("two writable primaries: %s and %s", writable[0].id, writable[1].id)
}

// checkServing looks for acknowledged writes that the new primary does not hold.
func (w *world) checkServing() {
	a := w.store.doc.Assigned
	p := w.host(a.Primary).srv
	if !w.store.doc.Spec.Durability.Waits() {
		w.keepHeld(p)
		return
	}
	if p.alive && p.run == a.RunID {
		w.checkHolds(p, "recorded as primary")
	}
}

func (w *world) checkHolds(s *server, as string) {
	held := map[uint64]bool{}
	for e := s.head; e != nil; e = e.prev {
		if e.write != 0 {
			held[e.write] = true
		}
	}
	for _, e := range w.acked {
		if !held[e.write] {
			w.fail("acknowledged write %d (offset %d) is not on %s, %s at offset %d", e.write, e.off, s.name, as, s.offset())
			return
		}
	}
}

// checkRecorded: what is acknowledged is in a history that the document knows; otherwise an election could not place those
// who hold it.
func (w *world) checkRecorded(s *server, e *entry) {
	recorded := func(h topo.HistoryEntry) bool { return h.ReplID == s.replid }
	if !slices.ContainsFunc(w.store.doc.Assigned.History, recorded) {
		w.fail("write %d is acknowledged on %s in history %s, which nobody recorded (SAFETY A3)", e.write, s.name, s.replid)
	}
}

// checkEnd asks for service after healing, for all acknowledged writes, and for peace among the rules.
func (w *world) checkEnd() {
	a := w.store.doc.Assigned
	if a.Phase != topo.PhaseServing {
		why := "the controller is gone"
		if c := w.store.leader; c != nil && c.rev != 0 {
			d := failover.Decide(c.state())
			why = d.Rule + ": " + d.Why
		}
		if strings.Contains(why, "have the same commit marker") {
			w.asked = true // the primary's disk is lost, and its replicas differ in less than a beat
			return
		}
		if w.lostIn != 0 && strings.Contains(why, fmt.Sprintf("and epoch %d has served", w.lostIn)) {
			w.asked = true // the primary's disk is lost, and nobody else has a marker of its tenure, though perhaps a write
			return
		}
		if strings.Contains(why, "aborted load or sync") {
			// Every data set that is left is a forgotten one or may be half a one (SAFETY C3): a person has to look.
			w.asked = true
			return
		}
		w.fail("no primary %s after healing: phase %s: %s", duration-healAt, a.Phase, why)
		return
	}
	p := w.host(a.Primary).srv
	if !p.alive || !p.primary || p.run != a.RunID {
		w.fail("%s is recorded as primary and is none", p.name)
		return
	}
	if w.quietAcks == 0 {
		w.fail("no write was acknowledged in the last %s", duration-settledAt)
		return
	}
	for _, node := range w.store.doc.Spec.Nodes {
		h := w.host(node.ID)
		if h.srv != p && (!h.srv.linkUp() || h.srv.following != p) {
			w.fail("%s does not follow the primary %s at the end", h.id, p.name)
			return
		}
		if a.Enrolled[h.id] != h.srv.run {
			w.fail("%s is not enrolled at the end", h.id)
			return
		}
	}
	if w.store.doc.Spec.Durability.Waits() {
		w.checkHolds(p, "primary at the end")
	}
	w.checkRoster()
	for _, r := range []string{"enrol", "un-enrol", "primary-gone", "primary-silent", "primary-hung", "elect", "record", "drained", "switchover"} {
		if w.quiet[r] > 5 {
			w.fail("rule %s fired %d times in the quiet end", r, w.quiet[r])
		}
	}
}
