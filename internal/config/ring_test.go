// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"

	"redoubt/internal/topo"
)

const ringFile = `member: {id: n2}
store: {members: [{id: n1, addr: "10.0.0.1:7380"}, {id: n2, addr: "10.0.0.2:7380"}, {id: n3, addr: "10.0.0.3:7380"}]}
deployments:
  - name: big
    mode: ring
    shards:
      - {name: a, nodes: [{id: n1, addr: "10.0.0.1:6479"}, {id: n2, addr: "10.0.0.2:6479"}, {id: n3, addr: "10.0.0.3:6479"}]}
      - name: b
        weight: 2
        nodes: [{id: n1, addr: "10.0.0.1:6480"}, {id: n3, addr: "10.0.0.3:6480"}, {id: n4, addr: "10.0.0.4:6480"}]
    node: {}
proxy: {listen: "10.0.0.2:6379"}
`

func TestARingIsOneUnitForEachShard(t *testing.T) {
	c, err := Parse([]byte(ringFile), "f.yaml", "/srv")
	if err != nil {
		t.Fatal(err)
	}
	us := c.Deployments[0].Units()
	if len(us) != 2 || us[0].ID() != "big-a" || us[1].ID() != "big-b" {
		t.Fatalf("%+v", us)
	}
	if us[0].Node == nil || us[0].Node.Dir != "/srv/data/redis/a" || us[0].LocalAddr() != "10.0.0.2:6479" {
		t.Errorf("the node here: %+v at %q", us[0].Node, us[0].LocalAddr())
	}
	if us[1].Node != nil {
		t.Errorf("%+v is not on this member", us[1].Node)
	}
	if s := us[1].Spec(); s.Durability != topo.Quorum || s.AckReplicas != 1 || len(s.Nodes) != 3 || s.Deployment != "big" {
		t.Errorf("%+v", s)
	}
	if r := c.Deployments[0].RingSpec(); r.Hash != "fnv1a_64" || r.Distribution != "ketama" || r.Nodes[0].Weight != 1 || r.Nodes[1].Weight != 2 {
		t.Errorf("%+v", r)
	}
}

func TestWhatIsWrongWithARingIsSaid(t *testing.T) {
	for _, x := range []struct{ from, to, want string }{
		{"mode: ring", "mode: single", "deployments[0].shards: shards belong to modes ring and cluster"},
		{"name: b\n", "name: a\n", "deployments[0].shards[1].name: name a is already used"},
		{"10.0.0.1:6480", "10.0.0.1:6479", "shards[1].nodes[0].addr: address 10.0.0.1:6479 is already used by deployments[0].shards[0].nodes[0].addr"},
		{"weight: 2", "weight: -1", "deployments[0].shards[1].weight: -1: use 1 or more"},
		{"mode: ring", "mode: ring\n    ring: {hash: md6}", "deployments[0].ring: "},
		{"mode: ring", "mode: ring\n    nodes: [{id: n1, addr: \"10.0.0.1:6481\"}]", "deployments[0].nodes: belongs to mode single"},
		{"node: {}", "node: {kind: attached, pid-file: /run/p}", "deployments[0].node.pid-file: there are several servers here in mode ring"},
		{"mode: ring", "mode: ring\n    ring: {eject-after: 1s}", "deployments[0].ring.eject-after: 1s: use 2s or more"},
		{"name: b\n", "name: b\n        ring-name: a\n", "deployments[0].shards[1].ring-name: ring-name a is already used"},
		{"mode: ring", "mode: ring\n    retry: exact", "deployments[0].retry: exact needs mode single"},
		{`"10.0.0.2:6379"`, `"10.0.0.2:6379", readonly-listen: "10.0.0.2:6380"`, "proxy.readonly-listen: is not in this version of mode ring"},
	} {
		_, err := Parse([]byte(strings.Replace(ringFile, x.from, x.to, 1)), "f.yaml", "/srv")
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s for %s: %v, want %q", x.to, x.from, err, x.want)
		}
	}
}
