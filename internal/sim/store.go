// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"time"

	"redoubt/internal/failover"
	"redoubt/internal/topo"
)

// store is the weakest store that Redoubt accepts: compare-and-swap on one document, one elected controller (a deposed
// one may linger and still write), lossy reports, late and reordered pushes.
type store struct {
	w        *world
	rev      uint64
	doc      topo.Shard
	down     bool
	fromHost []bool // cut
	toHost   []bool
	lastRead map[topo.NodeID]time.Duration
	answered time.Duration // the latest of them
	term     uint64
	leader   *controller
}

func newStore(w *world) *store {
	s := &store{w: w, lastRead: map[topo.NodeID]time.Duration{}, fromHost: make([]bool, w.n), toHost: make([]bool, w.n)}
	s.rev = 1
	s.doc = topo.Shard{Format: topo.Format, ID: "sim", Spec: w.spec, Assigned: topo.Assigned{Phase: topo.PhaseNew}}
	return s
}

func (s *store) start() { s.elect(s.w.rng.IntN(s.w.n)) }

// elect moves the controller to a host. The earlier one learns of it late, or goes on for a while.
func (s *store) elect(i int) {
	if old := s.leader; old != nil {
		s.w.after(s.w.between(0, 600*time.Millisecond), func() { old.deposed = true })
	}
	vacant := s.w.now
	if s.leader != nil && s.w.rng.IntN(4) > 0 { // what the new one can learn about the earlier ones' last answer, at best exactly
		vacant = s.w.between(s.answered, s.w.now)
	}
	s.term++
	c := &controller{vacant: vacant, w: s.w, h: s.w.hosts[i], gen: s.w.hosts[i].generation, term: s.term, since: s.w.now, beats: map[topo.NodeID]beat{}}
	s.leader = c
	s.w.log("controller is now on %s (term %d)", c.h.id, c.term)
	c.loop()
}

// keepLeader elects somebody else when the controller's host cannot hold the election any more.
func (s *store) keepLeader() {
	i := s.leader.h.index
	if s.down || !s.leader.h.agentUp || s.leader.gen != s.leader.h.generation || s.leader.h.asleep() || s.fromHost[i] || s.toHost[i] {
		if s.down {
			return
		}
		for range 8 {
			j := s.w.rng.IntN(s.w.n)
			if h := s.w.hosts[j]; h.agentUp && !h.asleep() && !s.fromHost[j] && !s.toHost[j] {
				s.elect(j)
				return
			}
		}
	}
}

// call is a request and its answer between a host and the store; ok is false after a timeout.
func (s *store) call(h *host, serve func(), answer func(ok bool)) {
	w := s.w
	gen := h.generation
	done := false
	reply := func(ok bool) {
		if !done && h.generation == gen {
			done = true
			answer(ok)
		}
	}
	w.after(400*time.Millisecond, func() { reply(false) })
	w.after(w.delay(), func() {
		if s.down || s.fromHost[h.index] {
			return
		}
		serve()
		w.after(w.delay(), func() {
			if !s.toHost[h.index] {
				h.whenAwake(func() { reply(true) })
			}
		})
	})
}

// swap is the compare-and-swap. The planted bug is a store, or a controller, that does not compare.
func (s *store) swap(rev uint64, c *controller, d failover.Decision) bool {
	if rev != s.rev && !planted("deposed-controller-writes") {
		return false
	}
	a := *d.Next
	if a.Epoch < s.doc.Assigned.Epoch {
		s.w.fail("epoch went back from %d to %d (rule %s)", s.doc.Assigned.Epoch, a.Epoch, d.Rule)
	}
	if a.Phase != s.doc.Assigned.Phase {
		s.w.turn(a.Phase)
	}
	s.rev++
	s.doc.Assigned = a
	if d.Spec != nil {
		s.doc.Spec = *d.Spec
	}
	if errs := s.doc.Validate(); len(errs) > 0 {
		s.w.fail("rule %s makes a bad document: %v", d.Rule, errs)
	}
	s.w.rules[d.Rule]++
	if s.w.now > settledAt {
		s.w.quiet[d.Rule]++
	}
	s.w.log("%s swaps rev %d: %s -> epoch %d %s %s: %s", c.h.id, s.rev, d.Rule, a.Epoch, a.Phase, a.Primary, d.Why)
	if d.Rule == "change-done" {
		s.w.changed()
	}
	if d.Rule == "record" {
		s.w.checkServing()
	}
	for _, h := range s.w.hosts {
		s.push(h)
	}
	return true
}

