// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

// Commit markers (SAFETY A9, ADR 0023), in worlds where all servers can die at once and something is promised after that: quorum
// with append-only files. All other worlds draw nothing from here.

func (w *world) marks() bool { return w.persist == persistAOF && w.spec.Durability.Waits() }

// mark is the commit marker in the data.
func (s *server) mark() topo.Mark {
	if s.head == nil {
		return topo.Mark{}
	}
	return s.head.mark
}

// noteMark lets the agent of a primary write the marker, once in every beat in which something was written.
func (h *host) noteMark(in converge.Input) {
	s := h.srv
	if !h.w.marks() || in.Shard == nil || in.Now >= in.LeaseEnd || !s.alive || s.stopped || !s.primary || in.Now-h.markedAt < h.w.spec.Timing.Beat.D() {
		return
	}
	a := in.Shard.Assigned
	if a.Phase != topo.PhaseServing || a.Primary != h.id || a.RunID != s.run || s.head == h.marked && s.mark().Epoch == a.Epoch {
		return
	}
	h.markedAt = in.Now
	s.append(&entry{prev: s.head, off: s.dataOff() + 2, mark: topo.Mark{Epoch: a.Epoch, Offset: s.offset()}})
	h.marked = s.head
}

// allDie ends every server. Besides, within the promise, one disk may be gone, or the primary may have put off its writes for
// up to two seconds, because its disk hung.
func (w *world) allDie() {
	p := w.host(w.store.doc.Assigned.Primary)
	sound := w.marks() && w.unlucky && p != nil && w.allEnrolled()
	for _, h := range w.hosts {
		h.srv.die(false)
		sound = sound && h.srv.kept
	}
	if !sound {
		return
	}
	switch w.rng.IntN(3) {
	case 0:
		h := p
		if w.rng.IntN(4) == 0 {
			h = w.hosts[w.rng.IntN(w.n)]
		}
		w.log("FAULT the disk of %s is lost as well", h.id)
		if h == p {
			w.lostIn = w.store.doc.Assigned.Epoch
		}
		h.srv.head, h.srv.kept, h.srv.lacking = nil, false, true
	case 1:
		w.putOff(p.srv, 1+w.rng.IntN(20))
	}
}

// allEnrolled: whatever one seat loses now, it is the first.
func (w *world) allEnrolled() bool {
	for _, node := range w.store.doc.Spec.Nodes {
		s := w.host(node.ID).srv
		if !s.alive || w.store.doc.Assigned.Enrolled[node.ID] != s.run {
			return false
		}
	}
	return w.store.doc.Assigned.Phase == topo.PhaseServing && w.store.doc.Assigned.Alone == ""
}

// putOff takes from the file of a primary what it wrote in the latest beats, back to a marker behind which every replica has
// another one. A replica that has not got the next marker cannot be told from the primary, and nothing is promised then.
func (w *world) putOff(s *server, beats int) {
	e := s.head
	for ; e != nil && beats > 0; e = e.prev {
		if e.prev != nil && e.prev.mark != e.mark {
			beats--
		}
	}
	if e == nil || e.mark.Epoch != w.store.doc.Assigned.Epoch {
		return
	}
	for _, h := range w.hosts {
		if m := h.srv.mark(); h.srv != s && !e.mark.Less(m) {
			return
		}
	}
	w.log("FAULT the file of %s ends at %d in place of %d", s.name, e.off, s.dataOff())
	s.head = e
}
