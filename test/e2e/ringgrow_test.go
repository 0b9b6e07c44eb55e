// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// scribe is one client of a ring that has keys of its own and knows what they are. Its fields belong to its goroutine until that has ended.
type scribe struct {
	id    int
	c     *redis.Client
	keys  int
	want  map[string]string // what each key is, in words; "": there is none
	ends  map[string]time.Time
	doubt map[string]bool // a command about it ended with an error
	errs  []string
	gap   time.Duration
	turns atomic.Int64
}

// startScribes starts clients at all proxies, and returns what ends them.
func startScribes(t *testing.T, d *deployment, n, keys int) (all []*scribe, end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	for i := range n {
		s := &scribe{id: i, keys: keys, want: map[string]string{}, ends: map[string]time.Time{}, doubt: map[string]bool{},
			c: redis.NewClient(&redis.Options{Addr: d.proxyAddr(i % 3), MaxRetries: -1, ReadTimeout: 30 * time.Second, PoolSize: 1})}
		all = append(all, s)
		done.Go(func() { s.run(ctx) })
	}
	end = sync.OnceFunc(func() {
		cancel()
		done.Wait()
		for _, s := range all {
			_ = s.c.Close()
		}
	})
	t.Cleanup(end)
	return all, end
}

func (s *scribe) run(ctx context.Context) {
	rng := rand.New(rand.NewPCG(uint64(s.id), 11))
	for n := 1; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("%c:%d:%d", "snlhz"[rng.IntN(5)], s.id, rng.IntN(s.keys))
		began := time.Now()
		err := s.turn(context.Background(), rng, key, n)
		s.gap = max(s.gap, time.Since(began))
		s.turns.Add(1)
		if err != nil {
			s.doubt[key] = s.doubt[key] || !strings.HasPrefix(err.Error(), "TRYAGAIN") // which says that it was not executed
			if len(s.errs) < 20 {
				s.errs = append(s.errs, time.Now().Format("15:04:05.000 ")+key+" "+err.Error())
			}
		}
		wait(300 * time.Microsecond)
	}
}

// turn carries out one command about a key, and notes what it is then.
func (s *scribe) turn(ctx context.Context, rng *rand.Rand, key string, n int) error {
	if rng.IntN(6) == 0 {
		err := s.c.Del(ctx, key).Err()
		if err == nil {
			delete(s.want, key)
			delete(s.ends, key)
		}
		return err
	}
	had := strings.Fields(s.want[key])
	switch v := fmt.Sprint(n); key[0] {
	case 's':
		ttl := time.Duration(600+rng.IntN(3000)) * time.Second
		if err := s.c.Set(ctx, key, v, ttl).Err(); err != nil {
			return err
		}
		s.want[key], s.ends[key] = v, time.Now().Add(ttl)
	case 'n':
		got, err := s.c.Incr(ctx, key).Result()
		if err != nil {
			return err
		}
		if want := plusOne(s.want[key]); !s.doubt[key] && fmt.Sprint(got) != want {
			return fmt.Errorf("the counter is %d, and should be %s", got, want)
		}
		s.want[key] = fmt.Sprint(got)
	case 'l':
		if rng.IntN(3) == 0 && len(had) > 0 {
			got, err := s.c.LPop(ctx, key).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
			if got != had[0] && !s.doubt[key] {
				return fmt.Errorf("%q was popped, and should be %q", got, had[0])
			}
			s.want[key] = strings.Join(had[1:], " ")
			return nil
		}
		if err := s.c.RPush(ctx, key, v).Err(); err != nil {
			return err
		}
		s.want[key] = strings.Join(append(had, v), " ")
	case 'h':
		if err := s.c.HSet(ctx, key, "f", v).Err(); err != nil {
			return err
		}
		s.want[key] = v
	case 'z':
		if err := s.c.ZAdd(ctx, key, redis.Z{Score: float64(n), Member: "m"}).Err(); err != nil {
			return err
		}
		s.want[key] = v
	}
	return nil
}

