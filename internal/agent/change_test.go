// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/topo"
)

// follows lets n2 replicate from n1, which serves at epoch 1.
func follows(w *world) {
	w.start("n1")
	w.promote("n1", 1)
	w.start("n2")
	w.until("the replica follows", 2*time.Second, func() bool { return w.told("n2").LinkUp && w.told("n2").InSync == 1 })
}

// async lets a primary write before anybody follows it.
func (w *world) async() { w.spec.Durability, w.spec.AckReplicas = topo.Async, 0 }

func (w *world) begin(c topo.Change) {
	a := w.agreed()
	a.Begin(c)
	w.order(a)
}

func TestABarrierComesAfterEveryTableOfBeforeHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.async()
		follows(w)
		w.seats["n1"].SetLate("p2")
		begun := time.Now()
		w.begin(topo.Change{Kind: topo.ChangeAck, Durability: topo.Quorum, AckReplicas: 1})
		w.until("the agent says whom it waits for", 300*time.Millisecond, func() bool { return w.told("n1").Waits == "waiting for proxy p2" })
		w.until("the barrier is held", 2*time.Second, func() bool { return w.told("n1").Barrier == 1 })
		if took := time.Since(begun); took < w.leaseAndMargin() || took > w.leaseAndMargin()+300*time.Millisecond {
			t.Errorf("the barrier was held after %s; tables expire within %s", took, w.leaseAndMargin())
		}
		if w.told("n1").Waits != "" {
			t.Errorf("still waits: %s", w.told("n1").Waits)
		}
	})
}

func TestABarrierIsNotHeldWithoutEnoughReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.async()
		follows(w)
		w.spec.Durability, w.spec.AckReplicas = topo.Quorum, 1
		w.begin(topo.Change{Kind: topo.ChangeAck, Durability: topo.Quorum, AckReplicas: 2})
		w.until("the agent says what is missing", 2*time.Second, func() bool { return w.told("n1").Waits == "waiting for 2 replicas to hold the barrier" })
		w.always("no barrier is held", time.Second, func() bool { return w.told("n1").Barrier == 0 })
		w.start("n3")
		w.until("the barrier is held", 3*time.Second, func() bool { return w.told("n1").Barrier == 1 })
	})
}

func TestWhoLeavesStandsStillAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.async()
		follows(w)
		w.spec.Durability, w.spec.AckReplicas = topo.Quorum, 1
		w.start("n3")
		w.until("the third follows", 2*time.Second, func() bool { return w.told("n3").LinkUp })
		n2, _ := w.spec.Node("n2")
		w.begin(topo.Change{Kind: topo.ChangeRemove, Node: n2})
		w.until("it is frozen for this change", time.Second, func() bool { return w.told("n2").Frozen && w.told("n2").Change == 1 })
		w.always("no barrier before the controller has seen that", 500*time.Millisecond, func() bool { return w.told("n1").Barrier == 0 })
		a := w.agreed()
		a.Change.Cut = true
		w.order(a)
		w.until("the barrier needs no table to expire", 300*time.Millisecond, func() bool { return w.told("n1").Barrier == 1 })
		w.spec = a.Change.Apply(w.spec)
		a.Change = nil
		w.order(a)
		w.always("it follows nobody again", 2*time.Second, func() bool { return w.seats["n2"].look().Frozen })
	})
}

func TestWhoJoinsFollowsAReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		w.async()
		n3, _ := w.spec.Node("n3")
		n2, _ := w.spec.Node("n2")
		w.spec = topo.Change{Kind: topo.ChangeRemove, Node: n3}.Apply(w.spec)
		follows(w)
		w.spec.Durability, w.spec.AckReplicas = topo.Quorum, 1
		w.order(w.agreed())
		s := w.start("n3")
		w.always("who is not in the roster follows nobody", time.Second, func() bool { return s.look().Frozen })
		w.begin(topo.Change{Kind: topo.ChangeAdd, Node: n3, Via: "n2"})
		w.until("it follows the replica", 2*time.Second, func() bool { return s.look().Following == n2.Addr })
		a := w.agreed()
		a.Change.Via = "n1"
		w.order(a)
		w.until("one that would follow the primary stands still: its word would count", time.Second, func() bool { return s.look().Frozen })
	})
}
