// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/slots"
)

var showKeys = flag.Int("keys", 0, "TestTwoShardsAreAddedToMillionsOfKeys: how many; 0: it is left out")

const (
	showWriters = 8
	showPipe    = 10     // commands of a pipeline
	showRate    = 20_000 // writes a second, of all writers
	showList    = 1_000_000
	showBytes   = 100 << 20
	showPiece   = 1 << 20
	showAgain   = 10 // commands of a pipeline that may be refused on a machine that is too busy to hold them in time
)

// throng writes keys by numbers and knows what each is: how often it was written, and whether it is deleted.
type throng struct {
	t        *testing.T
	keys     int
	versions []uint32 // its writer's; the lowest bit: it is deleted
	stop     atomic.Bool
	done     sync.WaitGroup
	mu       sync.Mutex // guards what follows
	errs     int
	again    int // commands that were refused, and not executed
	first    error
	slow     map[string][]time.Duration // by phase: what a pipeline took
	phase    string
	gap      time.Duration // without an answer, of any writer in this phase
	writes   int64
}

func showKey(i int) string { return "k:" + strconv.Itoa(i) }

func showValue(i int, version uint32) string {
	return fmt.Sprintf("%d:%d:%s", i, version, strings.Repeat("v", 40))
}

// fill writes all keys once.
func (c *throng) fill(open func(i int) redis.UniversalClient) {
	c.t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			r := open(w)
			defer r.Close()
			for at := w * 500; at < c.keys; at += 4 * 500 {
				p := r.Pipeline()
				for i := at; i < min(at+500, c.keys); i++ {
					p.Set(context.Background(), showKey(i), showValue(i, 0), 0)
				}
				if _, err := p.Exec(context.Background()); err != nil {
					c.t.Errorf("fill: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	c.t.Logf("%d keys were written in %s", c.keys, time.Since(began).Round(time.Millisecond))
}

// run starts the writers.
func (c *throng) run(open func(i int) redis.UniversalClient) {
	for w := range showWriters {
		c.done.Go(func() { c.write(w, open(w)) })
	}
}

func (c *throng) write(w int, r redis.UniversalClient) {
	defer r.Close()
	rng := rand.New(rand.NewPCG(uint64(w), 11))
	ctx := context.Background()
	tick := time.NewTicker(time.Second * showWriters * showPipe / showRate)
	defer tick.Stop()
	mine := c.keys / showWriters
	for !c.stop.Load() {
		<-tick.C
		p := r.Pipeline()
		keys := map[int]uint32{}
		said := map[int]redis.Cmder{}
		for range showPipe {
			i := w*mine + rng.IntN(mine)
			if _, twice := keys[i]; twice {
				continue
			}
			v := c.versions[i]/2*2 + 2
			if rng.IntN(10) == 0 {
				v |= 1
				said[i] = p.Del(ctx, showKey(i))
			} else {
				said[i] = p.Set(ctx, showKey(i), showValue(i, v), 0)
			}
			keys[i] = v
		}
		began := time.Now()
		_, _ = p.Exec(ctx)
		took := time.Since(began)
		var err error
		again := 0
		for i, v := range keys {
			if e := said[i].Err(); e != nil && strings.HasPrefix(e.Error(), "TRYAGAIN") {
				again++ // it was not executed
				continue
			} else if e != nil {
				err = e // it is not known whether it was: verify says so
			}
			c.versions[i] = v
		}
		c.mu.Lock()
		c.again += again
		c.slow[c.phase] = append(c.slow[c.phase], took)
		c.gap = max(c.gap, took)
		c.writes += int64(len(keys))
		if err != nil {
			if c.errs++; c.first == nil {
				c.first = err
			}
		}
		c.mu.Unlock()
	}
}

// enter begins a phase, and says what the one before was like.
func (c *throng) enter(phase string, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.slow[c.phase]; len(l) > 0 {
		slices.Sort(l)
		c.t.Logf("%-8s %6.0f writes/s, p50 %s, p99 %s, p99.9 %s, longest %s, %d times TRYAGAIN, %d errors (%v)", c.phase, float64(c.writes)/took.Seconds(),
			l[len(l)/2].Round(10*time.Microsecond), l[len(l)*99/100].Round(10*time.Microsecond), l[len(l)*999/1000].Round(10*time.Microsecond), c.gap.Round(10*time.Microsecond), c.again, c.errs, c.first)
	}
	c.phase, c.gap, c.writes = phase, 0, 0
}

// verify compares every key, and says how many are lost or came back.
func (c *throng) verify(r redis.UniversalClient) {
	c.t.Helper()
	c.stop.Store(true)
	c.done.Wait()
	ctx := context.Background()
	lost, back := 0, 0
	for at := 0; at < c.keys; at += 500 {
		p := r.Pipeline()
		var got []*redis.StringCmd
		for i := at; i < min(at+500, c.keys); i++ {
			got = append(got, p.Get(ctx, showKey(i)))
		}
		_, _ = p.Exec(ctx)
		for n, cmd := range got {
			i := at + n
			v, err := cmd.Result()
			switch gone := c.versions[i]&1 == 1; {
			case err != nil && err != redis.Nil:
				c.t.Fatalf("%s: %v", showKey(i), err)
			case gone && err == nil:
				back++
			case !gone && v != showValue(i, c.versions[i]):
				lost++
			}
		}
	}
	c.t.Logf("verified %d keys one by one: %d lost, %d came back", c.keys, lost, back)
	if lost+back+c.errs > 0 || c.again > showAgain {
		c.t.Errorf("%d lost, %d came back, %d times TRYAGAIN, %d errors, the first: %v", lost, back, c.again, c.errs, c.first)
	}
}

// keyAt is a key of a slot.
func keyAt(slot int) string {
	for i := 0; ; i++ {
		if k := "large:" + strconv.Itoa(i); slots.Of([]byte(k)) == slot {
			return k
		}
	}
}

// showLarge writes a string and a list that are large, of slots that will move, and returns what compares them and that their owners are others.
func showLarge(t *testing.T, r redis.UniversalClient, stringSlot, listSlot int, owner func(slot int) string) (same func()) {
	t.Helper()
	large, list := keyAt(stringSlot), keyAt(listSlot)
	was := [2]string{owner(stringSlot), owner(listSlot)}
	ctx := context.Background()
	piece := func(i int) string {
		rng := rand.New(rand.NewPCG(uint64(i), 5))
		b := make([]byte, showPiece)
		for k := range b {
			b[k] = byte(rng.Uint32())
		}
		return string(b)
	}
	for i := range showBytes / showPiece {
		if err := r.SetRange(ctx, large, int64(i)*showPiece, piece(i)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for at := 0; at < showList; at += 1000 {
		var some []any
		for i := range 1000 {
			some = append(some, at+i)
		}
		if err := r.RPush(ctx, list, some...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		for i := range showBytes / showPiece {
			if got, err := r.GetRange(ctx, large, int64(i)*showPiece, int64(i+1)*showPiece-1).Result(); err != nil || got != piece(i) {
				t.Fatalf("the large value differs in MiB %d: %v", i, err)
			}
		}
		for at := 0; at < showList; at += 1000 {
			got, err := r.LRange(ctx, list, int64(at), int64(at)+999).Result()
			if err != nil || len(got) != 1000 || got[0] != strconv.Itoa(at) || got[999] != strconv.Itoa(at+999) {
				t.Fatalf("the list differs at %d: %v", at, err)
			}
		}
		if is := [2]string{owner(stringSlot), owner(listSlot)}; is[0] == was[0] || is[1] == was[1] {
			t.Errorf("the large values were to move: they are at %v", is)
		}
		t.Log("the list of 1,000,000 elements and the value of 100 MiB have moved, and are as they were written")
	}
}

// TestTwoShardsAreAddedToMillionsOfKeys: two shards come, and are given their part by themselves, under 20,000 writes a second; then the same with
// redis-cli --cluster rebalance on servers that nobody watches.
func TestTwoShardsAreAddedToMillionsOfKeys(t *testing.T) {
	if *showKeys == 0 {
		t.Skip("make show-reshard runs it: KEYS=5000000")
	}
	t.Run("redoubt", showRedoubt)
	t.Run("redis-cli", showNative)
}

func newThrong(t *testing.T) *throng {
	keys := *showKeys / showWriters * showWriters
	return &throng{t: t, keys: keys, versions: make([]uint32, keys), slow: map[string][]time.Duration{}, phase: "before"}
}

func showRedoubt(t *testing.T) {
	d := up(t, "--mode", "cluster", "--shards", "3", "--replicas", "1", "--persistence", "none")
	d.insert("    mode: cluster\n", "    cluster: {rebalance: auto}\n")
	d.waitHealthy(60 * time.Second)
	open := func(i int) redis.UniversalClient {
		return redis.NewClient(&redis.Options{Addr: d.proxyAddr(i % 3), MaxRetries: -1, PoolSize: 1, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second})
	}
	r := open(1)
	defer r.Close()
	// The last slots of each shard are given away.
	same := showLarge(t, r, 5460, 16383, func(slot int) string {
		return fmt.Sprint(r.Do(context.Background(), "PROXY", "SHARDOF", keyAt(slot)).Val())
	})
	c := newThrong(t)
	c.fill(open)
	c.run(open)
	wait(5 * time.Second)
	c.enter("during", 5*time.Second)
	began := time.Now()
	for range 2 {
		if out, err := d.run("shard", "add", "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	moved := 0
	var keys int64
	d.until(20*time.Minute, "both have their part", func() (bool, string) {
		wait(time.Second) // each look is two programs, on the machine that is measured
		out, err := d.run("status")
		st, serr := d.reshardStatus()
		if serr == nil && st.State == "done" && keys != st.Keys {
			keys, moved = st.Keys, moved+st.Moved
			t.Logf("%d slots, %d keys at %.0f keys/s, %d hand-overs, half of them within %s, 95 %% within %s, at most %s", st.Moved, st.Keys, st.Rate, st.Stops, st.Median, st.P95, st.Longest)
		}
		return err == nil && serr == nil && st.State == "done" && strings.Count(out, "mymaster-s") >= 5 && !strings.Contains(out, "slots none"), out
	})
	c.enter("after", time.Since(began))
	t.Logf("%d slots in %s", moved, time.Since(began).Round(time.Millisecond))
	wait(5 * time.Second)
	c.enter("", 5*time.Second)
	c.verify(r)
	same()
}

func showNative(t *testing.T) {
	n := &native{t: t, procs: map[string]*exec.Cmd{}}
	defer n.stop()
	base := freeBase(t)
	for i := range 5 {
		port := base + 100 + 10*(i/3) + i%3
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		cmd := exec.Command("redis-server", "--port", strconv.Itoa(port), "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(port+200), "--save", "", "--appendonly", "no", "--dir", t.TempDir(), "--logfile", "log")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.procs[addr], n.addrs = cmd, append(n.addrs, addr)
	}
	cli := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("redis-cli", append([]string{"--cluster"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("redis-cli --cluster %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	n.until("an answer", func(ctx context.Context, c *redis.Client) bool { return c.Ping(ctx).Err() == nil }, n.addrs...)
	cli(append(append([]string{"create"}, n.addrs[:3]...), "--cluster-yes")...)
	ok := func(ctx context.Context, c *redis.Client) bool {
		info, err := c.ClusterInfo(ctx).Result()
		return err == nil && strings.Contains(info, "cluster_state:ok")
	}
	n.until("the cluster", ok, n.addrs[:3]...)
	open := func(int) redis.UniversalClient {
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: n.addrs[:3], PoolSize: 1, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second})
	}
	r := open(0)
	defer r.Close()
	// redis-cli gives the first slots of each node away.
	same := showLarge(t, r, 0, 10923, func(slot int) string {
		ranges, err := r.ClusterSlots(context.Background()).Result()
		for _, sr := range ranges {
			if sr.Start <= slot && slot <= sr.End {
				return sr.Nodes[0].Addr
			}
		}
		t.Fatalf("nobody has slot %d: %v", slot, err)
		return ""
	})
	c := newThrong(t)
	c.fill(open)
	c.run(open)
	wait(5 * time.Second)
	c.enter("during", 5*time.Second)
	began := time.Now()
	for _, addr := range n.addrs[3:] {
		cli("add-node", addr, n.addrs[0])
	}
	n.until("five nodes", func(ctx context.Context, c *redis.Client) bool {
		nodes, err := c.ClusterNodes(ctx).Result()
		return err == nil && strings.Count(nodes, "master") == 5 && ok(ctx, c)
	}, n.addrs...)
	cli("rebalance", n.addrs[0], "--cluster-use-empty-masters", "--cluster-pipeline", "100")
	c.enter("after", time.Since(began))
	t.Logf("%s", time.Since(began).Round(time.Millisecond))
	wait(5 * time.Second)
	c.enter("", 5*time.Second)
	c.verify(r)
	same()
}
