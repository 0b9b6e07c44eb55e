// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/ring"
)

var record = flag.Bool("record", false, "write what nutcracker says of some keys to internal/ring/testdata")

const (
	keysAsked    = 10000
	keysRecorded = 200
)

// testKeys are of all kinds: short and long ones, of any bytes, with tags, with empty and with unfinished tags.
func testKeys() [][]byte {
	r := rand.New(rand.NewPCG(5, 2011))
	keys := make([][]byte, keysAsked)
	for i := range keys {
		switch i % 8 {
		case 0, 1:
			keys[i] = fmt.Appendf(nil, "user:%d", i)
		case 2:
			keys[i] = fmt.Appendf(nil, "{user%d}:session:%d", i%97, i)
		case 3:
			keys[i] = fmt.Appendf(nil, "$%d$ and {%d} and {}{x%d}", i%89, i%83, i)
		case 4:
			keys[i] = fmt.Appendf(nil, "{}%d}$$%d$", i, i)
		case 5:
			keys[i] = fmt.Appendf(nil, "open{%d$", i)
		case 6:
			keys[i] = fmt.Appendf(nil, "größe→%d", i)
		default:
			k := make([]byte, 1+r.IntN(70))
			for j := range k {
				k[j] = byte(r.UintN(256))
			}
			keys[i] = k
		}
	}
	return keys
}

// names are of different lengths, and not in the order in which twemproxy puts them.
func names() []string {
	return []string{"zeta", "beta", "a-much-longer-name.example.com", "alpha", "b", "ALPHA", "Zeta9", "häuser"}
}

// shapes are the kinds of node lists.
func shapes(t *testing.T) map[string]func(p *pool) {
	var plain []server
	for i := range 6 {
		plain = append(plain, listenTCP(t, i))
	}
	odd := []server{listenMemcachePort(t, 6), listenUnix(t, 7), plain[0]}
	return map[string]func(p *pool){
		"equal": func(p *pool) {
			for _, s := range plain[:4] {
				p.add(s, "", 1)
			}
		},
		"weights": func(p *pool) {
			for i, s := range plain[:4] {
				p.add(s, "", []uint32{3, 1, 7, 2}[i])
			}
		},
		"names": func(p *pool) {
			for i, s := range plain[:5] {
				p.add(s, names()[i], 1)
			}
		},
		"names-weights-tag": func(p *pool) {
			p.spec.HashTag = "{}"
			for i, s := range plain {
				p.add(s, names()[i], []uint32{1, 100, 10, 3, 50, 7}[i])
			}
		},
		"odd-addresses-tag": func(p *pool) {
			p.spec.HashTag = "$$"
			for i, s := range odd {
				p.add(s, "", uint32(i+1))
			}
		},
	}
}

// TestEveryHashAndDistribution: 10,000 keys × every hash × every distribution that computes × every kind of node list.
func TestEveryHashAndDistribution(t *testing.T) {
	var pools []*pool
	for shape, fill := range shapes(t) {
		for _, d := range []ring.Distribution{ring.Ketama, ring.Modula} {
			for _, h := range ring.Hashes(d) {
				p := &pool{title: fmt.Sprintf("%s/%s/%s", d, h, shape), spec: ring.Spec{Distribution: d, Hash: h}}
				fill(p)
				pools = append(pools, p)
			}
		}
	}
	compareAll(t, pools, testKeys(), *record)
}

