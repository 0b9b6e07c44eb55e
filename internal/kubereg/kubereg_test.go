// SPDX-License-Identifier: Apache-2.0

package kubereg_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
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

const key = topo.KeyShard + "s"

// world is a shard of three nodes whose members tell an API server.
type world struct {
	t      *testing.T
	ctx    context.Context
	server *kubeapi.Server
	client *kube.Client
	store  *memstore.Cluster
	shard  topo.Shard
	rev    coord.Rev
}

func start(t *testing.T, s *kubeapi.Server) *world {
	w := &world{t: t, ctx: t.Context(), server: s, client: s.Open(t), store: memstore.New(clock.Real{}, "n1", "n2")}
	w.shard = topo.Shard{Format: topo.Format, ID: "s", Spec: topo.Spec{Deployment: "d", Durability: topo.Async, Timing: topo.LANTiming()}}
	for i := range 3 {
		id := fmt.Sprint("n", i+1)
		s.Pod(t, id, fmt.Sprint("10.244.0.", i+1))
		w.shard.Spec.Nodes = append(w.shard.Spec.Nodes, topo.Node{ID: topo.NodeID(id), Addr: id + ".redis:6379"})
	}
	return w
}

// agree writes a new version of the shard's document.
func (w *world) agree(epoch topo.Epoch, phase topo.Phase, primary topo.NodeID) {
	w.t.Helper()
	w.move(epoch, phase, primary, nil)
}

// move is agree while an operator wants something.
func (w *world) move(epoch topo.Epoch, phase topo.Phase, primary topo.NodeID, wanted *topo.Intent) {
	w.t.Helper()
	w.shard.Assigned = topo.Assigned{Intent: wanted, Term: 1, Epoch: epoch, Phase: phase, Primary: primary, RunID: "r", Why: "the test says so", History: []topo.HistoryEntry{{Epoch: 1, ReplID: "x", Node: primary}}}
	var err error
	if w.rev, err = w.store.Member("n1").Swap(w.ctx, key, w.shard.Encode(), w.rev); err != nil {
		w.t.Fatal(err)
	}
}

// report lets a node say that it is well.
func (w *world) report(id topo.NodeID, epoch topo.Epoch) {
	w.t.Helper()
	b, err := json.Marshal(topo.Sighting{Node: id, Epoch: epoch, Health: topo.HealthUp, LinkUp: true, InSync: epoch})
	if err == nil {
		err = w.store.Member("n1").Send(w.ctx, topo.BeatNode+string(id), b, time.Hour)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// run starts a member's registrar; what it returns ends it.
func (w *world) run(member string) func() {
	ctx, cancel := context.WithCancel(w.ctx)
	store := w.store.Member(member)
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil))
	v := view.New(store, clock.Real{}, key, log)
	parts := []kubereg.Part{{ID: "s", View: v, Store: store}}
	r := kubereg.New(kubereg.Options{Client: w.server.Open(w.t), Parts: func() []kubereg.Part { return parts }, Member: member, Service: "db", Endpoints: true, Clock: clock.Real{}, Log: log})
	done := make(chan struct{}, 2)
	go func() { _ = v.Run(ctx); done <- struct{}{} }()
	go func() { _ = r.Run(ctx); done <- struct{}{} }()
	return func() {
		cancel()
		<-done
		<-done
	}
}

func (w *world) slice(name string) (s kube.EndpointSlice) {
	w.t.Helper()
	err := w.client.Do(w.ctx, http.MethodGet, w.client.Path("discovery.k8s.io/v1", "endpointslices", name), nil, "", nil, &s)
	if err != nil && !kube.Is(err, http.StatusNotFound) {
		w.t.Fatal(err)
	}
	return s
}

