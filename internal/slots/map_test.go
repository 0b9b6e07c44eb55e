// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"reflect"
	"strings"
	"testing"
)

func TestSlotsAreThoseOfServers(t *testing.T) {
	for key, want := range map[string]int{ // CLUSTER KEYSLOT of a server
		"": 0, "b": 3300, "f": 3168, "a{b}": 3300, "d": 11298, "foo{x1}": 10114, "123456789": 0x31c3,
		"{}x": Of([]byte("{}x")), "x{y": Of([]byte("x{y")), "{user}.a": Of([]byte("{user}.b")), "a{b}{c}": 3300,
	} {
		if got := Of([]byte(key)); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
	if Of([]byte("{}a")) == Of([]byte("{}b")) {
		t.Error("an empty tag is taken for one")
	}
}

func TestEvenPartsCoverAllSlots(t *testing.T) {
	for n := 1; n <= 20; n++ {
		var names []string
		for i := range n {
			names = append(names, strings.Repeat("s", i+1))
		}
		m := Even(names...)
		total := 0
		for i := range n {
			rs := m.Ranges(i)
			if len(rs) != 1 || rs[0].Size() < Count/n || rs[0].Size() > Count/n+1 {
				t.Fatalf("%d shards: shard %d has %v", n, i, rs)
			}
			total += rs[0].Size()
		}
		if total != Count || m.Missing() != nil {
			t.Errorf("%d shards: %d slots, without a shard: %v", n, total, m.Missing())
		}
	}
	if m := Even("a", "b", "c"); Text(m.Ranges(0)) != "0-5460" || Text(m.Ranges(2)) != "10922-16383" {
		t.Errorf("%v %v", m.Ranges(0), m.Ranges(2))
	}
}

func TestRangesAreReadAndWritten(t *testing.T) {
	rs, err := ParseRanges("100-200, 5 6,7-9,0")
	if want := []Range{{0, 0}, {5, 9}, {100, 200}}; err != nil || !reflect.DeepEqual(rs, want) {
		t.Errorf("%v, %v", rs, err)
	}
	if got := Text(rs); got != "0,5-9,100-200" {
		t.Error(got)
	}
	for _, bad := range []string{"a", "5-", "-5", "9-5", "16384", "0-16384", "1,1", "1-5,3-9", "1-2-3"} {
		if rs, err := ParseRanges(bad); err == nil {
			t.Errorf("%q was read as %v", bad, rs)
		}
	}
}

func TestAMapChangesByACopy(t *testing.T) {
	m := Even("a", "b")
	n := m.With(0, "b").With(16383, "c")
	if m.Shard(0) != 0 || n.Shard(0) != 1 || n.Shard(16383) != n.Index("c") || m.Index("c") != None {
		t.Errorf("%d %d %d", m.Shard(0), n.Shard(0), n.Shard(16383))
	}
	if m.Equal(n) || !m.Equal(Even("a", "b")) || m.Equal(Even("b", "a")) {
		t.Error("maps are compared wrongly")
	}
	if m.Shard(-1) != None || m.Shard(Count) != None {
		t.Error("there is a shard of no slot")
	}
}

func TestADocumentComesBack(t *testing.T) {
	m, err := New([]string{"d-a", "d-b"}, [][]Range{{{0, 10}, {12, 16000}}, {{11, 11}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(m.Encode())
	if err != nil || !got.Equal(m) || Text(got.Missing()) != "16001-16383" || !reflect.DeepEqual(got.Shards(), m.Shards()) {
		t.Errorf("%s: %v", m.Encode(), err)
	}
	for _, bad := range []string{"", `{"format":2}`, `{"format":1,"shards":[{"id":"a","slots":"0-5"},{"id":"b","slots":"5"}]}`, `{"format":1,"shards":[{"id":"a","slots":"x"}]}`} {
		if _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if _, err := New([]string{"a"}, [][]Range{{{5, 4}}}); err == nil {
		t.Error("an empty range was taken")
	}
}

func TestAShardWithoutSlotsIsForgotten(t *testing.T) {
	m := Even("a", "b", "c")
	if _, empty := m.Without("b"); empty {
		t.Error("a shard with slots was forgotten")
	}
	if same, empty := m.Without("x"); !empty || same != m {
		t.Error("a shard that is not known")
	}
	var all []int
	for _, r := range m.Ranges(0) {
		for s := r.From; s <= r.To; s++ {
			all = append(all, s)
		}
	}
	next, empty := m.WithAll(all, "c").WithMoves([]byte("note")).Without("a")
	if !empty || next.Index("a") >= 0 || len(next.Shards()) != 2 || string(next.Moves()) != "note" {
		t.Fatalf("%v %v", next, empty)
	}
	for s := range Count {
		was := m.Shards()[m.Shard(s)]
		if was == "a" {
			was = "c"
		}
		if is := next.Shards()[next.Shard(s)]; is != was {
			t.Fatalf("slot %d is of %s, was of %s", s, is, was)
		}
	}
}