// amend is an operator's swap.
func (s *store) amend(a topo.Assigned) {
	s.rev++
	s.doc.Assigned = a
	for _, h := range s.w.hosts {
		s.push(h)
	}
}

// push tells a host about the present version: late, out of order, or never.
func (s *store) push(h *host) {
	if s.w.lossy() {
		return
	}
	rev, doc := s.rev, s.doc
	s.w.after(s.w.delay(), func() {
		if !s.down && !s.toHost[h.index] && h.agentUp {
			h.whenAwake(func() { h.offer(rev, doc, 0, false) })
		}
	})
}

// controller is one holder of the election, on one host.
type controller struct {
	w       *world
	h       *host
	gen     int // of the agent's process that it lives in
	term    uint64
	since   time.Duration
	vacant  time.Duration // no earlier controller answered a read after this
	deposed bool
	rev     uint64
	doc     topo.Shard
	knowsAt time.Duration // when the present epoch and phase were first known here
	beats   map[topo.NodeID]beat
	busy    bool
}

type beat struct {
	s  topo.Sighting
	at time.Duration
}

// loop is the controller's loop: read, decide, swap.
func (c *controller) loop() {
	w := c.w
	if c.deposed || c.h.generation != c.gen {
		return
	}
	w.after(w.between(30*time.Millisecond, 50*time.Millisecond), func() { c.h.whenAwake(c.loop) })
	c.act()
}

func (c *controller) act() {
	w := c.w
	if c.deposed || c.busy || c.h.generation != c.gen || c.h.asleep() {
		return
	}
	if c.rev == 0 {
		c.busy = true
		c.h.read(func(rev uint64, doc topo.Shard) { c.learn(rev, doc) }, func() { c.busy = false })
		return
	}
	d := failover.Decide(c.state())
	if d.Next == nil {
		return
	}
	c.busy = true
	rev := c.rev
	var swapped bool
	w.store.call(c.h, func() { swapped = w.store.swap(rev, c, d) }, func(ok bool) {
		c.busy = false
		if ok && swapped {
			doc := c.doc
			doc.Assigned = *d.Next
			if d.Spec != nil {
				doc.Spec = *d.Spec
			}
			c.learn(rev+1, doc)
			c.act()
			return
		}
		c.rev = 0 // conflict or unknown outcome: read again before anything else
	})
}

func (c *controller) learn(rev uint64, doc topo.Shard) {
	if rev < c.rev {
		return
	}
	if c.rev == 0 && c.knowsAt == 0 || doc.Assigned.Epoch != c.doc.Assigned.Epoch || doc.Assigned.Phase != c.doc.Assigned.Phase {
		c.knowsAt = c.w.now
	}
	c.rev, c.doc = rev, doc
}

func (c *controller) state() failover.State {
	w := c.w
	s := failover.State{
		WallMS: w.now.Milliseconds(), Term: c.term, LedFor: topo.Duration(c.h.elapsed(w.now - c.since)),
		PhaseFor: topo.Duration(c.h.elapsed(w.now - c.knowsAt)), Shard: c.doc, Nonce: topo.Secret(w.newID("secret")), Sightings: map[topo.NodeID]failover.Seen{},
	}
	for id, b := range c.beats {
		s.Sightings[id] = failover.Seen{Sighting: b.s, Age: topo.Duration(c.h.elapsed(w.now - b.at))}
	}
	if w.readAge && w.store.leader == c {
		s.VacantFor = topo.Duration(c.h.elapsed(w.now - c.vacant))
		s.ReadAge = map[topo.NodeID]topo.Duration{}
		for _, h := range w.hosts {
			last := max(w.store.lastRead[h.id], c.vacant)
			s.ReadAge[h.id] = topo.Duration(c.h.elapsed(w.now - last))
		}
	}
	return s
}

// send delivers a report to the controller: late, out of order, or never.
func (s *store) send(h *host, sighting topo.Sighting) {
	if s.w.lossy() || s.fromHost[h.index] {
		return
	}
	deliver := func() {
		c := s.leader
		if c == nil || s.down || s.toHost[c.h.index] && c.h != h {
			return
		}
		if old, ok := c.beats[h.id]; ok && sighting.OlderThan(old.s) && !planted("stale-beat-counted") {
			return
		}
		c.beats[h.id] = beat{sighting, s.w.now}
		c.h.whenAwake(c.act)
	}
	s.w.after(s.w.delay()+s.w.delay(), deliver)
	if s.w.slow > 0 && s.w.rng.IntN(50) == 0 { // a report that was stuck somewhere arrives long after it was true
		s.w.after(s.w.between(100*time.Millisecond, 3*time.Second), deliver)
	}
}
