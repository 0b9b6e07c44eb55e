// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// TestAnOutageOfTheStoreIsExplained: status, explain and the metrics say who goes on, and by whose promise.
func TestAnOutageOfTheStoreIsExplained(t *testing.T) {
	r := newRig(t)
	sh := shard()
	sh.Spec.Timing.Lease = topo.Duration(time.Minute)
	sh.Spec.Timing.Margin = topo.Duration(10 * time.Second)
	r.set(sh)
	const words = "the store is unreachable, n1 goes on by the promise of n2, n3 not to freeze"
	v := view.New(r.store, clock.Real{}, topo.KeyShard+sh.ID, slog.New(slog.DiscardHandler))
	s, err := New(Options{Listen: "127.0.0.1:0", Version: "1", Member: "m1", Clock: clock.Real{}, Shards: []Shard{{ID: sh.ID, Store: r.store, View: v, Outage: func() string { return words }}}})
	if err != nil {
		t.Fatal(err)
	}
	client := NewClient(s.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = v.Run(ctx); done <- struct{}{} }()
	go func() { _ = s.Run(ctx); done <- struct{}{} }()
	t.Cleanup(func() { client.Close(); cancel(); <-done; <-done })
	for next := v.Next(); v.Load() == nil; next = v.Next() {
		select {
		case <-next:
		case <-time.After(10 * time.Second):
			t.Fatal("the view knows nothing")
		}
	}
	problems := func() string {
		st, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(st.Problems, "\n")
	}
	if p := problems(); strings.Contains(p, words) {
		t.Errorf("while the store answers: %s", p)
	}
	r.cluster.Outage(true)
	v.Extend(sh.Assigned, clock.Real{}.Uptime(), []topo.NodeID{"n2", "n3"})
	for end := time.Now().Add(10 * time.Second); !strings.Contains(problems(), words); { // the answer of a moment ago is shared
		if time.Now().After(end) {
			t.Fatalf("the status says %s", problems())
		}
	}
	ex, err := client.Explain(t.Context())
	if err != nil || ex.Rule != "store-outage" || ex.Why != words || ex.Member != "m1" {
		t.Errorf("explain: %+v, %v", ex, err)
	}
	resp, err := http.Get("http://" + s.Addr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(text), `redoubt_shard_pledged{deployment="mymaster",shard="mymaster-0"} 1`) {
		t.Errorf("metrics:\n%s", text)
	}
	if st, err := client.Status(t.Context()); err != nil || len(st.Deployments[0].Shards[0].PledgedBy) != 2 {
		t.Errorf("pledged_by: %+v, %v", st.Deployments, err)
	}
}
