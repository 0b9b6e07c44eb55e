// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"time"

	"redoubt/internal/topo"
)

// entry is one step of a replication stream. A data set is the path from an entry back to the beginning, so branches,
// prefixes and losses are visible as what they are.
type entry struct {
	prev  *entry
	off   int64
	write uint64    // 0: a PING
	mark  topo.Mark // the latest commit marker up to here
}

// at returns the entry of e's path with that offset, or nil.
func (e *entry) at(off int64) *entry {
	for e != nil && e.off > off {
		e = e.prev
	}
	if e != nil && e.off == off {
		return e
	}
	return nil
}

// server is one redis-server: what survives of it in memory, and what is on its disk.
type server struct {
	w       *world
	h       *host // nil for the ghost
	name    string
	alive   bool
	stopped bool // SIGSTOP
	queued  []func()
	run     string

	primary   bool
	following *server // nil while a replica is frozen
	replid    string
	replid2   string
	offset2   int64
	head      *entry // nil: empty
	extra     int64  // offset without data (a restarted AOF node says 0)
	backlog   bool
	whole     bool
	link      *link   // to following, when connected
	replicas  []*link // attached to us
	kept      bool
	lacking   bool        // its disk was lost, and nobody has given it everything since
	admits    topo.Secret // what replicas must present (SAFETY A7)
	presents  topo.Secret // to whom it follows

	saved      *entry // RDB
	savedID    string
	savedExtra int64
	conns      []*conn
}

// link is one replica's connection to its primary.
type link struct {
	from, to *server
	fromRun  string
	toRun    string
	open     bool
	acked    int64
	lastAt   time.Duration // FIFO
	sent     int64
}

func (s *server) offset() int64 {
	if s.head == nil {
		return 0
	}
	return s.head.off - s.extra
}

func (w *world) newID(kind string) string {
	w.nextRun++
	return fmt.Sprintf("%s%d", kind, w.nextRun)
}

// boot starts the process with what its disk holds; frozen, always.
func (s *server) boot() {
	w := s.w
	s.alive, s.stopped, s.queued = true, false, nil
	s.run = w.newID("run")
	s.primary, s.following, s.link, s.replicas, s.conns = false, nil, nil, nil, nil
	s.backlog, s.whole = false, true
	s.admits, s.presents = "", ""
	s.replid, s.replid2, s.offset2 = w.newID("id"), "", -1
	switch w.persist {
	case persistNone:
		s.head, s.kept, s.extra = nil, false, 0
	case persistRDB:
		s.head, s.kept, s.extra = s.saved, false, s.savedExtra
		if s.saved != nil {
			s.replid = s.savedID
		}
	case persistAOF:
		// All that reached write() is there, but the position is not: a random id and offset 0.
		s.extra = 0
		if s.head != nil {
			s.extra = s.head.off
		}
	}
	if planted("boot-writable") {
		s.primary = true
	}
	w.log("%s boots frozen as %s with %s at %d", s.name, s.run, s.replid, s.offset())
}

// die is kill -9. wipe removes the data directory as well.
func (s *server) die(wipe bool) {
	if !s.alive {
		return
	}
	s.alive = false
	s.closeLinks()
	for _, c := range s.conns {
		c.close()
	}
	s.conns = nil
	s.kept = s.w.persist == persistAOF && !wipe && s.whole && !s.lacking
	if wipe {
		s.saved, s.head, s.kept = nil, nil, false
	}
}

func (s *server) closeLinks() {
	if s.link != nil {
		s.link.close()
		s.link = nil
	}
	s.dropSubs()
}

func (l *link) close() { l.open = false }

// exec runs an order on the server as soon as it runs at all; a stopped server keeps it in its queue.
func (s *server) exec(run string, do func()) {
	if !s.alive || s.run != run {
		return
	}
	if s.stopped {
		s.queued = append(s.queued, func() { s.exec(run, do) })
		return
	}
	do()
}

func (s *server) cont() {
	s.stopped = false
	q := s.queued
	s.queued = nil
	for _, f := range q {
		f()
	}
}

// freeze is REPLICAOF to the dead address; on a primary with the client kills of SAFETY A5.
func (s *server) freeze() {
	if s.link != nil {
		s.link.close()
		s.link = nil
	}
	s.following = nil
	if s.primary {
		s.primary = false
		if !planted("wait-across-tenures") {
			for _, c := range s.conns {
				c.close()
			}
			s.conns = nil
		}
	}
}

