// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"slices"
	"time"
)

// Plea is what the primary's agent asks of every other data node's agent while the store is away: not to take part in an
// election of a higher epoch for a while.
type Plea struct {
	Epoch   Epoch    `json:"epoch"`
	Primary NodeID   `json:"primary"`
	RunID   string   `json:"run_id"`
	Nodes   []NodeID `json:"nodes"` // all that the primary knows of; whoever knows others refuses
	Rule    uint64   `json:"rule"`  // of acknowledging; who knows another one gets no word, so that its table expires (SAFETY A7)
	Lease   Duration `json:"lease"` // what it counts on; whoever knows another one refuses
}

// PleaOf is the plea of the primary that s names. Who is about to join counts already: it may be elected as soon as it is in the
// roster, which the primary may not hear of.
func PleaOf(s Shard) Plea {
	p := Plea{Epoch: s.Assigned.Epoch, Primary: s.Assigned.Primary, RunID: s.Assigned.RunID, Rule: s.Assigned.Rule, Lease: s.Spec.Timing.Lease}
	for _, n := range s.Spec.Nodes {
		p.Nodes = append(p.Nodes, n.ID)
	}
	if c := s.Assigned.Change; c != nil && c.Kind == ChangeAdd {
		p.Nodes = append(p.Nodes, c.Node.ID)
	}
	slices.Sort(p.Nodes)
	return p
}

// SeekAfter is how old the latest read may be before a member looks for a lease elsewhere than in the store: late enough
// that a change of controller seldom gets there, and early enough to ask several times before the lease ends.
func (t Timing) SeekAfter() time.Duration { return t.Lease.D() * 3 / 8 }

// PledgeAfter is how old the latest read of an agent must be before it pledges anything: whoever reaches the store decides
// there. It is shorter than SeekAfter, so that all are ready when the first plea comes.
func (t Timing) PledgeAfter() time.Duration { return t.Lease.D() / 4 }

// PledgeFor is how long a pledge binds whoever gave it, from when it was given. The primary counts a lease from when it
// asked; the margin is for clocks of different rates, and for the fence.
func (t Timing) PledgeFor() time.Duration { return t.Lease.D() + t.Margin.D() }
