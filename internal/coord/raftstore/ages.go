// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"time"

	"redoubt/internal/coord"
)

// ReadAge implements coord.ReadAges: min(now − arrival of that member's latest read of an older revision in this term,
// now − the latest moment at which an earlier controller can have answered a read). ok is false unless this member is
// the controller.
//
// How the reads that earlier controllers answered are counted, without asking them: a controller of Raft term T answers
// a read only after a majority has told it, after the read had arrived, that their term was still T (reign.confirm); each
// of them notes when it did (oaths). The controller of a later term hears from a majority when each last told anybody of
// an earlier one (the first rounds of reign.confirm). Some member is in both majorities, so the read arrived before the
// latest of these moments. A member that heard of the later term confirms no earlier one any more, so the answer is final.
// Before the first round the moment at which the election was won serves instead: the same member gave its vote after
// it had confirmed the earlier term. A change of membership moves the moment to the change: majorities of memberships
// that are two changes apart need not meet.
//
// Within one term: a read that arrives after a swap was applied sees it. So a read that may have seen less arrived
// while an earlier revision was present, and its arrival was recorded before it could be answered.
func (s *Store) ReadAge(member string) (time.Duration, bool) {
	g := s.reign.Load()
	if g == nil {
		return 0, false
	}
	last := g.ages.Latest(member, func(key string) coord.Rev {
		doc, _ := s.machine.get(key)
		return doc.Rev
	})
	return max(0, s.opts.Clock.Uptime()-last), true
}

// VacantFor implements coord.ReadAges.
func (s *Store) VacantFor() (time.Duration, bool) {
	g := s.reign.Load()
	if g == nil {
		return 0, false
	}
	return max(0, s.opts.Clock.Uptime()-g.ages.Since()), true
}
