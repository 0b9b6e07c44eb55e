// SPDX-License-Identifier: Apache-2.0

package topo

import "testing"

func TestWhereDataLeaveTheHistoryThatGoesOn(t *testing.T) {
	// A serves from 0; B leaves it at 300; C, an election that came to nothing, leaves A at 350; D leaves B at 400.
	h := []HistoryEntry{{1, "A", 0, 0, "n1"}, {3, "B", 300, 1, "n2"}, {5, "C", 350, 1, "n1"}, {7, "D", 400, 3, "n3"}}
	for _, c := range []struct {
		at     string
		offset int64
		from   int64
		ok     bool
	}{
		{"A", 299, 300, false},
		{"A", 300, 300, false},
		{"A", 301, 300, true},
		{"A", 900, 300, true},
		{"B", 250, 400, false}, // it has the id of B and has received nothing of it yet
		{"B", 400, 400, false},
		{"B", 420, 400, true},
		{"C", 320, 300, true}, // only what A had up to 350 is certain, and of that only 300 bytes are in D
		{"C", 360, 300, true},
		{"D", 1000, 0, false},
		{"X", 1000, 0, false},
	} {
		from, ok := Branch(h, Position{ReplID: c.at, Offset: c.offset})
		if ok != c.ok || ok && from != c.from {
			t.Errorf("(%s, %d) leaves at %d, %t; want %d, %t", c.at, c.offset, from, ok, c.from, c.ok)
		}
	}
	if _, ok := Branch(nil, Position{ReplID: "A", Offset: 1}); ok {
		t.Error("without a history something was lost")
	}
	if _, ok := Branch([]HistoryEntry{{9, "Z", 10, 8, "n1"}, {11, "Y", 10, 10, "n2"}}, Position{ReplID: "Z", Offset: 20}); ok {
		t.Error("two histories without a common ancestor on record were compared")
	}
}