// is reads what a key is, in words.
func (s *scribe) is(ctx context.Context, c *redis.Client, key string) (string, error) {
	var got string
	var err error
	switch key[0] {
	case 'l':
		var all []string
		all, err = c.LRange(ctx, key, 0, -1).Result()
		got = strings.Join(all, " ")
	case 'h':
		got, err = c.HGet(ctx, key, "f").Result()
	case 'z':
		var f float64
		if f, err = c.ZScore(ctx, key, "m").Result(); err == nil {
			got = fmt.Sprint(int64(f))
		}
	default:
		got, err = c.Get(ctx, key).Result()
	}
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return got, err
}

// compareScribes compares every key with what its client knows, through another proxy, and what is there with what may be.
func compareScribes(t *testing.T, d *deployment, all []*scribe, faults bool) {
	t.Helper()
	ctx := t.Context()
	doubts, known := 0, map[string]bool{}
	gap, turns := time.Duration(0), int64(0)
	for _, s := range all {
		c := redis.NewClient(&redis.Options{Addr: d.proxyAddr((s.id + 1) % 3), MaxRetries: -1, ReadTimeout: 20 * time.Second})
		gap, turns = max(gap, s.gap), turns+s.turns.Load()
		for _, open := range s.doubt {
			if open {
				doubts++
			}
		}
		for i, e := range s.errs {
			if !faults {
				t.Errorf("client %d: %s", s.id, e)
			} else if i == 0 {
				t.Logf("client %d, the first of its errors: %s", s.id, e)
			}
		}
		for i := range s.keys {
			for _, kind := range "snlhz" {
				key := fmt.Sprintf("%c:%d:%d", kind, s.id, i)
				if s.doubt[key] {
					known[key] = true
					continue
				}
				got, err := s.is(ctx, c, key)
				if want := s.want[key]; err != nil || got != want {
					t.Errorf("%s is %q (%v), and should be %q", key, got, err, want)
				}
				if s.want[key] != "" {
					known[key] = true
				}
				if end, has := s.ends[key]; has {
					if left := c.PTTL(ctx, key).Val(); time.Until(end)-left > time.Second || left-time.Until(end) > time.Second {
						t.Errorf("%s lives for %s, and should for %s", key, left, time.Until(end))
					}
				}
			}
		}
		_ = c.Close()
	}
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), ReadTimeout: 20 * time.Second})
	defer c.Close()
	there := 0
	for it := c.Scan(ctx, 0, "*", 1000).Iterator(); it.Next(ctx); there++ {
		if !known[it.Val()] && strings.Contains("snlhz", it.Val()[:1]) && it.Val()[1] == ':' {
			t.Errorf("%s is there, and was deleted", it.Val())
		}
	}
	t.Logf("%d commands, %d keys, %d in doubt, the longest took %s", turns, there, doubts, gap.Round(10*time.Microsecond))
}

// ringChanged waits until the ring has changed for the n-th time.
func (d *deployment) ringChanged(within time.Duration, what string) {
	d.t.Helper()
	d.until(within, what, func() (bool, string) {
		out, err := d.run("reshard", "status")
		return err == nil && strings.HasPrefix(out, "done: "+what), out
	})
	out, _ := d.run("reshard", "status")
	d.t.Log(strings.TrimSpace(out))
}

