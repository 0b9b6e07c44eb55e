// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"

	"redoubt/internal/topo"
)

func adoption(t *testing.T, pool string) *Adoption {
	t.Helper()
	pools, err := ParseTwemproxy([]byte(pool), "nutcracker.yml")
	if err != nil {
		t.Fatal(err)
	}
	a := &Adoption{Pool: pools[0], API: "127.0.0.1:7379", Store: 7380}
	for i, name := range a.Pool.ShardNames() {
		a.Shards = append(a.Shards, AdoptedShard{Name: name, Primary: a.Pool.Servers[i].Addr()})
	}
	return a
}

const pool = `alpha:
  listen: 0.0.0.0:22121
  redis: true
  redis_auth: se"cret
  hash: crc32a
  distribution: modula
  hash_tag: "{}"
  servers:
  - 10.0.0.1:6379:1 one
  - 10.0.0.2:6379:3
`

// TestAnAdoptedPoolPlacesKeysAsBefore: the files that are written say the same of placement as the pool.
func TestAnAdoptedPoolPlacesKeysAsBefore(t *testing.T) {
	a := adoption(t, pool)
	a.Shards[1].Others = []string{"10.0.0.3:6379", "10.0.0.1:6380"}
	a.Members = []AdoptedMember{{"arbiter", "10.0.0.9"}}
	files, err := a.Files()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 4 {
		t.Fatalf("%d files for three hosts and an arbiter", len(files))
	}
	for id, text := range files {
		c, err := Parse([]byte(text), id, "/srv")
		if err != nil {
			t.Fatal(err)
		}
		d := c.Deployments[0]
		got, want := d.RingSpec(), a.Pool.Ring()
		if got.Distribution != want.Distribution || got.Hash != want.Hash || got.HashTag != want.HashTag || len(got.Nodes) != 2 || got.Nodes[0] != want.Nodes[0] || got.Nodes[1] != want.Nodes[1] {
			t.Errorf("%s: %+v, the pool has %+v", id, got, want)
		}
		if d.Password != `se"cret` || d.Durability != topo.Async || c.Proxy.Listen != "0.0.0.0:22121" {
			t.Errorf("%s: %+v %+v", id, d, c.Proxy)
		}
		if len(c.Store.Members)+len(c.Store.Join) == 0 || (d.Node == nil) != (id == "arbiter") {
			t.Errorf("%s: store %+v, node %+v", id, c.Store, d.Node)
		}
		if nodes := d.Shards[1].Nodes; len(nodes) != 3 || nodes[0].Addr != "10.0.0.2:6379" || nodes[2].Priority != 2 {
			t.Errorf("%s: nodes of the second shard: %+v", id, nodes)
		}
	}
}

func TestWhatOfAPoolCannotBeAdoptedIsSaid(t *testing.T) {
	for _, x := range []struct{ from, to, want string }{
		{"  redis: true\n  redis_auth: se\"cret\n", "", "memcached"},
		{"hash: crc32a", "redis_db: 3", "database 3"},
		{"0.0.0.0:22121", "/run/pool.sock", "--listen HOST:PORT"},
		{"10.0.0.2:6379:3", "/run/redis.sock:3", "give it a TCP address"},
	} {
		_, err := adoption(t, strings.Replace(pool, x.from, x.to, 1)).Files()
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", x.to, err)
		}
	}
	a := adoption(t, pool)
	a.Shards[0].Others = []string{"10.0.0.1:6380"}
	if _, err := a.Files(); err == nil || !strings.Contains(err.Error(), "two servers on 10.0.0.1") {
		t.Error(err)
	}
}
