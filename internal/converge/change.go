// SPDX-License-Identifier: Apache-2.0

package converge

import (
	"strings"
	"time"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// What a change of the specification asks of one node (SAFETY A7): who joins follows a replica, because replicas of replicas
// do not count; who leaves stands still; and the primary makes sure of the stronger rule before anything relies on it.

// Growth is what an agent remembers of a change that is under way.
type Growth struct {
	Change  uint64        // the change that the rest is about
	Since   time.Duration // uptime at which it was first known here
	TriedAt time.Duration // uptime of the latest Enforce
	Barrier uint64        // the change whose barrier replicas hold …
	Epoch   topo.Epoch    // … in this epoch
	Waits   string        // what Enforce found in its way
}

// enforceEvery paces Enforce.
const enforceEvery = 20 * time.Millisecond

// Enforced folds the outcome of an Enforce into the memory: waits is empty when replicas hold the barrier.
func Enforced(m Memory, o Order, now time.Duration, waits string) Memory {
	m.Growth.TriedAt, m.Growth.Waits = now, waits
	if waits == "" {
		m.Growth.Barrier, m.Growth.Epoch = o.Change, o.Epoch
	}
	return m
}

// noteChange starts the clock of a change that was not known before. Whoever held a table that is older than the change has
// begun to read it before that, so that its lease ends within lease and margin from here.
func noteChange(m Memory, in Input) Memory {
	if in.Shard == nil {
		return m
	}
	switch c := in.a().Change; {
	case c == nil:
		m.Growth = Growth{}
	case m.Growth.Change != c.ID:
		m.Growth = Growth{Change: c.ID, Since: in.Now}
	}
	return m
}

// BarrierOf returns the change for which this very process has had a barrier acknowledged in that epoch; 0: none.
func (m Memory) BarrierOf(e topo.Epoch) uint64 {
	if m.Growth.Epoch != e {
		return 0
	}
	return m.Growth.Barrier
}

func (in *Input) change(k topo.ChangeKind) *topo.Change {
	if c := in.a().Change; c != nil && c.Kind == k {
		return c
	}
	return nil
}

// joining: this node is not in the roster yet and follows a replica meanwhile; or the primary, where nobody waits for anybody.
func (in *Input) joining() bool {
	c := in.change(topo.ChangeAdd)
	if c == nil || c.Node.ID != in.Self || c.Void || c.Via == "" || c.Via == in.Self {
		return false
	}
	return c.Via != in.a().Primary || in.Shard.Acks() == 0
}

// outside: nobody may count on this node, so it may follow nobody.
func (in *Input) outside() bool {
	if c := in.change(topo.ChangeRemove); c != nil && c.Node.ID == in.Self && !invariant.Planted("remove-without-barrier") {
		return true
	}
	_, known := in.Shard.Spec.Node(in.Self)
	return !known && !in.joining()
}

// sourceAddr is where this node replicates from.
func (in *Input) sourceAddr() string {
	if in.joining() {
		n, _ := in.Shard.Spec.Node(in.change(topo.ChangeAdd).Via)
		return n.Addr
	}
	return in.primaryAddr()
}

// mustEnforce: a change waits for this primary.
func mustEnforce(in *Input) (bool, string) {
	c := in.a().Change
	switch {
	case c == nil || in.a().Phase != topo.PhaseServing || in.Seen.Role != topo.RolePrimary || in.a().Primary != in.Self:
		return false, "no change waits for this node"
	case c.Kind == topo.ChangeAdd, c.Kind == topo.ChangeRemove && !c.Cut:
		return false, "the change waits for another node"
	case in.Memory.BarrierOf(in.a().Epoch) == c.ID:
		return false, "replicas hold the barrier"
	case in.Memory.Growth.TriedAt > 0 && in.Now-in.Memory.Growth.TriedAt < enforceEvery:
		return false, "tried a moment ago"
	}
	return true, in.say("change %d: %s", c.ID, c)
}

func enforce(in *Input) Order {
	c := in.a().Change
	o := Order{Do: Enforce, Epoch: in.a().Epoch, Change: c.ID, Acks: in.Shard.Acks(), Disk: in.Shard.OnDisk(), Cut: true}
	if c.Kind != topo.ChangeRemove { // there the rule is as it was, and what the leaver held is what the barrier is about
		o.Law = c.ID
		o.Cut = in.expires() <= 0 || invariant.Planted("grow-before-proxies-confirmed")
	}
	return o
}

// expires is how long a table of before the change can still be good.
func (in *Input) expires() time.Duration {
	t := in.Shard.Spec.Timing
	return in.Memory.Growth.Since + t.Lease.D() + t.Margin.D() - in.Now
}

// Waits says what is in the way of a change after an Enforce: empty when nothing is.
func Waits(in Input, o Order, late []string, held bool) string {
	switch {
	case len(late) > 0:
		return "waiting for proxy " + strings.Join(late, ", ")
	case !o.Cut:
		return "waiting until proxies that cannot be heard have lost their lease"
	case !held && o.Disk:
		return in.say("waiting for the disks of %s and of %d replicas to have the barrier", in.Self, o.Acks)
	case !held:
		return in.say("waiting for %d replicas to hold the barrier", o.Acks)
	}
	return ""
}
