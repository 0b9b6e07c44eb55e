// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// The dial of an asynchronous deployment (`max-loss`): how old, and how many bytes, the acknowledged writes may be that
// no replica holds. Beyond it writes are held in front of the primary, and refused when that takes too long.
//
// A gauge on a connection of its own asks [marker][WAIT 1]: when a replica answers, it holds everything that was
// acknowledged before the question (SAFETY A4). As long as this proxy sends no writes, nothing is asked.

// loss is what this proxy knows about writes that may be on the primary alone. Its methods are safe for concurrent use.
type loss struct {
	dirty atomic.Bool           // writes were sent since everything was known to be safe
	safe  atomic.Int64          // clock.Uptime: whatever was acknowledged before is on a replica; of use while dirty
	sent  atomic.Int64          // bytes of writes given to the primary, ever
	wake  chan struct{}         // the first write after a clean moment; capacity one
	shut  atomic.Pointer[pause] // writes are held

	mu      sync.Mutex
	counted int64 // sent, when the latest measurement began
	behind  int64 // bytes by which the primary was ahead of its best replica then
}

// Shares of the dial at which the proxy acts: it cannot know the end of a write that is on its way.
const (
	lossShut    = 0.8 // of either bound: writes are held
	lossOpen    = 0.5 // of both: they go on
	lossProbes  = 10  // questions in one time bound
	lossProbing = 20 * time.Millisecond
)

// bounds returns the dial in force; zero values: no bound.
func (o *order) bounds() topo.Loss {
	if !o.need.nothing() {
		return topo.Loss{} // nothing is acknowledged that only the primary holds
	}
	return o.maxLoss
}

// lossSending counts a batch with writes that is about to be given to the primary.
func (p *Proxy) lossSending(o *order, bytes int) {
	b := o.bounds()
	if b == (topo.Loss{}) {
		return
	}
	total := p.loss.sent.Add(int64(bytes))
	if !p.loss.dirty.Swap(true) {
		p.loss.safe.Store(int64(p.now()))
		poke(p.loss.wake)
	}
	if p.loss.shut.Load() != nil {
		return
	}
	if b.Time > 0 { // the gauge itself may be late
		if age := p.now() - time.Duration(p.loss.safe.Load()); above(int64(age), lossShut, int64(b.Time)) {
			p.lossHoldOld(o, age)
		}
	}
	if b.Bytes > 0 {
		if bytes := p.lossBytes(total, o); above(bytes, lossShut, b.Bytes) {
			p.lossHold(o, fmt.Sprintf("%d bytes of writes are on no replica yet (max-loss %d bytes)", bytes, b.Bytes))
		}
	}
}

// above reports whether a value exceeds that share of a bound; zero: there is no bound.
func above(value int64, share float64, bound int64) bool {
	return bound > 0 && float64(value) > share*float64(bound)
}

// lossBytes is how much may be on the primary alone: what was measured, and what was sent since, here and presumably at
// the other proxies.
func (p *Proxy) lossBytes(sent int64, o *order) int64 {
	p.loss.mu.Lock()
	defer p.loss.mu.Unlock()
	return p.loss.behind + (sent-p.loss.counted)*int64(max(1, o.members))
}

// Loss is what could be lost now if the primary died: the age and the bytes of acknowledged writes of this proxy that no
// replica is known to hold. Both are zero without `max-loss`.
func (p *Proxy) Loss() (age time.Duration, bytes int64, held bool) {
	o := p.order.Load()
	if o.bounds() == (topo.Loss{}) || !p.loss.dirty.Load() {
		return 0, 0, p.loss.shut.Load() != nil
	}
	return max(0, p.now()-time.Duration(p.loss.safe.Load())), p.lossBytes(p.loss.sent.Load(), o), p.loss.shut.Load() != nil
}

func (p *Proxy) lossHoldOld(o *order, age time.Duration) {
	p.lossHold(o, fmt.Sprintf("writes of the last %s are on no replica yet (max-loss %s)", age.Round(time.Millisecond), o.maxLoss.Time))
}

func (p *Proxy) lossHold(o *order, why string) {
	h := &pause{end: time.Now().Add(time.Hour), refuse: "TRYAGAIN the command was not executed: " + why, park: o.parkFor(), over: make(chan struct{})}
	if p.loss.shut.CompareAndSwap(nil, h) {
		p.log.Warn("writes are held: "+why, "park", h.park)
	}
}

