// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"sync"
	"time"

	"redoubt/internal/coord"
)

// readAges knows when the members' reads arrived during one term in office.
type readAges struct {
	mu    sync.Mutex
	since time.Duration // clock.Uptime after which no earlier controller answered any read; at first, when the election had been won
	rows  map[readKey]readRow
}

type readKey struct{ member, key string }

// readRow tells about one member's reads of one document.
type readRow struct {
	rev   coord.Rev     // the revision that was present when the latest of them arrived
	at    time.Duration // its arrival
	older time.Duration // arrival of the latest that arrived before this revision was present; zero: none
}

// readRows bounds the table; reads of documents beyond it count under one row that is always old.
const readRows = 1 << 16

// note records a read that arrived at that time, when rev was present. It must be called before leadership is confirmed.
func (a *readAges) note(member, key string, rev coord.Rev, at time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := readKey{member, key}
	row, ok := a.rows[k]
	if !ok && len(a.rows) >= readRows {
		k = readKey{member, ""}
		row = a.rows[k]
		row.older = max(row.older, at)
		a.rows[k] = row
		return
	}
	switch {
	case !ok || rev == row.rev:
		row.rev, row.at = rev, max(row.at, at)
	case rev > row.rev:
		row.older, row.rev, row.at = max(row.older, row.at), rev, at
	default: // two reads overtook each other
		row.older = max(row.older, at)
	}
	a.rows[k] = row
}

// vacant notes that no earlier controller answered a read that arrived after that time.
func (a *readAges) vacant(after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since = min(a.since, after)
}

// latest returns the arrival of the member's latest read that may have seen an older revision than present gives.
func (a *readAges) latest(member string, present func(key string) coord.Rev) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := a.since
	for k, row := range a.rows {
		if k.member != member {
			continue
		}
		last = max(last, row.older)
		if row.rev < present(k.key) {
			last = max(last, row.at)
		}
	}
	return last
}

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
	last := g.ages.latest(member, func(key string) coord.Rev {
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
	g.ages.mu.Lock()
	defer g.ages.mu.Unlock()
	return max(0, s.opts.Clock.Uptime()-g.ages.since), true
}
