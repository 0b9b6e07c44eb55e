// SPDX-License-Identifier: Apache-2.0

package topo

import "testing"

// A node that is listed twice would be two witnesses of one position.
func TestNodesAreSortedAndListedOnce(t *testing.T) {
	for ids, sound := range map[string]bool{"abc": true, "a": true, "acb": false, "aab": false, "abb": false, "aaa": false} {
		s := Spec{Durability: Async, Timing: LANTiming()}
		for _, id := range ids {
			s.Nodes = append(s.Nodes, Node{ID: NodeID(id), Addr: string(id) + ":1"})
		}
		if errs := s.Validate(); (len(errs) == 0) != sound {
			t.Errorf("nodes %s: %v", ids, errs)
		}
	}
}
