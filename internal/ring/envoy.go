// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Envoy's defaults and limits.
const (
	envoyMinRing  = 1024
	envoyMaxRing  = 8 << 20
	envoyTable    = 65537
	envoyTableMax = 5000011
)

// envoyWeights are the weights as shares of one, in the order of live.
func envoyWeights(spec Spec, live []int) []float64 {
	sum := uint64(0)
	for _, i := range live {
		sum += uint64(spec.Nodes[i].Weight)
	}
	shares := make([]float64, len(live))
	for k, i := range live {
		shares[k] = float64(spec.Nodes[i].Weight) / float64(sum)
	}
	return shares
}

// envoyPoints are those of RING_HASH: "name_index", as many that the least weight gets a whole number of them and the ring
// has its minimum. Fractions are carried from node to node, so that here, unlike in ketama, the order of nodes of
// different weight matters.
func envoyPoints(spec Spec, live []int) []point {
	shares := envoyWeights(spec, live)
	least := slices.Min(shares)
	scale := min(math.Ceil(float64(least*float64(spec.MinRing)))/least, float64(spec.MaxRing))
	points := make([]point, 0, int(math.Ceil(scale)))
	have, want := 0.0, 0.0
	for k, i := range live {
		want += float64(scale * shares[k]) // the conversion keeps the compiler from fusing the two steps
		name := append([]byte(spec.Nodes[i].Name), '_')
		for n := int64(0); have < want; n++ {
			text := strconv.AppendInt(name, n, 10)
			at := uint64(0)
			if spec.Hash == Murmur2 {
				at = murmur2x64(text)
			} else {
				at = xxhash.Sum64(text)
			}
			points = append(points, point{at, i})
			have++
		}
	}
	return points
}

// maglevTable is that of MAGLEV: nodes in the order of their names take turns, as often as their weight lets them, each in
// its own permutation of the table.
func maglevTable(spec Spec, live []int) []uint16 {
	type turn struct {
		node         int
		offset, skip uint64
		weight, due  float64
		next         uint64
	}
	size := spec.Table
	turns := make([]turn, len(live))
	for k, share := range envoyWeights(spec, live) {
		name := spec.Nodes[live[k]].Name
		seeded := xxhash.NewWithSeed(1)
		_, _ = seeded.WriteString(name) // never fails
		turns[k] = turn{node: live[k], offset: xxhash.Sum64String(name) % size, skip: seeded.Sum64()%(size-1) + 1, weight: share}
	}
	slices.SortFunc(turns, func(a, b turn) int { return strings.Compare(spec.Nodes[a.node].Name, spec.Nodes[b.node].Name) })
	most := slices.MaxFunc(turns, func(a, b turn) int { return cmp.Compare(a.weight, b.weight) }).weight
	table, taken := make([]uint16, size), make([]bool, size)
	for left, round := size, 1.0; left > 0; round++ {
		for k := range turns {
			t := &turns[k]
			if left == 0 {
				break
			}
			if float64(round*t.weight) < t.due {
				continue
			}
			t.due += most
			at := (t.offset + t.skip*t.next) % size
			for taken[at] {
				t.next++
				at = (t.offset + t.skip*t.next) % size
			}
			table[at], taken[at] = uint16(t.node), true
			t.next++
			left--
		}
	}
	return table
}

func isPrime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

// murmur2x64 is MurmurHash2 of 64 bits (64A) with the seed of GCC's std::hash, which Envoy calls murmur2.
func murmur2x64(key []byte) uint64 {
	const m, seed = 0xc6a4a7935bd1e995, 0xc70f6907
	h := seed ^ uint64(len(key))*m
	for ; len(key) >= 8; key = key[8:] {
		k := binary.LittleEndian.Uint64(key) * m
		k ^= k >> 47
		h = (h ^ k*m) * m
	}
	if len(key) > 0 {
		var last [8]byte
		copy(last[:], key)
		h = (h ^ binary.LittleEndian.Uint64(last[:])) * m
	}
	h ^= h >> 47
	h *= m
	return h ^ h>>47
}
