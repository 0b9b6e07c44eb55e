// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"redoubt/internal/coord"
)

// beatNames bounds how many reports the controller keeps. More are dropped.
const beatNames = 4096

// Beats holds the reports of one term in office. Safe for concurrent use.
type Beats struct {
	mu   sync.Mutex
	rows map[string]beatRow
}

// NewBeats returns an empty table.
func NewBeats() *Beats { return &Beats{rows: map[string]beatRow{}} }

type beatRow struct {
	body    []byte
	arrived time.Time
	ttl     time.Duration
}

// Put keeps a report; false when the table is full.
func (b *Beats) Put(from string, body []byte, ttl time.Duration) bool {
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
func (b *Beats) expire(now time.Time) {
	for from, r := range b.rows {
		if now.Sub(r.arrived) >= r.ttl {
			delete(b.rows, from)
		}
	}
}

// Some returns the reports that have not expired and whose names want takes; nil takes all.
func (b *Beats) Some(want func(name string) bool) map[string]coord.Beat {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire(now)
	out := map[string]coord.Beat{}
	for from, r := range b.rows {
		if want == nil || want(from) {
			out[from] = coord.Beat{Body: r.body, Age: now.Sub(r.arrived)}
		}
	}
	return out
}

// Sift keeps of reports those that want takes; nil takes all.
func Sift(all map[string]coord.Beat, want func(name string) bool) map[string]coord.Beat {
	if want != nil {
		maps.DeleteFunc(all, func(name string, _ coord.Beat) bool { return !want(name) })
	}
	return all
}

// NameMax bounds a document's key and a report's name, in bytes.
const NameMax = 1024

// Inbox is where reports go: at the controller into its table, elsewhere onto the stream to it. Safe for concurrent use.
type Inbox struct{ *News }

// NewInbox returns an inbox of which nobody has been told anything.
func NewInbox() Inbox { return Inbox{NewNews()} }

// News says that reports arrived, and whose. Safe for concurrent use.
type News struct {
	arrived chan struct{}
	mu      sync.Mutex // guards what follows
	fresh   map[string]struct{}
}

// NewNews returns news of nothing.
func NewNews() *News { return &News{arrived: make(chan struct{}, 1), fresh: map[string]struct{}{}} }

// Arrived has a value when reports came since it was read last.
func (n *News) Arrived() <-chan struct{} { return n.arrived }

// Note notes a report.
func (n *News) Note(from string) {
	n.mu.Lock()
	if len(n.fresh) <= beatNames {
		n.fresh[from] = struct{}{}
	}
	n.mu.Unlock()
	select {
	case n.arrived <- struct{}{}:
	default:
	}
}

// Fresh implements coord.Sieve.
func (n *News) Fresh() (names []string, all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	names, all = slices.Collect(maps.Keys(n.fresh)), len(n.fresh) > beatNames
	clear(n.fresh)
	return names, all
}

// Put keeps a report at the controller; false when its table is full.
func (i Inbox) Put(here *Beats, from string, body []byte, ttl time.Duration) bool {
	if !here.Put(from, body, ttl) {
		return false
	}
	i.Note(from)
	return true
}

// Send hands a report over without waiting for an answer: here is the table of a member in office, there the stream of another one,
// nil what it does not have. Without both, or with a full queue, it answers ErrUnavailable at once.
func (i Inbox) Send(here *Beats, there *Link, from string, body []byte, ttl time.Duration) error {
	why := ""
	switch {
	case len(body) > coord.BeatMax || len(from) > NameMax:
		return fmt.Errorf("send report of %.40s: name has %d bytes and body %d, the limits are %d and %d", from, len(from), len(body), NameMax, coord.BeatMax)
	case here != nil:
		if i.Put(here, from, append([]byte(nil), body...), ttl) {
			return nil
		}
		why = "too many reporters"
	case there == nil:
		why = "no controller"
	default:
		if there.Post(Frame{Kind: KindBeat, Key: from, Value: body, Rev: uint64(max(0, ttl))}) {
			return nil
		}
		why = "the stream to the controller is blocked"
	}
	return fmt.Errorf("send report of %s: %s: %w", from, why, coord.ErrUnavailable)
}

// EncodeBeats writes reports for a reply.
func EncodeBeats(all map[string]coord.Beat) []byte {
	b := binary.AppendUvarint(nil, uint64(len(all)))
	for from, beat := range all {
		b = Append(b, from)
		b = binary.AppendVarint(b, int64(beat.Age))
		b = Append(b, beat.Body)
	}
	return b
}

// DecodeBeats reads them.
func DecodeBeats(data []byte) (map[string]coord.Beat, error) {
	d := NewDecoder(data)
	out := map[string]coord.Beat{}
	for n := d.Uint(); n > 0 && !d.bad; n-- {
		from := string(d.Bytes())
		out[from] = coord.Beat{Age: time.Duration(d.Int()), Body: d.Bytes()}
	}
	return out, d.Finish("reports")
}

// EncodeMembers writes a list of members for a reply.
func EncodeMembers(ms []coord.Member) []byte {
	b := binary.AppendUvarint(nil, uint64(len(ms)))
	for _, m := range ms {
		b = Append(Append(b, m.ID), m.Addr)
		b = append(b, map[bool]byte{true: 1}[m.Controller])
	}
	return b
}

// DecodeMembers reads it.
func DecodeMembers(data []byte) ([]coord.Member, error) {
	d := NewDecoder(data)
	var out []coord.Member
	for n := d.Uint(); n > 0 && !d.bad; n-- {
		out = append(out, coord.Member{ID: string(d.Bytes()), Addr: string(d.Bytes()), Controller: d.Byte() == 1})
	}
	return out, d.Finish("members")
}
