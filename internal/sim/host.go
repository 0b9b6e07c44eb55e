// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"time"

	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// host is one machine: a server, its agent with the process's view of the document, and a proxy.
type host struct {
	w     *world
	index int
	id    topo.NodeID
	srv   *server

	// the clock: rate differs from host to host; suspend stops the monotonic clock, not the boot clock
	rate       float64
	suspended  time.Duration // total time that the monotonic clock missed
	sleepUntil time.Duration // the host is suspended until then
	stallUntil time.Duration // only the agent process is stopped until then
	heldUntil  time.Duration // the replication stream to this host stands still until then
	sleepers   []func()      // what waits for the agent's process to run again, in case it is woken early
	diskUntil  time.Duration // the agent's disk hangs until then
	ranSince   time.Duration // agent and server have both been running since then

	agentUp    bool
	agentStart int64
	generation int // grows with every agent process
	view       view
	promised   topo.Epoch      // on disk
	vow        vow             // given
	pleaded    topo.Plea       // that pledgedBy was given to
	pledgedBy  []time.Duration // host uptime at which each other host was asked for its latest pledge; zero: it gave none
	memory     converge.Memory
	seq        uint64
	busy       bool
	tickAt     time.Duration
	lastBeat   time.Duration
	lastSent   topo.Sighting
	health     topo.Health
	healthFrom time.Duration
	lastRole   topo.Role
	refused    string
	refusedAt  topo.Epoch
	restartAt  time.Duration
	drainFrom  time.Duration
	slowAgent  time.Duration
	markedAt   time.Duration
	marked     *entry // the latest marker that this agent wrote

	proxy *proxy
}

// view is what this process knows of the document, as package view keeps it.
type view struct {
	rev       uint64
	doc       topo.Shard
	readStart time.Duration // host uptime at the start of the latest read of this tenure
	confirmed bool
	aware     bool
	known     bool
	pledged   time.Duration // host uptime from which a lease counts that others gave
}

func newHost(w *world, i int) *host {
	h := &host{w: w, index: i, id: topo.NodeID(fmt.Sprintf("n%d", i+1)), rate: 1 + (w.rng.Float64()-0.5)*0.04}
	h.srv = &server{w: w, h: h, name: string(h.id)}
	h.proxy = &proxy{w: w, h: h}
	if w.rng.IntN(4) == 0 {
		h.slowAgent = time.Duration(w.rng.IntN(30)) * time.Millisecond
	}
	return h
}

func (h *host) start() {
	h.srv.kept = h.w.persist == persistAOF
	h.srv.boot()
	h.startAgent()
	h.proxy.loop()
	h.pings()
}

// uptime is the host's boot clock; with the planted bug it is the clock that stops in suspend.
func (h *host) uptime() time.Duration {
	t := h.w.now
	if planted("lease-clock-stops") {
		t -= h.suspended
		if h.w.now < h.sleepUntil {
			t -= 0
		}
	}
	return time.Duration(float64(t)*h.rate) + time.Hour
}

func (h *host) elapsed(real time.Duration) time.Duration {
	return time.Duration(float64(real) * h.rate)
}

func (h *host) asleep() bool { return h.w.now < h.sleepUntil }

func (h *host) wakesAt() time.Duration { return max(h.sleepUntil, h.stallUntil) }

// whenAwake runs do now, or when the agent's process runs again.
func (h *host) whenAwake(do func()) {
	at := h.wakesAt()
	if h.w.now >= at {
		do()
		return
	}
	gen, woken := h.generation, false
	wake := func() {
		if h.w.now >= h.wakesAt() {
			h.sleepers = nil // whoever is left has a timer that is due
		}
		if !woken && h.generation == gen {
			woken = true
			h.whenAwake(do)
		}
	}
	h.sleepers = append(h.sleepers, wake)
	h.w.after(at-h.w.now, wake)
}

func (h *host) startAgent() {
	h.generation++
	h.agentUp = true
	h.agentStart = int64(h.generation)
	h.view = view{}
	h.pleaded = topo.Plea{}
	h.vow = h.vow.reboot(h.uptime(), h.w.spec.Timing)
	h.memory = converge.Memory{}
	h.busy, h.tickAt, h.seq = false, 0, 0
	h.lastSent, h.refused, h.drainFrom = topo.Sighting{}, "", 0
	h.lastRole = topo.RoleUnknown
	h.w.log("%s agent starts (promised %d)", h.id, h.promised)
	h.readLoop(h.generation)
	h.wake()
}

