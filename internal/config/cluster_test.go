// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"

	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

const clusterFile = `member: {id: n2}
store: {members: [{id: n1, addr: "10.0.0.1:7380"}, {id: n2, addr: "10.0.0.2:7380"}, {id: n3, addr: "10.0.0.3:7380"}]}
deployments:
  - name: big
    mode: cluster
    shards:
      - {name: a, nodes: [{id: n1, addr: "10.0.0.1:6479"}, {id: n2, addr: "10.0.0.2:6479", priority: 1}, {id: n3, addr: "10.0.0.3:6479"}]}
      - {name: b, nodes: [{id: n1, addr: "10.0.0.1:6480"}, {id: n2, addr: "10.0.0.2:6480", bus-port: 7000}, {id: n3, addr: "10.0.0.3:6480"}]}
    node: {}
proxy: {listen: "10.0.0.2:6379"}
`

func TestAClusterHasItsDefaults(t *testing.T) {
	c, err := Parse([]byte(clusterFile), "f.yaml", "/srv")
	if err != nil {
		t.Fatal(err)
	}
	d := c.Deployments[0]
	us := d.Units()
	if len(us) != 2 || us[0].ID() != "big-a" || us[0].Nodes[0].BusPort != 16479 || us[1].Nodes[1].BusPort != 7000 || us[1].Node.Dir != "/srv/data/redis/b" {
		t.Errorf("%+v", us)
	}
	if s := us[0].Spec(); s.Durability != topo.Quorum || s.AckReplicas != 1 || len(s.Nodes) != 3 {
		t.Errorf("%+v", s)
	}
	if d.Cluster.UID != "big" || c.Proxy.ClusterFace != "proxy" {
		t.Errorf("uid %q, face %q", d.Cluster.UID, c.Proxy.ClusterFace)
	}
	m, err := d.SlotMap()
	if err != nil || !m.Equal(slots.Even("big-a", "big-b")) {
		t.Errorf("%v", err)
	}
	given := strings.NewReplacer("{name: a,", "{name: a, slots: \"8000-16383,5\",", "{name: b,", "{name: b, slots: \"0-4,6-7999\",").Replace(clusterFile)
	if c, err = Parse([]byte(given), "f.yaml", "/srv"); err != nil {
		t.Fatal(err)
	}
	if m, err = c.Deployments[0].SlotMap(); err != nil || m.Shard(5) != 0 || m.Shard(4) != 1 || m.Shard(8000) != 0 {
		t.Errorf("%v", err)
	}
}

func TestWhatIsWrongWithAClusterIsSaid(t *testing.T) {
	for _, x := range []struct{ from, to, want string }{
		{"mode: cluster", "mode: cluster\n    durability: always", "deployments[0].durability: "},
		{"node: {}", "node: {directives: {rename-command: FUNCTION f}}", "Redoubt needs this command in a cluster"},
		{"mode: cluster", "mode: cluster\n    ring: {hash: md5}", "deployments[0].ring: belongs to mode ring"},
		{"mode: cluster", "mode: cluster\n    retry: exact", "deployments[0].retry: exact needs"},
		{"mode: cluster", "mode: cluster\n    cluster: {uid: \"a b\"}", "deployments[0].cluster.uid: "},
		{"mode: cluster", "mode: ring", "shards[1].nodes[1].bus-port: belongs to mode cluster"},
		{"{name: a,", "{name: a, slots: 0-100,", "deployments[0].shards: 1 of 2 shards say which slots they have"},
		{"{name: a,", "{name: a, slots: 0-16384,", "deployments[0].shards: shard a: \"0-16384\" is no range"},
		{"{name: a,", "{name: a, weight: 3,", "deployments[0].shards[0].weight: weight and ring-name belong to mode ring: use slots"},
		{"10.0.0.1:6480", "db.example:6480", "shards[1].nodes[0].addr: \"db.example\": servers of a cluster tell each other IP addresses"},
		{"10.0.0.1:6480", "10.0.0.1:60000", "shards[1].nodes[0].bus-port: is missing: 60000 + 10000 is no port"},
		{"bus-port: 7000", "bus-port: 6479", "shards[1].nodes[1].bus-port: address 10.0.0.2:6479 is already used"},
		{"bus-port: 7000", "bus-port: 6379", "bus-port: port 6379 is already used by proxy.listen"},
		{"bus-port: 7000", "bus-port: 70000", "bus-port: 70000: the port must be"},
		{"node: {}", "node: {kind: attached}", "nodes[1].server-id: is missing: an attached server of a cluster has an id of its own"},
		{"node: {}", "node: {kind: attached, pid-file: /run/x}", "deployments[0].node.pid-file: there may be several servers here in mode cluster"},
		{`"10.0.0.2:6379"`, `"10.0.0.2:6379", split-reads: true`, "proxy.split-reads: is not in this version of mode cluster"},
		{`"10.0.0.2:6379"`, `"10.0.0.2:6379", readonly-listen: "10.0.0.2:6380"`, "proxy.readonly-listen: is not in this version of mode cluster"},
		{`"10.0.0.2:6379"`, `"10.0.0.2:6379", cluster-face: yes`, "proxy.cluster-face: "},
	} {
		_, err := Parse([]byte(strings.Replace(clusterFile, x.from, x.to, 1)), "f.yaml", "/srv")
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s for %s: %v, want %q", x.to, x.from, err, x.want)
		}
	}
	both := strings.NewReplacer("{name: a,", "{name: a, slots: 0-9000,", "{name: b,", "{name: b, slots: 9000-16383,").Replace(clusterFile)
	if _, err := Parse([]byte(both), "f.yaml", "/srv"); err == nil || !strings.Contains(err.Error(), "slot 9000 is of shard big-a and of shard big-b") {
		t.Error(err)
	}
	none := strings.NewReplacer("{name: a,", "{name: a, slots: 0-9000,", "{name: b,", "{name: b, slots: 9002-16383,").Replace(clusterFile)
	if _, err := Parse([]byte(none), "f.yaml", "/srv"); err == nil || !strings.Contains(err.Error(), "no shard has the slots 9001") {
		t.Error(err)
	}
}