// TestManyWeights: node lists of 2 to 25 nodes with random weights, and with some for which single precision loses points
// (25 equal nodes are the smallest such list of equal ones); two names of which a point is at the same place; long names.
func TestManyWeights(t *testing.T) {
	var servers []server
	for i := range 25 {
		servers = append(servers, listenTCP(t, i))
	}
	r := rand.New(rand.NewPCG(160, 40))
	var pools []*pool
	for _, weights := range [][]uint32{{2, 4, 6, 3, 10}, {9, 2, 1, 8, 5}, {1, 9, 7, 6, 2}, {5, 3, 7, 6, 4}} {
		p := &pool{title: fmt.Sprintf("ketama/weights %d", weights), spec: ring.Spec{Distribution: ring.Ketama, Hash: ring.Murmur}}
		for i, w := range weights {
			p.add(servers[i], names()[i], w)
		}
		pools = append(pools, p)
	}
	for n := 2; n <= 25; n++ {
		for _, most := range []uint32{1, 5, 1000, 1 << 24} {
			p := &pool{title: fmt.Sprintf("ketama/%d nodes/weights to %d", n, most), spec: ring.Spec{Distribution: ring.Ketama, Hash: ring.Murmur}}
			for i := range n {
				p.add(servers[i], fmt.Sprintf("n%d", r.Uint32()), 1+r.Uint32N(most))
			}
			pools = append(pools, p)
		}
	}
	for _, pair := range [][2]string{{"twin375", "twin387"}, {"twin387", "twin375"}} {
		p := &pool{title: "ketama/" + pair[0] + " and " + pair[1], spec: ring.Spec{Distribution: ring.Ketama, Hash: ring.FNV1ax64}}
		p.add(servers[0], pair[0], 1)
		p.add(servers[1], pair[1], 1)
		pools = append(pools, p)
	}
	long := &pool{title: "ketama/long names", spec: ring.Spec{Distribution: ring.Ketama, Hash: ring.Jenkins}}
	for i := range 3 {
		long.add(servers[i], strings.Repeat("x", 253)+fmt.Sprint(i), 1)
	}
	compareAll(t, append(pools, long), testKeys()[:2500], false)
}

// TestARingThatGrowsAndShrinks: the lists of a ring of s1 to s3 that s4 joins, as it is appended there, and that s2 leaves then.
func TestARingThatGrowsAndShrinks(t *testing.T) {
	var servers []server
	for i := range 4 {
		servers = append(servers, listenTCP(t, i))
	}
	var pools []*pool
	for _, d := range []ring.Distribution{ring.Ketama, ring.Modula} {
		for _, shards := range [][]int{{1, 2, 3}, {1, 2, 3, 4}, {1, 3, 4}} {
			p := &pool{title: fmt.Sprintf("%s/shards %d", d, shards), spec: ring.Spec{Distribution: d, Hash: ring.FNV1ax64}}
			for _, n := range shards {
				p.add(servers[n-1], fmt.Sprint("s", n), 1)
			}
			pools = append(pools, p)
		}
	}
	compareAll(t, pools, testKeys(), false)
}

// TestEmptyKey: it has the hash 0, whatever the function.
func TestEmptyKey(t *testing.T) {
	var pools []*pool
	for shape, fill := range shapes(t) {
		for _, d := range []ring.Distribution{ring.Ketama, ring.Modula} {
			p := &pool{title: fmt.Sprintf("empty/%s/%s", d, shape), spec: ring.Spec{Distribution: d, Hash: ring.MD5}}
			fill(p)
			pools = append(pools, p)
		}
	}
	compareAll(t, pools, [][]byte{{}}, false)
}

