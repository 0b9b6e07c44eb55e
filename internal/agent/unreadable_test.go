// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/topo"
)

const badFile = "/data/appendonlydir"

// pair starts n1, which serves, and n2, which follows it.
func pair(t *testing.T, d topo.Durability) (w *world, n1, n2 *seat) {
	w = newWorld(t, "n1", "n2", "n3")
	if d == topo.Quorum {
		w.spec.Durability, w.spec.AckReplicas = d, 1
	}
	n1, n2 = w.start("n1"), w.start("n2")
	w.promote("n1", 1)
	w.until("n2 follows", time.Second, func() bool { return n2.look().LinkUp })
	return w, n1, n2
}

// down tells whether the server is still where its unreadable data let it end.
func down(s *seat) func() bool {
	return func() bool { o := s.look(); return o.Health == topo.HealthExited && o.Unreadable == badFile }
}

func TestUnreadableDataAreSetAsideWhenAPrimaryServes(t *testing.T) {
	for _, d := range []topo.Durability{topo.Async, topo.Quorum} {
		synctest.Test(t, func(t *testing.T) {
			w, _, n2 := pair(t, d)
			n2.SetUnreadable(badFile)
			w.until("n2 follows again", 10*time.Second, func() bool { o := n2.look(); return o.LinkUp && !o.Kept })
		})
	}
}

func TestUnreadableDataStayWhileTheyMayBeTheBest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, n1, n2 := pair(t, topo.Async)
		n1.SetUnreadable(badFile)
		n2.SetUnreadable(badFile) // its primary is named by the document, and does not answer
		w.always("both wait", 20*time.Second, func() bool { return down(n1)() && down(n2)() })
	})
	synctest.Test(t, func(t *testing.T) {
		w, n1, n2 := pair(t, topo.Quorum)
		w.fencing(2)
		n1.SetUnreadable(badFile)
		n2.SetUnreadable(badFile)
		w.until("n2 comes back for the cold start", 10*time.Second, func() bool { return n2.look().Health == topo.HealthUp })
		w.always("n1, which served last, waits", 20*time.Second, down(n1))
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		n1 := w.start("n1")
		w.until("n1 reports", time.Second, func() bool { return w.told("n1").RunID != "" })
		w.order(topo.Assigned{Term: 1, Phase: topo.PhaseNew})
		n1.SetUnreadable(badFile)
		w.always("n1 of a new shard waits", 20*time.Second, down(n1))
	})
}
