// SPDX-License-Identifier: Apache-2.0

package sim

import "time"

// One seed of six (remainder 1) is a world of outages: the store goes away for everybody, and comes back for some of them
// first, while agents end and begin and operators make demands. There the word that agents gave meets those who no
// longer need it (SAFETY B3). All other seeds draw nothing from here.

// planOutages schedules the outages of such a world.
func (w *world) planOutages(seed uint64) {
	if seed%6 != 1 {
		return
	}
	for range 2 + w.rng.IntN(4) {
		w.after(w.between(2*time.Second, healAt-6*time.Second), w.unevenOutage)
	}
}

// unevenOutage ends for the primary last.
func (w *world) unevenOutage() {
	if w.store.down || w.now >= healAt {
		return
	}
	p := w.host(w.store.doc.Assigned.Primary)
	if p == nil {
		return
	}
	d, longer := w.between(500*time.Millisecond, 4*time.Second), w.between(0, 2*time.Second)
	w.log("FAULT the store is away for %s, and for %s %s longer", d, p.id, longer)
	w.store.down = true
	renew := w.rng.IntN(2) == 0
	w.after(d, func() {
		w.store.down = false
		w.cutStoreFor(p, longer)
		if renew || w.rng.IntN(2) == 0 {
			w.after(w.between(0, 300*time.Millisecond), w.demandFailover)
		}
	})
	if renew {
		w.after(d-w.between(0, 300*time.Millisecond), func() { w.renewAgents(p) })
	}
}

func (w *world) cutStoreFor(h *host, d time.Duration) {
	w.store.fromHost[h.index], w.store.toHost[h.index] = true, true
	w.after(d, func() { w.store.fromHost[h.index], w.store.toHost[h.index] = false, false })
}

// renewAgents replaces the process of every agent but that of p.
func (w *world) renewAgents(p *host) {
	for _, h := range w.hosts {
		if h != p && w.now < healAt {
			w.log("FAULT %s agent is replaced", h.id)
			w.crashAgent(h, w.between(time.Millisecond, 200*time.Millisecond))
		}
	}
}
