// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// ledger is some clients that write keys of their own and know what these are.
type ledger struct {
	t       *testing.T
	stop    context.CancelFunc
	done    sync.WaitGroup
	keepers []*keeper
}

// keeper is one client. Its fields belong to its goroutine until that has ended.
type keeper struct {
	name   string
	c      redis.UniversalClient
	piped  bool
	values map[string]string // counters and strings
	lists  map[string]int64
	gap    time.Duration
	gapAt  time.Time
	acked  int
	errs   []string
	doubt  map[string]bool // keys of which a command ended with an error
}

// lostMost is how many keys a failover without acknowledgement by replicas may set back.
const lostMost = 5

// startLedger starts plain clients, of which one sends pipelines, and cluster-aware ones, spread over the proxies.
func startLedger(t *testing.T, d *deployment, keys int) *ledger {
	ctx, cancel := context.WithCancel(context.Background())
	l := &ledger{t: t, stop: cancel}
	for i := range 6 {
		addr := d.proxyAddr(i % 3)
		k := &keeper{name: fmt.Sprintf("plain-%d", i), piped: i%3 == 2, values: map[string]string{}, lists: map[string]int64{}, doubt: map[string]bool{}}
		if k.piped {
			k.name = fmt.Sprintf("piped-%d", i)
		}
		k.c = redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ReadTimeout: 20 * time.Second})
		if i >= 4 {
			k.name += "-cluster"
			k.c = redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}, ReadTimeout: 20 * time.Second})
		}
		l.keepers = append(l.keepers, k)
		l.done.Go(func() { k.run(ctx, i, keys) })
	}
	t.Cleanup(l.end)
	return l
}

func (l *ledger) end() {
	l.stop()
	l.done.Wait()
}

// run writes until ctx ends: each turn is one command, a transaction, or a pipeline.
func (k *keeper) run(ctx context.Context, id, keys int) {
	rng := rand.New(rand.NewPCG(uint64(id), 7))
	bg := context.Background()
	for n := 0; ctx.Err() == nil; n++ {
		began := time.Now()
		var err error
		key := fmt.Sprintf("%d:%d", id, rng.IntN(keys))
		switch turn := rng.IntN(12); {
		case k.piped:
			err = k.pipe(bg, rng, id, keys)
		case turn < 5:
			if _, err = k.c.Incr(bg, "n"+key).Result(); err == nil {
				k.values["n"+key] = plusOne(k.values["n"+key])
			}
		case turn < 8:
			v := fmt.Sprint(n)
			if err = k.c.Set(bg, "s"+key, v, time.Hour).Err(); err == nil {
				k.values["s"+key] = v
			}
		case turn < 9:
			if err = k.c.Del(bg, "s"+key).Err(); err == nil {
				delete(k.values, "s"+key)
			}
		case turn < 11:
			if err = k.c.RPush(bg, "l"+key, n).Err(); err == nil {
				k.lists["l"+key]++
			}
		default:
			tag := "{t" + key + "}"
			_, err = k.c.TxPipelined(bg, func(p redis.Pipeliner) error {
				p.Incr(bg, tag+"a")
				p.Incr(bg, tag+"b")
				return nil
			})
			if err == nil {
				k.values[tag+"a"], k.values[tag+"b"] = plusOne(k.values[tag+"a"]), plusOne(k.values[tag+"b"])
			}
		}
		if took := time.Since(began); took > k.gap {
			k.gap, k.gapAt = took, began
		}
		if k.acked++; err != nil {
			for _, name := range []string{"n" + key, "s" + key, "l" + key, "{t" + key + "}a", "{t" + key + "}b"} {
				k.doubt[name] = true
			}
			if len(k.errs) < 20 {
				k.errs = append(k.errs, time.Now().Format("15:04:05.000 ")+key+" "+err.Error())
			}
		}
		wait(500 * time.Microsecond)
	}
	_ = k.c.Close()
}

func (k *keeper) pipe(ctx context.Context, rng *rand.Rand, id, keys int) error {
	p := k.c.Pipeline()
	var names []string
	var cmds []*redis.IntCmd
	for range 8 {
		key := fmt.Sprintf("n%d:%d", id, rng.IntN(keys))
		names, cmds = append(names, key), append(cmds, p.Incr(ctx, key))
	}
	_, err := p.Exec(ctx)
	for i, c := range cmds {
		if c.Err() == nil {
			k.values[names[i]] = plusOne(k.values[names[i]])
		} else {
			k.doubt[names[i]] = true
		}
	}
	return err
}

