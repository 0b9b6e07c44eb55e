// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"redoubt/internal/config"
)

// TestAPlanOverAStoreOutsideHasNoArbiters, and its files are sound.
func TestAPlanOverAStoreOutsideHasNoArbiters(t *testing.T) {
	for _, mode := range []string{"single", "ring", "cluster"} {
		shards := map[string]int{"ring": 2, "cluster": 1}[mode]
		p, err := newPlan(21000, 1, shards, mode, "")
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Members) != 3 {
			t.Fatalf("mode %s: %d members over raft", mode, len(p.Members))
		}
		if err := p.outside("etcd://127.0.0.1:2379,127.0.0.1:2380"); err != nil {
			t.Fatal(err)
		}
		if len(p.Members) != 2 || !strings.Contains(p.Outside, "/redoubt/up-") {
			t.Fatalf("mode %s: %d members, store %s", mode, len(p.Members), p.Outside)
		}
		for _, m := range p.Members {
			c, err := config.Parse([]byte(p.file(m)), m.ID, t.TempDir())
			if err != nil {
				t.Fatalf("mode %s: %v\n%s", mode, err, p.file(m))
			}
			if s := c.Store; s.Kind != "etcd" || s.Listen != m.Store || len(s.Endpoints) != 2 || !strings.HasPrefix(s.Prefix, "redoubt/up-") {
				t.Errorf("mode %s: %+v", mode, s)
			}
		}
	}
	p := plan{}
	if err := p.outside("consul://127.0.0.1:8500/teams/cache"); err != nil || p.Outside != "consul://127.0.0.1:8500/teams/cache" {
		t.Errorf("%s, %v", p.Outside, err)
	}
	if err := p.outside("zookeeper://127.0.0.1:1"); err == nil {
		t.Error("a store that there is not was taken")
	}
}
