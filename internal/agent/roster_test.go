// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	"redoubt/internal/converge"
	"redoubt/internal/topo"
)

func TestAStrangersReplicaAndOpenReplicationAreNamed(t *testing.T) {
	in := converge.Input{Self: "n1", Shard: &topo.Shard{}, Seen: topo.Sighting{Role: topo.RolePrimary, RunID: "r1"}}
	in.Shard.Spec.Nodes = []topo.Node{{ID: "n1", Addr: "10.0.0.1:6379"}, {ID: "n2", Addr: "10.0.0.2:6379"}, {ID: "n3", Addr: "three.example:6380"}}
	in.Shard.Assigned = topo.Assigned{Phase: topo.PhaseServing, Primary: "n1", RunID: "r1", Secret: "x"}
	for _, c := range []struct {
		told string
		want string
	}{
		{"10.0.0.2:6379", ""}, {"10.9.9.9:6380", ""}, // a name in the roster is compared by its port
		{"10.0.0.2:6380", ""}, // … also when the other's address looks like another node's
		{"10.0.0.3:6379", "stranger-replica: 10.0.0.3:6379"}, {"10.0.0.1:6379", "stranger-replica: 10.0.0.1:6379"},
	} {
		got := strings.Join(noteReplication(in, []string{c.told}), "\n")
		if (got == "") != (c.want == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", c.told, got, c.want)
		}
	}
	if admits(in).Open() {
		t.Error("a serving primary admits anybody")
	}
	in.Seen.RunID = "r2"
	if !admits(in).Open() {
		t.Error("another process than the promoted one admits replicas")
	}
	in.Shard.Assigned.Secret = ""
	if got := noteReplication(in, nil); len(got) != 1 || !strings.HasPrefix(got[0], "replication-open: ") {
		t.Errorf("an order without a secret: %q", got)
	}
	in.Seen.Role = topo.RoleReplica
	if got := noteReplication(in, []string{"10.0.0.3:6379"}); got != nil {
		t.Errorf("a replica speaks of replicas: %q", got)
	}
}
