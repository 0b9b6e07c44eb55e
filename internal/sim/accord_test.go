// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"
	"time"
)

// quietWorld is the world of a seed without its faults, so far that it serves.
func quietWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := newWorld(Options{Seed: seed, Trace: true})
	w.loss, w.slow, w.faultless = 0, 0, true
	for _, h := range w.hosts {
		h.start()
	}
	w.store.start()
	w.after(0, w.superviseController)
	w.after(0, w.checkTick)
	w.playUntil(t, 5*time.Second)
	if len(w.acked) == 0 {
		t.Fatalf("seed %d: no write was acknowledged in quiet", seed)
	}
	return w
}

func (w *world) playUntil(t *testing.T, at time.Duration) {
	t.Helper()
	for len(w.events) > 0 && w.events[0].at <= at {
		e := w.events.pop()
		w.now = e.at
		e.do()
	}
	if w.violation != "" {
		t.Fatalf("%s: %s", w.now, w.violation)
	}
}

// TestServiceGoesOnWithoutTheStoreWhileEverybodyPledges: ten seconds without a store are no outage of writes.
func TestServiceGoesOnWithoutTheStoreWhileEverybodyPledges(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		w := quietWorld(t, seed)
		epoch := w.store.doc.Assigned.Epoch
		w.store.down = true
		for at := 6 * time.Second; at <= 15*time.Second; at += time.Second {
			before := len(w.acked)
			w.playUntil(t, at)
			if len(w.acked) == before {
				t.Fatalf("seed %d: no write was acknowledged in the second before %s", seed, at)
			}
		}
		w.store.down = false
		w.playUntil(t, duration)
		if a := w.store.doc.Assigned; w.lastAck < duration-time.Second || a.Epoch < epoch {
			t.Fatalf("seed %d: the last write was acknowledged at %s, epoch %d after %d", seed, w.lastAck, a.Epoch, epoch)
		}
	}
}

// TestAPrimaryFencesItselfWithoutTheStoreWhenOneDoesNotPledge: within the lease, and only an election gives the role back.
func TestAPrimaryFencesItselfWithoutTheStoreWhenOneDoesNotPledge(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		w := quietWorld(t, seed)
		p := w.host(w.store.doc.Assigned.Primary)
		w.hosts[(p.index+1)%w.n].killAgent()
		w.store.down = true
		lease := w.spec.Timing.Lease.D() + w.spec.Timing.Margin.D()
		w.playUntil(t, w.now+lease)
		if p.srv.primary {
			t.Fatalf("seed %d: %s is still writable %s after the store went away, though one agent is dead", seed, p.id, lease)
		}
		before := len(w.acked)
		w.playUntil(t, w.now+5*time.Second)
		if len(w.acked) > before+w.n { // what was on its way
			t.Fatalf("seed %d: writes were acknowledged without a primary", seed)
		}
		w.hosts[(p.index+1)%w.n].startAgent()
		w.store.down = false
		w.playUntil(t, duration)
		if w.lastAck < duration-time.Second {
			t.Fatalf("seed %d: no service after the store came back: the last write was acknowledged at %s", seed, w.lastAck)
		}
	}
}