// TestARingGrowsAndShrinks: a shard joins a ring and another one leaves it while clients write through all proxies. Every key is what its client wrote,
// nothing that was deleted is there, no client sees an error, and what lives for a time lives for no longer.
func TestARingGrowsAndShrinks(t *testing.T) {
	d := up(t, "--mode", "ring", "--shards", "2", "--replicas", "1", "--durability", "quorum", "--persistence", "none")
	d.waitHealthy(60 * time.Second)
	scribes, end := startScribes(t, d, 6, 150)
	written := func(n int64) {
		t.Helper()
		from := make([]int64, len(scribes))
		for i, s := range scribes {
			from[i] = s.turns.Load()
		}
		d.until(20*time.Second, "clients write", func() (bool, string) {
			return !slices.ContainsFunc(scribes, func(s *scribe) bool { return s.turns.Load() < from[s.id]+n }), ""
		})
	}
	written(100)
	if out, err := d.run("shard", "add", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.ringChanged(20*time.Second, "shard s3 joins the ring")
	written(100)
	if out, err := d.run("shard", "remove", "s2", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.ringChanged(20*time.Second, "shard s2 leaves the ring")
	written(100)
	end()
	compareScribes(t, d, scribes, false)
	d.until(10*time.Second, "the shard is gone", func() (bool, string) {
		st, err := d.status()
		return err == nil && len(st.Deployments[0].Shards) == 2, fmt.Sprint(err)
	})
}

// TestWhatIsOpenWhenARingChanges: a pop that waits is answered from the new shard, EXEC of a transaction that watched keys is null and one that did not is
// carried out where its keys are now, a subscriber is disconnected, and a SCAN begins anew and misses nothing.
func TestWhatIsOpenWhenARingChanges(t *testing.T) {
	d := up(t, "--mode", "ring", "--shards", "2", "--replicas", "0", "--durability", "async", "--persistence", "none")
	d.waitHealthy(60 * time.Second)
	ctx := t.Context()
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, ReadTimeout: 20 * time.Second})
	defer c.Close()
	const keys = 400
	was := make([]string, keys)
	for i := range keys {
		if err := c.Set(ctx, fmt.Sprint("k", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
		was[i] = c.Do(ctx, "PROXY", "SHARDOF", fmt.Sprint("k", i)).Val().(string)
	}
	type popped struct {
		key   string
		words []string
		err   error
	}
	pops := make(chan popped, 12)
	for i := range cap(pops) {
		go func() {
			own := redis.NewClient(&redis.Options{Addr: d.proxyAddr(i % 2), MaxRetries: -1, ReadTimeout: 30 * time.Second})
			defer own.Close()
			key := fmt.Sprint("list", i)
			words, err := own.BLPop(ctx, 20*time.Second, key).Result()
			pops <- popped{key, words, err}
		}()
	}
	sub := c.Subscribe(ctx, "news")
	defer sub.Close()
	if _, err := sub.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	watching, plain := c.Conn(), c.Conn()
	defer watching.Close()
	defer plain.Close()
	for _, cmd := range [][]any{{"WATCH", "k0"}, {"MULTI"}, {"SET", "k0", "never"}} {
		if err := watching.Do(ctx, cmd...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, cmd := range [][]any{{"MULTI"}, {"SET", "k1", "set"}} {
		if err := plain.Do(ctx, cmd...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	page, cursor, err := c.Scan(ctx, 0, "k*", 50).Result()
	if err != nil || cursor == 0 {
		t.Fatal(cursor, err)
	}
	if out, err := d.run("shard", "add", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.ringChanged(20*time.Second, "shard s3 joins the ring")
	moved := 0
	for i := range keys {
		if is := c.Do(ctx, "PROXY", "SHARDOF", fmt.Sprint("k", i)).Val(); is != was[i] {
			moved++
		}
	}
	if moved == 0 {
		t.Error("no key has changed its shard")
	}
	if err := watching.Do(ctx, "EXEC").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("EXEC of what was watched: %v", err)
	}
	if got, err := plain.Do(ctx, "EXEC").Slice(); err != nil || len(got) != 1 || c.Get(ctx, "k1").Val() != "set" || c.Get(ctx, "k0").Val() != "0" {
		t.Errorf("EXEC: %v %v, then k1 is %q and k0 %q", got, err, c.Get(ctx, "k1").Val(), c.Get(ctx, "k0").Val())
	}
	seen := map[string]bool{}
	for len(page) > 0 || cursor != 0 {
		for _, k := range page {
			seen[k] = true
		}
		if cursor == 0 {
			break
		}
		if page, cursor, err = c.Scan(ctx, cursor, "k*", 50).Result(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != keys {
		t.Errorf("a SCAN over the change saw %d of %d keys", len(seen), keys)
	}
	for i := range cap(pops) {
		if err := c.RPush(ctx, fmt.Sprint("list", i), fmt.Sprint("for ", i)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for range cap(pops) {
		p := <-pops
		if p.err != nil || len(p.words) != 2 || p.words[1] != "for "+strings.TrimPrefix(p.key, "list") {
			t.Errorf("a pop of %s that waited: %v, %v", p.key, p.words, p.err)
		}
	}
	if n, err := c.DBSize(ctx).Result(); err != nil || n != keys {
		t.Errorf("%d keys (%v), there should be %d", n, err, keys)
	}
}
