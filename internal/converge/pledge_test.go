// SPDX-License-Identifier: Apache-2.0

package converge

import (
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
)

func pledgeShard() *topo.Shard {
	s := &topo.Shard{Spec: topo.Spec{Timing: topo.LANTiming(), Nodes: []topo.Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}}}}
	s.Assigned = topo.Assigned{Epoch: 5, Phase: topo.PhaseServing, Primary: "n1", RunID: "r1"}
	return s
}

// TestAPledgeIsGivenOnlyToWhoKnowsTheSame: each row changes one thing, and names what speaks against the pledge then.
func TestAPledgeIsGivenOnlyToWhoKnowsTheSame(t *testing.T) {
	for _, c := range []struct {
		name, against string
		change        func(p *topo.Plea, s *topo.Shard, age *time.Duration, promised *topo.Epoch)
	}{
		{"as it should be", "", func(*topo.Plea, *topo.Shard, *time.Duration, *topo.Epoch) {}},
		{"its own epoch is promised", "", func(_ *topo.Plea, _ *topo.Shard, _ *time.Duration, e *topo.Epoch) { *e = 5 }},
		{"a higher epoch is promised", "promised", func(_ *topo.Plea, _ *topo.Shard, _ *time.Duration, e *topo.Epoch) { *e = 6 }},
		{"an older plea", "tenure", func(p *topo.Plea, _ *topo.Shard, _ *time.Duration, _ *topo.Epoch) { p.Epoch = 4 }},
		{"another process", "tenure", func(p *topo.Plea, _ *topo.Shard, _ *time.Duration, _ *topo.Epoch) { p.RunID = "r2" }},
		{"another primary", "tenure", func(p *topo.Plea, _ *topo.Shard, _ *time.Duration, _ *topo.Epoch) { p.Primary = "n3" }},
		{"a switchover is known", "draining", func(_ *topo.Plea, s *topo.Shard, _ *time.Duration, _ *topo.Epoch) {
			s.Assigned.Phase = topo.PhaseDraining
		}},
		{"an election is known", "fencing", func(_ *topo.Plea, s *topo.Shard, _ *time.Duration, _ *topo.Epoch) {
			s.Assigned.Phase = topo.PhaseFencing
		}},
		{"a node more is known", "nodes", func(_ *topo.Plea, s *topo.Shard, _ *time.Duration, _ *topo.Epoch) {
			s.Spec.Nodes = append(s.Spec.Nodes, topo.Node{ID: "n4"})
		}},
		{"another lease is known", "lease", func(_ *topo.Plea, s *topo.Shard, _ *time.Duration, _ *topo.Epoch) { s.Spec.Timing.Lease *= 2 }},
		{"the store answers", "store answers", func(_ *topo.Plea, s *topo.Shard, age *time.Duration, _ *topo.Epoch) {
			*age = s.Spec.Timing.PledgeAfter() - 1
		}},
	} {
		s := pledgeShard()
		p, age, promised := topo.PleaOf(*s), s.Spec.Timing.PledgeAfter(), topo.Epoch(4)
		c.change(&p, s, &age, &promised)
		ok, why := MayPledge(p, "n2", s, age, promised)
		if ok != (c.against == "") || !strings.Contains(why, c.against) {
			t.Errorf("%s: %v, %q; want something about %q", c.name, ok, why, c.against)
		}
	}
	s := pledgeShard()
	if ok, _ := MayPledge(topo.PleaOf(*s), "n2", nil, time.Hour, 0); ok {
		t.Error("pledged without knowing any order")
	}
	for _, self := range []topo.NodeID{"n1", "n9"} {
		if ok, _ := MayPledge(topo.PleaOf(*s), self, s, time.Hour, 0); ok {
			t.Errorf("%s pledged to the primary n1", self)
		}
	}
}

// TestATimingLeavesRoomForRoundsOfPledges: members are ready before the first plea, and it comes long before the lease ends.
func TestATimingLeavesRoomForRoundsOfPledges(t *testing.T) {
	for _, timing := range []topo.Timing{topo.LANTiming(), topo.WANTiming()} {
		if timing.PledgeAfter() >= timing.SeekAfter() || timing.SeekAfter() > timing.Lease.D()/2 || timing.PledgeFor() < timing.Lease.D()+timing.Margin.D() {
			t.Errorf("pledges after %s, pleas after %s, for %s; the lease is %s", timing.PledgeAfter(), timing.SeekAfter(), timing.PledgeFor(), timing.Lease)
		}
	}
}
