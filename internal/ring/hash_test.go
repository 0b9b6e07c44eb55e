// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHashesOfUnsignedCharacters: without the sign of C's characters the functions are what their inventors published.
// Those with a sign are compared with nutcracker itself.
func TestHashesOfUnsignedCharacters(t *testing.T) {
	for i := range 200 {
		key := make([]byte, 1+i%40)
		for j := range key {
			key[j] = byte(rand.UintN(256))
		}
		f32, f32a, f64, f64a := fnv.New32(), fnv.New32a(), fnv.New64(), fnv.New64a()
		for _, f := range []interface{ Write([]byte) (int, error) }{f32, f32a, f64, f64a} {
			_, _ = f.Write(key)
		}
		for h, want := range map[Hash]uint32{FNV1x32: f32.Sum32(), FNV1ax32: f32a.Sum32(), FNV1x64: uint32(f64.Sum64()), FNV1ax64: uint32(f64a.Sum64())} {
			r := mustNew(t, Spec{Nodes: nodes(), Distribution: Ketama, Hash: h, UnsignedChars: true})
			if got := r.hash(key); got != want {
				t.Errorf("%s of %q: %#x, expected %#x", h, key, got, want)
			}
		}
	}
}

func TestKnownValues(t *testing.T) {
	for _, c := range []struct {
		h    Hash
		key  string
		want uint32
	}{
		{OneAtATime, "a", 0xca2e9442},
		{OneAtATime, "The quick brown fox jumps over the lazy dog", 0x519e91f5},
		{CRC32a, "123456789", 0xcbf43926},
		{CRC32, "123456789", 0xcbf43926 >> 16 & 0x7fff},
		{MD5, "message digest", 0x7d696bf9}, // f96b697d7cb7938d525a2f31aaf161d0
	} {
		r := mustNew(t, Spec{Nodes: nodes(), Distribution: Ketama, Hash: c.h})
		if got := r.hash([]byte(c.key)); got != c.want {
			t.Errorf("%s of %q: %#x, expected %#x", c.h, c.key, got, c.want)
		}
	}
	if got := crc16([]byte("123456789")); got&0xffff != 0x31c3 || got>>16 == 0 {
		t.Errorf("crc16: %#x, expected 31c3 in the lower half and what was shifted out in the upper", got)
	}
}

// TestSignMattersAboveASCIIOnly: which functions place keys differently on ARM.
func TestSignMattersAboveASCIIOnly(t *testing.T) {
	signed := []Hash{OneAtATime, FNV1x32, FNV1ax32, FNV1x64, FNV1ax64, Hsieh}
	for _, h := range Hashes(Ketama) {
		r := mustNew(t, Spec{Nodes: nodes(), Distribution: Ketama, Hash: h})
		u := mustNew(t, Spec{Nodes: nodes(), Distribution: Ketama, Hash: h, UnsignedChars: true})
		for i := range 50 {
			if key := fmt.Appendf(nil, "plain:%d", i); r.hash(key) != u.hash(key) {
				t.Errorf("%s: %s differs", h, key)
			}
		}
		if differs := r.hash([]byte("\xe9\xe9\xe9")) != u.hash([]byte("\xe9\xe9\xe9")); differs != slices.Contains(signed, h) {
			t.Errorf("%s: with bytes above 127, differs: %t", h, differs)
		}
	}
}

// TestKetamaPoints: how many points each node has where single precision matters, and whose an equal point is. (That
// nutcracker does the same, test/placement shows.)
func TestKetamaPoints(t *testing.T) {
	for _, c := range []struct {
		weights []uint32
		want    []int
	}{
		{[]uint32{1, 1, 1}, []int{160, 160, 160}},
		{ones(25), slices.Repeat([]int{156}, 25)},
		{[]uint32{2, 4, 6, 3, 10}, []int{60, 124, 188, 92, 320}}, // exactly: 64, 128, 192, 96, 320
		{[]uint32{1, 1000}, []int{0, 316}},
	} {
		got := make([]int, len(c.weights))
		for _, n := range mustNew(t, Spec{Nodes: nodes(c.weights...), Distribution: Ketama, Hash: MD5}).points.node {
			got[n]++
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("weights %d: %d points, expected %d", c.weights, got, c.want)
		}
	}
	for first, names := range [][]string{{"twin375", "twin387"}, {"twin387", "twin375"}} {
		r := mustNew(t, Spec{Nodes: []Node{{names[0], 1}, {names[1], 1}}, Distribution: Ketama, Hash: MD5})
		if got := r.points.owner(2908463143 << 32); got != first {
			t.Errorf("%v: the common point is of %s", names, names[got])
		}
	}
}

// TestContinuum: the look-up finds what the definition says, whatever the points.
func TestContinuum(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for round := range 300 {
		points := make([]point, 1+r.IntN(40))
		for i := range points {
			points[i] = point{r.Uint64() >> r.IntN(64), i}
			if i > 0 && r.IntN(4) == 0 {
				points[i].at = points[i-1].at
			}
			if r.IntN(10) == 0 {
				points[i].at = math.MaxUint64 * uint64(r.IntN(2))
			}
		}
		asked := []uint64{0, 1, math.MaxUint64, r.Uint64(), r.Uint64()}
		for _, p := range points {
			asked = append(asked, p.at, p.at+1, p.at-1)
		}
		c := newContinuum(slices.Clone(points))
		for _, h := range asked {
			if got, want := c.owner(h), ownerByDefinition(points, h); got != want {
				t.Fatalf("round %d: %#x among %v is of %d, expected %d", round, h, points, got, want)
			}
		}
	}
}

// ownerByDefinition: the first of the lowest points at or after h, else of the lowest of all.
func ownerByDefinition(points []point, h uint64) int {
	best := -1
	for pass := 0; best < 0; pass++ {
		for i, p := range points {
			if (pass > 0 || p.at >= h) && (best < 0 || p.at < points[best].at) {
				best = i
			}
		}
	}
	return points[best].node
}
