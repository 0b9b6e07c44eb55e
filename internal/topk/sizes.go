// SPDX-License-Identifier: Apache-2.0

package topk

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
)

// Size is the largest thing that was seen of one key.
type Size struct {
	Key   string `json:"key"`
	Bytes int64  `json:"bytes"`
	What  string `json:"what"` // the command, or the type
}

// Sizes keeps the keys of which the largest things were seen. The zero value is not usable.
type Sizes struct {
	seed   maphash.Seed
	hashes []uint64
	slots  []Size
	max    int
	least  int64
}

// NewSizes returns one for so many keys.
func NewSizes(size int) *Sizes { return &Sizes{seed: maphash.MakeSeed(), max: size} }

// Floor is the size that is too small to be kept.
func (s *Sizes) Floor() int64 {
	if len(s.slots) < s.max {
		return 0
	}
	return s.least
}

// Add notes how large something of a key is.
func (s *Sizes) Add(key []byte, bytes int64, what string) {
	if bytes <= s.Floor() {
		return
	}
	h := maphash.Bytes(s.seed, key)
	at := slices.Index(s.hashes, h)
	switch {
	case at >= 0 && s.slots[at].Bytes >= bytes:
		return
	case at < 0 && len(s.slots) < s.max:
		at = len(s.slots)
		s.hashes, s.slots = append(s.hashes, h), append(s.slots, Size{})
	case at < 0:
		at = slices.IndexFunc(s.slots, func(z Size) bool { return z.Bytes == s.least })
	}
	if s.hashes[at] != h || s.slots[at].Key == "" {
		s.slots[at].Key = string(key[:min(len(key), KeyMax)])
	}
	s.hashes[at], s.slots[at].Bytes, s.slots[at].What = h, bytes, what
	if len(s.slots) == s.max {
		s.least = slices.MinFunc(s.slots, func(a, b Size) int { return cmp.Compare(a.Bytes, b.Bytes) }).Bytes
	}
}

// Top returns the keys, the largest first.
func (s *Sizes) Top(n int) []Size { return MergeSizes(n, s.slots) }

// MergeSizes takes the largest of each key.
func MergeSizes(n int, lists ...[]Size) []Size {
	byKey := map[string]Size{}
	for _, l := range lists {
		for _, z := range l {
			if byKey[z.Key].Bytes < z.Bytes {
				byKey[z.Key] = z
			}
		}
	}
	all := make([]Size, 0, len(byKey))
	for _, z := range byKey {
		all = append(all, z)
	}
	slices.SortFunc(all, func(a, b Size) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Key, b.Key)) })
	return all[:min(n, len(all))]
}
