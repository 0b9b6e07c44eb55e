// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"cmp"
	"crypto/md5"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"strconv"
)

// point is a place on the circle, and whose it is.
type point struct {
	at   uint64 // of 32-bit hashes: in the upper half
	node int
}

// ketamaPoints are twemproxy's: 160 per node on average, by weight, four out of each MD5 of "name-index". The share is
// reckoned in single precision, and cut to a multiple of four; how it is rounded shifts keys, so each step is the same
// here. (The conversions say so; without them the compiler may fuse steps.) A node with little weight may get no point.
func ketamaPoints(nodes []Node, live []int) []point {
	total := uint32(0)
	for _, i := range live {
		total += nodes[i].Weight
	}
	var points []point
	for _, i := range live {
		share := float32(nodes[i].Weight) / float32(total)
		quads := float32(share * 160)
		quads = float32(quads / 4)
		quads = float32(quads * float32(len(live)))
		quads = float32(float64(quads) + 1e-10)
		name := append([]byte(nodes[i].Name), '-')
		for q := range int(math.Floor(float64(quads))) {
			sum := md5.Sum(strconv.AppendInt(name, int64(q), 10))
			for k := range 4 {
				points = append(points, point{uint64(binary.LittleEndian.Uint32(sum[4*k:])) << 32, i})
			}
		}
	}
	return points
}

// continuum is the circle, with an index of where each of its arcs begins: a look-up takes about one step.
type continuum struct {
	at    []uint64 // ascending
	node  []uint16 // whose each point is
	first []uint32 // per arc: its first point
	shift int      // the bits of a hash below those that choose the arc
}

func newContinuum(points []point) continuum {
	// Among equal points the first one counts: C's qsort, a merge sort, keeps their order.
	slices.SortStableFunc(points, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	arcBits := bits.Len(uint(len(points)))
	c := continuum{first: make([]uint32, 1<<arcBits), shift: 64 - arcBits, at: make([]uint64, len(points)), node: make([]uint16, len(points))}
	arc := 0
	for i, p := range points {
		for ; arc <= int(p.at>>c.shift); arc++ {
			c.first[arc] = uint32(i)
		}
		c.at[i], c.node[i] = p.at, uint16(p.node)
	}
	for ; arc < len(c.first); arc++ {
		c.first[arc] = uint32(len(points))
	}
	return c
}

// owner returns whose the first point at or after h is; behind the last one the circle begins anew.
func (c *continuum) owner(h uint64) int {
	i := int(c.first[h>>c.shift])
	for ; i < len(c.at); i++ {
		if c.at[i] >= h {
			return int(c.node[i])
		}
	}
	return int(c.node[0])
}
