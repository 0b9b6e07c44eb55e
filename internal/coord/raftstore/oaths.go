// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"sync"
	"time"

	"redoubt/internal/clock"
)

// oaths remembers when this member last told a controller that its Raft term was still the present one. The next
// controller learns from a majority of them how long ago its predecessors can have answered anything at the latest.
type oaths struct {
	clock clock.Clock

	mu     sync.Mutex
	term   uint64        // of the latest oath
	at     time.Duration // clock.Uptime of the latest oath of that term
	before time.Duration // of the latest oath of any earlier term; at first, when this process began: an earlier one may have sworn until then
}

// swear answers a controller of Raft term asked: it returns the present term and, if that is the one asked for, how long
// ago this member confirmed an earlier one. Present term and record are one step, so that a member whose answer to the
// controller of a later term went out has recorded every oath that an earlier controller can count.
func (o *oaths) swear(asked uint64, present func() uint64) (term uint64, age time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if term = present(); term != asked {
		return term, 0
	}
	now := o.clock.Uptime() // after the question arrived, and therefore after the reads that it is asked for
	if asked > o.term {
		o.before, o.term = max(o.before, o.at), asked
	}
	o.at = now
	return term, now - o.before
}

// encodeAge writes an age for the answer to a confirmation.
func encodeAge(age time.Duration) []byte { return binary.AppendUvarint(nil, uint64(max(0, age))) }

// decodeAge reads it; ok is false for an answer without one.
func decodeAge(b []byte) (age time.Duration, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v > 1<<62 {
		return 0, false
	}
	return time.Duration(v), true
}