// follow is REPLICAOF host port, with what the primary there demands.
func (s *server) follow(p *server, secret topo.Secret) {
	if p == s {
		return
	}
	if s.following == p && s.link != nil && s.link.open { // the verb leaves a sync under way alone
		s.presents = secret
		return
	}
	s.freeze()
	s.closeLinks()
	s.following, s.presents = p, secret
	s.connect()
}

// promote is REPLICAOF NO ONE, conditional on the elected process and position (SAFETY A6). From that instant on only
// replicas with the tenure's secret are admitted.
func (s *server) promote(e topo.Elected, secret topo.Secret) string {
	if !planted("unconditional-promote") {
		if s.run != e.RunID || s.replid != e.ReplID || s.offset() != e.Offset {
			return fmt.Sprintf("is %s %s %d, elected was %s %s %d", s.run, s.replid, s.offset(), e.RunID, e.ReplID, e.Offset)
		}
	}
	if s.run != e.RunID || s.replid != e.ReplID || s.offset() != e.Offset {
		s.w.fail("%s is promoted as %s at %s %d, but %s at %s %d was elected (SAFETY A6)", s.name, s.run, s.replid, s.offset(), e.RunID, e.ReplID, e.Offset)
	}
	s.freeze()
	s.closeLinks()
	s.primary, s.admits, s.lacking = true, secret, false
	s.replid2, s.offset2 = s.replid, s.offset()+1
	s.replid = s.w.newID("id")
	return ""
}

// prime is the first request for a sync to a primary without a backlog: the server creates one and changes its replication
// id once more, so that nothing it reported before has a parent (SAFETY A3).
func (s *server) prime() {
	if !s.primary || s.backlog {
		return
	}
	s.backlog = true
	s.replid, s.replid2, s.offset2 = s.w.newID("id"), "", -1
	s.w.log("%s has a backlog now: %s from %d", s.name, s.replid, s.offset())
	s.wake()
}

// write appends to the stream and sends it to the replicas.
func (s *server) write(id uint64) *entry {
	base := int64(0)
	if s.head != nil {
		base = s.head.off
	}
	step := 1 + int64(s.w.rng.IntN(3))
	if !s.backlog {
		s.extra += step // writes do not move the offset before there is a backlog (SAFETY A3)
	}
	s.append(&entry{prev: s.head, off: base + step, write: id, mark: s.mark()})
	return s.head
}

func (s *server) append(e *entry) {
	s.head = e
	for _, l := range s.replicas {
		l.send(e)
	}
}

// send streams entries in order; a cut holds them back, as TCP does.
func (l *link) send(e *entry) {
	w := l.to.w
	at := max(w.now+w.delay(), l.lastAt)
	l.lastAt = at
	w.after(at-w.now, func() { l.deliver(e) })
}

func (l *link) deliver(e *entry) {
	w := l.to.w
	r := l.from
	if !l.open || !r.alive || r.run != l.fromRun || r.link != l {
		return
	}
	if w.isCut(l.to, r) || r.stopped || r.hostAsleep() || r.h.held() {
		w.after(20*time.Millisecond, func() { l.deliver(e) })
		return
	}
	if e.off <= l.sent {
		return
	}
	if e.prev != r.head {
		// An earlier entry is still held back: keep the order.
		w.after(5*time.Millisecond, func() { l.deliver(e) })
		return
	}
	l.sent = e.off
	r.head = e
	r.passOn(e)
	r.wake()
	w.after(w.delay(), func() { l.ack(e.off) })
}

func (l *link) ack(off int64) {
	p := l.to
	if !l.open || !p.alive || p.run != l.toRun {
		return
	}
	if p.w.isCut(l.from, p) || p.stopped {
		p.w.after(20*time.Millisecond, func() { l.ack(off) })
		return
	}
	l.acked = max(l.acked, off)
	for _, c := range p.conns {
		c.check()
	}
}