// killAgent is kill -9 of the agent. Its guard fences a primary, and kills it only if that fails (SAFETY B3).
func (h *host) killAgent() {
	h.agentUp = false
	h.generation++
	s, run := h.srv, h.srv.run
	var guard func()
	guard = func() {
		if h.asleep() { // the guard sleeps with its host
			h.w.after(h.sleepUntil-h.w.now+time.Millisecond, guard)
			return
		}
		if h.agentUp || !s.alive || s.run != run || !s.primary || planted("no-self-fence") {
			return
		}
		if s.stopped {
			s.die(false)
			return
		}
		s.freeze()
	}
	h.w.after(5*time.Millisecond, guard)
}

// readLoop is the view's linearizable read, twice in every beat; one that waits does not hold up the next.
func (h *host) readLoop(gen int) {
	if h.generation != gen {
		return
	}
	h.w.after(h.w.spec.Timing.Beat.D()/2, func() { h.whenAwake(func() { h.readLoop(gen) }) })
	begun := h.uptime()
	h.read(func(rev uint64, doc topo.Shard) { h.offer(rev, doc, begun, true) }, func() {})
	h.seek()
}

func (h *host) read(got func(uint64, topo.Shard), done func()) {
	s := h.w.store
	var rev uint64
	var doc topo.Shard
	s.call(h, func() {
		s.lastRead[h.id], s.answered = h.w.now, h.w.now
		rev, doc = s.rev, s.doc
	}, func(ok bool) {
		if ok {
			got(rev, doc)
		}
		done()
	})
}

// offer takes a version of the document into the view; it never goes back.
func (h *host) offer(rev uint64, doc topo.Shard, readStart time.Duration, read bool) {
	v := &h.view
	stale := planted("order-delayed-past-epoch") && !read && rev < v.rev // an order from the past is obeyed
	if v.known && !stale && (rev < v.rev || rev == v.rev && (!read || readStart <= v.readStart && v.confirmed)) {
		return
	}
	isNew := !v.known || rev > v.rev || stale
	same := v.known && doc.Assigned.SameTenure(v.doc.Assigned)
	if !isNew || read || !same {
		v.readStart = readStart
	}
	if !same {
		v.pledged = 0
	}
	v.rev, v.doc, v.known, v.confirmed = rev, doc, true, read
	v.aware = v.aware || read
	if isNew && !read {
		begun := h.uptime()
		h.read(func(rev uint64, doc topo.Shard) { h.offer(rev, doc, begun, true) }, func() {})
	}
	if c := h.w.store.leader; c.h == h && !c.deposed {
		c.learn(rev, doc)
	}
	h.wake()
	h.proxy.flush()
}

func (h *host) leaseEnd() time.Duration {
	from := h.view.leaseStart()
	if from == 0 {
		return 0
	}
	return from + h.w.spec.Timing.Lease.D()
}

func (h *host) wake() {
	if !h.agentUp || h.busy {
		return
	}
	h.tickIn(h.w.between(50*time.Microsecond, 300*time.Microsecond))
}

func (h *host) tickIn(d time.Duration) {
	at := h.w.now + d
	if h.tickAt > h.w.now && h.tickAt <= at {
		return
	}
	h.tickAt = at
	gen := h.generation
	h.w.after(d, func() {
		if h.generation == gen && h.tickAt == at {
			h.tickAt = 0
			h.whenAwake(func() { h.tick() })
		}
	})
}

// tick is the agent's loop: look, remember, decide, act, report.
func (h *host) tick() {
	if !h.agentUp || h.busy {
		return
	}
	in := converge.Input{Self: h.id, Now: h.uptime(), LeaseEnd: h.leaseEnd(), Promised: h.promised, Pledged: h.vow.given, Read: h.view.confirmed, Aware: h.view.aware, Seen: h.observe()}
	if h.view.known {
		doc := h.view.doc
		in.Shard = &doc
	}
	if in.Seen.Health != topo.HealthUp {
		in.Memory = h.memory
	}
	in.Memory = converge.Remember(h.memory, in)
	h.memory = in.Memory
	o := converge.Next(in)
	h.report(in)
	h.sponsor(in)
	h.noteMark(in)
	if o.Do == converge.Nothing || !h.perform(in, o) {
		h.tickIn(h.idle(in))
		return
	}
}

