// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/consul/consultest"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// rig is a deployment of two members that announce to one agent.
type rig struct {
	t       *testing.T
	cluster *memstore.Cluster
	store   *memstore.Store
	agent   *consultest.Agent
	boards  map[string]*view.Board
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, cluster: memstore.New(nil, "n1", "n2"), agent: consultest.New(), boards: map[string]*view.Board{}}
	t.Cleanup(r.agent.Close)
	r.store = r.cluster.Member("n1")
	for _, id := range []string{"n1", "n2"} {
		store := r.cluster.Member(id)
		v := view.New(store, clock.Real{}, topo.KeyShard+"mymaster-0", slog.New(slog.DiscardHandler))
		b, err := view.NewBoard(view.BoardOptions{Deployment: "mymaster", Mode: "single", Parts: []view.Part{{ID: "mymaster-0", View: v}}, Beats: store, Clock: clock.Real{}})
		if err != nil {
			t.Fatal(err)
		}
		r.boards[id] = b
		r.start(v.Run)
		r.start(b.Run)
	}
	if _, err := r.store.Campaign(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) start(part func(context.Context) error) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = part(ctx) }()
	end = func() { cancel(); <-done }
	r.t.Cleanup(end)
	return end
}

func (r *rig) announce(id string) (*Announcer, func()) {
	r.t.Helper()
	a, err := New(Options{Address: r.agent.Addr(), Prefix: "redoubt", TTL: 300 * time.Millisecond, Member: id, Board: r.boards[id], Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	return a, r.start(a.Run)
}

func (r *rig) primary(epoch topo.Epoch, id topo.NodeID, phase topo.Phase) {
	r.t.Helper()
	s := topo.Shard{
		Format: topo.Format, ID: "mymaster-0",
		Spec: topo.Spec{Deployment: "mymaster", Durability: topo.Async, Timing: topo.LANTiming(), Nodes: []topo.Node{{ID: "n1", Addr: "10.0.0.1:6101"}, {ID: "n2", Addr: "10.0.0.2:6102"}}},
		Assigned: topo.Assigned{Epoch: epoch, Phase: phase, Primary: id, RunID: "r" + string(id),
			History: []topo.HistoryEntry{{Epoch: epoch, ReplID: "aa", Node: id}}},
	}
	for _, n := range s.Spec.Nodes {
		b, err := json.Marshal(topo.Sighting{Node: n.ID, Health: topo.HealthUp, Role: topo.RoleReplica, Whole: true, LinkUp: true, InSync: epoch})
		if err != nil {
			r.t.Fatal(err)
		}
		if err := r.store.Send(r.t.Context(), topo.BeatNode+string(n.ID), b, time.Minute); err != nil {
			r.t.Fatal(err)
		}
	}
	doc, _ := r.cluster.Doc(topo.KeyShard + s.ID)
	if _, err := r.store.Swap(r.t.Context(), topo.KeyShard+s.ID, s.Encode(), doc.Rev); err != nil {
		r.t.Fatal(err)
	}
}

// found is what passes now: primaries / replicas.
func (r *rig) found() string {
	var words [2][]string
	for i, tag := range []string{tagPrimary, tagReplica} {
		for _, s := range r.agent.Find("mymaster", tag) {
			words[i] = append(words[i], fmt.Sprintf("%s:%d@%s", s.Address, s.Port, s.Meta["epoch"]))
		}
	}
	return strings.Join(words[0], " ") + " / " + strings.Join(words[1], " ")
}

func (r *rig) await(want string) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); r.found() != want; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("Consul says %q, want %q", r.found(), want)
		}
	}
}

func (r *rig) key() (rec shardRecord) {
	_ = json.Unmarshal(r.agent.Key("redoubt/mymaster/mymaster-0"), &rec)
	return rec
}

