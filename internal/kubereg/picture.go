// SPDX-License-Identifier: Apache-2.0

package kubereg

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// picture is what the cluster is to be told of a shard.
type picture struct {
	at      stamp
	primary topo.NodeID // who takes writes; empty: nobody at the moment
	why     string
	nodes   []place
}

// stamp orders pictures. What bears a later one is never replaced.
type stamp struct {
	epoch topo.Epoch
	rev   coord.Rev
}

func (s stamp) before(t stamp) bool {
	return cmp.Or(cmp.Compare(s.epoch, t.epoch), cmp.Compare(s.rev, t.rev)) < 0
}

// place is one data node.
type place struct {
	id    topo.NodeID
	host  string
	port  int
	reads bool // it may be read from
}

// role is what the pod's label says.
func (p picture) role(id topo.NodeID) string {
	switch {
	case id == p.primary:
		return "primary"
	case p.primary == "":
		return "none" // until there is a primary again, nobody has a role
	}
	return "replica"
}

// tenure names who is the primary since when; empty: nobody is.
func (p picture) tenure() string {
	if p.primary == "" {
		return ""
	}
	return fmt.Sprintf("%s@%d", p.primary, p.at.epoch)
}

// paint makes the picture of a document and the reports about it.
func paint(snap *view.Snapshot, reports view.Reports) picture {
	a := snap.Shard.Assigned
	p := picture{at: stamp{a.Epoch, snap.Rev}, why: a.Why}
	if a.Phase == topo.PhaseServing {
		p.primary = a.Primary
	}
	for _, n := range snap.Shard.Spec.Nodes {
		host, port, err := net.SplitHostPort(n.Addr)
		number, bad := strconv.Atoi(port)
		if err != nil || bad != nil {
			continue
		}
		seen, ok := reports.Nodes[n.ID]
		up := ok && seen.Health == topo.HealthUp && !seen.Frozen && p.primary != ""
		p.nodes = append(p.nodes, place{n.ID, host, number, up && (n.ID == p.primary || seen.LinkUp && seen.InSync == a.Epoch)})
	}
	slices.SortFunc(p.nodes, func(x, y place) int { return cmp.Compare(x.id, y.id) })
	return p
}