// connect is the replica's side of PSYNC; it tries again until it succeeds or is told otherwise.
func (s *server) connect() {
	w, p, run := s.w, s.following, s.run
	again := func() {
		w.after(w.between(50*time.Millisecond, 300*time.Millisecond), func() {
			if s.alive && s.run == run && s.following == p && s.link == nil {
				s.connect()
			}
		})
	}
	w.after(w.delay()*2, func() {
		if !s.alive || s.run != run || s.following != p || s.link != nil {
			return
		}
		refused := !p.primary && (s.h == nil || !p.linkUp()) || s.presents != p.admits && !planted("ghost-replica-in-k")
		if s.stopped || !p.alive || p.stopped || w.isCut(s, p) || w.isCut(p, s) || refused {
			again() // also -NOMASTERLINK: a frozen node serves no sync (SAFETY B5), and -WRONGPASS
			return
		}
		s.attach(p)
	})
}

func (s *server) attach(p *server) {
	w := s.w
	if s.h == nil && !planted("ghost-replica-in-k") {
		w.fail("a replica that nobody registered is attached to %s (SAFETY A7)", p.name)
	}
	p.prime() // a replica has a backlog from its own sync
	l := &link{from: s, to: p, fromRun: s.run, toRun: p.run, open: true, lastAt: w.now}
	switch known := s.replid == p.replid || s.replid == p.replid2 && s.offset() < p.offset2; {
	case known && s.offset() <= p.offset() && p.backlog: // who has taken the new id and lags serves nobody who is further
		// +CONTINUE: the new id is taken at once, before one byte of the stream (SAFETY A2).
		if p.head.at(s.dataOff()) != s.head {
			w.fail("%s partially resyncs from %s at %d, but its data differs", s.name, p.name, s.offset())
			return
		}
		if s.replid != p.replid {
			s.dropSubs()
		}
		s.replid, s.replid2, s.offset2 = p.replid, p.replid2, p.offset2
		s.backlog, s.whole = true, true
		l.sent = s.dataOff()
		s.link = l
		w.holdContinued(s.h)
		p.replicas = append(p.replicas, l)
		l.acked = s.dataOff()
		var missing []*entry
		for e := p.head; e != nil && e != s.head; e = e.prev {
			missing = append(missing, e)
		}
		w.after(w.delay()*time.Duration(1+w.rng.IntN(5)), func() {
			for i := len(missing) - 1; i >= 0; i-- {
				l.send(missing[i])
			}
			s.wake()
		})
	default:
		s.fullSync(l, p)
	}
	s.wake()
}

func (s *server) dataOff() int64 {
	if s.head == nil {
		return 0
	}
	return s.head.off
}

// fullSync replaces the data set, after a while.
func (s *server) fullSync(l *link, p *server) {
	w := s.w
	snapshot := p.head
	s.dropSubs()
	s.whole = false
	s.link = l
	took := w.between(5*time.Millisecond, 400*time.Millisecond)
	w.after(took, func() {
		if !l.open || !s.alive || s.run != l.fromRun || s.link != l {
			return
		}
		if !p.alive || p.run != l.toRun || w.isCut(p, s) || w.isCut(s, p) {
			l.close()
			s.link = nil
			s.whole = true // diskless load into a spare data set: the old one and its position are kept
			s.following = p
			s.connect()
			return
		}
		s.head, s.extra = snapshot, p.extra
		s.replid, s.replid2, s.offset2 = p.replid, p.replid2, p.offset2
		s.whole, s.backlog, s.lacking = true, true, false
		s.saved, s.savedID, s.savedExtra = snapshot, p.replid, p.extra
		l.sent = s.dataOff()
		l.acked = s.dataOff()
		p.replicas = append(p.replicas, l)
		var missing []*entry
		for e := p.head; e != nil && e != snapshot; e = e.prev {
			missing = append(missing, e)
		}
		for i := len(missing) - 1; i >= 0; i-- {
			l.send(missing[i])
		}
		s.wake()
	})
}

func (s *server) linkUp() bool {
	return s.link != nil && s.link.open && s.whole
}

func (s *server) wake() {
	if s.h != nil {
		s.h.wake()
	}
}

func (s *server) hostAsleep() bool { return s.h != nil && s.h.asleep() }

// count is WAIT: how many attached replicas have acknowledged off.
func (s *server) count(off int64) int {
	n := 0
	for _, l := range s.replicas {
		if l.open && l.from.link == l && l.acked >= off {
			n++
		}
	}
	return n
}

func (w *world) isCut(from, to *server) bool {
	if from.h == nil || to.h == nil {
		return false
	}
	return w.cut[from.h.index][to.h.index]
}