func plusOne(v string) string {
	n := 0
	_, _ = fmt.Sscan(v, &n)
	return fmt.Sprint(n + 1)
}

// check ends the clients and compares every key with what its client knows. With faults, primaries may lose what their replicas did not have
// (durability async): then so many keys may differ, and those of which a command ended with an error.
func (l *ledger) check(d *deployment, faults bool) {
	l.t.Helper()
	l.end()
	lost, doubts := 0, 0
	differs := func(format string, args ...any) {
		if lost++; !faults || lost > lostMost {
			l.t.Errorf(format, args...)
		} else {
			l.t.Logf("lost in a failover: "+format, args...)
		}
	}
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(1)})
	defer c.Close()
	ctx := context.Background()
	all := 0
	for _, k := range l.keepers {
		l.t.Logf("%s: %d turns, longest %s at %s", k.name, k.acked, k.gap.Round(10*time.Microsecond), k.gapAt.Format("15:04:05.000"))
		for _, e := range k.errs {
			if !faults {
				l.t.Errorf("%s: %s", k.name, e)
			}
		}
		if len(k.errs) > 0 {
			l.t.Logf("%s: the first of its errors: %s", k.name, k.errs[0])
		}
		doubts += len(k.doubt)
		for key, want := range k.values {
			if k.doubt[key] {
				continue
			}
			if got, err := c.Get(ctx, key).Result(); got != want {
				differs("%s: %s is %q (%v), written was %q", k.name, key, got, err, want)
				continue
			}
			if strings.HasPrefix(key, "s") && c.TTL(ctx, key).Val() <= 0 {
				l.t.Errorf("%s: %s has lost its time to live", k.name, key)
			}
		}
		for key, want := range k.lists {
			if got, err := c.LLen(ctx, key).Result(); got != want && !k.doubt[key] {
				differs("%s: %s has %d elements (%v), %d were pushed", k.name, key, got, err, want)
			}
		}
		all += len(k.values) + len(k.lists)
	}
	if n, err := c.DBSize(ctx).Result(); err != nil || n < int64(all-doubts-lost) || n > int64(all+doubts+lost) {
		l.t.Errorf("%d keys (%v), %d are known: something came back, or was lost", n, err, all)
	}
}

// reshardStatus is what `redoubt reshard status --json` says.
type reshardStatus struct {
	State   string  `json:"state"`
	Why     string  `json:"why"`
	Slots   int     `json:"slots"`
	Moved   int     `json:"moved"`
	Keys    int64   `json:"keys"`
	Rate    float64 `json:"keys_per_second"`
	Stops   int     `json:"stops"`
	Longest string  `json:"longest_stop"`
	Median  string  `json:"median_stop"`
	P95     string  `json:"p95_stop"`
	Trouble string  `json:"trouble"`
	Now     string  `json:"now"`
}

