// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"time"

	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// What a host does while the store is away, as packages accord and agent do it (SAFETY B3): the primary's agent asks all others for
// a pledge not to freeze, and everybody else's proxy asks the primary's member for its word. Questions travel between
// hosts, so they suffer their cuts and delays, and not those of the store.

// vow is an agent's pledge: what it holds to, and what its disk would tell the next agent.
type vow struct {
	given converge.Pledge
	kept  topo.Epoch // on disk; zero: nothing is
}

// seek looks for a lease if the store has not given one lately.
func (h *host) seek() {
	v := &h.view
	if !v.known {
		return
	}
	t, a := h.w.spec.Timing, v.doc.Assigned
	now := h.uptime()
	if now-v.readStart < t.SeekAfter() {
		if h.vow.kept > 0 && now >= h.vow.given.Until {
			h.vow.kept = 0
		}
		return
	}
	switch {
	case a.Phase != topo.PhaseServing:
	case a.Primary != h.id:
		h.askForWord(a)
	case h.memory.WasPrimary && now < h.leaseEnd():
		h.plead()
	}
}

// ask carries a question to another host and its answer back: late, or never. A broken process answers nobody.
func (h *host) ask(to *host, question func(answer func(func()))) {
	w, gen := h.w, h.generation
	w.after(w.delay(), func() {
		if w.cut[h.index][to.index] || !to.agentUp {
			return
		}
		to.whenAwake(func() {
			question(func(got func()) {
				w.after(w.delay(), func() {
					if !w.cut[to.index][h.index] && h.generation == gen {
						h.whenAwake(got)
					}
				})
			})
		})
	})
}

// plead asks everybody for a pledge. The lease counts from when the one was asked whose pledge is oldest.
func (h *host) plead() {
	begun, doc := h.uptime(), h.view.doc
	plea := topo.PleaOf(doc)
	if h.pleaded.Epoch != plea.Epoch || h.pleaded.RunID != plea.RunID || !slices.Equal(h.pleaded.Nodes, plea.Nodes) {
		h.pleaded, h.pledgedBy = plea, make([]time.Duration, h.w.n)
	}
	by := h.pledgedBy
	for _, o := range h.w.hosts {
		if o == h || !slices.Contains(plea.Nodes, o.id) {
			continue
		}
		h.ask(o, func(answer func(func())) {
			o.pledge(plea, func() {
				answer(func() {
					by[o.index] = max(by[o.index], begun)
					h.extend(doc.Assigned, h.oldestPledge(by))
				})
			})
		})
	}
	if len(plea.Nodes) == 1 {
		h.extend(doc.Assigned, begun)
	}
}

// oldestPledge is zero while somebody has given none.
func (h *host) oldestPledge(by []time.Duration) time.Duration {
	oldest := h.uptime()
	for i, from := range by {
		if i != h.index && slices.Contains(h.pleaded.Nodes, h.w.hosts[i].id) && (from > 0 || !planted("some-pledges-suffice")) {
			oldest = min(oldest, from)
		}
	}
	return oldest
}

// pledge answers a plea. What the disk already says of this tenure is not written again.
func (h *host) pledge(p topo.Plea, yes func()) {
	gen, took := h.generation, time.Duration(0)
	if h.vow.kept != p.Epoch {
		took = h.w.between(50*time.Microsecond, time.Millisecond) + h.fsync()
	}
	h.w.after(took, func() {
		if h.generation != gen {
			return
		}
		h.whenAwake(func() {
			var doc *topo.Shard
			if h.view.known {
				doc = &h.view.doc
			}
			if ok, why := converge.MayPledge(p, h.id, doc, h.uptime()-h.view.readStart, h.promised); !ok {
				h.w.log("%s does not pledge to %s: %s", h.id, p.Primary, why)
				return
			}
			h.vow = vow{converge.Pledge{Epoch: p.Epoch, Until: h.uptime() + h.w.spec.Timing.PledgeFor()}, p.Epoch}
			yes()
		})
	})
}

// reboot is what a new agent finds on its disk: it keeps a whole pledge from now on.
func (v vow) reboot(now time.Duration, t topo.Timing) vow {
	if v.kept == 0 || planted("pledge-not-on-disk") {
		return vow{}
	}
	return vow{converge.Pledge{Epoch: v.kept, Until: now + t.PledgeFor()}, v.kept}
}

// askForWord asks the primary's host how old its lease is.
func (h *host) askForWord(a topo.Assigned) {
	begun := h.uptime()
	p := h.w.host(a.Primary)
	h.ask(p, func(answer func(func())) {
		b := p.view.doc.Assigned
		if !p.view.known || b.Phase != topo.PhaseServing || !b.SameTenure(a) || b.Rule != a.Rule || !p.memory.WasPrimary || p.uptime() >= p.leaseEnd() {
			return
		}
		age := p.uptime() - p.view.leaseStart()
		answer(func() { h.extend(a, begun-age) })
	})
}

// extend lets the lease of a tenure count from from.
func (h *host) extend(of topo.Assigned, from time.Duration) {
	v := &h.view
	if !v.known || v.doc.Assigned.Phase != topo.PhaseServing || !v.doc.Assigned.SameTenure(of) || from <= v.leaseStart() {
		return
	}
	v.pledged = from
	if v.doc.Assigned.Primary == h.id {
		h.w.pledgedRounds++
	}
	h.wake()
}

func (v *view) leaseStart() time.Duration { return max(v.readStart, v.pledged) }
