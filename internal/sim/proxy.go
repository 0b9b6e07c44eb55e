// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"time"

	"redoubt/internal/topo"
)

// proxy writes for its clients: one stream of writes, acknowledged as the shipped proxy acknowledges them.
type proxy struct {
	w    *world
	h    *host
	conn *conn
}

// conn is one connection to one server process in one tenure.
type conn struct {
	p       *proxy
	s       *server
	run     string
	epoch   topo.Epoch
	open    bool
	pending int // sent and not answered
	waits   []wait
	rule    uint64        // that the proxy acknowledges by
	known   uint64        // that the server has been told
	lastAt  time.Duration // FIFO
	tail    *turn
}

// wait is a WAIT k that has not been answered: the reply of e is withheld until k replicas hold off.
type wait struct {
	e    *entry
	off  int64
	need int
}

func (c *conn) close() { c.open = false }

// loop is the clients: a write now and then, on every proxy.
func (p *proxy) loop() {
	w := p.w
	w.after(w.between(20*time.Millisecond, 100*time.Millisecond), p.loop)
	if p.h.agentUp && w.now >= p.h.wakesAt() {
		p.write()
	}
}

// serving: the shard has a primary and this proxy's table is not older than the lease.
func (p *proxy) serving() bool {
	v := p.h.view
	if !v.known || p.h.uptime() >= p.h.leaseEnd() {
		return false
	}
	ph := v.doc.Assigned.Phase
	return ph == topo.PhaseServing || planted("serving-before-history") && ph == topo.PhasePromoting
}

func (p *proxy) write() {
	if !p.serving() {
		return // parked
	}
	w, a := p.w, p.h.view.doc.Assigned
	s := w.host(a.Primary).srv
	if p.conn == nil || !p.conn.open || p.conn.epoch != a.Epoch || p.conn.s != s {
		if p.conn != nil && !planted("wait-across-tenures") {
			p.conn.close()
		}
		if w.isCut(p.h.srv, s) || w.isCut(s, p.h.srv) || !s.alive || s.stopped || s.run != a.RunID {
			return
		}
		if !s.primary {
			return // ROLE says so in the greeting
		}
		if last, _ := a.Latest(); last.ReplID != s.replid && !planted("serving-before-history") && !planted("stale-table-reopens") {
			return // the same process, but in another tenure: this table is old
		}
		p.conn = &conn{p: p, s: s, run: s.run, epoch: a.Epoch, open: true, rule: a.Rule, known: a.Rule}
		s.conns = append(slices.DeleteFunc(s.conns, func(c *conn) bool { return !c.open }), p.conn)
	}
	c := p.conn
	w.nextWrite++
	id := w.nextWrite
	pop := w.rng.IntN(4) == 0 // a blocking pop that another client's push serves: WAIT alone does not cover it (SAFETY A4)
	c.pending++
	need := p.need()
	if w.changing {
		c.rename(a.Rule)
		if !w.faultless && w.now < healAt && w.rng.IntN(400) == 0 { // the process is stopped between its look at the lease and its write
			p.h.stallUntil = max(p.h.stallUntil, w.now+w.between(0, 3*time.Second))
			p.h.whenAwake(func() { c.send(func() { c.run1(id, pop, need) }) })
			return
		}
		c.send(func() { c.run1(id, pop, need) })
		return
	}
	w.after(w.delay(), func() {
		if w.isCut(p.h.srv, s) {
			return
		}
		s.exec(c.run, func() { c.run1(id, pop, need) })
	})
}

// run1 is the server's side of one write with its acknowledgement.
func (c *conn) run1(id uint64, pop bool, need int) {
	s := c.s
	if !c.open {
		return
	}
	if !s.primary {
		c.pending-- // -READONLY: not executed
		return
	}
	e := s.write(id)
	if need == 0 {
		c.answer(e, true)
		return
	}
	off := e.off
	switch {
	case !planted("wait-without-marker"):
		off = s.write(0).off
	case pop:
		off = 0
	}
	c.waits = append(c.waits, wait{e, off, need})
	c.check()
}

// check answers the WAITs that are satisfied.
func (c *conn) check() {
	if !c.open || !c.s.alive || c.s.run != c.run || !c.s.primary {
		return
	}
	var left []wait
	for _, x := range c.waits {
		if c.s.count(x.off) >= x.need {
			c.p.w.checkRecorded(c.s, x.e)
			c.answer(x.e, false)
		} else {
			left = append(left, x)
		}
	}
	c.waits = left
}

// answer carries the reply back to the proxy, which releases it to the client; one that no replica stands for only under a good
// lease of the tenure (SAFETY B3).
func (c *conn) answer(e *entry, leased bool) {
	w, p := c.p.w, c.p
	gen := p.h.generation
	w.after(w.delay(), func() {
		if w.isCut(c.s, p.h.srv) {
			return
		}
		p.h.whenAwake(func() {
			if p.h.generation != gen {
				return
			}
			c.pending--
			if !leased || p.h.uptime() < p.h.leaseEnd() && p.h.view.doc.Assigned.Epoch == c.epoch {
				w.ack(e)
			}
			p.flush()
		})
	})
}

// flush lets go of the connection when the shard is not serving and nothing is in flight any more.
func (p *proxy) flush() {
	c := p.conn
	if c == nil || !c.open || !p.h.view.known {
		return
	}
	a := p.h.view.doc.Assigned
	if p.w.changing && a.Epoch == c.epoch && p.serving() && p.w.now >= p.h.wakesAt() {
		c.rename(a.Rule)
	}
	if c.pending <= 0 && a.Phase != topo.PhaseServing && !planted("wait-across-tenures") {
		c.close()
	}
}

func (w *world) ack(e *entry) {
	a := w.store.doc.Assigned
	if p := w.host(a.Primary); !w.store.doc.Spec.Durability.Waits() && a.Phase == topo.PhaseServing && p.srv.run == a.RunID && p.srv.head.at(e.off) != e {
		return // a late answer of a primary that an asynchronous election has already passed over
	}
	w.acked = append(w.acked, e)
	w.lastAck = w.now
	if w.now > settledAt {
		w.quietAcks++
	}
}

// planGhost runs a replica that nobody registered and that knows a secret of the past at best. Credentials of the epoch keep
// it out (SAFETY A7); the planted bug lets it in.
func (w *world) planGhost() {
	w.ghost = &server{w: w, name: "ghost"}
	w.ghost.boot()
	var former, known topo.Secret
	var epoch topo.Epoch
	var loop func()
	loop = func() {
		a := w.store.doc.Assigned
		secret := former
		if a.Epoch != epoch && a.Secret != "" {
			epoch, former, known = a.Epoch, known, a.Secret
		}
		if h := w.host(a.Primary); h != nil && w.ghost.following != h.srv {
			w.ghost.follow(h.srv, secret)
		}
		w.after(100*time.Millisecond, loop)
	}
	w.after(time.Second, loop)
}