func (d *deployment) reshardStatus() (reshardStatus, error) {
	var st reshardStatus
	out, err := d.run("reshard", "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	return st, err
}

// reshard gives the order and waits until it is over.
func (d *deployment) reshard(within time.Duration, args ...string) reshardStatus {
	d.t.Helper()
	if _, err := d.run(append([]string{"reshard", "--yes", "--wait=false"}, args...)...); err != nil {
		d.t.Fatal(err)
	}
	return d.moved(within)
}

// moved waits until slots are where they are to be.
func (d *deployment) moved(within time.Duration) reshardStatus {
	d.t.Helper()
	var st reshardStatus
	d.until(within, "the slots are moved", func() (bool, string) {
		var err error
		st, err = d.reshardStatus()
		return err == nil && st.State == "done", fmt.Sprintf("%+v %v", st, errors.Unwrap(err))
	})
	d.t.Logf("%d of %d slots, %d keys, %.0f keys/s, %d hand-overs of at most %s", st.Moved, st.Slots, st.Keys, st.Rate, st.Stops, st.Longest)
	return st
}

// epochs tells whether a shard has failed over, which a machine with too much to do may lead to.
func (d *deployment) epochs() (e uint64) {
	d.t.Helper()
	s, err := d.status()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, id := range []string{"mymaster-s1", "mymaster-s2", "mymaster-s3"} {
		e += s.shard(id).Epoch
	}
	return e
}

// TestSlotsMoveUnderLoad: a shard is emptied and gets its part back, while clients of every kind write.
func TestSlotsMoveUnderLoad(t *testing.T) {
	d := upCluster(t)
	plan, err := d.run("reshard", "--plan", "--weight", "s3=0")
	if err != nil || !strings.Contains(plan, "5462 of 16384 slots move") || !strings.Contains(plan, "drained") {
		t.Fatalf("%v\n%s", err, plan)
	}
	before := d.epochs()
	l := startLedger(t, d, 300)
	wait(500 * time.Millisecond)
	if st := d.reshard(90*time.Second, "--weight", "s3=0", "--batch", "128"); st.Moved != 5462 {
		t.Errorf("%+v", st)
	}
	out, err := d.run("status")
	if err != nil || !strings.Contains(out, "slots none") {
		t.Errorf("%v\n%s", err, out)
	}
	d.reshard(90*time.Second, "--weight", "s3=1", "--batch", "128")
	l.check(d, d.epochs() != before)
	if _, err := d.run("reshard", "pause"); err == nil {
		t.Error("nothing is under way, and it can be paused")
	}
}

// TestAShardIsAddedUnderLoad: with `rebalance: auto` it is given its part by itself, and clients of every kind notice nothing.
func TestAShardIsAddedUnderLoad(t *testing.T) {
	d := upCluster(t)
	d.insert("    mode: cluster\n", "    cluster: {rebalance: auto}\n")
	d.waitHealthy(60 * time.Second)
	before := d.epochs()
	l := startLedger(t, d, 300)
	out, err := d.run("shard", "add", "--yes")
	if err != nil || !strings.Contains(out, "mymaster-s4 serves") {
		t.Fatalf("%v\n%s", err, out)
	}
	st := d.moved(90 * time.Second)
	if st.Slots != 4096 || st.Moved != 4096 {
		t.Errorf("%+v", st)
	}
	l.check(d, d.epochs() != before)
	s, err := d.status()
	if err != nil || len(s.Deployments[0].Shards) != 4 {
		t.Fatalf("%v: %+v", err, s)
	}
	if out, err := d.run("switchover", "--yes", "--shard", "mymaster-s4"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSlotsMoveThroughFailures: whoever moves them, the servers that they are moved between, and an agent are killed meanwhile. It finishes, and
// every key is where it belongs.
func TestSlotsMoveThroughFailures(t *testing.T) {
	d := upCluster(t)
	l := startLedger(t, d, 300)
	if _, err := d.run("reshard", "--yes", "--wait=false", "--weight", "s3=0", "--batch", "16"); err != nil {
		t.Fatal(err)
	}
	progress := func(least int) {
		d.until(60*time.Second, "slots move", func() (bool, string) {
			st, err := d.reshardStatus()
			return err == nil && (st.Moved >= least || st.State == "done"), fmt.Sprintf("%+v %v", st, err)
		})
	}
	at := 0
	for _, victim := range []string{"the source's primary", "the target's primary", "the controller"} {
		at += 500
		progress(at)
		s, err := d.status()
		if err != nil {
			t.Fatal(err)
		}
		switch victim {
		case "the source's primary":
			sh := s.shard("mymaster-s3")
			signal(t, sh.node(sh.Primary).PID, syscall.SIGKILL)
		case "the target's primary":
			sh := s.shard("mymaster-s1")
			signal(t, sh.node(sh.Primary).PID, syscall.SIGKILL)
		case "the controller":
			for _, sh := range s.Deployments[0].Shards {
				for _, n := range sh.Nodes {
					if n.ID == s.Controller {
						signal(t, n.AgentPID, syscall.SIGKILL)
						goto killed
					}
				}
			}
			t.Fatalf("no process of the controller %s", s.Controller)
		}
	killed:
		t.Logf("%s %s was killed", time.Now().Format("15:04:05.000"), victim)
	}
	if st := d.moved(120 * time.Second); st.Moved != 5462 {
		t.Errorf("%+v", st)
	}
	d.start()
	d.waitHealthy(60 * time.Second)
	l.check(d, true)
}

// followed subscribes a sharded channel of key's slot and has a client track key, and returns what sees that both outlive the slot's move: the
// channel is heard at its new shard without a word about it, and what was read is invalidated.
func followed(t *testing.T, d *deployment, key string) (heard func()) {
	t.Helper()
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(1)})
	t.Cleanup(func() { _ = c.Close() })
	sub := c.SSubscribe(ctx, key+"news")
	t.Cleanup(func() { _ = sub.Close() })
	if _, err := sub.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(ctx, key+"read", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", d.proxyAddr(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(100 * time.Second))
	in := bufio.NewReader(nc)
	until := func(want string) {
		t.Helper()
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatalf("%s did not come: %v", want, err)
			}
			if strings.TrimSpace(line) == want {
				return
			}
		}
	}
	_, _ = fmt.Fprintf(nc, "HELLO 3\r\nCLIENT TRACKING ON\r\nGET %sread\r\nECHO done\r\n", key)
	until("done")
	return func() {
		t.Helper()
		until("invalidate")
		until(key + "read")
		d.until(10*time.Second, "the channel is heard", func() (bool, string) {
			if err := c.SPublish(ctx, key+"news", "x").Err(); err != nil {
				return false, err.Error()
			}
			m, err := sub.ReceiveTimeout(ctx, 200*time.Millisecond)
			_, ok := m.(*redis.Message)
			if _, ends := m.(*redis.Subscription); ends {
				t.Errorf("the client was told about its subscription: %v", m)
			}
			return ok, fmt.Sprint(m, err)
		})
		if n := c.Do(ctx, "SPUBLISH", key+"news", "y"); n.Err() != nil {
			t.Error(n.Err())
		}
		if err := sub.SUnsubscribe(ctx, key+"news"); err != nil {
			t.Error(err)
		}
		d.until(10*time.Second, "the subscription ends where it is", func() (bool, string) {
			m, err := sub.ReceiveTimeout(ctx, time.Second)
			s, ok := m.(*redis.Subscription)
			return ok && s.Kind == "sunsubscribe" && s.Count == 0, fmt.Sprint(m, err)
		})
	}
}

