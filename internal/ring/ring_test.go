// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func mustNew(t testing.TB, s Spec) *Ring {
	t.Helper()
	r, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// nodes of the given weights; none: three of weight 1.
func nodes(weights ...uint32) []Node {
	if len(weights) == 0 {
		weights = []uint32{1, 1, 1}
	}
	out := make([]Node, len(weights))
	for i, w := range weights {
		out[i] = Node{fmt.Sprintf("10.0.0.%d:6379", i), w}
	}
	return out
}

// everySpec is each distribution with each of its hash functions.
func everySpec(list []Node) []Spec {
	specs := []Spec{{Nodes: list, Distribution: EnvoyMaglev}}
	for _, d := range []Distribution{Ketama, Modula, Random, EnvoyRing} {
		for _, h := range Hashes(d) {
			specs = append(specs, Spec{Nodes: list, Distribution: d, Hash: h})
		}
	}
	return specs
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for s := bufio.NewScanner(strings.NewReader(string(data))); s.Scan(); {
		out = append(out, s.Text())
	}
	return out
}

// TestAsNutcrackerSaid: placements that a real nutcracker was asked for (test/placement -args -record).
func TestAsNutcrackerSaid(t *testing.T) {
	var keys []string
	for _, line := range lines(t, "testdata/keys.txt") {
		key, err := strconv.Unquote(line)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	said := lines(t, "testdata/nutcracker.txt")
	if len(said) < 2*2*12*5 || len(keys) < 200 {
		t.Fatalf("%d lines, %d keys: the recording is not whole", len(said), len(keys))
	}
	for i := 0; i < len(said); i += 2 {
		fields := strings.Fields(said[i])
		tag, err := strconv.Unquote(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		spec := Spec{Distribution: Distribution(fields[0]), Hash: Hash(fields[1]), HashTag: tag}
		for _, f := range fields[3:] {
			name, weight, _ := strings.Cut(f, "=")
			w, err := strconv.ParseUint(weight, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			spec.Nodes = append(spec.Nodes, Node{name, uint32(w)})
		}
		r, where := mustNew(t, spec), strings.TrimSpace(said[i+1])
		if len(where) != len(keys) {
			t.Fatalf("%s: %d placements of %d keys", said[i], len(where), len(keys))
		}
		for k, key := range keys {
			if got := r.Shard([]byte(key), 0); got != int(where[k]-'a') {
				t.Errorf("%s: %q is placed on node %d, by nutcracker on %d", said[i], key, got, where[k]-'a')
			}
		}
	}
}

// TestWithoutIsTheRingOfTheOthers: ejecting nodes is the same as never having had them.
func TestWithoutIsTheRingOfTheOthers(t *testing.T) {
	for _, spec := range everySpec(nodes(3, 1, 7, 2, 5)) {
		full, rest := mustNew(t, spec), spec
		rest.Nodes = []Node{spec.Nodes[0], spec.Nodes[2], spec.Nodes[4]}
		back := []int{0, 2, 4}
		want := mustNew(t, rest)
		at, inSteps := full.Without(1, 3), full.Without(3).Without(1)
		for i := range 2000 {
			key, draw := fmt.Appendf(nil, "key:%d", i), uint32(i)
			w := back[want.Shard(key, draw)]
			if g, s := at.Shard(key, draw), inSteps.Shard(key, draw); g != w || s != w {
				t.Fatalf("%s %s: %s is on %d and %d, expected %d", spec.Distribution, spec.Hash, key, g, s, w)
			}
		}
		if at.Live() != 3 || full.Live() != 5 || full.Without() != full || at.Without(1) != at {
			t.Errorf("%s: a ring without nodes is not what it should be", spec.Distribution)
		}
	}
}

// TestKetamaMovesNoOtherKeys: with equal weights, only the keys of an ejected node move. (With unequal weights the others'
// numbers of points change, too; in envoy-ring they always do.)
func TestKetamaMovesNoOtherKeys(t *testing.T) {
	full := mustNew(t, Spec{Nodes: nodes(2, 2, 2, 2, 2), Distribution: Ketama, Hash: Murmur})
	left := full.Without(4)
	for i := range 2000 {
		key := fmt.Appendf(nil, "key:%d", i)
		was, is := full.Shard(key, 0), left.Shard(key, 0)
		if was != is && was != 4 || is == 4 {
			t.Fatalf("%s was on %d and is on %d", key, was, is)
		}
	}
}

// TestNobodyLeft: one node gets everything, none gets None.
func TestNobodyLeft(t *testing.T) {
	for _, spec := range everySpec(nodes()) {
		r := mustNew(t, spec)
		for i := range 100 {
			key := fmt.Appendf(nil, "key:%d", i)
			if got := r.Without(0, 2).Shard(key, uint32(i)); got != 1 {
				t.Fatalf("%s: the last node is 1, got %d", spec.Distribution, got)
			}
			if got := r.Without(0, 1, 2).Shard(key, uint32(i)); got != None {
				t.Fatalf("%s: no node is left, got %d", spec.Distribution, got)
			}
		}
	}
}

// TestEveryNodeGetsItsShare, and an order of the nodes that differs moves no key (in envoy-ring, of equal weight only).
func TestEveryNodeGetsItsShare(t *testing.T) {
	const keys = 30000
	for _, spec := range everySpec(nodes(1, 1, 1)) {
		if spec.Hash == CRC16 || spec.Hash == CRC32 {
			continue // of 16 and 15 bits: on a circle of 32, ketama's first points get everything
		}
		r, turned := mustNew(t, spec), spec
		turned.Nodes = []Node{spec.Nodes[2], spec.Nodes[0], spec.Nodes[1]}
		other, counts := mustNew(t, turned), make([]int, 3)
		for i := range keys {
			key := fmt.Appendf(nil, "user:%d:name", i)
			draw := rand.Uint32()
			n := r.Shard(key, draw)
			counts[n]++
			if m := other.Shard(key, draw); turned.Nodes[m] != spec.Nodes[n] {
				t.Fatalf("%s %s: the order of nodes moves %s", spec.Distribution, spec.Hash, key)
			}
		}
		if slices.Min(counts) < keys/6 || slices.Max(counts) > keys/2 {
			t.Errorf("%s %s: of %d keys the nodes get %v", spec.Distribution, spec.Hash, keys, counts)
		}
	}
}

func TestHashTag(t *testing.T) {
	for _, c := range []struct{ tag, key, want string }{
		{"", "{a}b", "{a}b"},
		{"{}", "{a}b", "a"},
		{"{}", "x{ab}{c}", "ab"},
		{"{}", "x{}{c}", "x{}{c}"}, // empty: the whole key, and no second look
		{"{}", "x{c", "x{c"},
		{"{}", "x}c{", "x}c{"},
		{"{}", "}{a}", "a"},
		{"{}", "{{a}}", "{a"},
		{"{}", "", ""},
		{"$$", "x$a$b$", "a"},
		{"$$", "$$a$", "$$a$"},
		{"$$", "a$", "a$"},
	} {
		r := mustNew(t, Spec{Nodes: nodes(), Distribution: Modula, Hash: MD5, HashTag: c.tag})
		if got := string(r.tagged([]byte(c.key))); got != c.want {
			t.Errorf("tag %q of %q: got %q, expected %q", c.tag, c.key, got, c.want)
		}
	}
}

// TestEmptyKey: twemproxy gives it the hash 0 without asking the function.
func TestEmptyKey(t *testing.T) {
	for _, h := range Hashes(Modula) {
		r := mustNew(t, Spec{Nodes: nodes(), Distribution: Modula, Hash: h})
		if got := r.Shard(nil, 0); got != 0 {
			t.Errorf("%s: the empty key is on node %d", h, got)
		}
	}
}

func TestNodeName(t *testing.T) {
	for _, c := range []struct{ name, host, port, want string }{
		{"", "10.0.0.1", "6379", "10.0.0.1:6379"},
		{"alpha", "10.0.0.1", "6379", "alpha"},
		{"", "10.0.0.1", "11211", "10.0.0.1"},
		{"", "10.0.0.1", "011211", "10.0.0.1"},
		{"", "10.0.0.1", "06379", "10.0.0.1:06379"},
		{"", "/run/redis.sock", "", "/run/redis.sock:"},
		{"", "::1", "6379", "::1:6379"},
	} {
		if got := NodeName(c.name, c.host, c.port); got != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	good := func() Spec { return Spec{Nodes: nodes(), Distribution: Ketama, Hash: FNV1ax64} }
	for want, spoil := range map[string]func(s *Spec){
		`no distribution "ketema"`:      func(s *Spec) { s.Distribution = "ketema" },
		`no distribution ""`:            func(s *Spec) { s.Distribution = "" },
		`ketama has no hash "xxhash64"`: func(s *Spec) { s.Hash = XXHash64 },
		`random has no hash ""`:         func(s *Spec) { s.Distribution, s.Hash = Random, "" },
		`envoy-ring has no hash "md5"`:  func(s *Spec) { s.Distribution, s.Hash = EnvoyRing, MD5 },
		`envoy-maglev has no choice`:    func(s *Spec) { s.Distribution = EnvoyMaglev },
		`hash tag "{"`:                  func(s *Spec) { s.HashTag = "{" },
		`hash tag "{{}}"`:               func(s *Spec) { s.HashTag = "{{}}" },
		`0 nodes`:                       func(s *Spec) { s.Nodes = nil },
		`4097 nodes`:                    func(s *Spec) { s.Nodes = nodes(make([]uint32, 4097)...) },
		`its name has 0 bytes`:          func(s *Spec) { s.Nodes[1].Name = "" },
		`its name has 256 bytes`:        func(s *Spec) { s.Nodes[1].Name = strings.Repeat("n", 256) },
		`two nodes are named`:           func(s *Spec) { s.Nodes[1] = s.Nodes[0] },
		`has no weight`:                 func(s *Spec) { s.Nodes[1].Weight = 0 },
		`the weights add up to 2147483`: func(s *Spec) { s.Nodes[1].Weight = 1<<31 - 2 },
		`minimum ring size 20 is above`: func(s *Spec) { s.MinRing, s.MaxRing = 20, 10 },
		`maximum ring size 8388609`:     func(s *Spec) { s.MaxRing = 8<<20 + 1 },
		`table size 8`:                  func(s *Spec) { s.Table = 8 },
		`table size 5000077`:            func(s *Spec) { s.Table = 5000077 },
	} {
		s := good()
		spoil(&s)
		if _, err := New(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
	mustNew(t, good())
}

// TestSpecIsCopied: what the caller does with its nodes later changes nothing.
func TestSpecIsCopied(t *testing.T) {
	list := nodes()
	r := mustNew(t, Spec{Nodes: list, Distribution: Ketama, Hash: MD5})
	list[0].Name = "other"
	r.Nodes()[1].Name = "other"
	if got := r.Nodes(); got[0].Name == "other" || got[1].Name == "other" {
		t.Errorf("the ring's nodes became %v", got)
	}
}

func TestLookupsAllocateNothing(t *testing.T) {
	key := []byte("user:{1234}:name")
	for _, spec := range everySpec(nodes(3, 1, 7, 2)) {
		spec.HashTag = "{}"
		r, sum := mustNew(t, spec), 0
		if n := testing.AllocsPerRun(100, func() { sum += r.Shard(key, 7) }); n != 0 {
			t.Errorf("%s %s: %g allocations per lookup", spec.Distribution, spec.Hash, n)
		}
	}
}

func BenchmarkShard(b *testing.B) {
	for _, spec := range []Spec{
		{Distribution: Ketama, Hash: FNV1ax64, Nodes: nodes(ones(4)...)},
		{Distribution: Ketama, Hash: FNV1ax64, Nodes: nodes(ones(64)...)},
		{Distribution: Ketama, Hash: MD5, Nodes: nodes(ones(64)...)},
		{Distribution: Modula, Hash: Murmur, Nodes: nodes(ones(64)...)},
		{Distribution: EnvoyRing, Hash: XXHash64, Nodes: nodes(ones(64)...)},
		{Distribution: EnvoyMaglev, Nodes: nodes(ones(64)...)},
	} {
		b.Run(fmt.Sprintf("%s/%s/%d", spec.Distribution, spec.Hash, len(spec.Nodes)), func(b *testing.B) {
			r, keys, sum := mustNew(b, spec), make([][]byte, 1024), 0
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "user:%d:session", i*7919)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				sum += r.Shard(keys[i%len(keys)], uint32(i))
			}
			if sum < 0 {
				b.Fatal("no node")
			}
		})
	}
}

func BenchmarkWithout(b *testing.B) {
	for _, n := range []int{4, 64} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			r := mustNew(b, Spec{Distribution: Ketama, Hash: FNV1ax64, Nodes: nodes(ones(n)...)})
			for b.Loop() {
				if r.Without(1).Live() != n-1 {
					b.Fatal("not left out")
				}
			}
		})
	}
}

// ones returns n weights of 1.
func ones(n int) []uint32 { return slices.Repeat([]uint32{1}, n) }
