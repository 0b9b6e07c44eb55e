// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"time"

	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// One seed of six (remainder 3) is a world whose durability, number of acknowledgements and roster change while things go
// wrong (SAFETY A7). There are machines that are not in the roster yet; bytes that a cut holds back arrive when it is over, as TCP
// brings them; and a proxy may be stopped between its look at the lease and its write. All other seeds draw nothing from here.

// changes makes the world of a seed a changing one, or not: the roster begins with some of the machines.
func (w *world) changes(seed uint64) {
	if w.changing = seed%6 == 3; !w.changing {
		return
	}
	w.n = 2 + w.rng.IntN(4)
	m := 2 + w.rng.IntN(w.n-1)
	if w.rng.IntN(3) == 0 {
		w.n, m = 2, 2 // two nodes of which one may go on alone
	}
	w.roster = m
	w.spec.Durability, w.spec.AckReplicas, w.spec.MinCopies = topo.Quorum, 1+w.rng.IntN(m-1), 1+w.rng.IntN(2)
	if w.rng.IntN(4) == 0 {
		w.spec.Durability, w.spec.AckReplicas = topo.Async, 0
	}
}

// planChanges are operators who change what the shard promises.
func (w *world) planChanges() {
	if !w.changing {
		return
	}
	for range 4 + w.rng.IntN(12) {
		w.after(w.between(500*time.Millisecond, healAt), w.operateChange)
	}
}

// forgotten counts the seats that have forgotten what they acknowledged, or may have to be killed.
func (w *world) forgotten(but *host) int {
	n := 0
	a := w.store.doc.Assigned
	for _, node := range w.store.doc.Spec.Nodes {
		h := w.host(node.ID)
		enrolled := h.srv.alive && a.Enrolled[h.id] == h.srv.run
		if h != but && (!enrolled || h.srv.stopped) {
			n++
		}
	}
	return n
}

// mayForgetChanging is mayForget where the promise changes: by the weakest of what is promised and what may come.
func (w *world) mayForgetChanging(h *host) bool {
	doc := w.store.doc
	if _, known := doc.Spec.Node(h.id); !known || doc.Spec.Durability == topo.Async && doc.Assigned.Change == nil {
		return true
	}
	if one := w.host(doc.Assigned.Alone); one != nil {
		return h != one && doc.Assigned.Change == nil && one.srv.alive && one.srv.run == doc.Assigned.Enrolled[one.id] // it may be dead, and nobody knows yet
	}
	return doc.Assigned.Change == nil && w.forgotten(h) < doc.Spec.Replicas()
}

// operateChange does what the interface would let an operator do.
func (w *world) operateChange() {
	doc := w.store.doc
	if w.now >= healAt || w.store.down || doc.Assigned.Phase != topo.PhaseServing {
		return
	}
	a, spec := doc.Assigned.Clone(), doc.Spec
	if a.Change != nil {
		if a.Change.Kind == topo.ChangeRejoin || w.rng.IntN(4) > 0 {
			return
		}
		w.log("OPERATOR takes back: %s", a.Change)
		a.Withdraw()
		w.amendSpec(a, spec)
		return
	}
	h := w.hosts[w.rng.IntN(w.n)]
	_, known := spec.Node(h.id)
	switch k := spec.Replicas(); w.rng.IntN(6) {
	case 0, 1:
		w.strengthen(a, spec, k+1)
	case 2, 3:
		if w.rng.IntN(3) == 0 {
			k = 1
		}
		w.weaken(a, spec, k-1)
	case 4:
		if !known {
			w.begin(a, spec, topo.Change{Kind: topo.ChangeAdd, Node: topo.Node{ID: h.id, Addr: string(h.id)}})
		}
	case 5:
		if known && h.id != a.Primary && a.Alone == "" && len(spec.Nodes)-1 > spec.Replicas() && len(spec.Nodes) > 2 {
			w.begin(a, spec, topo.Change{Kind: topo.ChangeRemove, Node: topo.Node{ID: h.id, Addr: string(h.id)}})
		}
	}
}

func (w *world) begin(a topo.Assigned, spec topo.Spec, c topo.Change) {
	a.Begin(c)
	w.log("OPERATOR begins change %d: %s", a.Change.ID, c)
	w.amendSpec(a, spec)
	w.stir(c)
}

