// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/topo"
)

// draining orders a switchover from n1 to n2 and leaves it there.
func (w *world) draining() {
	w.t.Helper()
	a := w.agreed()
	a.Phase, a.Elected = topo.PhaseDraining, &topo.Elected{Node: "n2"}
	w.order(a)
}

// TestWhomASwitchoverGoesToPromisesWhileThePrimaryDrains: its promotion waits for no disk. It goes on following, and is no witness
// before it is asked to freeze.
func TestWhomASwitchoverGoesToPromisesWhileThePrimaryDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.start("n3")
		s := following(w)
		w.seats["n1"].SetProxyConnections(1)
		w.draining()
		w.until("n2 promises ahead", 10*time.Millisecond, func() bool { return promiseOnDisk(s.dir) == 2 })
		w.always("n2 follows until it is told otherwise", 200*time.Millisecond, func() bool { return !s.look().Frozen && promiseOnDisk(s.dir) == 2 })
		for _, id := range []topo.NodeID{"n1", "n3"} {
			if e := promiseOnDisk(w.seats[id].dir); e > 1 {
				t.Errorf("%s has promised epoch %d", id, e)
			}
		}
		w.until("n1 is fenced", 100*time.Millisecond, func() bool { return w.told("n1").Frozen })
		w.fencing(2) // it is abandoned
		w.until("n2 is a witness", 100*time.Millisecond, func() bool { g := w.told("n2"); return g.Promised == 2 && g.Frozen && g.Phase == topo.PhaseFencing })
	})
}

// TestAPledgeIsKeptThroughASwitchover: what was promised ahead would release the node from it.
func TestAPledgeIsKeptThroughASwitchover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := following(w)
		w.store.Cut("n2")
		w.until("n2 pledges", w.spec.Timing.PledgeAfter()+time.Millisecond, func() bool { ok, _ := s.agent.Pledge(w.plea()); return ok })
		given := time.Now()
		w.store.Heal("n2")
		w.draining()
		w.always("n2 promises nothing", 50*time.Millisecond, func() bool { return promiseOnDisk(s.dir) < 2 })
		w.fencing(2)
		w.always("n2 keeps its word", w.leaseAndMargin()-time.Since(given)-10*time.Millisecond, func() bool { return promiseOnDisk(s.dir) < 2 && !s.look().Frozen })
		w.until("n2 is a witness", 100*time.Millisecond, func() bool { g := w.told("n2"); return g.Promised == 2 && g.Frozen })
	})
}
