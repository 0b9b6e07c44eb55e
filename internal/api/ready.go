// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/http"
	"time"

	"redoubt/internal/topo"
)

// reportSlack is how much younger a report may seem than it is.
const reportSlack = 50 * time.Millisecond

// readyz tells whether the next member may be restarted: this one confirms the agreed state, and the data nodes that have its name serve,
// or follow and have everything.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	for _, p := range s.known() {
		snap := p.View.Load()
		if snap == nil || !snap.Fresh(s.o.Clock.Uptime()) {
			http.Error(w, "the agreed state is not confirmed", http.StatusServiceUnavailable)
			return
		}
		me := topo.NodeID(s.o.Member)
		if _, ok := snap.Shard.Spec.Node(me); !ok {
			continue
		}
		reports, err := p.gather.reports(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		a, seen := snap.Shard.Assigned, reports.Nodes[me]
		primary := a.Phase == topo.PhaseServing && a.Primary == me && seen.Role == topo.RolePrimary && !seen.Fenced
		replica := a.Primary != me && seen.LinkUp && seen.InSync == a.Epoch
		before := seen.Age+reportSlack > s.o.Clock.Now().Sub(s.began) // by an earlier process of this member
		if before || seen.Health != topo.HealthUp || !primary && !replica {
			http.Error(w, fmt.Sprintf("node %s neither serves nor follows with everything that the primary has", me), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ok")
}
