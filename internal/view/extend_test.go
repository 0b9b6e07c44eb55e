// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/coord/memstore"
	"redoubt/internal/looptest"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// TestALeaseByPledgesIsOfOneTenureAndNoReading: it goes on with the tenure and ends with it, and the store counts as away.
func TestALeaseByPledgesIsOfOneTenureAndNoReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const key = "shard/s"
		c := looptest.NewClock()
		cluster := memstore.New(c, "m1", "m2")
		shard := topo.Shard{Format: topo.Format, ID: "s", Spec: topo.Spec{Durability: topo.Async, Timing: topo.LANTiming(), Nodes: []topo.Node{{ID: "n1", Addr: "a:1"}}}}
		shard.Assigned = topo.Assigned{Term: 1, Epoch: 3, Phase: topo.PhaseServing, Primary: "n1", RunID: "r1", History: []topo.HistoryEntry{{Epoch: 3, ReplID: "A"}}}
		other := cluster.Member("m2")
		put := func() {
			doc, _ := cluster.Doc(key)
			if _, err := other.Swap(t.Context(), key, shard.Encode(), doc.Rev); err != nil {
				t.Fatal(err)
			}
		}
		put()
		v := view.New(cluster.Member("m1"), c, key, slog.New(slog.DiscardHandler))
		stop := looptest.Start(t, map[string]func(context.Context) error{"view": v.Run})
		defer stop()
		looptest.Pass(time.Second)
		cluster.Cut("m1")
		lease := shard.Spec.Timing.Lease.D()
		looptest.Pass(lease / 2)

		wrong := shard.Assigned
		wrong.RunID = "r2"
		v.Extend(wrong, c.Uptime(), []topo.NodeID{"n2"})
		if s := v.Load(); s.Pledged.From != 0 {
			t.Fatalf("the lease of another process was taken: %+v", s.Pledged)
		}
		next, from := v.Next(), c.Uptime()
		v.Extend(shard.Assigned, from, []topo.NodeID{"n2"})
		select {
		case <-next:
		default:
			t.Fatal("nobody was told")
		}
		v.Extend(shard.Assigned, from-time.Millisecond, nil) // an answer that was slower
		looptest.Pass(lease - time.Millisecond)
		if s := v.Load(); s.LeaseStart() != from || !s.Leased(c.Uptime()) || s.Fresh(c.Uptime()) {
			t.Fatalf("counts from %s, pledged at %s; leased %v, fresh %v", s.LeaseStart(), from, s.Leased(c.Uptime()), s.Fresh(c.Uptime()))
		}
		looptest.Pass(time.Millisecond)
		if v.Load().Leased(c.Uptime()) {
			t.Fatal("the lease has no end")
		}

		from = c.Uptime()
		v.Extend(shard.Assigned, from, []topo.NodeID{"n2"})
		shard.Assigned.Outcome = &topo.Outcome{ID: "x"} // a revision of the same tenure
		put()
		cluster.Heal("m1")
		looptest.Pass(100 * time.Millisecond)
		if s := v.Load(); s.Pledged.From != from || s.ReadStart <= from {
			t.Fatalf("in the same tenure: pledged %s, want %s; read %s", s.Pledged.From, from, s.ReadStart)
		}
		shard.Assigned.Epoch, shard.Assigned.Phase = 4, topo.PhaseFencing
		put()
		looptest.Pass(100 * time.Millisecond)
		v.Extend(shard.Assigned, c.Uptime(), nil)
		if s := v.Load(); s.Shard.Assigned.Epoch != 4 || s.Pledged.From != 0 {
			t.Fatalf("a lease by pledges outlived its tenure: epoch %d, %+v", s.Shard.Assigned.Epoch, s.Pledged)
		}
	})
}
