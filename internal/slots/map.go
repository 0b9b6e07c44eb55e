// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Count is the number of slots of a cluster.
const Count = 16384

// None is the shard of a slot that no shard has.
const None = -1

// shardsMax is what the owners of slots are numbered with.
const shardsMax = 1 << 15

// Of returns the slot of a key: CRC16 (XMODEM) of the part between the first { and the next }, if that is not empty.
func Of(key []byte) int {
	if open := bytes.IndexByte(key, '{'); open >= 0 {
		if length := bytes.IndexByte(key[open+1:], '}'); length > 0 {
			key = key[open+1 : open+1+length]
		}
	}
	crc := uint16(0)
	for _, b := range key {
		crc = crc<<8 ^ steps[byte(crc>>8)^b]
	}
	return int(crc & (Count - 1))
}

// steps is what the polynomial 0x1021 makes of each byte.
var steps = func() (t [256]uint16) {
	for i := range t {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		t[i] = crc
	}
	return t
}()

// Range is some slots in a row, both ends included.
type Range struct{ From, To int }

// String returns the range as servers write it: 0-5460, or one number.
func (r Range) String() string {
	if r.From == r.To {
		return strconv.Itoa(r.From)
	}
	return strconv.Itoa(r.From) + "-" + strconv.Itoa(r.To)
}

// Size returns the number of slots.
func (r Range) Size() int { return r.To - r.From + 1 }

// ParseRanges reads "0-5460,7000", in any order; between commas or spaces. It refuses a slot that comes twice.
func ParseRanges(text string) ([]Range, error) {
	var rs []Range
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if cmp.Or(err, err2) != nil || a < 0 || b < a || b >= Count {
			return nil, fmt.Errorf("%q is no range of slots: write for example 0-5460,7000; slots are 0 to %d", part, Count-1)
		}
		rs = append(rs, Range{a, b})
	}
	slices.SortFunc(rs, func(a, b Range) int { return cmp.Compare(a.From, b.From) })
	for i := 1; i < len(rs); i++ {
		if rs[i].From <= rs[i-1].To {
			return nil, fmt.Errorf("slot %d comes twice", rs[i].From)
		}
	}
	return merge(rs), nil
}

// merge joins sorted ranges that touch each other.
func merge(rs []Range) []Range {
	var out []Range
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].To+1 == r.From {
			out[n-1].To = r.To
		} else {
			out = append(out, r)
		}
	}
	return out
}

