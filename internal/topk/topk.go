// SPDX-License-Identifier: Apache-2.0

// Package topk finds the most frequent and the largest keys of a stream in bounded memory.
//
// It is not for exact counts: a Sketch is the space-saving algorithm, which never misses a key that makes up more than one part in its
// size of everything, and says for each key by how much its count may be too high. Its invariant: what is reported as Hits-Over of a key
// was really seen. Nothing here allocates once a slot has held a key of that length; there are no goroutines, and nothing is safe for
// concurrent use.
package topk

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
)

// KeyMax is how much of a long key is kept.
const KeyMax = 256

// Count is one key of a stream.
type Count struct {
	Key    string `json:"key"`
	Hits   int64  `json:"hits"`   // commands about it, at most
	Over   int64  `json:"over"`   // by how much that may be too high
	Reads  int64  `json:"reads"`  // of those that were seen
	Writes int64  `json:"writes"` // likewise
	Bytes  int64  `json:"bytes"`  // of these commands and their replies
}

type slot struct {
	Count
	key []byte
}

// Sketch counts keys. The zero value is not usable.
type Sketch struct {
	seed   maphash.Seed
	hashes []uint64
	hits   []int64 // of each slot: beside each other, because the least of them is looked for
	slots  []slot
	max    int
}

// New returns a sketch that watches so many keys at once.
func New(size int) *Sketch {
	return &Sketch{seed: maphash.MakeSeed(), hashes: make([]uint64, 0, size), hits: make([]int64, 0, size), slots: make([]slot, 0, size), max: size}
}

// Add counts a command about a key, weight times.
func (s *Sketch) Add(key []byte, weight int64, write bool, bytes int64) {
	h := maphash.Bytes(s.seed, key)
	at := slices.Index(s.hashes, h)
	if at < 0 {
		at = s.take(h, key)
	}
	s.hits[at] += weight
	c := &s.slots[at].Count
	c.Bytes += weight * bytes
	if write {
		c.Writes += weight
	} else {
		c.Reads += weight
	}
}

// take gives a key a slot: a free one, or that of the key with the least count, which it inherits.
func (s *Sketch) take(h uint64, key []byte) int {
	key = key[:min(len(key), KeyMax)]
	if n := len(s.slots); n < s.max {
		s.hashes, s.hits = append(s.hashes, h), append(s.hits, 0)
		s.slots = append(s.slots, slot{key: append([]byte(nil), key...)})
		return n
	}
	least := 0
	for i, n := range s.hits {
		if n < s.hits[least] {
			least = i
		}
	}
	old := &s.slots[least]
	s.hashes[least] = h
	old.key = append(old.key[:0], key...)
	old.Count = Count{Over: s.hits[least]}
	return least
}

// Top returns the keys that were certainly seen most often.
func (s *Sketch) Top(n int) []Count {
	all := make([]Count, len(s.slots))
	for i, sl := range s.slots {
		all[i] = sl.Count
		all[i].Key, all[i].Hits = string(sl.key), s.hits[i]
	}
	return top(all, n)
}

func top(all []Count, n int) []Count {
	slices.SortFunc(all, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Hits-b.Over, a.Hits-a.Over), cmp.Compare(b.Hits, a.Hits), strings.Compare(a.Key, b.Key))
	})
	return all[:min(n, len(all))]
}

// Merge adds up what several sketches have seen of the same keys.
func Merge(n int, lists ...[]Count) []Count {
	byKey := map[string]*Count{}
	for _, l := range lists {
		for _, c := range l {
			t := byKey[c.Key]
			if t == nil {
				t = &Count{Key: c.Key}
				byKey[c.Key] = t
			}
			t.Hits, t.Over, t.Reads, t.Writes, t.Bytes = t.Hits+c.Hits, t.Over+c.Over, t.Reads+c.Reads, t.Writes+c.Writes, t.Bytes+c.Bytes
		}
	}
	all := make([]Count, 0, len(byKey))
	for _, c := range byKey {
		all = append(all, *c)
	}
	return top(all, n)
}