// stir brings trouble where a change is delicate: a replica is behind, or a proxy does not hear of it.
func (w *world) stir(c topo.Change) {
	if w.rng.IntN(2) == 0 {
		return
	}
	for _, h := range w.hosts {
		if h.id == w.store.doc.Assigned.Primary || h.id == c.Node.ID {
			continue
		}
		if w.rng.IntN(2) == 0 {
			w.holdStream(h)
		}
		if c.Kind == topo.ChangeAck && w.rng.IntN(3) == 0 {
			w.cutStoreOnly(h)
		}
	}
}

// changed is called when a change is done: whoever relies on it too early loses something now.
func (w *world) changed() {
	if !w.changing || w.now >= healAt || w.rng.IntN(2) == 0 {
		return
	}
	w.after(w.between(0, 300*time.Millisecond), func() {
		p := w.host(w.store.doc.Assigned.Primary)
		switch {
		case w.now >= healAt:
		case w.rng.IntN(2) == 0:
			w.kill(p)
		default:
			w.log("FAULT %s is cut off after a change", p.id)
			w.setCut(p, true, true, true, true)
			w.after(3*time.Second, func() { w.setCut(p, true, true, true, false) })
		}
	})
}

func (w *world) strengthen(a topo.Assigned, spec topo.Spec, k int) {
	if k < len(spec.Nodes) {
		w.begin(a, spec, topo.Change{Kind: topo.ChangeAck, Durability: topo.Quorum, AckReplicas: k})
	}
}

// weaken holds at once: the store first, then the proxies that read it. The planted bug is the other order.
func (w *world) weaken(a topo.Assigned, spec topo.Spec, k int) {
	if k < 0 || spec.Durability == topo.Async || k > 0 && w.forgotten(nil) > k {
		return
	}
	next := spec
	next.AckReplicas = k
	if k == 0 {
		next.Durability, a.Alone = topo.Async, ""
	}
	if planted("shrink-after-ack") && k > 0 {
		w.eager = k
		w.after(time.Second, func() {
			w.eager = 0
			if doc := w.store.doc; doc.Assigned.Phase == topo.PhaseServing && doc.Assigned.Change == nil && doc.Spec.Replicas() == k+1 {
				w.amendSpec(doc.Assigned.Clone(), next)
			}
		})
		return
	}
	w.log("OPERATOR weakens to %s with %d", next.Durability, k)
	w.amendSpec(a, next)
}

// amendSpec is an operator's swap that changes the specification as well.
func (w *world) amendSpec(a topo.Assigned, spec topo.Spec) {
	w.store.doc.Spec = spec
	w.store.amend(a)
	if errs := w.store.doc.Validate(); len(errs) > 0 {
		w.fail("an operator's change makes a bad document: %v", errs)
	}
}

// send puts bytes on the connection: they arrive in order, and when a cut is over.
func (c *conn) send(do func()) {
	w := c.p.w
	at := max(w.now+w.delay(), c.lastAt)
	c.lastAt = at
	prev, mine := c.tail, &turn{}
	c.tail = mine
	var arrive func()
	arrive = func() {
		switch {
		case !c.open:
		case prev != nil && !prev.over: // one that a cut holds up holds up everything behind it
			w.after(time.Millisecond, arrive)
		case c.p.h.srv != c.s && w.isCut(c.p.h.srv, c.s):
			w.after(20*time.Millisecond, arrive)
		default:
			mine.over, prev = true, nil
			c.s.exec(c.run, do)
		}
	}
	w.after(at-w.now, arrive)
}

// turn is one message's place in the order of a connection.
type turn struct{ over bool }

// rename tells the server by which rule everything behind is acknowledged, as the shipped proxy does.
func (c *conn) rename(rule uint64) {
	if c.rule == rule {
		return
	}
	c.rule = rule
	c.send(func() { c.known = rule })
}

// need is how many replicas must hold a write that this proxy sends now.
func (p *proxy) need() int {
	doc := p.h.view.doc
	n := doc.Acks()
	if planted("shrink-after-ack") {
		if p.w.eager > 0 {
			n = min(n, p.w.eager)
		}
		if doc.Spec.MayShrink() && doc.Assigned.Phase == topo.PhaseServing && p.w.host(doc.Assigned.Primary).srv.count(0) == 0 {
			n = 0
		}
	}
	return n
}

