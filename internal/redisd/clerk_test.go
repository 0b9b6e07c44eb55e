// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"strconv"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// attachedMember starts a server of a cluster as another supervisor would, and returns its driver and its id.
func attachedMember(t *testing.T, agreed *ClusterLayout) (*Node, string, string) {
	t.Helper()
	addr := ports.Addr(t)
	bus := portOf(ports.Addr(t))
	supervised(t, addr, t.TempDir(), "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-announce-ip", "127.0.0.1")
	var view slots.Nodes
	for end := time.Now().Add(10 * time.Second); ; {
		s, err := SurveyServer(within(t, time.Second), addr, Login{})
		if err == nil {
			view = s.View
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	self, _ := view.Self()
	agreed.Nodes = append(agreed.Nodes, ClusterNode{ID: self.ID, ShardID: slots.Derived("shard", addr), Addr: addr, BusPort: bus})
	layout := func() ClusterLayout { return *agreed }
	n := attach(t, AttachOptions{Addr: addr, StateDir: t.TempDir(), Cluster: &ClusterSeat{ID: self.ID, ShardID: slots.Derived("shard", addr), BusPort: bus, Layout: layout}})
	return n, addr, self.ID
}

// TestTheClerkIntroducesAndForgets: two servers meet at once, one forgets the other, marks go, and the node-timeout comes back.
func TestTheClerkIntroducesAndForgets(t *testing.T) {
	t.Parallel()
	agreed := &ClusterLayout{Slots: map[string][][2]int{}}
	n, _, _ := attachedMember(t, agreed)
	_, other, otherID := attachedMember(t, agreed)
	k := n.Clerk()
	defer k.Close()
	bus := agreed.Nodes[1].BusPort
	if err := k.Meet(within(t, time.Second), "127.0.0.1", portOf(other), bus); err != nil {
		t.Fatal(err)
	}
	look := func(what string, ok func(Books) bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; {
			b, err := k.Read(within(t, time.Second))
			if err == nil && ok(b) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %+v, %v", what, b, err)
			}
		}
	}
	knows := func(b Books) bool { x, ok := b.View.ByID(otherID); return ok && x.Linked }
	look("they meet", knows)
	if err := k.Hurry(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	look("it is in a hurry", func(b Books) bool { return b.Hurried })
	if err := k.Calm(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	look("it is calm", func(b Books) bool { return !b.Hurried })
	if _, err := n.ask(within(t, time.Second), []string{"CLUSTER", "SETSLOT", "7", "IMPORTING", otherID}); err != nil {
		t.Fatal(err)
	}
	if err := k.Stable(within(t, time.Second), 7); err != nil {
		t.Fatal(err)
	}
	look("the mark is gone", func(b Books) bool { self, _ := b.View.Self(); return len(self.Importing) == 0 })
	if here, err := k.Keys(within(t, time.Second), 7); err != nil || here != 0 {
		t.Errorf("%d keys, %v", here, err)
	}
	if there, err := k.KeysAt(within(t, time.Second), other, 7); err != nil || there != 0 {
		t.Errorf("%d keys there, %v", there, err)
	}
	for range 2 { // the second time it is unknown already
		if err := k.Forget(within(t, time.Second), otherID); err != nil {
			t.Fatal(err)
		}
	}
	look("it is forgotten", func(b Books) bool { _, ok := b.View.ByID(otherID); return !ok })
}

// TestAnAttachedMemberIsClosedAndOpenedWithItsPort: the fence of a server that somebody else starts leaves its port, refuses writes and
// stands still; a promotion opens it with its slots, and its history goes on.
func TestAnAttachedMemberIsClosedAndOpenedWithItsPort(t *testing.T) {
	t.Parallel()
	agreed := &ClusterLayout{Slots: map[string][][2]int{}}
	n, addr, _ := attachedMember(t, agreed)
	agreed.Slots[n.cluster.ShardID] = [][2]int{{0, 16383}}
	if _, err := n.ask(within(t, time.Second), append([][]string(nil), []string{"CLUSTER", "ADDSLOTSRANGE", "0", "16383"})...); err != nil {
		t.Fatal(err)
	}
	o := see(t, n, "the server as it is", isUp)
	if o.Role != topo.RolePrimary || o.Frozen {
		t.Fatalf("before anything was ordered: %+v", o)
	}
	if err := n.Configure(within(t, time.Second), redis.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := n.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	o = n.Observe(within(t, time.Second))
	if o.Role != topo.RoleReplica || !o.Frozen {
		t.Fatalf("after the fence: %+v", o)
	}
	if _, err := tellServer(within(t, time.Second), addr, Login{}, [][]string{{"SET", "k", "v"}}); err == nil {
		t.Fatal("a fenced server took a write")
	}
	for end := time.Now().Add(10 * time.Second); ; { // a server that has just started serves no slots for two seconds
		_, err := n.Promote(within(t, time.Second), topo.Elected{RunID: o.RunID, ReplID: o.Pos.ReplID, Offset: o.Pos.Offset}, redis.Credentials{Secret: "s"})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if _, err := tellServer(within(t, time.Second), addr, Login{}, [][]string{{"SET", "k", "v"}}); err != nil {
		t.Errorf("after its promotion: %v", err)
	}
	found := map[string]string{pingPeriod: "10", "masteruser": "", "masterauth": "", minReplicas: "0", noFailover: "no", noMigration: "yes"}
	if err := GiveBack(within(t, time.Second), addr, Login{}, found); err != nil {
		t.Fatal(err)
	}
	if err := LetElect(within(t, time.Second), addr, Login{}, found); err != nil {
		t.Fatal(err)
	}
	s, err := SurveyServer(within(t, time.Second), addr, Login{})
	if err != nil || s.Settings[noFailover] != "no" || s.Settings[pingPeriod] != "10" || len(s.Users) != 0 || s.NoSync {
		t.Errorf("handed back: %+v, %v", s, err)
	}
}