// idle is how long to sleep when there is nothing to do: never past the end of the lease.
func (h *host) idle(in converge.Input) time.Duration {
	d := 40 * time.Millisecond
	if in.Shard != nil && (in.Shard.Assigned.Phase == topo.PhaseDraining || in.Shard.Assigned.Phase == topo.PhasePromoting) {
		d = time.Millisecond
	}
	if left := in.LeaseEnd - in.Now; left > 0 && left < d {
		d = left + time.Millisecond
	}
	return d
}

func (h *host) observe() topo.Sighting {
	s := h.srv
	var g topo.Sighting
	health := topo.HealthUp
	switch {
	case !s.alive:
		health = topo.HealthExited
	case s.stopped:
		health = topo.HealthStopped
	}
	if health != h.health {
		h.health, h.healthFrom = health, h.uptime()
	}
	g.Health, g.HealthFor = health, topo.Duration(h.uptime()-h.healthFrom)
	g.Node = h.id
	switch health {
	case topo.HealthUp:
		g.Role = topo.RoleReplica
		if s.primary {
			g.Role = topo.RolePrimary
		}
		g.Frozen = !s.primary && s.following == nil
		g.Whole, g.RunID, g.Backlog, g.Kept, g.Open = s.whole, s.run, s.backlog, s.kept, h.w.open
		g.Pos = topo.Position{ReplID: s.replid, Offset: s.offset(), ReplID2: s.replid2, Offset2: s.offset2}
		if h.w.marks() && g.Frozen && s.whole {
			mark := s.mark()
			g.Mark = &mark
		}
		if s.following != nil {
			g.Following = s.following.name
		}
		g.LinkUp = s.linkUp()
		if s.head != nil {
			g.Keys = 1
		}
	case topo.HealthStopped:
		g.RunID = h.memory.RunID
	}
	g.Fenced = g.Frozen || health == topo.HealthExited
	return g
}

func (h *host) report(in converge.Input) {
	g := in.Seen
	g.AgentStart, g.Promised, g.InSync = h.agentStart, h.promised, h.memory.InSync
	if in.Shard != nil {
		g.Epoch, g.Phase = in.Shard.Assigned.Epoch, in.Shard.Assigned.Phase
	}
	h.noteChange(&g, in)
	if h.refusedAt == g.Epoch {
		g.Refused = h.refused
	}
	old := h.lastSent
	same := old.Change == g.Change && old.Barrier == g.Barrier && old.Epoch == g.Epoch && old.Phase == g.Phase && old.Health == g.Health && old.Role == g.Role && old.Frozen == g.Frozen &&
		old.RunID == g.RunID && old.Promised == g.Promised && old.InSync == g.InSync && old.Refused == g.Refused && old.LinkUp == g.LinkUp &&
		(old.Pos == g.Pos || g.Phase == topo.PhaseServing)
	if same && h.w.now-h.lastBeat < h.w.spec.Timing.Beat.D() {
		return
	}
	h.seq++
	g.Seq = h.seq
	h.lastBeat, h.lastSent = h.w.now, g
	h.w.store.send(h, g)
}

