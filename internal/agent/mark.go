// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// mark writes the commit marker once in every beat while this node serves in quorum mode and something was written (SAFETY A9). It
// comes after everything that was written before it, so that a data set which has it has all of that too.
func (a *Agent) mark(ctx context.Context, in converge.Input) {
	if !marks(in) || in.Now-a.markedAt < in.Shard.Spec.Timing.Beat.D() {
		return
	}
	a.markedAt = in.Now
	ctx, cancel := context.WithTimeout(ctx, a.patience(lookTimeout))
	defer cancel()
	m := topo.Mark{Epoch: in.Shard.Assigned.Epoch, Offset: in.Seen.Pos.Offset}
	if err := a.o.Node.Mark(ctx, m); err != nil && ctx.Err() == nil {
		a.o.Log.Debug("the commit marker was not written", "node", a.o.ID, "err", err)
	}
}

// marks: this very process serves the tenure that the document names, and its lease is good.
func marks(in converge.Input) bool {
	if in.Shard == nil || !in.Shard.Spec.Durability.Waits() || in.Now >= in.LeaseEnd {
		return false
	}
	as, s := in.Shard.Assigned, in.Seen
	return as.Phase == topo.PhaseServing && as.Primary == in.Self && as.RunID == s.RunID && s.Health == topo.HealthUp && s.Role == topo.RolePrimary
}
