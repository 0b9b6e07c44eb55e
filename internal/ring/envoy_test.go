// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"fmt"
	"math"
	"testing"
)

// The values in this file are those that Envoy's own tests expect of its load balancers.

// local are the nodes 127.0.0.1:first and following.
func local(first int, weights ...uint32) []Node {
	var out []Node
	for i, w := range weights {
		out = append(out, Node{fmt.Sprintf("127.0.0.1:%d", first+i), w})
	}
	return out
}

func TestMurmur2(t *testing.T) {
	for key, want := range map[string]uint64{
		"foo": 9631199822919835226, "bar": 11474628671133349555, "foo\nbar": 16306510975912980159, "lyft": 12847078931730529320, "": 6142509188972423790,
	} {
		if got := murmur2x64([]byte(key)); got != want {
			t.Errorf("murmur2 of %q: %d, expected %d", key, got, want)
		}
	}
}

func TestEnvoyRingPoints(t *testing.T) {
	named := []Node{{"90", 1}, {"91", 1}, {"92", 1}, {"93", 1}, {"94", 1}, {"95", 1}}
	for title, c := range map[string]struct {
		spec Spec
		at   []uint64
		node []uint16
	}{
		"xxhash64": {
			Spec{Nodes: local(90, 1, 1, 1, 1, 1, 1), Hash: XXHash64, MinRing: 12},
			[]uint64{833437586790550860, 928266305478181108, 1033482794131418490, 3551244743356806947, 3851675632748031481, 5583722120771150861,
				6311230543546372928, 7700377290971790572, 13144177310400110813, 13444792449719432967, 15516499411664133160, 16117243373044804889},
			[]uint16{4, 2, 0, 5, 3, 1, 1, 3, 5, 2, 4, 0},
		},
		"murmur2": {
			Spec{Nodes: local(80, 1, 1, 1, 1, 1, 1), Hash: Murmur2, MinRing: 12},
			[]uint64{1358027074129602068, 4361834613929391114, 7224494972555149682, 7701421856454313576, 8649315368077433379, 8739448859063030639,
				9887544217113020895, 10150910876324007731, 15168472011420622455, 15427156902705414897, 16375050414328759093, 17613279263364193813},
			[]uint16{5, 3, 4, 1, 2, 4, 1, 2, 3, 0, 5, 0},
		},
		"hostnames": {
			Spec{Nodes: named, Hash: XXHash64, MinRing: 12},
			[]uint64{1975508444536362413, 2376063919839173711, 2386806903309390596, 6749904478991551885, 6803900775736438537, 7225015537174310577,
				8787465352164086522, 11282020843382717940, 13723418369486627818, 13776502110861797421, 14338313586354474791, 15364271037087512980},
			[]uint16{5, 5, 3, 4, 3, 2, 0, 2, 1, 0, 1, 4},
		},
		"minimum of 3 for two nodes": {
			Spec{Nodes: local(80, 1, 1), Hash: XXHash64, MinRing: 3},
			[]uint64{5454692015285649509, 7859399908942313493, 13838424394637650569, 16064866803292627174},
			[]uint16{0, 1, 0, 1},
		},
		"weights in a tiny ring": {
			Spec{Nodes: local(90, 1, 2, 3), Hash: XXHash64, MinRing: 6, MaxRing: 6},
			[]uint64{928266305478181108, 4443673547860492590, 5583722120771150861, 6311230543546372928, 13444792449719432967, 16117243373044804889},
			[]uint16{2, 2, 1, 1, 2, 0},
		},
	} {
		c.spec.Distribution = EnvoyRing
		r := mustNew(t, c.spec)
		if fmt.Sprint(r.points.at, r.points.node) != fmt.Sprint(c.at, c.node) {
			t.Errorf("%s:\n got %v %v\nwant %v %v", title, r.points.at, r.points.node, c.at, c.node)
		}
		if first, last := r.points.owner(0), r.points.owner(math.MaxUint64); first != int(c.node[0]) || last != first {
			t.Errorf("%s: the circle does not close", title)
		}
	}
}

func TestEnvoyRingSize(t *testing.T) {
	for _, c := range []struct {
		weights  []uint32
		min, max uint64
		want     int
	}{
		{[]uint32{1, 1, 1}, 0, 0, 1026},          // the minimum of 1024, made divisible
		{[]uint32{1, 1, 1}, 0, 1024, 1024},       // and cut at the maximum
		{[]uint32{1, 99}, 10, 0, 100},            // one point for the least
		{[]uint32{1, 9999999}, 10, 5000, 5000},   //
		{[]uint32{7}, 12, 0, 12},                 //
		{[]uint32{1, 2, 3, 4, 5}, 1024, 0, 1035}, // 69 × 15
	} {
		r := mustNew(t, Spec{Nodes: local(90, c.weights...), Distribution: EnvoyRing, Hash: XXHash64, MinRing: c.min, MaxRing: c.max})
		if got := len(r.points.at); got != c.want {
			t.Errorf("%v between %d and %d: %d points, expected %d", c.weights, c.min, c.max, got, c.want)
		}
	}
}

func TestMaglevTables(t *testing.T) {
	for title, c := range map[string]struct {
		spec Spec
		want []uint16
	}{
		"equal":     {Spec{Nodes: local(90, 1, 1, 1, 1, 1, 1), Table: 7}, []uint16{2, 4, 0, 1, 5, 0, 3}},
		"hostnames": {Spec{Nodes: []Node{{"90", 1}, {"91", 1}, {"92", 1}, {"93", 1}, {"94", 1}, {"95", 1}}, Table: 7}, []uint16{2, 5, 0, 3, 4, 1, 0}},
		"weights":   {Spec{Nodes: local(90, 1, 2), Table: 17}, []uint16{1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1}},
		"four to one": {Spec{Nodes: local(90, 8, 2), Table: 17}, // from its test of localities
			[]uint16{1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0}},
	} {
		c.spec.Distribution = EnvoyMaglev
		if got := mustNew(t, c.spec).table; fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %v, expected %v", title, got, c.want)
		}
	}
	full := mustNew(t, Spec{Nodes: local(90, 1, 1, 1), Distribution: EnvoyMaglev})
	counts := [3]int{}
	for _, n := range full.table {
		counts[n]++
	}
	if len(full.table) != 65537 || min(counts[0], counts[1], counts[2]) < 21845 {
		t.Errorf("a table of %d, %v per node", len(full.table), counts)
	}
}
