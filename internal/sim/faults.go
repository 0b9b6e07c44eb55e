// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"time"

	"redoubt/internal/topo"
)

// planFaults schedules everything that goes wrong, and the healing.
func (w *world) planFaults() {
	for range 2 + w.rng.IntN(10) {
		at := w.between(500*time.Millisecond, healAt)
		w.after(at, w.fault)
		if w.rng.IntN(3) == 0 { // trouble comes in pairs
			w.after(at+w.between(0, 400*time.Millisecond), w.fault)
		}
	}
	w.slowDisk()
	w.after(healAt, w.heal)
	w.after(0, w.superviseController)
}

func (w *world) superviseController() {
	w.after(w.between(100*time.Millisecond, 400*time.Millisecond), w.superviseController)
	w.store.keepLeader()
}

func (w *world) fault() {
	if w.now >= healAt {
		return
	}
	faults := []func(*host){
		w.killServer, w.killServer, w.killPrimary, w.killPrimary, w.stopServer, w.stallAgent, w.killAgent, w.killBoth, w.suspend,
		w.isolate, w.isolate, w.cutOneWay, w.cutStoreOnly, w.cutPair, w.storeOutage, w.moveController, w.operate, w.operate, w.killAll,
	}
	faults = append(faults, w.unluckyFaults()...)
	faults[w.rng.IntN(len(faults))](w.hosts[w.rng.IntN(w.n)])
}

// mayForget keeps the faults within the promise: at most k seats without what they acknowledged (SAFETY 0, line 5).
func (w *world) mayForget(h *host) bool {
	if w.changing {
		return w.mayForgetChanging(h)
	}
	if w.spec.Durability == topo.Async {
		return true
	}
	n := 0
	for _, o := range w.hosts {
		enrolled := o.srv.alive && w.store.doc.Assigned.Enrolled[o.id] == o.srv.run
		if o != h && (!enrolled || o.srv.stopped) { // a stopped one may have to be killed by its fence, and then forgets, too
			n++
		}
	}
	return n < w.spec.AckReplicas
}

// kill ends a server; how long it stays away is drawn. A seat that forgets is spared when too many have forgotten.
func (w *world) kill(h *host) {
	wipe := w.rng.IntN(4) == 0
	forgets := wipe || w.persist != persistAOF
	if w.persist == persistAOF && (w.changing || w.spec.Durability.Waits()) {
		wipe, forgets = false, false
	}
	if !h.srv.alive || forgets && !w.mayForget(h) {
		return
	}
	if w.persist == persistRDB && w.rng.IntN(2) == 0 {
		h.srv.saved, h.srv.savedID, h.srv.savedExtra = h.srv.head, h.srv.replid, h.srv.extra
	}
	w.log("FAULT %s server dies (wipe %v)", h.id, wipe)
	h.srv.die(wipe)
	h.restartAt = w.now
	if w.rng.IntN(2) == 0 {
		h.restartAt += w.between(0, 4*time.Second)
	}
	h.wake()
}

func (w *world) killServer(h *host) { w.kill(h) }

func (w *world) killPrimary(*host) {
	if h := w.host(w.store.doc.Assigned.Primary); h != nil {
		w.kill(h)
	}
}

// killAll is a power cut of processes: only where the disk keeps everything is anything promised.
func (w *world) killAll(*host) {
	if w.persist != persistAOF {
		return
	}
	w.log("FAULT all servers and agents die")
	w.allDie()
	for _, h := range w.hosts {
		h.restartAt = w.now + w.between(0, 2*time.Second)
		w.crashAgent(h, w.between(0, time.Second))
	}
}

func (w *world) stopServer(h *host) {
	if !h.srv.alive || w.persist != persistAOF && !w.mayForget(h) {
		return
	}
	d := w.between(50*time.Millisecond, 4*time.Second)
	if w.rng.IntN(2) == 0 {
		d = w.between(50*time.Millisecond, 700*time.Millisecond)
	}
	w.log("FAULT %s server stops for %s", h.id, d)
	h.srv.stopped = true
	run := h.srv.run
	w.after(d, func() {
		if h.srv.alive && h.srv.run == run {
			h.srv.cont()
			h.wake()
		}
	})
	h.wake()
}

func (w *world) stallAgent(h *host) {
	d := w.between(50*time.Millisecond, 3*time.Second)
	w.log("FAULT %s agent stalls for %s", h.id, d)
	h.stallUntil = max(h.stallUntil, w.now+d)
}

func (w *world) crashAgent(h *host, away time.Duration) {
	if !h.agentUp {
		return
	}
	h.killAgent()
	gen := h.generation
	w.after(away, func() {
		if h.generation == gen {
			h.startAgent()
		}
	})
}

func (w *world) killAgent(h *host) {
	w.log("FAULT %s agent dies", h.id)
	w.crashAgent(h, w.between(50*time.Millisecond, 3*time.Second))
}

func (w *world) killBoth(h *host) {
	w.kill(h)
	w.killAgent(h)
}

// suspend stops the whole host; commands that queued meanwhile run first when it resumes (SAFETY B3).
func (w *world) suspend(h *host) {
	d := w.between(100*time.Millisecond, 5*time.Second)
	if h.asleep() {
		return
	}
	w.log("FAULT %s is suspended for %s", h.id, d)
	h.sleepUntil = w.now + d
	h.suspended += d
	w.stopFor(h, d)
}

