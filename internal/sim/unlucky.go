// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"time"

	"redoubt/internal/topo"
)

// Two seeds of six are unlucky. Faults at times that are drawn evenly seldom meet the few milliseconds in which an order
// changes hands, and a replica is seldom behind just then; but that is where the rules of SAFETY A2, A3 and section 0 are
// needed. So in these worlds trouble follows the turns of the document, streams stall and disks hang. One of the two has servers that
// do not let their ACLs be changed, so that replication is open (Sighting.Open) and whoever still follows is let in. All
// other seeds draw nothing from here.

// strikes bounds the faults that one world's turns may bring.
const strikes = 8

// luck makes the world of a seed an unlucky one, or not.
func (w *world) luck(seed uint64) {
	switch seed % 6 {
	case 4:
		w.strikes = strikes
	case 5:
		w.strikes, w.open = strikes, true
	}
	w.unlucky = w.strikes > 0
}

// turn is called when the document changes its phase: soon after it, something may go wrong where it matters.
func (w *world) turn(to topo.Phase) {
	if w.strikes == 0 || w.now >= healAt {
		return
	}
	if w.open && to == topo.PhasePromoting && w.rng.IntN(2) == 0 { // promoted, and nobody can record it (SAFETY A3)
		w.after(w.between(time.Millisecond, 5*time.Millisecond), w.hideElected)
		return
	}
	if w.rng.IntN(3) != 0 {
		return
	}
	w.strikes--
	w.after(w.between(0, 40*time.Millisecond), w.strike)
}

// hideElected cuts the elected node's agent from the store, in the middle of its promotion.
func (w *world) hideElected() {
	a := w.store.doc.Assigned
	if w.now < healAt && a.Phase == topo.PhasePromoting {
		w.cutStoreOnly(w.host(a.Primary))
	}
}

func (w *world) strike() {
	if w.now >= healAt {
		return
	}
	h := w.hosts[w.rng.IntN(w.n)]
	if p := w.host(w.store.doc.Assigned.Primary); p != nil && w.rng.IntN(2) == 0 {
		h = p
	}
	faults := []func(*host){w.kill, w.kill, w.isolate, w.cutStoreOnly, w.cutPair, w.stallAgent, w.suspend, w.stopServer, w.holdStream, w.storeOutage, w.moveController}
	faults[w.rng.IntN(len(faults))](h)
}

// unluckyFaults are the faults that only unlucky worlds draw from besides the common ones.
func (w *world) unluckyFaults() []func(*host) {
	if !w.unlucky {
		return nil
	}
	return []func(*host){w.holdStream, w.holdStream, w.holdStream, w.hangDisk, w.silencePrimary, w.silencePrimary}
}

// holdStream lets a replica's stream stall while its connection stays, as a congested path does: it falls behind.
func (w *world) holdStream(h *host) {
	d := w.between(100*time.Millisecond, 4*time.Second)
	w.log("FAULT the stream to %s stalls for %s", h.id, d)
	h.heldUntil = max(h.heldUntil, w.now+d)
}

// holdContinued stalls a stream just behind its +CONTINUE (SAFETY A2).
func (w *world) holdContinued(h *host) {
	if w.unlucky && h != nil && w.now < healAt && w.rng.IntN(3) == 0 {
		w.holdStream(h)
	}
}

// silencePrimary cuts the primary's host from the store alone: its replicas still follow, and its proxy writes until the
// lease ends. An operator sees the trouble and acts before the controller may; and some other host may promise late, and so go
// on acknowledging after it has said where it stands (SAFETY 0, line 2).
func (w *world) silencePrimary(h *host) {
	if p := w.host(w.store.doc.Assigned.Primary); p != nil {
		h = p
	}
	w.cutStoreOnly(h)
	hasty, wait := w.rng.IntN(3) != 0, w.between(0, 500*time.Millisecond)
	if hasty {
		w.hangDisk(w.hosts[w.rng.IntN(w.n)])
		wait /= 2
	}
	w.after(wait, func() {
		switch {
		case w.now >= healAt:
		case hasty:
			w.demandFailover()
		default:
			w.operate(w.hosts[w.rng.IntN(w.n)])
		}
	})
}

// demandFailover is an operator who gives a switchover hardly any time before the fence.
func (w *world) demandFailover() {
	if w.store.down || w.store.doc.Assigned.Phase != topo.PhaseServing {
		return
	}
	a := w.store.doc.Assigned.Clone()
	a.Intent = &topo.Intent{ID: fmt.Sprint(w.now), Kind: topo.IntentFailover, Budget: topo.Duration(w.between(20*time.Millisecond, 100*time.Millisecond)), By: "operator"}
	w.store.amend(a)
	w.log("OPERATOR demands a failover")
}

// slowDisk gives one host of an unlucky world a disk that is slow throughout: it promises, and so freezes, late.
func (w *world) slowDisk() {
	if w.unlucky && w.rng.IntN(2) == 0 {
		h := w.hosts[w.rng.IntN(w.n)]
		w.log("the disk of %s's agent is slow", h.id)
		h.diskUntil = healAt
	}
}

// hangDisk lets what the agent writes to its disk take long for a while.
func (w *world) hangDisk(h *host) {
	d := w.between(200*time.Millisecond, 4*time.Second)
	w.log("FAULT the disk of %s's agent hangs for %s", h.id, d)
	h.diskUntil = max(h.diskUntil, min(w.now+d, healAt))
}

// fsync is how much longer than usual the agent's disk takes now.
func (h *host) fsync() time.Duration {
	if h.w.now >= h.diskUntil {
		return 0
	}
	return h.w.between(0, min(h.diskUntil-h.w.now, time.Second))
}

// held reports whether the stream to this host stands still.
func (h *host) held() bool { return h != nil && h.w.now < h.heldUntil }
