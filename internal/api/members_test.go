// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

func TestAMemberIsRemovedUnlessThatDoesHarm(t *testing.T) {
	member := func(id string, alive bool, node topo.NodeID) StoreMember {
		return StoreMember{Member: coord.Member{ID: id}, Alive: alive, Node: node}
	}
	for _, c := range []struct {
		name string
		list []StoreMember
		id   string
		code string
	}{
		{"an arbiter", []StoreMember{member("n1", true, "n1"), member("n2", true, "n2"), member("a", true, "")}, "a", ""},
		{"a dead member with a data node", []StoreMember{member("n1", true, "n1"), member("n2", false, "n2"), member("a", true, "")}, "n2", ""},
		{"a living member with a data node", []StoreMember{member("n1", true, "n1"), member("n2", true, "n2"), member("a", true, "")}, "n2", "data-node"},
		{"a stranger", []StoreMember{member("n1", true, "n1")}, "x", "unknown-member"},
		{"the last one", []StoreMember{member("a", true, "")}, "a", "last-member"},
		{"one of too few", []StoreMember{member("n1", true, "n1"), member("n2", false, "n2"), member("a", true, "")}, "a", "no-majority"},
	} {
		_, _, _, err := MemberList{Members: c.list}.Removal(c.id)
		var e *Error
		if code := ""; errors.As(err, &e) && e.Code != c.code || err == nil && c.code != code {
			t.Errorf("%s: %v, want code %q", c.name, err, c.code)
		}
	}
}

// A controller that has just begun knows of nobody's report.
func TestMembersAreWaitedForThatHaveNotReportedYet(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	time.AfterFunc(300*time.Millisecond, func() {
		for _, id := range []string{"m1", "m2", "m3"} {
			r.report(topo.BeatMember+id, topo.MemberReport{ID: id})
		}
	})
	if err := r.client.RemoveMember(t.Context(), "m3"); err != nil {
		t.Error(err)
	}
}

func TestMembersAreListedAndRemovedOverHTTP(t *testing.T) {
	r := newRig(t)
	s := shard()
	s.Spec.Nodes[0].ID, s.Spec.Nodes[1].ID, s.Spec.Nodes[2].ID = "m1", "m2", "n3"
	s.Assigned.Primary, s.Assigned.Enrolled = "m1", map[topo.NodeID]string{"m1": "r1"}
	s.Spec.Nodes = s.Spec.Nodes[:2]
	r.set(s)
	for _, id := range []string{"m1", "m2", "m3"} {
		r.report(topo.BeatMember+id, topo.MemberReport{ID: id})
	}
	l, err := r.client.Members(t.Context())
	if err != nil || len(l.Members) != 3 || l.Majority != 2 {
		t.Fatalf("members %+v %v", l, err)
	}
	if m := l.Members[0]; m.ID != "m1" || m.Node != "m1" || !m.Alive || !m.Controller {
		t.Errorf("first member %+v", m)
	}
	if m := l.Members[2]; m.ID != "m3" || m.Node != "" || !m.Alive {
		t.Errorf("the arbiter %+v", m)
	}
	r.refused(r.client.RemoveMember(t.Context(), "m2"), 409, "data-node")
	r.refused(r.client.RemoveMember(t.Context(), "m9"), 404, "unknown-member")
	if err := r.client.RemoveMember(t.Context(), "m3"); err != nil {
		t.Fatal(err)
	}
	if l, err = r.client.Members(t.Context()); err != nil || len(l.Members) != 2 {
		t.Errorf("after the removal: %+v %v", l, err)
	}
}
