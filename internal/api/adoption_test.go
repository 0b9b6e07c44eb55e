// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

func TestAnAdoptionGoesFromOneHandToTheOther(t *testing.T) {
	r := newRigWith(t, func(o *Options) {
		o.Adoption = &Adoption{Docs: o.Shards[0].Store, Deployment: "mymaster", Spec: shard().Spec}
	})
	ctx := t.Context()
	order := func(state topo.AdoptionState, f topo.Found) error {
		return r.client.OrderAdoption(ctx, AdoptionOrder{State: state, Found: f, By: "ops"})
	}
	st, err := r.client.Adoption(ctx)
	if err != nil || st.State != topo.AdoptionWaiting || st.Primary != "" {
		t.Fatalf("at first: %+v %v", st, err)
	}
	if st, err := r.client.Status(ctx); err != nil || !slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "the adoption is waiting") }) {
		t.Errorf("the status while waiting: %v %v", st.Problems, err)
	}
	found := topo.Found{Node: "n2", RunID: "r2", ReplID: "aa"}
	r.refused(order(topo.AdoptionReleased, found), http.StatusConflict, "bad-state")
	r.refused(order(topo.AdoptionArmed, topo.Found{Node: "n9", RunID: "r", ReplID: "a"}), http.StatusBadRequest, "bad-request")
	r.refused(order(topo.AdoptionArmed, topo.Found{Node: "n2"}), http.StatusBadRequest, "bad-request")
	if _, ok := r.cluster.Doc(topo.KeyShard + "mymaster-0"); ok {
		t.Fatal("a refused order has made the document")
	}
	for range 2 { // the second time nothing is left to do
		if err := order(topo.AdoptionArmed, found); err != nil {
			t.Fatal(err)
		}
	}
	a := r.get().Assigned
	if a.Epoch != 1 || a.Phase != topo.PhaseServing || a.Primary != "n2" || a.RunID != "r2" || a.Secret != "" || len(a.Enrolled) != 1 || a.Enrolled["n2"] != "r2" {
		t.Errorf("adopted: %+v", a)
	}
	if e, ok := a.Latest(); !ok || e.ReplID != "aa" || e.Parent != 0 {
		t.Errorf("its history: %+v", a.History)
	}
	r.report(topo.BeatMember+"m1", topo.MemberReport{ID: "m1", Adoption: topo.AdoptionArmed, AdoptionProblem: "none"})
	if st, err = r.client.Adoption(ctx); err != nil || st.State != topo.AdoptionArmed || st.Primary != "n2" || len(st.Members) != 1 || st.Members[0].State != topo.AdoptionArmed {
		t.Errorf("armed: %+v %v", st, err)
	}

	s := r.get()
	s.Assigned.Epoch, s.Assigned.Term = 7, 3
	r.set(s)
	if err := order(topo.AdoptionReleased, topo.Found{}); err != nil {
		t.Fatal(err)
	}
	if a := r.get().Assigned; a.Paused == nil {
		t.Error("automation goes on for servers that are somebody else's")
	}
	if err := order(topo.AdoptionArmed, topo.Found{Node: "n3", RunID: "r3", ReplID: "bb"}); err != nil {
		t.Fatal(err)
	}
	if a := r.get().Assigned; a.Epoch != 8 || a.Term != 3 || a.Primary != "n3" || a.Paused != nil || len(a.History) != 1 {
		t.Errorf("adopted again: %+v", a)
	}
}

func TestADeploymentThatBeganAtOnceIsNotAdopted(t *testing.T) {
	r := newRig(t)
	_, err := r.client.Adoption(t.Context())
	r.refused(err, http.StatusConflict, "not-on-order")
	r.refused(r.client.OrderAdoption(t.Context(), AdoptionOrder{State: topo.AdoptionArmed}), http.StatusConflict, "not-on-order")
	if _, err := r.store.Get(t.Context(), topo.KeyAdoption+"mymaster"); !errors.Is(err, coord.ErrNotFound) {
		t.Errorf("a refused order was recorded: %v", err)
	}
}
