// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// readsUp is a deployment of three nodes with quorum and these reads.
func readsUp(t *testing.T, reads string) *deployment {
	t.Helper()
	d := up(t, "--durability", "quorum")
	d.set("proxy", "reads: "+reads)
	d.waitHealthy(60 * time.Second)
	return d
}

// benchGet is one run of redis-benchmark: GET of 64 bytes through the first proxy, while so many writers are at work there.
func (d *deployment) benchGet(clients, requests, writers int) cost {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			client := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1})
			defer client.Close()
			for ctx.Err() == nil {
				client.Set(ctx, "w:"+strconv.Itoa(i), "v", 0)
				select { // a writer that is in no hurry
				case <-ctx.Done():
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	return d.benchmark("get", clients, requests)
}

// TestWhatReadsCost compares the three kinds of reads with durability quorum: three deployments of three nodes on this machine, one at
// work at a time, in interleaved rounds; without writes, and beside 4 and 32 writers through the same proxy. Medians and ratios are
// worth something, absolute figures are not.
func TestWhatReadsCost(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		t.Skip("redis-benchmark is not installed")
	}
	kinds := []string{"local", "lease", "linearizable"}
	shards := map[string]*deployment{}
	for _, k := range kinds {
		shards[k] = readsUp(t, k)
	}
	scale := 1
	if *rounds > 0 {
		scale = 10
	}
	for _, writers := range []int{0, 4, 32} {
		for _, c := range []struct{ clients, requests int }{{1, 1000}, {50, 5000}} {
			rates, medians := map[string][]float64{}, map[string][]float64{}
			for range roundsOr(1) {
				for _, k := range kinds {
					x := shards[k].benchGet(c.clients, c.requests*scale, writers)
					rates[k], medians[k] = append(rates[k], x.rate), append(medians[k], x.p50*1000)
				}
			}
			local := middle(rates["local"])
			for _, k := range kinds {
				r := middle(rates[k])
				t.Logf("%d writers, %2d clients: %-12s %6.0f requests/s, %.2f of local; %4.0f µs at the median", writers, c.clients, k, r, r/local, middle(medians[k]))
				if r < 0.02*local {
					t.Errorf("%s has %.3f of the throughput of local: something waits", k, r/local)
				}
			}
		}
	}
}