func TestRolesArePublishedAndFollowTheDecision(t *testing.T) {
	r := newRig(t)
	r.announce("n1")
	r.announce("n2")
	r.primary(1, "n1", topo.PhaseServing)
	r.await("10.0.0.1:6101@1 / 10.0.0.2:6102@1")
	r.primary(2, "n1", topo.PhaseFencing)
	r.await(" / 10.0.0.2:6102@2")
	for end := time.Now().Add(10 * time.Second); r.key().Epoch != 2 || r.key().Primary != nil; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the key was not withdrawn: %+v", r.key())
		}
	}
	r.primary(4, "n2", topo.PhaseServing)
	r.await("10.0.0.2:6102@4 / 10.0.0.1:6101@4")
	for end := time.Now().Add(10 * time.Second); r.key().Epoch != 4 || r.key().Primary == nil || r.key().Primary.ID != "n2"; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the key says %+v", r.key())
		}
	}
}

func TestADeadMembersPrimaryIsTakenOutBeforeTheNextIsPublished(t *testing.T) {
	r := newRig(t)
	old := consultest.Service{ID: "redoubt-mymaster-mymaster-0-n1", Name: "mymaster", Address: "10.0.0.1", Port: 6101, Tags: []string{tagPrimary}, Meta: map[string]string{"redoubt": "mymaster-0", "epoch": "1"}, Passing: true}
	r.agent.Put(old, time.Hour) // its own time would be an hour
	r.announce("n2")
	r.primary(3, "n2", topo.PhaseServing)
	r.await("10.0.0.2:6102@3 / ")

	other := old
	other.ID, other.Meta = "redoubt-mymaster-mymaster-1-n1", map[string]string{"redoubt": "mymaster-1", "epoch": "1"}
	r.agent.Put(other, time.Hour) // another shard's is left alone
	r.primary(5, "n2", topo.PhaseServing)
	r.await("10.0.0.2:6102@5 10.0.0.1:6101@1 / ")
}

func TestALaterPrimaryIsNotReplaced(t *testing.T) {
	r := newRig(t)
	later := consultest.Service{ID: "redoubt-mymaster-mymaster-0-n2", Name: "mymaster", Address: "10.0.0.2", Port: 6102, Tags: []string{tagPrimary}, Meta: map[string]string{"redoubt": "mymaster-0", "epoch": "9"}, Passing: true}
	r.agent.Put(later, time.Hour)
	a, _ := r.announce("n1")
	r.primary(3, "n1", topo.PhaseServing)
	for end := time.Now().Add(10 * time.Second); ; <-time.After(5 * time.Millisecond) {
		if _, failures := a.Stats(); failures > 2 {
			break
		} else if time.Now().After(end) {
			t.Fatal("nothing was tried")
		}
	}
	r.await("10.0.0.2:6102@9 / ")
}

func TestWhatTheAgentLostIsToldAgainAndChecksEnd(t *testing.T) {
	r := newRig(t)
	_, end := r.announce("n1")
	r.primary(1, "n1", topo.PhaseServing)
	r.await("10.0.0.1:6101@1 / ")
	r.agent.Forget()
	r.await("10.0.0.1:6101@1 / ")
	r.agent.Refuse(true) // nothing can be renewed: it ends by itself
	r.await(" / ")
	r.agent.Refuse(false)
	r.await("10.0.0.1:6101@1 / ")
	r.cluster.Cut("n1") // no lease any more
	r.await(" / ")
	r.cluster.Heal("n1")
	r.await("10.0.0.1:6101@1 / ")
	end()
	if got := r.found(); got != " / " {
		t.Errorf("after the end Consul says %q", got)
	}
}

// TestWhatWasBeingToldIsTakenBack: the end comes when Consul has a service, and its answer is on the way.
func TestWhatWasBeingToldIsTakenBack(t *testing.T) {
	r := newRig(t)
	r.primary(1, "n1", topo.PhaseServing)
	for range 30 {
		_, end := r.announce("n1")
		for until := time.Now().Add(5 * time.Second); r.found() == " / " && time.Now().Before(until); {
			runtime.Gosched()
		}
		end()
		if got := r.found(); got != " / " {
			t.Fatalf("after the end Consul says %q", got)
		}
	}
}

func TestAnAddressIsChecked(t *testing.T) {
	for _, addr := range []string{"", "http://", "ftp://x:1"} {
		if _, err := newAgent(addr, "", nil); err == nil {
			t.Errorf("%q was taken", addr)
		}
	}
}
