// SPDX-License-Identifier: Apache-2.0

package kubereg_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/kube"
	"redoubt/internal/kubereg"
	"redoubt/internal/topo"
	"redoubt/internal/view"
	"redoubt/test/kubeapi"
)

// ring is a deployment whose shards have their servers in the same pods, and may grow and shrink.
type ring struct {
	*world
	member coord.Store
	revs   map[string]coord.Rev

	mu    sync.Mutex
	parts []kubereg.Part
}

// add lets there be one shard more.
func (r *ring) add(ctx context.Context, name string) {
	v := view.New(r.member, clock.Real{}, topo.KeyShard+"d-"+name, slog.New(slog.DiscardHandler))
	go func() { _ = v.Run(ctx) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts = append(r.parts, kubereg.Part{ID: "d-" + name, Name: name, View: v, Store: r.member})
}

func (r *ring) now() []kubereg.Part {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.parts)
}

// serve writes a new version of a shard's document; each shard has a port of its own.
func (r *ring) serve(name string, port int, epoch topo.Epoch, primary topo.NodeID) {
	r.t.Helper()
	d := topo.Shard{Format: topo.Format, ID: "d-" + name, Spec: topo.Spec{Deployment: "d", Durability: topo.Async, Timing: topo.LANTiming()}}
	for i := range 3 {
		id := fmt.Sprint("n", i+1)
		d.Spec.Nodes = append(d.Spec.Nodes, topo.Node{ID: topo.NodeID(id), Addr: fmt.Sprintf("%s.redis:%d", id, port)})
	}
	d.Assigned = topo.Assigned{Term: 1, Epoch: epoch, Phase: topo.PhaseServing, Primary: primary, RunID: "r", Why: "w", History: []topo.HistoryEntry{{Epoch: 1, ReplID: "x", Node: primary}}}
	rev, err := r.member.Swap(r.ctx, topo.KeyShard+"d-"+name, d.Encode(), r.revs[name])
	if err != nil {
		r.t.Fatal(err)
	}
	r.revs[name] = rev
}

// leads waits until a service leads to just this, and pods have these labels of the shard.
func (r *ring) leads(service, shard, want string, roles ...string) {
	r.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		s, got := r.slice(service), ""
		if len(s.Endpoints) == 1 && len(s.Ports) == 1 {
			got = fmt.Sprintf("%s:%d", s.Endpoints[0].Addresses[0], s.Ports[0].Port)
		}
		var labels []string
		for i := range 3 {
			var p kube.Pod
			if err := r.client.Do(r.ctx, http.MethodGet, r.client.Path("", "pods", fmt.Sprint("n", i+1)), nil, "", nil, &p); err != nil {
				r.t.Fatal(err)
			}
			labels = append(labels, p.Metadata.Labels["role.redoubt.io/"+shard])
		}
		if got == want && (len(roles) == 0 || slices.Equal(labels, roles)) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s leads to %q and pods are %v, not to %q, %v: %+v", service, got, labels, want, roles, s)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestEachShardHasServicesOfItsOwn, whose servers share pods; one comes, one fails over, one goes.
func TestEachShardHasServicesOfItsOwn(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		w := &world{t: t, ctx: t.Context(), server: s, client: s.Open(t), store: memstore.New(clock.Real{}, "n1")}
		r := &ring{world: w, member: w.store.Member("n1"), revs: map[string]coord.Rev{}}
		for i := range 3 {
			s.Pod(t, fmt.Sprint("n", i+1), fmt.Sprint("10.244.0.", i+1))
		}
		if _, err := r.member.Campaign(w.ctx); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		r.add(ctx, "a")
		r.add(ctx, "East.1")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = kubereg.New(kubereg.Options{Client: s.Open(t), Parts: r.now, Member: "n1", Service: "db", Clock: clock.Real{}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}).Run(ctx)
		}()
		defer func() {
			cancel()
			<-done
		}()
		r.serve("a", 6390, 1, "n1")
		r.serve("East.1", 6391, 4, "n2")
		r.leads("db-a-primary", "a", "10.244.0.1:6390", "primary", "replica", "replica")
		r.leads("db-east-1-primary", "east-1", "10.244.0.2:6391", "replica", "primary", "replica")
		r.serve("a", 6390, 2, "n3")
		r.leads("db-a-primary", "a", "10.244.0.3:6390", "replica", "replica", "primary")
		r.leads("db-east-1-primary", "east-1", "10.244.0.2:6391", "replica", "primary", "replica") // as it was
		r.add(ctx, "c")
		r.serve("c", 6392, 1, "n1")
		r.leads("db-c-primary", "c", "10.244.0.1:6392", "primary", "replica", "replica")
		r.mu.Lock()
		r.parts = r.parts[1:]
		r.mu.Unlock()
		r.leads("db-a-primary", "a", "", "none", "none", "none")
		var e kube.Endpoints
		if err := w.client.Do(w.ctx, http.MethodGet, w.client.Path("", "endpoints", "db-c-primary"), nil, "", nil, &e); !kube.Is(err, http.StatusNotFound) {
			t.Errorf("Endpoints that nobody asked for: %+v %v", e, err)
		}
	})
}