// Text writes ranges between commas; ParseRanges reads that.
func Text(rs []Range) string {
	parts := make([]string, len(rs))
	for i, r := range rs {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// Map says which shard has which slot. It never changes; With returns another one.
type Map struct {
	shards []string
	owner  [Count]int16
	moves  []byte
}

// Even returns the map in which the shards have equal parts, in their order.
func Even(shards ...string) *Map {
	m := empty(shards)
	n := len(m.shards)
	for i := range n {
		for s := i * Count / n; s < (i+1)*Count/n; s++ {
			m.owner[s] = int16(i)
		}
	}
	return m
}

func empty(shards []string) *Map {
	m := &Map{shards: slices.Clone(shards)}
	for i := range m.owner {
		m.owner[i] = None
	}
	return m
}

// New returns the map in which each shard has its ranges. It refuses a slot that two shards have; some may have none: see Missing.
func New(shards []string, ranges [][]Range) (*Map, error) {
	if len(shards) != len(ranges) || len(shards) >= shardsMax {
		return nil, fmt.Errorf("%d shards and the slots of %d: give each shard its own, %d at most", len(shards), len(ranges), shardsMax-1)
	}
	m := empty(shards)
	for i, rs := range ranges {
		for _, r := range rs {
			if r.From < 0 || r.To >= Count || r.From > r.To {
				return nil, fmt.Errorf("%s is no range of slots: they are 0 to %d", r, Count-1)
			}
			for s := r.From; s <= r.To; s++ {
				if o := m.owner[s]; o != None {
					return nil, fmt.Errorf("slot %d is of shard %s and of shard %s", s, shards[o], shards[i])
				}
				m.owner[s] = int16(i)
			}
		}
	}
	return m, nil
}

// Shards returns the names of the shards, in their order.
func (m *Map) Shards() []string { return slices.Clone(m.shards) }

// Index returns the place of a shard among Shards, or None.
func (m *Map) Index(shard string) int { return slices.Index(m.shards, shard) }

// Shard returns the place of a slot's shard among Shards; None: no shard has it.
func (m *Map) Shard(slot int) int {
	if slot < 0 || slot >= Count {
		return None
	}
	return int(m.owner[slot])
}

// Ranges returns what a shard has, in order; with None, what no shard has.
func (m *Map) Ranges(shard int) []Range {
	var rs []Range
	for s, o := range m.owner {
		if int(o) != shard {
			continue
		}
		if n := len(rs); n > 0 && rs[n-1].To == s-1 {
			rs[n-1].To = s
		} else {
			rs = append(rs, Range{s, s})
		}
	}
	return rs
}

// Missing returns the slots that no shard has.
func (m *Map) Missing() []Range { return m.Ranges(None) }

// With returns the map in which a shard has a slot. A shard that the map does not know is added.
func (m *Map) With(slot int, shard string) *Map {
	next := *m
	next.shards = slices.Clone(m.shards)
	i := next.Index(shard)
	if i < 0 {
		next.shards = append(next.shards, shard)
		i = len(next.shards) - 1
	}
	next.owner[slot] = int16(i)
	return &next
}

// WithAll returns the map in which a shard has all of these slots, as With does.
func (m *Map) WithAll(slots []int, shard string) *Map {
	next := m
	for i, s := range slots {
		if i == 0 {
			next = m.With(s, shard)
			continue
		}
		next.owner[s] = next.owner[slots[0]]
	}
	return next
}

// WithShards returns the map that knows these shards, too. They have no slots yet.
func (m *Map) WithShards(shards ...string) *Map {
	next := *m
	next.shards = slices.Clone(m.shards)
	for _, s := range shards {
		if next.Index(s) < 0 {
			next.shards = append(next.shards, s)
		}
	}
	return &next
}

// Without returns the map that does not know a shard any more; false: it has slots.
func (m *Map) Without(shard string) (*Map, bool) {
	gone := m.Index(shard)
	if gone < 0 {
		return m, true
	}
	next := *m
	next.shards = slices.Delete(slices.Clone(m.shards), gone, gone+1)
	for s, o := range next.owner {
		switch {
		case int(o) == gone:
			return nil, false
		case int(o) > gone:
			next.owner[s]--
		}
	}
	return &next, true
}

// Moves returns what is kept beside the map about slots that are on their way, as JSON: what it says is the business of who moves them.
func (m *Map) Moves() []byte { return m.moves }

// WithMoves returns the map with another such note; nil: none.
func (m *Map) WithMoves(note []byte) *Map {
	next := *m
	next.moves = note
	return &next
}

// Equal reports whether both maps give each slot to the same shard, by its name.
func (m *Map) Equal(o *Map) bool {
	name := func(m *Map, s int) string {
		if i := m.owner[s]; i != None {
			return m.shards[i]
		}
		return ""
	}
	for s := range Count {
		if name(m, s) != name(o, s) {
			return false
		}
	}
	return true
}

// format is the version of the document.
const format = 1

// document is a Map as the store keeps it.
type document struct {
	Format int             `json:"format"`
	Shards []shardDocument `json:"shards"`
	Moves  json.RawMessage `json:"moves,omitempty"`
}

type shardDocument struct {
	ID    string `json:"id"`
	Slots string `json:"slots"`
}

// Encode returns the map as a document of the store.
func (m *Map) Encode() []byte {
	d := document{Format: format, Moves: m.moves}
	for i, id := range m.shards {
		d.Shards = append(d.Shards, shardDocument{id, Text(m.Ranges(i))})
	}
	b, _ := json.Marshal(d) // strings, one number, and what is JSON already
	return b
}

// Decode reads what Encode wrote.
func Decode(b []byte) (*Map, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("decode the slot map: %w", err)
	}
	if d.Format != format {
		return nil, fmt.Errorf("decode the slot map: format %d, this version knows %d: all members need the same version", d.Format, format)
	}
	var names []string
	var ranges [][]Range
	for _, s := range d.Shards {
		rs, err := ParseRanges(s.Slots)
		if err != nil {
			return nil, fmt.Errorf("decode the slot map: shard %s: %w", s.ID, err)
		}
		names, ranges = append(names, s.ID), append(ranges, rs)
	}
	m, err := New(names, ranges)
	if err != nil {
		return nil, fmt.Errorf("decode the slot map: %w", err)
	}
	m.moves = d.Moves
	return m, nil
}
