// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"sync/atomic"
	"time"

	"redoubt/internal/event"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// tenure is one primary's time under one epoch. Upstream connections belong to one tenure, and replies of different
// tenures never meet (SAFETY A5).
type tenure struct {
	epoch topo.Epoch
	runID string
	// history is the replication id that was recorded when this tenure began. The same process can be promoted again in a later
	// epoch; until that is recorded nobody may write to it, and it shows in this id only (SAFETY A3).
	history string
	node    topo.NodeID
	addr    string
	lease   time.Duration
	margin  time.Duration
	from    atomic.Int64 // clock.Uptime from which the lease counts: view.Snapshot.LeaseStart in phase serving
}

// good reports whether the lease of the tenure has not ended.
func (t *tenure) good(now time.Duration) bool {
	from := time.Duration(t.from.Load())
	return from > 0 && now < from+t.lease
}

// certain reports whether the lease has not ended by a clock that is slower than ours by margin over its length.
func (t *tenure) certain(now time.Duration) bool { return t.good(now + t.margin) }

// order is what the steering loop last told the lanes. It is immutable.
type order struct {
	t        *tenure // whose connections may live; nil: none yet
	sending  bool    // phase serving: commands may go out while the lease is good
	draining bool    // a switchover: finish what is on its way, then disconnect
	need     need    // what a write waits for
	rule     uint64  // number of the rule that need is from: connections carry it
	maxLoss  topo.Loss
	members  int // nodes of the shard
	park     time.Duration
	why      string // for the error of a command that was parked too long
}

// steer turns the view into orders until the proxy stops.
func (p *Proxy) steer() {
	for {
		next := p.o.View.Next()
		if s := p.o.View.Load(); s != nil {
			p.obey(s)
		}
		select {
		case <-p.ctx.Done():
			return
		case <-next:
		}
	}
}

func (p *Proxy) obey(s *view.Snapshot) {
	old := p.order.Load()
	spec, a := s.Shard.Spec, s.Shard.Assigned
	o := &order{t: old.t, park: spec.Timing.Park.D(), why: explain(a), maxLoss: spec.MaxLoss, members: len(spec.Nodes)}
	o.need, o.rule = need{acks: s.Shard.Acks(), disk: s.Shard.OnDisk()}, a.Rule
	node, known := spec.Node(a.Primary)
	same := old.t != nil && known && old.t.node == a.Primary && old.t.runID == a.RunID && old.t.addr == node.Addr
	switch {
	case a.Phase == topo.PhaseServing && known:
		o.sending = true
		if !same || old.t.epoch != a.Epoch || old.t.lease != spec.Timing.Lease.D() {
			latest, _ := a.Latest()
			o.t = &tenure{history: latest.ReplID, epoch: a.Epoch, runID: a.RunID, node: a.Primary, addr: node.Addr, lease: spec.Timing.Lease.D(), margin: spec.Timing.Margin.D()}
			p.visible.doubt() // what survived the tenure before need not be on enough replicas yet
		}
		if from := s.LeaseStart(); from > 0 {
			// An order of the same tenure shares its lease. It must not be renewed for the order before this one, whose rule
			// may be a weaker one.
			if o.t == old.t && o.rule != old.rule {
				p.order.Store(o)
			}
			o.t.from.Store(int64(from))
		}
	case a.Phase == topo.PhaseDraining && same:
		o.draining = true
	}
	lapsed := p.lapsed.Swap(false)
	if o.t == old.t && o.sending == old.sending && o.draining == old.draining && o.need == old.need && o.rule == old.rule && o.park == old.park && o.why == old.why &&
		o.maxLoss == old.maxLoss && o.members == old.members {
		if lapsed {
			p.rouse()
		}
		return
	}
	p.order.Store(o)
	if o.t != old.t || o.sending != old.sending {
		p.log.Info("obeying the shard's document", "shard", s.Shard.ID, "epoch", a.Epoch, "phase", a.Phase, "node", a.Primary, "sending", o.sending)
		p.tell(s.Shard.ID, a)
		p.lore.poke()
	}
	if o.draining && !old.draining || o.need.strongerThan(old.need) && o.t == old.t {
		p.spawn(p.unblockAll)
	}
	p.rouse()
}

func (p *Proxy) tell(shard string, a topo.Assigned) {
	if p.o.Events != nil {
		p.o.Events(event.Event{At: p.o.Clock.Now(), Kind: "proxy", Shard: shard, Node: string(a.Primary), Epoch: uint64(a.Epoch), Rule: a.Reason,
			Text: fmt.Sprintf("proxy %s obeys phase %s of epoch %d", p.o.ID, a.Phase, a.Epoch)})
	}
}

func explain(a topo.Assigned) string {
	switch a.Phase {
	case topo.PhaseNew:
		return "the shard has no primary yet"
	case topo.PhaseServing:
		return fmt.Sprintf("primary %s of epoch %d does not answer, or the store cannot be reached", a.Primary, a.Epoch)
	case topo.PhaseDraining:
		return fmt.Sprintf("a switchover away from %s is under way", a.Primary)
	case topo.PhasePromoting:
		return fmt.Sprintf("%s is being promoted at epoch %d", a.Primary, a.Epoch)
	}
	return fmt.Sprintf("the failover from %s is under way at epoch %d", a.Primary, a.Epoch)
}

// rouse makes every lane look at its orders. Connections of an earlier tenure are cut here, because their lane may be
// blocked in a write to a server that hangs.
func (p *Proxy) rouse() {
	p.herald.look()
	poke(p.presence)
	o := p.order.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.lanes {
		l.cutIfStale(o)
		l.nudge()
	}
}

// maySend reports whether o is still the order of the moment and its lease is good.
func (p *Proxy) maySend(o *order) bool {
	if !o.sending || p.shut.Load() || p.order.Load() != o {
		return false
	}
	if !o.t.good(p.now()) {
		if !p.lapsed.Swap(true) {
			p.herald.look()
		}
		return false
	}
	return true
}

// landed counts a batch of the primary as done. The last one while draining lets the shared connections go.
func (p *Proxy) landed() {
	if p.inflight.Add(-1) == 0 && p.order.Load().draining {
		p.rouse()
	}
}