func (w *world) stopFor(h *host, d time.Duration) {
	if !h.srv.alive {
		return
	}
	h.srv.stopped = true
	run := h.srv.run
	w.after(d, func() {
		if h.srv.alive && h.srv.run == run {
			h.srv.cont()
		}
		h.wake()
	})
}

func (w *world) setCut(h *host, in, out, storeToo bool, on bool) {
	for j := range w.n {
		if j != h.index {
			if out {
				w.cut[h.index][j] = on
			}
			if in {
				w.cut[j][h.index] = on
			}
		}
	}
	if storeToo {
		w.store.fromHost[h.index] = on && out || !on && !out && w.store.fromHost[h.index]
		w.store.toHost[h.index] = on && in || !on && !in && w.store.toHost[h.index]
	}
}

func (w *world) isolate(h *host) {
	if w.rng.IntN(2) == 0 {
		if p := w.host(w.store.doc.Assigned.Primary); p != nil {
			h = p
		}
	}
	d := w.between(300*time.Millisecond, 5*time.Second)
	w.log("FAULT %s is cut off for %s", h.id, d)
	w.setCut(h, true, true, true, true)
	w.after(d, func() { w.setCut(h, true, true, true, false) })
}

func (w *world) cutOneWay(h *host) {
	d := w.between(300*time.Millisecond, 5*time.Second)
	in := w.rng.IntN(2) == 0
	w.log("FAULT %s is cut off one way (in %v) for %s", h.id, in, d)
	w.setCut(h, in, !in, true, true)
	w.after(d, func() { w.setCut(h, true, true, true, false) })
}

func (w *world) cutStoreOnly(h *host) {
	d := w.between(300*time.Millisecond, 5*time.Second)
	w.log("FAULT %s is cut off from the store for %s", h.id, d)
	w.store.fromHost[h.index], w.store.toHost[h.index] = true, w.rng.IntN(2) == 0
	w.after(d, func() { w.store.fromHost[h.index], w.store.toHost[h.index] = false, false })
}

func (w *world) cutPair(h *host) {
	j := w.rng.IntN(w.n)
	if j == h.index {
		return
	}
	d := w.between(300*time.Millisecond, 5*time.Second)
	w.log("FAULT %s and %s are cut from each other for %s", h.id, w.hosts[j].id, d)
	w.cut[h.index][j], w.cut[j][h.index] = true, true
	w.after(d, func() { w.cut[h.index][j], w.cut[j][h.index] = false, false })
}

func (w *world) storeOutage(*host) {
	d := w.between(100*time.Millisecond, 3*time.Second)
	w.log("FAULT the store is away for %s", d)
	w.store.down = true
	w.after(d, func() { w.store.down = false })
}

func (w *world) moveController(h *host) {
	if !w.store.down && h.agentUp {
		w.store.elect(h.index)
	}
}

// operate is an operator at a bad moment.
func (w *world) operate(h *host) {
	if w.store.down {
		return
	}
	a := w.store.doc.Assigned.Clone()
	what := ""
	switch w.rng.IntN(5) {
	case 0, 1, 2:
		kind := topo.IntentSwitchover
		if w.rng.IntN(3) == 0 {
			kind = topo.IntentFailover
		}
		a.Intent = &topo.Intent{ID: fmt.Sprint(w.now), Kind: kind, Budget: topo.Duration(w.between(20*time.Millisecond, 2*time.Second)), By: "operator"}
		if w.rng.IntN(2) == 0 {
			a.Intent.To = h.id
		}
		what = fmt.Sprintf("%s to %q", kind, a.Intent.To)
	case 3:
		a.Paused, what = &topo.Pause{By: "operator"}, "pause"
	case 4:
		a.Paused, what = nil, "resume"
	}
	if p := w.store.doc.Assigned.Phase; p != topo.PhaseServing && p != topo.PhaseNew && p != topo.PhaseFencing {
		return // the interface allows an intent only when none is being carried out
	}
	w.store.amend(a)
	w.log("OPERATOR %s", what)
}

// heal ends every fault. From here on, service has to come back.
func (w *world) heal() {
	w.log("HEAL")
	w.loss, w.slow = 0, min(w.slow, 0.02)
	w.store.down = false
	for i, h := range w.hosts {
		for j := range w.n {
			w.cut[i][j] = false
		}
		w.store.fromHost[i], w.store.toHost[i] = false, false
		h.stallUntil, h.heldUntil, h.diskUntil = min(h.stallUntil, w.now), min(h.heldUntil, w.now), min(h.diskUntil, w.now)
		h.restartAt = 0
		if !h.agentUp {
			h.startAgent()
		}
	}
	if w.store.doc.Assigned.Paused != nil {
		a := w.store.doc.Assigned.Clone()
		a.Paused = nil
		w.store.rev++
		w.store.doc.Assigned = a
	}
	// A stopped or suspended server is continued within the time that its fault drew; clear the rest now.
	for _, h := range w.hosts {
		h.sleepUntil = min(h.sleepUntil, w.now)
		if h.srv.stopped {
			h.srv.cont()
		}
		sleepers := h.sleepers
		h.sleepers = nil
		for _, wake := range sleepers {
			w.after(0, wake)
		}
		h.wake()
	}
}
