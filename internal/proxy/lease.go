// SPDX-License-Identifier: Apache-2.0

package proxy

import "sync/atomic"

// reads: lease (ADR 0024). A read on a lane where nothing waits behind a WAIT is answered without a marker if, when its reply is
// there, the lease of the primary is certainly good and nothing that this proxy knows of can be seen at the primary without being
// on enough replicas. Otherwise it is read once more, with a marker behind it, as ReadLinearizable does. So what it shows was
// acknowledged, except what another proxy or a direct client is just writing.

// visibility counts what can be seen at the primary and may still be lost.
type visibility struct {
	writes   atomic.Int64  // batches with writes on their way that wait for replicas
	raised   atomic.Uint64 // grows when it becomes unknown what can be seen: a tenure began, an outcome is open
	answered atomic.Uint64 // up to here, a marker that was sent later is on enough replicas
}

// strict reports whether reads of the read-write port are promised more than ReadLocal.
func (p *Proxy) strict() bool {
	return p.o.ReadConsistency == ReadLinearizable || p.o.ReadConsistency == ReadLease
}

// sure reports whether a reply that is here now needs no marker behind it.
func (p *Proxy) sure(t *tenure) bool {
	o := p.order.Load()
	if o.need.nothing() {
		return true
	}
	v := &p.visible
	return o.t == t && o.sending && v.writes.Load() == 0 && v.answered.Load() >= v.raised.Load() && t.certain(p.now())
}

// coverReads has the reads among items wait for a marker where they would not be answered without one.
func (l *lane) coverReads(items []item) {
	o := l.p.order.Load()
	if l.readsOnly && o.t != nil && l.p.sure(o.t) {
		return
	}
	for i := range items {
		if items[i].flags&leased != 0 {
			items[i].flags |= commits
		}
	}
}

// readAgain sends a read once more, with a marker behind it.
func (k *link) readAgain(b *batch, e *entry) {
	l := k.l
	e.flags |= commits
	l.mu.Lock()
	l.moveToRedo(b, e, nil)
	l.mu.Unlock()
	l.nudge()
}

// doubt: until a marker that is sent from now on is acknowledged, what can be seen at the primary may be lost.
func (v *visibility) doubt() { v.raised.Add(1) }

// sending notes what the batch makes visible, before it is sent.
func (v *visibility) sending(p *Proxy, b *batch) {
	if p.o.ReadConsistency != ReadLease || !b.withheld() || b.bare {
		return
	}
	b.doubts = v.raised.Load()
	for i := range b.ents {
		if b.ents[i].flags&writes != 0 {
			b.shows = true
			v.writes.Add(1)
			return
		}
	}
}

// settled: the writes of the batch are on enough replicas.
func (v *visibility) settled(b *batch) {
	if b.shows {
		b.shows = false
		v.writes.Add(-1)
	}
}

// acknowledged: so is the marker behind them.
func (v *visibility) acknowledged(b *batch) {
	v.settled(b)
	for was := v.answered.Load(); was < b.doubts && !v.answered.CompareAndSwap(was, b.doubts); was = v.answered.Load() {
	}
}

// gaveUp: the batch is not waited for any more, and its writes may have been applied.
func (v *visibility) gaveUp(b *batch) {
	if b.shows {
		v.doubt()
		v.settled(b)
	}
}
