// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestOperationsAreBalanced: one shard has all keys that are used; the proxies measure that, and the busy slots are spread over the shards.
func TestOperationsAreBalanced(t *testing.T) {
	d := upCluster(t)
	if out, err := d.run("reshard", "--plan", "--by", "ops", "--look", "200ms"); err == nil {
		t.Errorf("without load: %s", out)
	}
	const hot = 24
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	var keys []string
	for i := range hot {
		keys = append(keys, d.keyOn("mymaster-s2", fmt.Sprint("hot", i)))
	}
	for i := range 3 {
		all.Go(func() {
			c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(i), MaxRetries: -1, ReadTimeout: 20 * time.Second})
			defer c.Close()
			for ctx.Err() == nil {
				if _, err := c.Pipelined(context.Background(), func(p redis.Pipeliner) error {
					for _, k := range keys {
						p.Incr(context.Background(), k)
					}
					return nil
				}); err != nil {
					t.Error(err)
					return
				}
				wait(time.Millisecond)
			}
		})
	}
	plan, err := d.run("reshard", "--plan", "--by", "ops", "--look", "1s")
	if err != nil || !strings.Contains(plan, "balanced by operations per second") || !strings.Contains(plan, "operations as n1, n2, n3 saw them within 1s") {
		t.Fatalf("%v\n%s", err, plan)
	}
	t.Logf("\n%s", plan)
	d.reshard(60*time.Second, "--by", "ops", "--look", "1s", "--batch", "8")
	at := map[string]int{}
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0)})
	defer c.Close()
	for _, k := range keys {
		shard, err := c.Do(ctx, "PROXY", "SHARDOF", k).Text()
		if err != nil {
			t.Fatal(err)
		}
		at[shard]++
	}
	t.Log(at)
	for _, shard := range []string{"mymaster-s1", "mymaster-s2", "mymaster-s3"} {
		if at[shard] < hot/6 {
			t.Errorf("of %d keys that are used alike: %v", hot, at)
		}
	}
}
