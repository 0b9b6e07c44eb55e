// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"sync"
	"time"

	"redoubt/internal/coord"
)

// Ages knows when the members' reads arrived during one term in office. Safe for concurrent use.
type Ages struct {
	mu    sync.Mutex
	since time.Duration // clock.Uptime after which no earlier controller answered any read; at first, when the election had been won
	rows  map[readKey]readRow
}

// NewAges begins a table; no earlier controller answered a read that arrived after since.
func NewAges(since time.Duration) *Ages { return &Ages{since: since, rows: map[readKey]readRow{}} }

type readKey struct{ member, key string }

// readRow tells about one member's reads of one document.
type readRow struct {
	rev   coord.Rev     // the revision that was present when the latest of them arrived
	at    time.Duration // its arrival
	older time.Duration // arrival of the latest that arrived before this revision was present; zero: none
}

// readRows bounds the table; reads of documents beyond it count under one row that is always old.
const readRows = 1 << 16

// Note records a read that arrived at that time, when rev was present. It must be called before leadership is confirmed.
func (a *Ages) Note(member, key string, rev coord.Rev, at time.Duration) {
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

// Vacant notes that no earlier controller answered a read that arrived after that time.
func (a *Ages) Vacant(after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since = min(a.since, after)
}

// Latest returns the arrival of the member's latest read that may have seen an older revision than present gives.
func (a *Ages) Latest(member string, present func(key string) coord.Rev) time.Duration {
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

// Since returns the time after which no earlier controller answered any read.
func (a *Ages) Since() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.since
}
