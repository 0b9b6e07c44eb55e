// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"testing"

	"redoubt/internal/topo"
)

// TestExplainReadsEveryRuleOfAnyState: rules that Decide would not reach must not trip over what is not there.
func TestExplainReadsEveryRuleOfAnyState(t *testing.T) {
	for _, phase := range []topo.Phase{topo.PhaseNew, topo.PhaseServing, topo.PhaseDraining, topo.PhaseFencing, topo.PhasePromoting} {
		for _, withIntent := range []bool{false, true} {
			s := State{Shard: topo.Shard{Spec: topo.Spec{Durability: topo.Quorum, AckReplicas: 1, Nodes: []topo.Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}}, Timing: topo.LANTiming()}}}
			s.Shard.Assigned.Phase = phase
			s.Shard.Assigned.Primary = "n1"
			s.Shard.Assigned.Elected = &topo.Elected{Node: "n2"}
			if withIntent || phase == topo.PhaseDraining {
				s.Shard.Assigned.Intent = &topo.Intent{Kind: topo.IntentFailover, AcceptDataLoss: true}
			}
			if got := Explain(s); len(got) != len(rules) {
				t.Errorf("phase %s: %d traces for %d rules", phase, len(got), len(rules))
			}
		}
	}
}
