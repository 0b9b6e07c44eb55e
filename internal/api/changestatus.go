// SPDX-License-Identifier: Apache-2.0

package api

import (
	"redoubt/internal/failover"
	"redoubt/internal/topo"
)

// ChangeStatus is a change of the specification that is under way.
type ChangeStatus struct {
	ID    uint64          `json:"id"`
	Kind  topo.ChangeKind `json:"kind"`
	Text  string          `json:"text"`  // what it does
	Waits string          `json:"waits"` // what it waits for
	By    string          `json:"by,omitempty"`
	Node  topo.NodeID     `json:"node,omitempty"`
}

// changeStatus describes the change that is under way; nil: there is none.
func (f facts) changeStatus() *ChangeStatus {
	c := f.shard.Assigned.Change
	if c == nil {
		return nil
	}
	waits := failover.ChangeWaits(f.shard, func(id topo.NodeID) (topo.Sighting, bool) {
		s, ok := f.reports.Nodes[id]
		return s.Sighting, ok && s.Age <= f.shard.Spec.Timing.Silence.D()
	})
	return &ChangeStatus{ID: c.ID, Kind: c.Kind, Text: c.String(), Waits: waits, By: c.By, Node: c.Node.ID}
}

// copies is how many nodes hold a write at least when it is acknowledged.
func (f facts) copies() int { return f.shard.Agreed() + 1 }

// changeProblems says in words what is unusual about the roster and its promise.
func (f facts) changeProblems(say func(format string, args ...any)) {
	s, a := f.shard.Spec, f.shard.Assigned
	if c := f.changeStatus(); c != nil {
		say("a change is under way (%s): %s", c.Text, c.Waits)
	}
	if a.Alone == "" {
		return
	}
	if s.MinCopies > 1 {
		say("ONE COPY: %s alone has every acknowledged write; min-copies %d holds writes until a replica is back", a.Alone, s.MinCopies)
		return
	}
	say("ONE COPY: %s alone has every acknowledged write and acknowledges alone: what it takes now is lost with it", a.Alone)
}