// endpoints are the addresses in the older form, which the cluster must not make slices of.
func (w *world) endpoints(name string) (ips []string) {
	w.t.Helper()
	var e kube.Endpoints
	err := w.client.Do(w.ctx, http.MethodGet, w.client.Path("", "endpoints", name), nil, "", nil, &e)
	if err != nil && !kube.Is(err, http.StatusNotFound) {
		w.t.Fatal(err)
	}
	if err == nil && e.Metadata.Labels["endpointslice.kubernetes.io/skip-mirror"] != "true" {
		w.t.Fatalf("the cluster would mirror %+v", e)
	}
	for _, s := range e.Subsets {
		for _, a := range s.Addresses {
			ips = append(ips, a.IP)
		}
	}
	return ips
}

func addresses(s kube.EndpointSlice) (ips []string) {
	for _, e := range s.Endpoints {
		ips = append(ips, e.Addresses...)
	}
	return ips
}

func (w *world) roles() (roles []string) {
	w.t.Helper()
	for _, n := range w.shard.Spec.Nodes {
		var p kube.Pod
		if err := w.client.Do(w.ctx, http.MethodGet, w.client.Path("", "pods", string(n.ID)), nil, "", nil, &p); err != nil {
			w.t.Fatal(err)
		}
		roles = append(roles, p.Metadata.Labels["redoubt.io/role"])
	}
	return roles
}

// until waits until the cluster was told of just this.
func (w *world) until(epoch string, primary, reads, roles []string) {
	w.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		p, r, l, e := w.slice("db-primary"), w.slice("db-read"), w.roles(), w.endpoints("db-primary")
		if slices.Equal(e, primary) && p.Metadata.Annotations["redoubt.io/epoch"] == epoch && slices.Equal(addresses(p), primary) && slices.Equal(addresses(r), reads) && slices.Equal(l, roles) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("want epoch %s, primary %v, reads %v, roles %v; the cluster was told %+v, Endpoints %v, reads %v, roles %v", epoch, primary, reads, roles, p, e, addresses(r), l)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (w *world) events() (notes []string) {
	w.t.Helper()
	var list kube.List[kube.News]
	if err := w.client.Do(w.ctx, http.MethodGet, w.client.Path("events.k8s.io/v1", "events"), nil, "", nil, &list); err != nil {
		w.t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.Reason == "PrimaryChanged" {
			notes = append(notes, e.Regarding.Name+": "+e.Note)
		}
	}
	slices.Sort(notes)
	return notes
}

func each(t *testing.T, run func(t *testing.T, s *kubeapi.Server)) {
	t.Run("small", func(t *testing.T) { run(t, kubeapi.Small(t)) })
	t.Run("real", func(t *testing.T) {
		if testing.Short() {
			t.Skip("make show-kubernetes")
		}
		run(t, kubeapi.Real(t))
	})
}

// TestTheClusterIsToldOfThePrimary: first one, a failover by way of nobody, a pod that comes back elsewhere, another controller.
func TestTheClusterIsToldOfThePrimary(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		w := start(t, s)
		if _, err := w.store.Member("n1").Campaign(w.ctx); err != nil {
			t.Fatal(err)
		}
		first, second := w.run("n1"), w.run("n2")
		defer second()
		w.agree(1, topo.PhaseServing, "n1")
		w.report("n1", 1)
		w.report("n2", 1)
		w.until("1", []string{"10.244.0.1"}, []string{"10.244.0.1", "10.244.0.2"}, []string{"primary", "replica", "replica"})
		if svc := w.slice("db-primary").Metadata.Labels["kubernetes.io/service-name"]; svc != "db-primary" {
			t.Errorf("the slice is of service %q", svc)
		}
		w.agree(2, topo.PhaseFencing, "n1")
		w.until("2", nil, nil, []string{"none", "none", "none"})
		w.report("n2", 3)
		w.agree(3, topo.PhaseServing, "n2")
		w.until("3", []string{"10.244.0.2"}, []string{"10.244.0.2"}, []string{"replica", "primary", "replica"})
		s.Pod(t, "n2", "10.244.7.7")
		w.until("3", []string{"10.244.7.7"}, []string{"10.244.7.7"}, []string{"replica", "primary", "replica"})
		first()
		w.store.MoveController("n2")
		if _, err := w.store.Member("n2").Campaign(w.ctx); err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(topo.Sighting{Node: "n2", Epoch: 4, Health: topo.HealthUp})
		if err := w.store.Member("n2").Send(w.ctx, topo.BeatNode+"n2", b, time.Hour); err != nil {
			t.Fatal(err)
		}
		w.agree(4, topo.PhaseServing, "n2")
		w.until("4", []string{"10.244.7.7"}, []string{"10.244.7.7"}, []string{"replica", "primary", "replica"})
		deadline := time.Now().Add(10 * time.Second)
		want := []string{"n1: n1 is the primary of db, epoch 1: the test says so", "n2: n2 is the primary of db, epoch 3: the test says so", "n2: n2 is the primary of db, epoch 4: the test says so"}
		for !slices.Equal(w.events(), want) {
			if time.Now().After(deadline) {
				t.Fatalf("events: %q", w.events())
			}
			<-time.After(20 * time.Millisecond)
		}
	})
}