// enforce is the driver's verb of that name, and what the agent makes of it.
func (h *host) enforce(in converge.Input, o converge.Order, later func(func())) {
	s, w := h.srv, h.w
	run := s.run
	done := func(late []string, held bool) {
		later(func() {
			waits := converge.Waits(in, o, late, held)
			if s.run != run {
				waits = "it restarted"
			}
			h.memory = converge.Enforced(h.memory, o, h.uptime(), waits)
			if waits == "" {
				w.log("%s: the barrier of change %d is held", h.id, o.Change)
			}
		})
	}
	if s.stopped || !s.alive || !s.primary {
		done(nil, false)
		return
	}
	var late []string
	for _, c := range s.conns {
		if c.open && o.Law > 0 && c.known < o.Law {
			late = append(late, string(c.p.h.id))
			if o.Cut {
				w.log("%s ends a connection of %s under rule %d", h.id, c.p.h.id, c.known)
				c.close()
			}
		}
	}
	if len(late) > 0 || !o.Cut {
		done(late, false)
		return
	}
	e := s.write(0)
	h.busy = true
	gen := h.generation
	w.after(w.between(time.Millisecond, 20*time.Millisecond), func() {
		if h.generation == gen {
			h.whenAwake(func() {
				h.busy = false
				done(nil, s.alive && s.run == run && s.primary && s.count(e.off) >= o.Acks)
			})
		}
	})
}

// noteChange adds to a report what the shipped agent adds.
func (h *host) noteChange(g *topo.Sighting, in converge.Input) {
	if in.Shard == nil {
		return
	}
	a := in.Shard.Assigned
	if a.Change != nil {
		g.Change, g.Barrier = a.Change.ID, h.memory.BarrierOf(a.Epoch)
	}
	if h.memory.LostAt > 0 && a.Phase == topo.PhaseServing && a.Primary != h.id {
		g.Unlinked = topo.Duration(in.Now - h.memory.LostAt)
	}
}

// sponsor lets who joins replicate from this replica.
func (h *host) sponsor(in converge.Input) {
	if in.Shard == nil || !h.srv.alive || h.srv.stopped || h.srv.primary {
		return
	}
	a := in.Shard.Assigned
	if c := a.Change; c != nil && c.Kind == topo.ChangeAdd && c.Via == h.id && a.Phase == topo.PhaseServing {
		h.srv.admits = a.Secret
	}
}

// passOn is a replica's stream to its own replicas.
func (s *server) passOn(e *entry) {
	if !s.primary {
		for _, l := range s.replicas {
			l.send(e)
		}
	}
}

// dropSubs ends the links of a replica's own replicas: its history has changed.
func (s *server) dropSubs() {
	for _, l := range s.replicas {
		l.close()
		if r := l.from; r.link == l {
			r.link = nil
			if r.alive && r.following == s {
				r.whole = true
				r.connect()
			}
		}
	}
	s.replicas = nil
}

// keepHeld forgets the acknowledged writes that an asynchronous election may have lost.
func (w *world) keepHeld(s *server) {
	held := map[uint64]bool{}
	for e := s.head; e != nil; e = e.prev {
		held[e.write] = true
	}
	kept := w.acked[:0:0]
	for _, e := range w.acked {
		if held[e.write] {
			kept = append(kept, e)
		}
	}
	w.acked = kept
}

// checkRoster asks, after healing, for a shard that has come to rest in what was asked for.
func (w *world) checkRoster() {
	doc := w.store.doc
	if c := doc.Assigned.Change; c != nil {
		w.fail("change %d (%s) is still under way at the end", c.ID, c)
	}
	if doc.Assigned.Alone != "" {
		w.fail("%s is still alone at the end", doc.Assigned.Alone)
	}
	for _, h := range w.hosts {
		if _, known := doc.Spec.Node(h.id); !known && (h.srv.primary || h.srv.following != nil) {
			w.fail("%s is not in the roster, and not frozen", h.id)
		}
	}
}

func (w *world) changeShape() string {
	if !w.changing {
		return ""
	}
	return fmt.Sprintf(" changing from %d of %d", w.roster, w.n)
}
