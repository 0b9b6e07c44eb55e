// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestRing: several shards behind one address. Keys are where the ring says, commands about many keys work, and the loss of one
// shard's primary is seen by its own keys alone, for a moment.
func TestRing(t *testing.T) {
	d := up(t, "--mode", "ring", "--shards", "3", "--replicas", "1", "--durability", "quorum")
	d.waitHealthy(60 * time.Second)
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, ReadTimeout: 15 * time.Second})
	defer c.Close()
	ctx := t.Context()
	const keys = 300
	var names []string
	var pairs []any
	for i := range keys {
		names = append(names, fmt.Sprint("key:", i))
		pairs = append(pairs, names[i], fmt.Sprint(i))
	}
	if err := c.MSet(ctx, pairs...).Err(); err != nil {
		t.Fatal(err)
	}
	where := map[string]int{}
	for _, k := range names {
		shard, err := c.Do(ctx, "PROXY", "SHARDOF", k).Text()
		if err != nil {
			t.Fatal(err)
		}
		where[shard]++
	}
	if len(where) != 3 {
		t.Fatalf("keys are on %v", where)
	}
	all := func() {
		t.Helper()
		got, err := c.MGet(ctx, names...).Result()
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range got {
			if v != fmt.Sprint(i) {
				t.Fatalf("key %d is %v", i, v)
			}
		}
	}
	all()
	if n, err := c.DBSize(ctx).Result(); err != nil || n != keys {
		t.Errorf("%d keys, %v", n, err)
	}
	st, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	if d := st.Deployments[0]; d.Mode != "ring" || len(d.Shards) != 3 {
		t.Fatalf("status: %+v", d)
	}
	for _, sh := range st.Deployments[0].Shards {
		for _, n := range sh.Nodes {
			if n.ID == sh.Primary {
				signal(t, n.PID, syscall.SIGKILL)
			}
		}
		all() // parked for the moment of the failover
	}
	d.waitHealthy(30 * time.Second)
	all()
}