// TestALaterStateIsNotOverwritten: somebody who was the controller, and knows an old state, tells nobody of it.
func TestALaterStateIsNotOverwritten(t *testing.T) {
	each(t, func(t *testing.T, s *kubeapi.Server) {
		w := start(t, s)
		if _, err := w.store.Member("n1").Campaign(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.agree(5, topo.PhaseServing, "n1")
		later := kube.EndpointSlice{AddressType: "IPv4", Metadata: kube.Meta{Name: "db-primary",
			Labels:      map[string]string{"endpointslice.kubernetes.io/managed-by": "redoubt.io", "kubernetes.io/service-name": "db-primary"},
			Annotations: map[string]string{"redoubt.io/epoch": "6", "redoubt.io/revision": "1"}},
			Endpoints: []kube.Endpoint{{Addresses: []string{"10.244.0.2"}}}, Ports: []kube.SlicePort{}}
		if err := w.client.Do(w.ctx, http.MethodPost, w.client.Path("discovery.k8s.io/v1", "endpointslices"), nil, kube.JSON, later, nil); err != nil {
			t.Fatal(err)
		}
		stop := w.run("n1")
		<-time.After(500 * time.Millisecond)
		if got := w.slice("db-primary"); !slices.Equal(addresses(got), []string{"10.244.0.2"}) || got.Metadata.Annotations["redoubt.io/epoch"] != "6" {
			t.Fatalf("a later state was overwritten: %+v", got)
		}
		w.report("n1", 7)
		w.agree(7, topo.PhaseServing, "n1") // now its own is the later one
		w.until("7", []string{"10.244.0.1"}, []string{"10.244.0.1"}, []string{"primary", "replica", "replica"})
		stop()
	})
}

// TestForeignObjectsAreLeftAlone: a slice of that name that somebody else made.
func TestForeignObjectsAreLeftAlone(t *testing.T) {
	w := start(t, kubeapi.Small(t))
	if _, err := w.store.Member("n1").Campaign(w.ctx); err != nil {
		t.Fatal(err)
	}
	foreign := kube.EndpointSlice{AddressType: "IPv4", Metadata: kube.Meta{Name: "db-primary"}, Endpoints: []kube.Endpoint{{Addresses: []string{"10.9.9.9"}}}}
	if err := w.client.Do(w.ctx, http.MethodPost, w.client.Path("discovery.k8s.io/v1", "endpointslices"), nil, kube.JSON, foreign, nil); err != nil {
		t.Fatal(err)
	}
	w.agree(5, topo.PhaseServing, "n1")
	stop := w.run("n1")
	<-time.After(300 * time.Millisecond)
	stop()
	if got := w.slice("db-primary"); !slices.Equal(addresses(got), []string{"10.9.9.9"}) {
		t.Fatalf("somebody else's slice was overwritten: %+v", got)
	}
}
