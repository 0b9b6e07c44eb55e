// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/slots"
)

// loadReport is what hotkeys and bigkeys say in JSON.
type loadReport struct {
	Members []string `json:"members"`
	Missing []string `json:"missing"`
	Shards  []struct {
		Shard    string `json:"shard"`
		MS       int64  `json:"ms"`
		Commands int64  `json:"commands"`
		Hot      []struct {
			Key                       string
			Hits, Over, Reads, Writes int64
		} `json:"hot"`
		Big []struct {
			Key   string
			Bytes int64
		} `json:"big"`
		Slots []int64 `json:"slots"`
	} `json:"shards"`
}

// TestLoad: which keys are used most, which are large, and where they are, as all members' proxies together saw it.
func TestLoad(t *testing.T) {
	t.Parallel()
	d := upCluster(t)
	hot := d.keyOn("mymaster-s2", "hot")
	large := d.keyOn("mymaster-s3", "large")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	value := strings.Repeat("x", 50_000)
	for i := range 3 {
		c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(i)})
		t.Cleanup(func() { c.Close() })
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				p := c.Pipeline()
				for k := range 10 {
					p.Incr(ctx, hot)
					p.Get(ctx, hot)
					p.Set(ctx, fmt.Sprint("cold:", i, ":", (n*10+k)%5000), "v", 0)
				}
				p.Set(ctx, large, value, 0)
				if _, err := p.Exec(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	out, err := d.run("hotkeys", "--json", "--for", "1500ms")
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.run("hotkeys", "--for", "500ms", "--top", "3")
	if err != nil || !strings.Contains(text, hot) {
		t.Errorf("%v\n%s", err, text)
	}
	big, err := d.run("bigkeys", "--for", "500ms")
	if err != nil || !strings.Contains(big, large) {
		t.Errorf("%v\n%s", err, big)
	}
	stop()
	t.Logf("\n%s\n%s", text, big)
	var r loadReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Members) != 3 || len(r.Missing) > 0 || len(r.Shards) != 3 {
		t.Fatalf("members %v, missing %v, %d shards", r.Members, r.Missing, len(r.Shards))
	}
	total := int64(0)
	for _, s := range r.Shards {
		total += s.Commands
	}
	for _, s := range r.Shards {
		if s.Shard != "mymaster-s2" {
			continue
		}
		h := s.Hot[0]
		if h.Key != hot || h.Hits-h.Over < total*5/10 || h.Hits > total*8/10 || h.Reads*10 < h.Writes*8 || h.Writes*10 < h.Reads*8 {
			t.Errorf("of %d commands the most are %+v", total, h)
		}
		most, sum := 0, int64(0)
		for slot, n := range s.Slots {
			if sum += n; n > s.Slots[most] {
				most = slot
			}
		}
		if most != slots.Of([]byte(hot)) || sum < s.Commands*8/10 || sum > s.Commands*12/10 {
			t.Errorf("slot %d is said to be used most, %d commands of %d were counted", most, sum, s.Commands)
		}
	}
	text, err = d.run("bigkeys", "--scan", "--top", "1")
	if lines := strings.Split(strings.TrimSpace(text), "\n"); err != nil || len(lines) != 2 || !strings.HasPrefix(lines[1], large) || !strings.Contains(lines[1], "string") {
		t.Errorf("%v\n%s", err, text)
	}
	t.Logf("\n%s", text)
}
