// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"redoubt/internal/converge"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// enforce sees one step of a change through at this primary (SAFETY A7).
func (a *Agent) enforce(ctx context.Context, in converge.Input, o converge.Order) error {
	late, held, err := a.o.Node.Enforce(ctx, redis.Rule{Change: o.Change, Law: o.Law, Acks: o.Acks, Disk: o.Disk, Cut: o.Cut})
	waits := converge.Waits(in, o, late, held)
	if err != nil {
		waits = "the server did not answer: " + err.Error()
	}
	was := a.memory.Growth.Waits
	a.memory = converge.Enforced(a.memory, o, a.o.Clock.Uptime(), waits)
	switch {
	case waits == "":
		a.tell(in, "change", "replicas hold the barrier of a change")
	case waits != was:
		a.tell(in, "change", waits)
	}
	return err
}

// noteGrowth adds to a report how far this node is with a change.
func noteGrowth(s *topo.Sighting, in converge.Input) {
	if in.Shard == nil {
		return
	}
	as, m := in.Shard.Assigned, in.Memory
	if as.Change != nil {
		s.Change = as.Change.ID
		s.Barrier = m.BarrierOf(as.Epoch)
		if as.Primary == in.Self && s.Barrier != as.Change.ID {
			s.Waits = m.Growth.Waits
		}
	}
	if m.LostAt > 0 && as.Phase == topo.PhaseServing && as.Primary != in.Self {
		s.Unlinked = topo.Duration(in.Now - m.LostAt)
	}
}

// sponsor is what replicas of this replica present: a node that is about to join follows it until it is in the roster.
func sponsor(in converge.Input) redis.Credentials {
	a := in.Shard.Assigned
	c := a.Change
	if a.Phase != topo.PhaseServing || c == nil || c.Kind != topo.ChangeAdd || c.Via != in.Self || in.Seen.Role != topo.RoleReplica {
		return redis.Credentials{}
	}
	return credentials(in)
}