// TestWhatIsOpenWhenItsSlotMoves: a transaction goes on at the new shard, one that watched is null, a blocked pop gets its element.
func TestWhatIsOpenWhenItsSlotMoves(t *testing.T) {
	d := upCluster(t)
	key := "{" + d.keyOn("mymaster-s3", "open") + "}"
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(0), MaxRetries: -1, ReadTimeout: 60 * time.Second})
	defer c.Close()
	say := func(on *redis.Conn, args ...any) *redis.Cmd {
		cmd := redis.NewCmd(ctx, args...)
		_ = on.Process(ctx, cmd)
		return cmd
	}
	plain, watcher, watches := c.Conn(), c.Conn(), c.Conn()
	defer plain.Close()
	defer watcher.Close()
	defer watches.Close()
	for _, on := range []*redis.Conn{watcher, watches} {
		if err := say(on, "WATCH", key+"w").Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, on := range []*redis.Conn{plain, watcher} {
		if err := say(on, "MULTI").Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := say(on, "INCR", key+"n").Text(); err != nil || got != "QUEUED" {
			t.Fatalf("%q %v", got, err)
		}
	}
	popped := make(chan []string, 1)
	go func() {
		v, err := c.BLPop(ctx, 50*time.Second, key+"l").Result()
		popped <- append(v, errText(err))
	}()
	d.until(10*time.Second, "the pop blocks", func() (bool, string) {
		list, err := c.ClientList(ctx).Result()
		return strings.Contains(list, "cmd=blpop"), fmt.Sprint(list, err)
	})
	heard := followed(t, d, key)
	d.reshard(90*time.Second, "--weight", "s3=0", "--batch", "100")
	heard()
	if got, err := say(plain, "INCR", key+"n").Text(); err != nil || got != "QUEUED" {
		t.Errorf("behind the move: %q %v", got, err)
	}
	if got, err := say(plain, "EXEC").Slice(); err != nil || fmt.Sprint(got) != "[1 2]" {
		t.Errorf("a transaction whose slot moved: %v %v", got, err)
	}
	if got, err := say(watcher, "EXEC").Result(); !errors.Is(err, redis.Nil) {
		t.Errorf("a transaction that watched, whose slot moved: %v %v", got, err)
	}
	if got, err := say(watches, "WATCH", key+"other").Text(); err != nil || got != "OK" {
		t.Errorf("WATCH behind the move: %q %v", got, err)
	}
	for _, words := range [][]any{{"MULTI"}, {"INCR", key + "n"}} {
		if err := say(watches, words...).Err(); err != nil {
			t.Errorf("%v: %v", words, err)
		}
	}
	if got, err := say(watches, "EXEC").Result(); !errors.Is(err, redis.Nil) {
		t.Errorf("it watched before the move: %v %v", got, err)
	}
	if got, err := c.Get(ctx, key+"n").Result(); err != nil || got != "2" {
		t.Errorf("the key is %q (%v)", got, err)
	}
	if err := c.RPush(ctx, key+"l", "x").Err(); err != nil {
		t.Fatal(err)
	}
	if got := <-popped; len(got) != 3 || got[1] != "x" {
		t.Errorf("the pop got %q", got)
	}
}
