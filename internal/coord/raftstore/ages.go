// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"sync"
	"time"

	"redoubt/internal/coord"
)

// readAges knows when the members' reads arrived during one term in office.
type readAges struct {
	since time.Duration // clock.Uptime at a moment after this process had won its election

	mu   sync.Mutex
	rows map[readKey]readRow
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
// now − the moment at which this process knew that it had won its election). ok is false unless this member is the
// controller.
//
// Why this counts the reads that earlier controllers answered, without asking them: a controller of Raft term T answers
// a read only after a majority has told it, after the read had arrived, that their term was still T (reign.confirm). The
// controller of a later term was voted for by a majority; some member is in both. That member gave its vote after it
// had told the old controller so, because a vote raises the voter's term first. Hence this process won its election
// after the read had arrived at the old controller, and therefore after it had begun: its age is at least now − since.
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
