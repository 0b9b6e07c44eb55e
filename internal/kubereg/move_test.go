// SPDX-License-Identifier: Apache-2.0

package kubereg_test

import (
	"testing"
	"time"

	"redoubt/internal/topo"
	"redoubt/test/kubeapi"
)

// TestAPlannedMoveIsToldOfOnceItIsOver: its requests would stand in the way of the move. One that takes its time is told of.
func TestAPlannedMoveIsToldOfOnceItIsOver(t *testing.T) {
	w := start(t, kubeapi.Small(t))
	if _, err := w.store.Member("n1").Campaign(w.ctx); err != nil {
		t.Fatal(err)
	}
	defer w.run("n1")()
	w.agree(1, topo.PhaseServing, "n1")
	w.until("1", []string{"10.244.0.1"}, nil, []string{"primary", "replica", "replica"})
	w.stays("no round is under way")

	wanted := &topo.Intent{ID: "a", Kind: topo.IntentSwitchover}
	before := w.slice("db-primary").Metadata.ResourceVersion
	w.move(1, topo.PhaseServing, "n1", wanted)
	w.move(1, topo.PhaseDraining, "n1", wanted)
	w.move(2, topo.PhasePromoting, "n2", wanted)
	<-time.After(100 * time.Millisecond)
	if now := w.slice("db-primary").Metadata.ResourceVersion; now != before {
		t.Errorf("the slice was written during the move: version %s, before %s", now, before)
	}
	w.agree(2, topo.PhaseServing, "n2")
	w.until("2", []string{"10.244.0.2"}, nil, []string{"replica", "primary", "replica"})

	w.move(2, topo.PhaseDraining, "n2", &topo.Intent{ID: "b", Kind: topo.IntentSwitchover})
	w.until("2", nil, nil, []string{"none", "none", "none"})
}

// stays waits until the slice has not been written for a while.
func (w *world) stays(what string) {
	w.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		before := w.slice("db-primary").Metadata.ResourceVersion
		<-time.After(300 * time.Millisecond)
		if w.slice("db-primary").Metadata.ResourceVersion == before {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(what + ": it is written all the time")
		}
	}
}