func (p *Proxy) lossRelease() {
	if h := p.loss.shut.Swap(nil); h != nil {
		h.replaced()
		p.log.Info("writes go on: a replica holds what was acknowledged")
	}
}

// gauge is a goroutine of the proxy: it asks while there are writes that may be on the primary alone.
func (p *Proxy) gauge() {
	g := &lossGauge{p: p}
	defer g.hangUp()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.loss.wake:
		}
		for p.loss.dirty.Load() {
			o := p.order.Load()
			b := o.bounds()
			if b == (topo.Loss{}) {
				p.loss.dirty.Store(false)
				p.lossRelease()
				break
			}
			every := lossProbing
			if b.Time > 0 {
				every = min(every, max(b.Time.D()/lossProbes, time.Millisecond))
			}
			g.look(o, b)
			if !p.pause(every) {
				return
			}
		}
	}
}

// lossGauge is the gauge's connection. Only its goroutine uses it.
type lossGauge struct {
	p   *Proxy
	k   *link
	t   *tenure
	got int64 // replication offset that a replica was known to hold

	full bool // the server had no memory left for the usual marker
}

func (g *lossGauge) hangUp() {
	if g.k != nil {
		_ = g.k.conn.Close()
		g.k = nil
	}
}

// look asks once, and holds or releases writes by the answer.
func (g *lossGauge) look(o *order, b topo.Loss) {
	p := g.p
	asked, sent, idle := p.now(), p.loss.sent.Load(), p.inflight.Load() == 0
	if g.t != nil && g.t != o.t && p.maySend(o) { // another primary: what the earlier one acknowledged is settled
		p.loss.safe.Store(int64(asked))
	}
	safe, offset := g.ask(o, b)
	if safe {
		p.loss.safe.Store(int64(asked))
	}
	if offset >= 0 {
		p.loss.mu.Lock()
		p.loss.counted, p.loss.behind = sent, max(0, offset-g.got)
		p.loss.mu.Unlock()
	}
	if safe && idle {
		p.loss.dirty.Store(false)
		if p.loss.sent.Load() != sent {
			p.loss.dirty.Store(true)
		}
	}
	age, bytes, held := p.Loss()
	switch {
	case !held && above(int64(age), lossShut, int64(b.Time)):
		p.lossHoldOld(o, age)
	case held && !above(int64(age), lossOpen, int64(b.Time)) && !above(bytes, lossOpen, b.Bytes):
		p.lossRelease()
	}
}

// ask reports whether a replica holds everything that was acknowledged before the call, and the primary's replication
// offset; -1: not known. It returns before the time bound is over.
func (g *lossGauge) ask(o *order, b topo.Loss) (safe bool, offset int64) {
	if o.t == nil || !g.p.maySend(o) {
		g.hangUp()
		return false, -1
	}
	limit := 5 * lossProbing
	if b.Time > 0 {
		limit = max(time.Millisecond, min(limit, b.Time.D()/4))
	}
	if g.k == nil || g.t != o.t {
		g.hangUp()
		k, err := g.p.errandTo(target{t: o.t, node: o.t.node, addr: o.t.addr})
		if err != nil {
			return false, -1
		}
		g.k, g.t, g.got = k, o.t, -1
	}
	out := resp.AppendCommand(slices.Clone(g.p.marker.of(g.full)), "WAIT", "1", fmt.Sprint(limit.Milliseconds()))
	out = resp.AppendCommand(out, "INFO", "replication")
	_ = g.k.conn.SetDeadline(time.Now().Add(2*limit + 10*time.Millisecond))
	if _, err := g.k.conn.Write(out); err != nil {
		g.hangUp()
		return false, -1
	}
	var replies [3][]byte
	for i := range replies {
		f, err := g.k.frameNow()
		if err != nil {
			g.hangUp()
			return false, -1
		}
		replies[i] = append([]byte(nil), f...)
	}
	acks, ok := resp.Int(replies[1])
	offset, err := strconv.ParseInt(infoField(resp.Text(replies[2]), "master_repl_offset"), 10, 64)
	if g.full = bytes.HasPrefix(replies[0], []byte("-OOM ")); g.full || refusal(replies[0]) {
		return false, -1 // the WAIT behind it is about nothing
	}
	if !ok || replies[0][0] != g.p.marker.took || err != nil {
		g.hangUp()
		return false, -1
	}
	if acks > 0 || g.got < 0 {
		g.got = offset // at least the marker's; what came after it counts as sent since
	}
	return acks > 0, offset
}
