// SPDX-License-Identifier: Apache-2.0

package converge

import (
	"slices"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// Pledge is this node's word to the primary of an epoch: until its end it promises no higher epoch to an election, so that it is
// no witness and cannot be elected, whatever the store says (SAFETY B3). The zero value binds to nothing.
type Pledge struct {
	Epoch topo.Epoch
	Until time.Duration // uptime
}

// binds reports whether an election of epoch has to wait for the end of the pledge. An epoch that is promised already is past
// the tenure that the pledge was for.
func (p Pledge) binds(epoch, promised topo.Epoch, now time.Duration) bool {
	return now < p.Until && promised <= p.Epoch && epoch > p.Epoch && !invariant.Planted("agree-without-promise")
}

// Binds reports whether this node may not promise epoch in phase p now. Only an election asks for a promise that a pledge
// forbids, and a switchover that may still become one: what is promised ahead would release the node from its pledge. A
// promotion was decided without this node: the old primary had fenced itself.
func (p Pledge) Binds(phase topo.Phase, epoch, promised topo.Epoch, now time.Duration) bool {
	early := phase == topo.PhaseDraining && !invariant.Planted("promise-ahead-of-pledge")
	return (phase == topo.PhaseFencing || early) && p.binds(epoch, promised, now)
}

// pledged: other members rely on this node's word that it is not frozen for an election before the pledge ends.
func pledged(in *Input) (bool, string) {
	return in.Pledged.Binds(in.a().Phase, in.a().Epoch, in.Promised, in.Now),
		in.say("pledged to the primary of epoch %d not to freeze for another %s", in.Pledged.Epoch, (in.Pledged.Until - in.Now).Round(time.Millisecond))
}

// MayPledge judges a plea at node self: what the node knows must be just what the primary knows, it must not have promised
// a higher epoch, and the store must be away for it as well. why says what is against it.
func MayPledge(p topo.Plea, self topo.NodeID, shard *topo.Shard, readAge time.Duration, promised topo.Epoch) (ok bool, why string) {
	if shard == nil {
		return false, "no order is known here"
	}
	a := shard.Assigned
	switch known := topo.PleaOf(*shard); {
	case a.Epoch != p.Epoch || a.Primary != p.Primary || a.RunID != p.RunID:
		return false, "another tenure is known here"
	case a.Phase != topo.PhaseServing:
		return false, "the shard is " + string(a.Phase) + " here"
	case !slices.Equal(known.Nodes, p.Nodes) || !slices.Contains(p.Nodes, self) || self == p.Primary:
		return false, "other nodes are known here"
	case known.Lease != p.Lease:
		return false, "another lease is known here"
	case promised > p.Epoch:
		return false, "a higher epoch is promised"
	case readAge < shard.Spec.Timing.PledgeAfter():
		return false, "the store answers here"
	}
	return true, ""
}
