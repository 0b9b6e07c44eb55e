// SPDX-License-Identifier: Apache-2.0

package topk

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestFrequentKeysAreFound: among many keys that come once those that come often are found, and never said to have come more often than they did.
func TestFrequentKeysAreFound(t *testing.T) {
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(1, seed))
		s, really := New(64), map[string]int64{}
		for i := range 30_000 {
			key := fmt.Sprint("once:", i)
			if hot := rng.IntN(100); hot < 30 {
				key = fmt.Sprint("hot:", hot%5)
			}
			really[key]++
			s.Add([]byte(key), 1, i%4 == 0, 10)
		}
		for i, c := range s.Top(5) {
			if real := really[c.Key]; c.Hits-c.Over > real || c.Hits < real || real < 300 {
				t.Fatalf("seed %d: number %d is %+v, which came %d times", seed, i, c, real)
			}
			if c.Reads+c.Writes != c.Hits-c.Over || c.Bytes != 10*(c.Hits-c.Over) {
				t.Fatalf("seed %d: %+v does not add up", seed, c)
			}
		}
	}
}

func TestSketchesAreAddedUp(t *testing.T) {
	a, b := New(8), New(8)
	a.Add([]byte("x"), 3, true, 1)
	a.Add([]byte("y"), 4, false, 1)
	b.Add([]byte("x"), 2, false, 5)
	got := Merge(1, a.Top(8), b.Top(8))
	if len(got) != 1 || got[0] != (Count{Key: "x", Hits: 5, Reads: 2, Writes: 3, Bytes: 13}) {
		t.Fatalf("%+v", got)
	}
}

func TestTheLargestAreKept(t *testing.T) {
	s := NewSizes(10)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, i := range rng.Perm(1000) {
		s.Add(fmt.Append(nil, "key:", i), int64(i), "GET")
		s.Add(fmt.Append(nil, "key:", i), int64(i)/2, "SET") // what was larger before stays
	}
	for i, z := range s.Top(10) {
		if want := (Size{fmt.Sprint("key:", 999-i), int64(999 - i), "GET"}); z != want {
			t.Errorf("%+v, want %+v", z, want)
		}
	}
	if s.Floor() != 990 {
		t.Errorf("the floor is %d", s.Floor())
	}
}

func TestNothingIsAllocatedOnTheWay(t *testing.T) {
	s := New(128)
	var keys [][]byte
	for i := range 1000 {
		keys = append(keys, fmt.Appendf(nil, "key:%06d", i))
	}
	for _, k := range keys {
		s.Add(k, 1, false, 1)
	}
	i := 0
	if n := testing.AllocsPerRun(5000, func() { s.Add(keys[i%1000], 1, true, 1); i++ }); n > 0 {
		t.Errorf("%v allocations per key", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	s := New(256)
	rng := rand.New(rand.NewPCG(1, 1))
	var keys [][]byte
	for range 4096 {
		keys = append(keys, fmt.Appendf(nil, "key:%06d", int(rng.ExpFloat64()*500)))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Add(keys[i%4096], 1, false, 100)
	}
}
