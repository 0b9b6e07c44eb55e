// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"strings"
	"testing"
)

const (
	idA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	idC = "cccccccccccccccccccccccccccccccccccccccc"
)

// viewOf7 is a reply of Redis 7 to CLUSTER NODES, with marks of slots that move, a ghost and a node that nobody hears.
const viewOf7 = idA + " 127.0.0.1:7000@17000,one.example myself,master,nofailover - 0 0 5 connected 0-99 101 200-299 [93->-" + idB + "] [400-<-" + idB + "]\n" +
	idB + " fe80::1:7001@17001 master,fail? - 1700000000001 1700000000000 6 disconnected 300-16383\n" +
	idC + " :0@0 slave,noaddr,fail " + idA + " 0 0 5 disconnected\n"

func TestWhatAServerSaysOfItsClusterIsRead(t *testing.T) {
	nodes, _, err := Parse(viewOf7)
	if err != nil || len(nodes) != 3 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	a, ok := nodes.Self()
	if !ok || a.ID != idA || a.Addr() != "127.0.0.1:7000" || a.BusPort != 17000 || a.Hostname != "one.example" || !a.Primary || a.Replica || a.Epoch != 5 || !a.Linked || a.Of != "" {
		t.Errorf("myself: %+v", a)
	}
	if got := a.Slots.String(); got != "0-99,101,200-299" || a.Slots.Len() != 201 {
		t.Errorf("its slots: %s, %d", got, a.Slots.Len())
	}
	if a.Migrating[93] != idB || a.Importing[400] != idB || len(a.Migrating) != 1 || len(a.Importing) != 1 {
		t.Errorf("its marks: %v %v", a.Migrating, a.Importing)
	}
	b, _ := nodes.ByID(idB)
	if b.Addr() != "[fe80::1]:7001" || !b.Suspected || b.Fail || b.PingSent != 1700000000001 || b.PongReceived != 1700000000000 || b.Linked {
		t.Errorf("a node that is not heard: %+v", b)
	}
	c, _ := nodes.ByID(idC)
	if !c.Replica || !c.NoAddr || !c.Fail || c.Of != idA || c.Host != "" {
		t.Errorf("a ghost: %+v", c)
	}
	if free := SetOf([2]int{0, 16383}).Minus(nodes.Assigned()); free.String() != "100,102-199" {
		t.Errorf("unassigned: %s", free)
	}
}

func TestAWrittenNodesConfIsReadAgain(t *testing.T) {
	nodes := Nodes{
		{ID: idA, ShardID: idC, Host: "10.0.0.1", Port: 7000, BusPort: 17000, Primary: true, Epoch: 1, Slots: SetOf([2]int{0, 8191}, [2]int{16383, 16383})},
		{ID: idB, ShardID: idC, Host: "10.0.0.2", Port: 7000, BusPort: 17000, Myself: true, Replica: true, Of: idA},
	}
	for _, withShards := range []bool{false, true} {
		text := nodes.Conf(3, withShards)
		if got := strings.Contains(text, ",,shard-id="+idC); got != withShards {
			t.Errorf("with shards %v: %s", withShards, text)
		}
		back, epoch, err := Parse(text)
		if err != nil || epoch != 3 || len(back) != 2 {
			t.Fatalf("epoch %d, %v: %s", epoch, err, text)
		}
		for i, n := range back {
			want := nodes[i]
			want.Linked = true
			if !withShards {
				want.ShardID = ""
			}
			if n.ID != want.ID || n.Addr() != want.Addr() || n.BusPort != want.BusPort || n.ShardID != want.ShardID || n.Myself != want.Myself ||
				n.Primary != want.Primary || n.Replica != want.Replica || n.Of != want.Of || n.Epoch != want.Epoch || n.Slots != want.Slots {
				t.Errorf("wrote %+v, read %+v", want, n)
			}
		}
	}
}

func TestWhatIsNoViewOfAClusterIsRefused(t *testing.T) {
	line := idA + " 127.0.0.1:7000@17000 master - 0 0 5 connected"
	for _, bad := range []string{
		"short line", "x" + line[1:], strings.Replace(line, ":7000", "", 1), strings.Replace(line, "17000", "bus", 1), strings.Replace(line, " 5 ", " five ", 1),
		line + " 16384", line + " 9-3", line + " [5-?-" + idB + "]", line + " [x->-" + idB + "]", "vars currentEpoch many", line + " -",
	} {
		if _, _, err := Parse(bad); err == nil {
			t.Errorf("read %q", bad)
		}
	}
	if nodes, epoch, err := Parse("\n"); err != nil || len(nodes) != 0 || epoch != 0 {
		t.Errorf("nothing: %v %d %v", nodes, epoch, err)
	}
}

func TestDerivedIDsAreThoseOfTheirNames(t *testing.T) {
	a, b := Derived("uid", "s1", "n1"), Derived("uid", "s1n", "1")
	if !IsID(a) || !IsID(b) || a == b || a != Derived("uid", "s1", "n1") {
		t.Errorf("%s %s", a, b)
	}
	for _, bad := range []string{"", idA[1:], idA + "a", strings.ToUpper(idA)} {
		if IsID(bad) {
			t.Errorf("%q counts as an id", bad)
		}
	}
}

func TestSetsOfSlots(t *testing.T) {
	s := SetOf([2]int{-5, 1}, [2]int{16380, 20000}, [2]int{64, 64})
	if got := s.String(); got != "0-1,64,16380-16383" {
		t.Errorf("%s", got)
	}
	if s.Has(-1) || s.Has(2) || s.Has(16384) || !s.Has(16383) {
		t.Error("membership")
	}
	if got := s.And(SetOf([2]int{1, 100})).String(); got != "1,64" {
		t.Errorf("both: %s", got)
	}
	if SetOf(s.Ranges()...) != s || SetOf() != (Set{}) {
		t.Error("the ranges of a set are not the set")
	}
}
