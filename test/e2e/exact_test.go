// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// exactUp is a deployment of three nodes with retry: exact.
func exactUp(t *testing.T) *deployment {
	t.Helper()
	d := up(t, "--durability", "quorum")
	d.insert("    durability: quorum\n", "    retry: exact\n")
	d.waitHealthy(60 * time.Second)
	return d
}

// counter is a client that increments its key, each increment once, and knows what the key must be.
type counter struct {
	key                      string
	acked, applied, tryAgain int
	unknown                  int
	wrong                    string
}

// tallies are counters at work, on all proxies of a deployment.
type tallies struct {
	mu     sync.Mutex
	all    []*counter
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startTallies(t *testing.T, d *deployment, n int) *tallies {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &tallies{cancel: cancel}
	for i := range n {
		c := &counter{key: "exact:" + strconv.Itoa(i)}
		l.all = append(l.all, c)
		client := redis.NewClient(&redis.Options{Addr: d.proxyAddr(i % 3), MaxRetries: -1, ReadTimeout: 30 * time.Second, PoolSize: 1})
		l.wg.Go(func() {
			defer client.Close()
			for ctx.Err() == nil {
				v, err := client.Incr(context.Background(), c.key).Result()
				l.mu.Lock()
				c.note(v, err)
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// note counts one reply. APPLIED acknowledges the increment; the reply to it is all that was lost.
func (c *counter) note(v int64, err error) {
	switch {
	case err == nil:
		if c.acked++; v != int64(c.acked) && c.unknown == 0 && c.wrong == "" {
			c.wrong = fmt.Sprintf("%s is %d after %d acknowledged increments", c.key, v, c.acked)
		}
	case strings.HasPrefix(err.Error(), "APPLIED "):
		c.acked++
		c.applied++
	case strings.HasPrefix(err.Error(), "TRYAGAIN "):
		c.tryAgain++
	default:
		c.unknown++
		if c.wrong == "" {
			c.wrong = c.key + ": " + err.Error()
		}
	}
}

func (l *tallies) end() { l.cancel(); l.wg.Wait() }

func (l *tallies) sum() (acked, applied, unknown int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.all {
		acked, applied, unknown = acked+c.acked, applied+c.applied, unknown+c.unknown
	}
	return acked, applied, unknown
}

// goOn waits until every client has had n more successes.
func (l *tallies) goOn(d *deployment, n int) {
	d.t.Helper()
	from := make([]int, len(l.all))
	l.mu.Lock()
	for i, c := range l.all {
		from[i] = c.acked
	}
	l.mu.Unlock()
	d.until(30*time.Second, "every counter goes on", func() (bool, string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, c := range l.all {
			if c.acked < from[i]+n && c.wrong == "" {
				return false, fmt.Sprintf("%+v", *c)
			}
		}
		return true, ""
	})
}

// judge requires that each key is what its client was told, to the last increment.
func (l *tallies) judge(t *testing.T, d *deployment) {
	t.Helper()
	l.end()
	client := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0)})
	defer client.Close()
	acked, applied, unknown := l.sum()
	total, retries := 0, 0
	for _, c := range l.all {
		if c.wrong != "" {
			t.Error(c.wrong)
		}
		v, err := client.Get(context.Background(), c.key).Int()
		if err != nil || v != c.acked {
			t.Errorf("%s is %d (%v), and %d increments were acknowledged", c.key, v, err, c.acked)
		}
		total, retries = total+v, retries+c.tryAgain
	}
	replayed := 0
	for i := range 3 {
		p := redis.NewClient(&redis.Options{Addr: d.proxyAddr(i)})
		info := p.Info(context.Background(), "redoubt").Val()
		p.Close()
		for line := range strings.Lines(info) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "retry_replayed:"); ok {
				m, _ := strconv.Atoi(n)
				replayed += m
			}
		}
	}
	t.Logf("%d increments acknowledged, the keys add up to %d: %d of them answered APPLIED, %d sent again, %d not executed (TRYAGAIN), %d unknown", acked, total, applied, replayed, retries, unknown)
	if unknown > 0 || acked == 0 {
		t.Errorf("%d unknown outcomes of %d", unknown, acked)
	}
}

// TestExactThroughKills kills the primary's server again and again under counters: not one increment is lost, doubled or unknown.
func TestExactThroughKills(t *testing.T) {
	d := exactUp(t)
	l := startTallies(t, d, 12)
	for range roundsOr(3) {
		l.goOn(d, 50)
		s := d.waitHealthy(30 * time.Second)
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		l.goOn(d, 20)
	}
	l.judge(t, d)
}

// TestExactThroughTheRest does to the same counters what else ends connections: switchovers, cuts, hangs, and a second
// failover while the first has hardly ended.
func TestExactThroughTheRest(t *testing.T) {
	d := exactUp(t)
	l := startTallies(t, d, 12)
	for range roundsOr(1) {
		l.goOn(d, 50)
		d.waitHealthy(30 * time.Second)
		if out, err := d.run("switchover", "--yes"); err != nil {
			t.Fatalf("switchover: %v\n%s", err, out)
		}
		l.goOn(d, 50)
		s := d.waitHealthy(30 * time.Second)
		for range 10 { // connections of clients, which the proxies are
			direct := redis.NewClient(&redis.Options{Addr: s.node(s.primary()).Addr})
			if err := direct.Do(context.Background(), "CLIENT", "KILL", "TYPE", "normal").Err(); err != nil {
				t.Fatal(err)
			}
			direct.Close()
			l.goOn(d, 5)
		}
		s = d.waitHealthy(30 * time.Second)
		signal(t, s.node(s.primary()).PID, syscall.SIGSTOP)
		l.goOn(d, 20)
		s = d.waitHealthy(60 * time.Second)
		epoch := s.epoch()
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		d.until(20*time.Second, "the next primary serves", func() (bool, string) {
			var err error
			s, err = d.status()
			return err == nil && s.epoch() > epoch && s.phase() == "serving" && s.node(s.primary()).PID > 1, fmt.Sprintf("%+v", s)
		})
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		l.goOn(d, 20)
	}
	l.judge(t, d)
}

// TestExactThroughFlushes empties the database right before kills: outcomes may be unknown then, and never are there two.
func TestExactThroughFlushes(t *testing.T) {
	d := exactUp(t)
	client := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, ReadTimeout: 30 * time.Second, PoolSize: 1})
	defer client.Close()
	ctx := context.Background()
	for i := range roundsOr(2) {
		s := d.waitHealthy(30 * time.Second)
		key, n := fmt.Sprintf("flushed:%d", i), 0
		admin := redis.NewClient(&redis.Options{Addr: s.node(s.primary()).Addr})
		hit := make(chan error, 1)
		go func() {
			wait(100 * time.Millisecond)
			hit <- errors.Join(admin.FlushAll(ctx).Err(), syscall.Kill(s.node(s.primary()).PID, syscall.SIGKILL))
		}()
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
			v, err := client.Incr(ctx, key).Result()
			switch {
			case err == nil && v > int64(n)+1:
				t.Fatalf("%s is %d after %d increments that may have run", key, v, n)
			case err == nil:
				n = int(v)
			case strings.HasPrefix(err.Error(), "APPLIED "), strings.HasPrefix(err.Error(), "OUTCOMEUNKNOWN "):
				n++
			default:
				t.Fatal(err)
			}
		}
		if err := <-hit; err != nil {
			t.Fatal(err)
		}
		admin.Close()
	}
}

// TestWhatExactCosts compares writes with retry exact and none, both with durability quorum: two deployments of three nodes on
// this machine, one at work at a time, in interleaved rounds. Medians and ratios are worth something, absolute figures are not.
func TestWhatExactCosts(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		t.Skip("redis-benchmark is not installed")
	}
	exact, plain := exactUp(t), up(t, "--durability", "quorum")
	plain.waitHealthy(60 * time.Second)
	costs(t, "exact", exact, "plain quorum", plain, 0.2)
}