// perform carries out an order; false: not now.
func (h *host) perform(in converge.Input, o converge.Order) bool {
	s, w := h.srv, h.w
	run := s.run
	took := w.between(50*time.Microsecond, time.Millisecond) + h.slowAgent
	later := func(do func()) {
		h.busy = true
		gen := h.generation
		w.after(took, func() {
			if h.generation == gen {
				h.whenAwake(func() {
					h.busy = false
					do()
					h.tickIn(100 * time.Microsecond)
				})
			}
		})
	}
	order := func(do func()) { // reaches the server even if the agent dies meanwhile, and late if it is stopped
		w.after(took/2, func() { s.exec(run, do) })
		later(func() {})
	}
	if (o.Do == converge.Follow || o.Do == converge.Promote) && in.Shard.Assigned.Epoch < h.promised {
		w.fail("%s obeys an order of epoch %d after it promised epoch %d (SAFETY A6)", h.id, in.Shard.Assigned.Epoch, h.promised)
	}
	switch o.Do {
	case converge.Promise:
		took += h.fsync()
		phase := in.Shard.Assigned.Phase
		later(func() {
			if !h.vow.given.Binds(phase, o.Epoch, h.promised, h.uptime()) { // one may have been given meanwhile
				h.promised = max(h.promised, o.Epoch)
			}
		})
	case converge.Fence:
		w.log("%s fences: %s (%s)", h.id, o.Rule, o.Why)
		if s.stopped {
			took = 50 * time.Millisecond
			later(func() {
				if s.alive && s.run == run && s.stopped {
					s.die(false)
				}
			})
			return true
		}
		order(s.freeze)
	case converge.Freeze:
		order(s.freeze)
	case converge.Salvage: // it reads, and changes nothing at the server
		took += w.between(0, 50*time.Millisecond)
		later(func() { h.memory = converge.Salvaged(h.memory, in.Seen.Pos) })
	case converge.Follow:
		h.memory.FollowedAt = in.Now
		p, secret := w.host(topo.NodeID(o.Addr)).srv, in.Shard.Assigned.Secret
		order(func() { s.follow(p, secret) })
	case converge.Promote:
		secret := in.Shard.Assigned.Secret
		h.memory.WasPrimary = true // one that does not answer any more may have become it: a fence kills it (track record 9)
		order(func() {
			if why := s.promote(o.Expect, secret); why != "" {
				h.refused, h.refusedAt, h.memory.WasPrimary = why, o.Epoch, false
				return
			}
			w.log("%s is promoted: %s from %d", h.id, s.replid, s.offset())
			if !s.backlog { // the same verb goes on to create one
				h.askForSync(s.run, took/4)
			}
		})
	case converge.CheckSync:
		h.checkSync(o, later)
	case converge.Enforce:
		h.enforce(in, o, later)
	case converge.Drain:
		return h.drain(in, took, order)
	case converge.Restart:
		if w.now < h.restartAt {
			return false
		}
		took += w.between(5*time.Millisecond, 300*time.Millisecond)
		later(func() {
			if !s.alive {
				s.boot()
			}
		})
	}
	return true
}

// askForSync is the rest of a promotion: the agent asks its new primary for a sync, so that there is a backlog. It reaches the
// server late where the server is busy and the agent has given up on the verb and looks again meanwhile; not at all if
// the agent dies first.
func (h *host) askForSync(run string, d time.Duration) {
	if h.w.unlucky && h.w.rng.IntN(3) == 0 {
		d += h.w.between(0, 100*time.Millisecond)
	}
	gen := h.generation
	h.w.after(d, func() {
		if h.generation == gen {
			h.whenAwake(func() { h.srv.exec(run, h.srv.prime) })
		}
	})
}

func (h *host) checkSync(o converge.Order, later func(func())) {
	p := h.w.host(topo.NodeID(o.Addr)).srv
	if !p.alive || p.stopped || h.w.isCut(h.srv, p) || h.w.isCut(p, h.srv) {
		later(func() {})
		return
	}
	role, pos := topo.RoleReplica, topo.Position{ReplID: p.replid, Offset: p.offset()}
	if p.primary {
		role = topo.RolePrimary
	}
	last, _ := h.view.doc.Assigned.Latest()
	later(func() { h.memory = converge.Synced(h.memory, o.Epoch, role, pos, last) })
}

// drain waits for the proxies' connections to go, within a grace, and then fences.
func (h *host) drain(in converge.Input, took time.Duration, order func(func())) bool {
	if h.drainFrom == 0 || in.Now-h.drainFrom > 2*time.Second {
		h.drainFrom = in.Now
	}
	busy := false
	for _, c := range h.srv.conns {
		busy = busy || c.open
	}
	if busy && in.Now-h.drainFrom < 50*time.Millisecond {
		h.tickIn(time.Millisecond)
		return true
	}
	if planted("switchover-fenced-by-pause") {
		return true
	}
	order(h.srv.freeze)
	return true
}

// pings move the primary's offset when nobody writes.
func (h *host) pings() {
	h.w.after(time.Second, func() {
		if s := h.srv; s.alive && !s.stopped && s.primary && len(s.replicas) > 0 {
			s.write(0)
		}
		h.pings()
	})
}
