// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// TestAMemberIsReadyWhenItsNodeServesOrHasEverything: a rolling update goes on then, and not before.
func TestAMemberIsReadyWhenItsNodeServesOrHasEverything(t *testing.T) {
	cluster := memstore.New(nil, "n1", "n2")
	store := cluster.Member("n1")
	if _, err := store.Campaign(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := view.New(store, clock.Real{}, topo.KeyShard+"mymaster-0", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = v.Run(ctx) }()
	defer func() { cancel(); <-done }()
	member := func(id string) func() int {
		s, err := New(Options{Listen: "127.0.0.1:0", Member: id, Clock: clock.Real{}, Shards: []Shard{{ID: "mymaster-0", Store: store, View: v}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.stop(); _ = s.ln.Close() })
		return func() int {
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
			return w.Code
		}
	}
	report := func(id topo.NodeID, role topo.Role, health topo.Health, inSync topo.Epoch) {
		t.Helper()
		b, err := json.Marshal(topo.Sighting{Node: id, Role: role, Health: health, LinkUp: true, InSync: inSync})
		if err == nil {
			err = store.Send(t.Context(), topo.BeatNode+string(id), b, time.Minute)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first, second, none := member("n1"), member("n2"), member("arbiter")
	if first() != 503 || none() != 503 {
		t.Error("ready before anything is agreed")
	}
	if _, err := store.Swap(t.Context(), topo.KeyShard+"mymaster-0", shard().Encode(), 0); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for none() != 200 {
		if time.Now().After(deadline) {
			t.Fatal("a member without a node is never ready")
		}
		<-time.After(5 * time.Millisecond)
	}
	for _, step := range []struct {
		what   string
		id     topo.NodeID
		role   topo.Role
		health topo.Health
		inSync topo.Epoch
		want   int
	}{
		{"the primary serves", "n1", topo.RolePrimary, topo.HealthUp, 0, 200},
		{"the primary has not been promoted", "n1", topo.RoleReplica, topo.HealthUp, 0, 503},
		{"the primary hangs", "n1", topo.RolePrimary, topo.HealthHung, 0, 503},
		{"the replica has everything", "n2", topo.RoleReplica, topo.HealthUp, 4, 200},
		{"the replica had everything of an earlier primary", "n2", topo.RoleReplica, topo.HealthUp, 3, 503},
		{"the replica loads", "n2", topo.RoleReplica, topo.HealthLoading, 4, 503},
	} {
		ready := map[topo.NodeID]func() int{"n1": first, "n2": second}[step.id]
		for deadline := time.Now().Add(5 * time.Second); ready() != step.want; <-time.After(5 * time.Millisecond) {
			report(step.id, step.role, step.health, step.inSync)
			if time.Now().After(deadline) {
				t.Fatalf("%s: never %d", step.what, step.want)
			}
		}
	}
	report("n2", topo.RoleReplica, topo.HealthUp, 4)
	if again := member("n2"); again() != 503 {
		t.Error("a process that has just begun is ready by the report of the one before it")
	}
}
