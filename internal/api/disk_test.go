// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
)

// TestAPromiseAboutDisksNeedsEveryNode: it is refused, with the node and what to do, before anything has changed.
func TestAPromiseAboutDisksNeedsEveryNode(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	want, k := topo.QuorumDisk, 2
	try := func() error { return r.client.Set(t.Context(), Settings{Durability: &want}) }
	says := func(text string) {
		t.Helper()
		var e *Error
		end := time.Now().Add(5 * time.Second) // a report takes a moment
		for err := try(); ; err = try() {
			if errors.As(err, &e) && e.Status == http.StatusConflict && strings.Contains(e.Message, text) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%v, want %q", err, text)
			}
		}
		if c := r.get().Assigned.Change; c != nil {
			t.Fatalf("a change began: %s", c)
		}
	}
	says("n1 does not report")
	for _, id := range []topo.NodeID{"n1", "n2", "n3"} {
		r.report(topo.BeatNode+string(id), topo.Sighting{Node: id, Seq: 1, Disk: topo.DiskAble})
	}
	r.report(topo.BeatNode+"n2", topo.Sighting{Node: "n2", Seq: 2, Disk: topo.DiskUnable, NoDisk: "redis 7.0.15 cannot, upgrade it"})
	says("not possible with n2: redis 7.0.15 cannot, upgrade it")
	r.report(topo.BeatNode+"n2", topo.Sighting{Node: "n2", Seq: 3})
	says("the agent of n2 does not say")
	r.report(topo.BeatNode+"n2", topo.Sighting{Node: "n2", Seq: 4, Disk: topo.DiskSynced})
	for end := time.Now().Add(5 * time.Second); try() != nil; {
		if time.Now().After(end) {
			t.Fatal(try())
		}
	}
	s := r.get()
	if c := s.Assigned.Change; c == nil || c.Durability != topo.QuorumDisk || c.AckReplicas != 1 || s.Spec.Durability != topo.Quorum || !s.OnDisk() || s.Acks() != 1 {
		t.Fatalf("%+v of %+v", c, s.Spec)
	}
	if err := try(); err != nil { // again: it is under way
		t.Fatal(err)
	}
	weaker := topo.Quorum
	if err := r.client.Set(t.Context(), Settings{Durability: &weaker, AckReplicas: &k}); err != nil { // more replicas, and no disks
		t.Fatal(err)
	}
	if s = r.get(); s.Assigned.Change == nil || s.Assigned.Change.Durability != topo.Quorum || s.Assigned.Change.AckReplicas != 2 || s.OnDisk() || s.Acks() != 2 {
		t.Fatalf("%+v", s.Assigned.Change)
	}
}

// TestWhatIsStrongerInOneWayIsAChange: from disks to more replicas everything that either asks for holds until it is done; to
// fewer demands it takes effect at once, and the number of replicas stays.
func TestWhatIsStrongerInOneWayIsAChange(t *testing.T) {
	r := newRig(t)
	s := shard()
	s.Spec.Durability = topo.QuorumDisk
	r.set(s)
	want, k := topo.Quorum, 2
	if err := r.client.Set(t.Context(), Settings{Durability: &want, AckReplicas: &k}); err != nil {
		t.Fatal(err)
	}
	if s = r.get(); s.Assigned.Change == nil || s.Spec.Durability != topo.QuorumDisk || !s.OnDisk() || s.Acks() != 2 {
		t.Fatalf("%+v", s)
	}
	s.Assigned.Change, s.Spec.AckReplicas = nil, 2
	r.set(s)
	if err := r.client.Set(t.Context(), Settings{Durability: &want}); err != nil {
		t.Fatal(err)
	}
	if s = r.get(); s.Assigned.Change != nil || s.Spec.Durability != topo.Quorum || s.Spec.AckReplicas != 2 || s.OnDisk() {
		t.Fatalf("%+v", s)
	}
}

// TestAChangeIsSeenByWhoOrderedIt: a verb that waits for its change must not take an answer from before it for the end of it.
func TestAChangeIsSeenByWhoOrderedIt(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	for i := range 40 {
		k := 2 - i%2
		if _, err := r.client.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.client.Set(t.Context(), Settings{AckReplicas: &k}); err != nil {
			t.Fatal(err)
		}
		st, err := r.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c := st.Deployments[0].Shards[0].Change; (c != nil) != (k == 2) {
			t.Fatalf("round %d: ordered %d acknowledging replicas, the change is %v", i, k, c)
		}
	}
}
