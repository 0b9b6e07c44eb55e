// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"testing"
	"time"

	"redoubt/internal/topo"
)

// What a verb read back is a look once, at once, and not after a fence.
func TestAnOrdersReadBackIsTheNextLook(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	observe := func() (at time.Duration, role topo.Role) {
		o := n.Observe(within(t, time.Second))
		return o.At, o.Role
	}
	for range 20 { // a machine that is busy for longer than readBackFor looks again, which is right, too
		if err := n.Fence(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		fenced := n.clk.Uptime()
		at, role := observe()
		if role != topo.RoleReplica {
			t.Fatalf("after the fence it is %s", role)
		}
		if again, _ := observe(); again < fenced {
			t.Fatal("what was read back was a look twice")
		}
		if at < fenced {
			return
		}
		e := electedOf(n.Observe(within(t, time.Second)))
		if _, err := n.Promote(within(t, time.Second), e, tenure()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("no look was saved in 20 fences")
}

func TestAReadBackFromBeforeAFenceIsNoLook(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	n.Observe(within(t, time.Second))
	n.mu.Lock()
	n.readBack = readBack{m: info{"role": "master", "run_id": n.runID}, at: n.clk.Uptime(), from: n.admin, fences: n.fences.Load()}
	n.mu.Unlock()
	n.fences.Add(1)
	if _, ok := n.latest(); ok {
		t.Fatal("a server that was fenced meanwhile counts as a primary")
	}
}

// A promotion that has to create a backlog reads nothing back in the end: what the order before it read is no look any more.
func TestAReadBackFromBeforeAPromotionIsNoLook(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	e := electedOf(see(t, n, "an answering server", isUp))
	if err := n.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.readBack.at = n.clk.Uptime() + time.Minute // however busy this machine is
	n.mu.Unlock()
	if _, err := n.Promote(within(t, time.Second), e, tenure()); err != nil {
		t.Fatal(err)
	}
	if o := n.Observe(within(t, time.Second)); o.Role != topo.RolePrimary || n.lastRole() != topo.RolePrimary {
		t.Fatalf("after the promotion it is %s, frozen %v, and a fence takes it for %s", o.Role, o.Frozen, n.lastRole())
	}
}
