// SPDX-License-Identifier: Apache-2.0

package proxy

// Which connection a session's commands take.

// hand gives commands to the right lane, waiting for earlier ones where order demands it.
func (s *session) hand(chunk []byte, items []item, heavy bool) bool {
	return s.choose(heavy) && s.handTo(items, chunk)
}

// handTo gives commands to the present lane.
func (s *session) handTo(items []item, chunk []byte) bool {
	for {
		err := s.lane.push(s, chunk, items, false)
		switch {
		case err == nil:
			return true
		case err == errBroken:
			return s.broken(items[0])
		case err != errParkFull || s.closed.Load():
			return false
		case s.inflight.Load() > 0:
			if !s.await(0) {
				return false
			}
			continue // it may fit now
		}
		s.p.stats.refused.Add(uint64(len(items)))
		switch o := items[0].op; {
		case o.ends():
			return s.broken(items[0])
		case o == opMulti: // nor may what follows run by itself
			s.lane.breakTxn()
		}
		refusal := notSent("too many commands are waiting for a primary: " + s.p.why(s.p.order.Load()))
		for _, it := range items {
			if it.flags&muted == 0 {
				s.deliver(refusal, 0)
			}
		}
		s.dirty = true
		s.poison = s.poison || s.multi
		return true
	}
}

// choose makes s.lane the lane for the next commands. heavy: they include a write.
func (s *session) choose(heavy bool) bool {
	if s.ownLane() != nil {
		if s.inflight.Load() > 0 || s.multi || s.user != "" || !s.lane.isClean() {
			return true
		}
		s.dropOwn()
	}
	if s.lane != nil && s.inflight.Load() > 0 {
		if s.stays(heavy) {
			return true
		}
		if !s.await(0) {
			return false
		}
	}
	s.lane = s.shared(heavy)
	return true
}

// stays reports whether the next commands may follow those in flight on the present lane.
func (s *session) stays(heavy bool) bool {
	if s.lane.key.node != "" {
		return !heavy && !s.main
	}
	if s.lane.ex != nil && !s.exact || heavy && s.lane.ex == nil && s.wantsExact(heavy) {
		return false
	}
	return !heavy || !s.lane.readsOnly || s.ro || s.lax
}

// shared returns the shared lane for the next commands of a session without commands in flight.
func (s *session) shared(heavy bool) *lane {
	if s.p.o.SplitReads && !heavy && !s.main && !s.ro && !s.p.strict() {
		if l := s.replicaLane(); l != nil {
			return l
		}
	}
	kind := writeLane
	if (!heavy || s.lax) && !s.ro && !s.p.order.Load().need.nothing() && s.p.o.ReadConsistency != ReadLinearizable {
		kind = readLane
	}
	if s.wantsExact(heavy) {
		kind = exactLane
	}
	if s.home[kind] == nil {
		s.home[kind] = s.p.sharedLane(s, kind)
	}
	return s.home[kind]
}

// wantsExact reports whether the next commands belong on a lane with exact retry. Without acknowledgements there is none: a
// marker would be lost with the writes that it speaks of.
func (s *session) wantsExact(heavy bool) bool {
	if !heavy || !s.exact {
		return false
	}
	o := s.p.order.Load()
	return !o.need.nothing() || o.t == nil // nothing is known yet, and the option is for deployments with acknowledgements
}