// compareAll asks one nutcracker for all pools and compares each answer.
func compareAll(t *testing.T, pools []*pool, keys [][]byte, write bool) {
	t.Helper()
	slices.SortFunc(pools, func(a, b *pool) int { return strings.Compare(a.title, b.title) })
	nutcracker(t, pools)
	recorded, compared := &bytes.Buffer{}, 0
	for _, p := range pools {
		got := ask(t, p.socket, keys)
		compared += compare(t, p, mustRing(t, p.spec), keys, got)
		writeCase(recorded, p, got)
	}
	t.Logf("%d pools, %d placements compared", len(pools), compared)
	if write && !t.Failed() {
		dir := filepath.Join("..", "..", "internal", "ring", "testdata")
		var list bytes.Buffer
		for _, k := range keys[:keysRecorded] {
			fmt.Fprintf(&list, "%q\n", k)
		}
		for name, data := range map[string][]byte{"keys.txt": list.Bytes(), "nutcracker.txt": recorded.Bytes()} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func mustRing(t *testing.T, s ring.Spec) *ring.Ring {
	t.Helper()
	r, err := ring.New(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// compare returns how many placements it compared.
func compare(t *testing.T, p *pool, r *ring.Ring, keys [][]byte, got []int) int {
	t.Helper()
	wrong := 0
	for i, k := range keys {
		if want := p.numbers[r.Shard(k, 0)]; got[i] != want {
			if wrong++; wrong <= 3 {
				t.Errorf("%s: nutcracker gives %q to server %d, we to %d", p.title, k, got[i], want)
			}
		}
	}
	if wrong > 3 {
		t.Errorf("%s: %d of %d differ", p.title, wrong, len(keys))
	}
	return len(keys)
}

// writeCase writes a pool and where its first keys are: one letter per key, the index of its node.
func writeCase(b *bytes.Buffer, p *pool, got []int) {
	fmt.Fprintf(b, "%s %s %q", p.spec.Distribution, p.spec.Hash, p.spec.HashTag)
	for _, n := range p.spec.Nodes {
		fmt.Fprintf(b, " %s=%d", n.Name, n.Weight)
	}
	b.WriteString("\n\t")
	for _, number := range got[:min(keysRecorded, len(got))] {
		for i, n := range p.numbers {
			if n == number {
				b.WriteByte('a' + byte(i))
			}
		}
	}
	b.WriteByte('\n')
}

// TestRandom: every server gets an equal part, whatever its weight. (The keys differ, but so do twemproxy's from one start
// to the next.)
func TestRandom(t *testing.T) {
	var pools []*pool
	for shape, fill := range shapes(t) {
		for _, h := range ring.Hashes(ring.Random) {
			p := &pool{title: fmt.Sprintf("random/%s/%s", h, shape), spec: ring.Spec{Distribution: ring.Random, Hash: h}}
			fill(p)
			pools = append(pools, p)
		}
	}
	nutcracker(t, pools)
	keys, draws := testKeys()[:2500], rand.New(rand.NewPCG(1, 1))
	for _, p := range pools {
		r, ours := mustRing(t, p.spec), map[int]int{}
		for _, k := range keys {
			ours[p.numbers[r.Shard(k, draws.Uint32())]]++
		}
		theirs := map[int]int{}
		for _, n := range ask(t, p.socket, keys) {
			theirs[n]++
		}
		share := float64(len(keys)) / float64(len(p.numbers))
		for _, n := range p.numbers {
			for who, counts := range map[string]map[int]int{"we": ours, "nutcracker": theirs} {
				if got := float64(counts[n]); math.Abs(got-share) > 6*math.Sqrt(share) {
					t.Errorf("%s: %s give %g of %d keys to server %d, expected about %g", p.title, who, got, len(keys), n, share)
				}
			}
		}
	}
	t.Logf("%d pools, %d placements counted", len(pools), len(pools)*len(keys))
}

// TestEjection: with auto_eject_hosts, a server that cannot be reached is left out; the others get what Without gives them.
func TestEjection(t *testing.T) {
	var servers []server
	for i := range 4 {
		servers = append(servers, listenTCP(t, i))
	}
	dead := server{filepath.Join(shortDir(t), "nobody"), "", 99}
	var pools []*pool
	for _, d := range []ring.Distribution{ring.Ketama, ring.Modula} {
		for _, h := range ring.Hashes(d) {
			for shape, weights := range map[string][]uint32{"equal": {1, 1, 1, 1, 1}, "weights": {3, 1, 7, 2, 5}} {
				p := &pool{title: fmt.Sprintf("eject/%s/%s/%s", d, h, shape), spec: ring.Spec{Distribution: d, Hash: h},
					more: "  auto_eject_hosts: true\n  server_failure_limit: 1\n  server_retry_timeout: 600000\n"}
				for i, s := range append(servers[:2:2], dead, servers[2], servers[3]) {
					p.add(s, names()[i], weights[i])
				}
				pools = append(pools, p)
			}
		}
	}
	nutcracker(t, pools)
	keys, compared, ejected := testKeys(), 0, 0
	for _, p := range pools {
		r := mustRing(t, p.spec)
		if eject(t, p, r, keys) {
			r = r.Without(2)
			ejected++
		}
		compared += compare(t, p, r, keys, ask(t, p.socket, keys))
	}
	t.Logf("%d pools, in %d of them a server ejected, %d placements compared", len(pools), ejected, compared)
	if ejected < len(pools)-2 { // with crc32, ketama may give the dead server nothing
		t.Errorf("a server was ejected in %d pools of %d only", ejected, len(pools))
	}
}

// eject sends a key of the dead node, the third one, until another server answers it; false if it has no key.
func eject(t *testing.T, p *pool, full *ring.Ring, keys [][]byte) bool {
	t.Helper()
	i := slices.IndexFunc(keys, func(k []byte) bool { return full.Shard(k, 0) == 2 })
	if i < 0 {
		return false
	}
	for late := time.Now().Add(10 * time.Second); time.Now().Before(late); {
		if ask(t, p.socket, keys[i:i+1])[0] >= 0 {
			return true
		}
	}
	t.Fatalf("%s: the dead server is not ejected", p.title)
	return false
}
