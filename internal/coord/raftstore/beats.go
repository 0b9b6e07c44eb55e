// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"sync"
	"time"

	"redoubt/internal/coord"
)

// beatNames bounds how many reports the controller keeps. More are dropped.
const beatNames = 4096

// beatTable holds the reports of one term in office.
type beatTable struct {
	mu   sync.Mutex
	rows map[string]beatRow
}

type beatRow struct {
	body    []byte
	arrived time.Time
	ttl     time.Duration
}

// put keeps a report; false when the table is full.
func (b *beatTable) put(from string, body []byte, ttl time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.rows[from]; !known && len(b.rows) >= beatNames {
		b.expire(time.Now())
		if len(b.rows) >= beatNames {
			return false
		}
	}
	b.rows[from] = beatRow{body, time.Now(), ttl}
	return true
}

// expire forgets what is past its time. Callers hold the lock.
func (b *beatTable) expire(now time.Time) {
	for from, r := range b.rows {
		if now.Sub(r.arrived) >= r.ttl {
			delete(b.rows, from)
		}
	}
}

func (b *beatTable) all() map[string]coord.Beat {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire(now)
	out := make(map[string]coord.Beat, len(b.rows))
	for from, r := range b.rows {
		out[from] = coord.Beat{Body: append([]byte(nil), r.body...), Age: now.Sub(r.arrived)}
	}
	return out
}

func encodeBeats(all map[string]coord.Beat) []byte {
	b := binary.AppendUvarint(nil, uint64(len(all)))
	for from, beat := range all {
		b = appendBytes(b, from)
		b = binary.AppendVarint(b, int64(beat.Age))
		b = appendBytes(b, beat.Body)
	}
	return b
}

func decodeBeats(data []byte) (map[string]coord.Beat, error) {
	d := decoder{data: data}
	out := map[string]coord.Beat{}
	for n := d.uint(); n > 0 && !d.bad; n-- {
		from := string(d.bytes())
		out[from] = coord.Beat{Age: time.Duration(d.int()), Body: d.bytes()}
	}
	return out, d.finish("reports")
}

func encodeMembers(ms []coord.Member) []byte {
	b := binary.AppendUvarint(nil, uint64(len(ms)))
	for _, m := range ms {
		b = appendBytes(appendBytes(b, m.ID), m.Addr)
		b = append(b, map[bool]byte{true: 1}[m.Controller])
	}
	return b
}

func decodeMembers(data []byte) ([]coord.Member, error) {
	d := decoder{data: data}
	var out []coord.Member
	for n := d.uint(); n > 0 && !d.bad; n-- {
		out = append(out, coord.Member{ID: string(d.bytes()), Addr: string(d.bytes()), Controller: d.byte() == 1})
	}
	return out, d.finish("members")
}
