// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// plainServer starts a server that nobody looks after.
func plainServer(t *testing.T, more ...string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	cmd := exec.Command("redis-server", append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--logfile", "log"}, more...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; wait(20 * time.Millisecond) {
		if _, err := ask(addr, "PING"); err == nil {
			return addr
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// furnish fills a server with small and large keys of every type, some of which end.
func furnish(t *testing.T, c redis.Cmdable, each int) (keys []string) {
	t.Helper()
	ctx := t.Context()
	p := c.Pipeline()
	send := func() {
		t.Helper()
		if _, err := p.Exec(ctx); err != nil {
			t.Fatal(err)
		}
	}
	use := func(format string, a ...any) string {
		keys = append(keys, fmt.Sprintf(format, a...))
		return keys[len(keys)-1]
	}
	for i := range each {
		p.Set(ctx, use("string:%d", i), strings.Repeat("x", i%300), time.Duration(i%3)*time.Hour)
		p.RPush(ctx, use("list:%d", i), i, i+1, "end")
		p.HSet(ctx, use("hash:%d", i), "a", i, "b", "text")
		p.SAdd(ctx, use("set:%d", i), i, i*2, "member")
		p.ZAdd(ctx, use("zset:%d", i), redis.Z{Score: float64(i) / 3, Member: "m"}, redis.Z{Score: 1, Member: "n"})
		p.XAdd(ctx, &redis.XAddArgs{Stream: use("stream:%d", i), ID: fmt.Sprintf("%d-1", i+1), Values: []any{"f", i}})
		if i%500 == 499 {
			send()
		}
	}
	p.Set(ctx, use("large:string"), strings.Repeat("0123456789abcdef", 1<<16), 2*time.Hour)
	for i := range 200 {
		var list, set, hash []any
		var zset []redis.Z
		for k := range 50 {
			n := i*50 + k
			v := fmt.Sprintf("%d-%s", n, strings.Repeat("v", 60))
			list, set, hash, zset = append(list, v), append(set, v), append(hash, fmt.Sprint(n), v), append(zset, redis.Z{Score: float64(n % 97), Member: v})
			p.XAdd(ctx, &redis.XAddArgs{Stream: "large:stream", ID: fmt.Sprintf("%d-0", n+1), Values: []any{"f", v}})
		}
		p.RPush(ctx, "large:list", list...)
		p.SAdd(ctx, "large:set", set...)
		p.HSet(ctx, "large:hash", hash...)
		p.ZAdd(ctx, "large:zset", zset...)
		if i%20 == 19 {
			send()
		}
	}
	p.XGroupCreate(ctx, "large:stream", "group", "10-0")
	p.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "group", Consumer: "me", Streams: []string{"large:stream", ">"}, Count: 20})
	send()
	for _, k := range []string{"list", "set", "hash", "zset", "stream"} {
		use("large:%s", k)
	}
	return keys
}

// content is what a key has, in words that do not depend on how a server keeps it.
func content(ctx context.Context, c redis.Cmdable, key string) string {
	kind := c.Type(ctx, key).Val()
	var what any
	switch kind {
	case "string":
		what = c.Get(ctx, key).Val()
	case "list":
		what = c.LRange(ctx, key, 0, -1).Val()
	case "hash":
		what = c.HGetAll(ctx, key).Val()
	case "set":
		members := c.SMembers(ctx, key).Val()
		slices.Sort(members)
		what = members
	case "zset":
		what = c.ZRangeWithScores(ctx, key, 0, -1).Val()
	case "stream":
		what = fmt.Sprint(c.XRange(ctx, key, "-", "+").Val(), c.XPending(ctx, key, "group").Val())
	}
	return fmt.Sprint(kind, " ", c.ExpireTime(ctx, key).Val(), " ", what)
}

// sameContent compares keys on two servers.
func sameContent(t *testing.T, want, got redis.Cmdable, keys []string) {
	t.Helper()
	differ := 0
	for _, k := range keys {
		if a, b := content(t.Context(), want, k), content(t.Context(), got, k); a != b {
			if differ++; differ < 5 {
				t.Errorf("%s is\n%.200s\nand should be\n%.200s", k, b, a)
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d keys differ", differ, len(keys))
	}
}

// migrant is a client that writes keys of its own of every type, and moves to the new address when the old one refuses it. What was
// acknowledged it tells to a server beside, too.
type migrant struct {
	id       int
	old, new redis.Cmdable
	beside   *redis.Client
	acked    int
	moved    time.Time
	gap      time.Duration // the longest time between two acknowledgements
	err      error
}

const migrantKeys = 12

func (m *migrant) keys() (all []string) {
	for i := range migrantKeys {
		for _, kind := range []string{"s", "l", "h", "t", "z", "x", "c"} {
			all = append(all, fmt.Sprintf("m%d:%s%d", m.id, kind, i))
		}
	}
	return append(all, fmt.Sprintf("m%d:ledger", m.id))
}

// command is the next one.
func (m *migrant) command(rng *rand.Rand, n int) []any {
	key := func(kind string) string { return fmt.Sprintf("m%d:%s%d", m.id, kind, rng.IntN(migrantKeys)) }
	v := fmt.Sprint(rng.IntN(100))
	switch rng.IntN(14) {
	case 0:
		return []any{"SET", key("s"), v}
	case 1:
		return []any{"APPEND", key("s"), v}
	case 2:
		return []any{"LPUSH", key("l"), v}
	case 3:
		return []any{"RPOP", key("l")}
	case 4:
		return []any{"HSET", key("h"), v, n}
	case 5:
		return []any{"HINCRBY", key("h"), "count", 1}
	case 6:
		return []any{"SADD", key("t"), v}
	case 7:
		return []any{"SREM", key("t"), v}
	case 8:
		return []any{"ZADD", key("z"), n, v}
	case 9:
		return []any{"XADD", key("x"), fmt.Sprintf("%d-0", n+1), "f", v}
	case 10:
		return []any{"INCR", key("c")}
	case 11:
		return []any{"DEL", key("c"), key("c")}[:2]
	case 12:
		return []any{"PEXPIREAT", key("h"), time.Now().Add(time.Hour).UnixMilli()}
	}
	return []any{"RPUSH", fmt.Sprintf("m%d:ledger", m.id), n}
}

// run writes until ctx ends. Every command is sent until it is acknowledged.
func (m *migrant) run(ctx context.Context) {
	rng := rand.New(rand.NewPCG(7, uint64(m.id)))
	at, last := m.old, time.Now()
	say := func(c redis.Cmdable, cmd []any) error {
		err := c.(interface {
			Do(context.Context, ...any) *redis.Cmd
		}).Do(context.Background(), cmd...).Err()
		if errors.Is(err, redis.Nil) {
			return nil
		}
		return err
	}
	for n := 0; ctx.Err() == nil; n++ {
		cmd := m.command(rng, n)
		for {
			err := say(at, cmd)
			if err == nil {
				break
			}
			if !strings.Contains(err.Error(), "NOREPLICAS") || at == m.new {
				m.err = fmt.Errorf("%v: %w", cmd, err)
				return
			}
			at, m.moved = m.new, time.Now()
		}
		m.gap, last = max(m.gap, time.Since(last)), time.Now()
		m.acked++
		if err := say(m.beside, cmd); err != nil {
			m.err = err
			return
		}
	}
}

// migration is one run of the verb under writers.
type migration struct {
	t        *testing.T
	from, to string // as the verb is told
	old, new redis.Cmdable
	ms       []*migrant
	beside   *redis.Client
	stop     func()
}

func newMigration(t *testing.T, from, to string, old, new redis.Cmdable) *migration {
	m := &migration{t: t, from: from, to: to, old: old, new: new, beside: redis.NewClient(&redis.Options{Addr: plainServer(t)})}
	t.Cleanup(func() { m.beside.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 4 {
		w := &migrant{id: i, old: old, new: new, beside: m.beside}
		m.ms = append(m.ms, w)
		wg.Go(func() { w.run(ctx) })
	}
	m.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(m.stop)
	return m
}

type migrated struct {
	Keys      int64    `json:"keys"`
	MS        int64    `json:"ms"`
	CutOver   int64    `json:"cut_over_us"`
	LastKeys  int64    `json:"last_keys"`
	Reopen    []string `json:"reopen"`
	Compared  int64    `json:"compared"`
	Unsettled int64    `json:"not_compared"`
}

// command is the verb as a process.
func (m *migration) command(more ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	cmd := exec.Command(binary(m.t), append([]string{"migrate", "--from", m.from, "--to", m.to, "--yes", "--json"}, more...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, &out, &errs
}

// migrate runs the verb to its end and has the writers go on at the target for a moment.
func (m *migration) migrate(more ...string) migrated {
	m.t.Helper()
	cmd, out, errs := m.command(append([]string{"--cut-over", "--verify", "all"}, more...)...)
	if err := cmd.Run(); err != nil {
		m.t.Fatalf("migrate: %v\n%s", err, errs)
	}
	var got migrated
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	m.t.Logf("%s", errs)
	wait(300 * time.Millisecond)
	return got
}

// judge ends the writers and compares what they were told with what is at the target, and what nobody wrote with the source.
func (m *migration) judge(got migrated, keys []string) {
	m.t.Helper()
	m.stop()
	acked, gap := 0, time.Duration(0)
	var theirs []string
	for _, w := range m.ms {
		if w.err != nil {
			m.t.Errorf("writer %d: %v", w.id, w.err)
		}
		if w.moved.IsZero() {
			m.t.Errorf("writer %d was never told to move", w.id)
		}
		acked, gap, theirs = acked+w.acked, max(gap, w.gap), append(theirs, w.keys()...)
	}
	sameContent(m.t, m.beside, m.new, theirs)
	sameContent(m.t, m.old, m.new, keys)
	if got.Unsettled > 0 || got.Compared < int64(len(keys)) {
		m.t.Errorf("%d keys were compared by the verb, %d could not be", got.Compared, got.Unsettled)
	}
	m.t.Logf("%d keys copied in %d ms; cut-over %.1f ms with %d keys; %d writes acknowledged, all at the target; longest gap of a writer %.1f ms",
		got.Keys, got.MS, float64(got.CutOver)/1000, got.LastKeys, acked, float64(gap.Microseconds())/1000)
}

// watchedBuffer is what a process says, while it says it.
type watchedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *watchedBuffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *watchedBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// noLeftovers: nothing of the migration's own is at the target.
func noLeftovers(t *testing.T, c redis.Cmdable) {
	t.Helper()
	for _, pattern := range []string{"__redoubt:migration*", "__redoubt:moving*"} {
		if keys, err := c.Keys(t.Context(), pattern).Result(); err != nil || len(keys) > 0 {
			t.Errorf("left at the target: %v, %v", keys, err)
		}
	}
}

func migrateKeys() int {
	if *rounds > 0 {
		return 5000 * *rounds
	}
	return 1000
}

func client(t *testing.T, addr string, db int) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr, DB: db, MaxRetries: -1, ReadTimeout: 20 * time.Second})
	t.Cleanup(func() { c.Close() })
	return c
}

// TestMigrateAServer: a server that never had a replica, with several databases and a library, into a deployment in mode single,
// interrupted in the middle and gone on with.
func TestMigrateAServer(t *testing.T) {
	t.Parallel()
	from := plainServer(t, "--repl-diskless-sync", "no")
	d := up(t)
	d.waitHealthy(30 * time.Second)
	old, third := client(t, from, 0), client(t, from, 3)
	keys, more := furnish(t, old, migrateKeys()), furnish(t, third, 50)
	if err := old.FunctionLoad(t.Context(), "#!lua name=lib\nredis.register_function('answer', function() return 42 end)").Err(); err != nil {
		t.Fatal(err)
	}
	m := newMigration(t, "redis://"+from, d.dir, old, client(t, d.proxyAddr(1), 0))

	first, _, errs := m.command("--keys-per-second", "2000")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	target := client(t, d.proxyAddr(0), 0)
	d.until(20*time.Second, "the copy is under way", func() (bool, string) {
		n, err := target.DBSize(t.Context()).Result()
		return n > 500, fmt.Sprint(n, err)
	})
	signal(t, first.Process.Pid, syscall.SIGKILL)
	_ = first.Wait()
	if out, err := exec.Command(d.bin, "migrate", "--from", "redis://"+plainServer(t), "--to", d.dir, "--yes").CombinedOutput(); err == nil || !strings.Contains(string(out), "in the middle of a migration from "+from) {
		t.Errorf("another migration into it: %v\n%s\nafter\n%s", err, out, errs)
	}
	gone := keys[:40]
	if err := old.Del(t.Context(), gone...).Err(); err != nil {
		t.Fatal(err)
	}

	got := m.migrate()
	m.judge(got, keys)
	sameContent(t, third, client(t, d.proxyAddr(2), 3), more)
	if v, err := target.FCall(t.Context(), "answer", nil).Int(); v != 42 {
		t.Errorf("the function answers %d, %v", v, err)
	}
	noLeftovers(t, target)
	if err := old.Set(t.Context(), "late", 1, 0).Err(); err == nil {
		t.Error("the source takes writes")
	}
	for _, line := range got.Reopen {
		f := strings.Fields(line)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", line, err, out)
		}
	}
	if err := old.Set(t.Context(), "late", 1, 0).Err(); err != nil {
		t.Errorf("the source was opened again, and says %v", err)
	}
	if out, err := exec.Command(d.bin, "migrate", "--from", from, "--to", d.dir, "--yes").CombinedOutput(); err == nil || !strings.Contains(string(out), "the target has keys") {
		t.Errorf("a target with data: %v\n%s", err, out)
	}
}

// TestMigrateAServerToACluster: keys of one server are spread over the shards of a cluster, one of which fails over meanwhile, and the
// cut-over comes by order.
func TestMigrateAServerToACluster(t *testing.T) {
	t.Parallel()
	from := plainServer(t)
	d := upCluster(t)
	old := client(t, from, 0)
	keys := furnish(t, old, migrateKeys())
	m := newMigration(t, from, d.proxyAddr(0), old, client(t, d.proxyAddr(1), 0))
	cmd, out, errs := m.command("--verify", "all")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	target := client(t, d.proxyAddr(2), 0)
	d.until(20*time.Second, "the copy is under way", func() (bool, string) {
		n, err := target.DBSize(t.Context()).Result()
		return n > 500, fmt.Sprint(n, err)
	})
	st, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	sh := st.shard("mymaster-s2")
	signal(t, sh.node(sh.Primary).PID, syscall.SIGKILL) // durability is async: what its replica had not got is given again
	if out, err := exec.Command(d.bin, "migrate", "cut-over", "--to", d.proxyAddr(2)).CombinedOutput(); err != nil {
		t.Errorf("order the cut-over: %v\n%s", err, out)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, errs)
	}
	var got migrated
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wait(300 * time.Millisecond)
	m.judge(got, keys)
	t.Logf("%s", errs)
	noLeftovers(t, target)
}

// TestMigrateACluster: a cluster that redis-cli made becomes a ring.
func TestMigrateACluster(t *testing.T) {
	t.Parallel()
	n := startNative(t, 5*time.Second)
	d := up(t, "--mode", "ring", "--shards", "3", "--replicas", "1")
	d.waitHealthy(60 * time.Second)
	old := redis.NewClusterClient(&redis.ClusterOptions{Addrs: n.addrs, MaxRedirects: 3, ReadTimeout: 20 * time.Second})
	t.Cleanup(func() { old.Close() })
	keys := furnish(t, old, migrateKeys())
	target := client(t, d.proxyAddr(0), 0)
	m := newMigration(t, strings.Join(n.addrs, ","), d.proxyAddr(0)+","+d.proxyAddr(1), old, target)

	first, _, errs := m.command("--verify", "none")
	said := &watchedBuffer{}
	first.Stderr = said
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	d.until(30*time.Second, "the target is in step", func() (bool, string) { return strings.Contains(said.String(), "is in step"), said.String() })
	signal(t, first.Process.Pid, syscall.SIGINT)
	if err := first.Wait(); first.ProcessState.ExitCode() != 130 {
		t.Errorf("interrupted: %v\n%s%s", err, said, errs)
	}
	for _, k := range keys[:40] {
		if err := old.Del(t.Context(), k).Err(); err != nil {
			t.Fatalf("the source is as it was, and says %v", err)
		}
	}
	m.judge(m.migrate(), keys)
	noLeftovers(t, target)
}

// TestMigrateFromSentinels: Sentinels say who is primary, and its replica is closed with it.
func TestMigrateFromSentinels(t *testing.T) {
	t.Parallel()
	from := plainServer(t)
	host, port, _ := net.SplitHostPort(from)
	replica := plainServer(t, "--replicaof", host+" "+port)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sentinel := l.Addr().String()
	l.Close()
	_, sentinelPort, _ := net.SplitHostPort(sentinel)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf("port %s\nbind 127.0.0.1\nsentinel monitor shop %s %s 1\n", sentinelPort, host, port)), 0o600); err != nil {
		t.Fatal(err)
	}
	watch := exec.Command("redis-server", conf, "--sentinel")
	watch.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watch.Process.Kill(); _ = watch.Wait() })
	d := up(t, "--replicas", "1")
	d.waitHealthy(30 * time.Second)
	d.until(20*time.Second, "the replica is in step", func() (bool, string) {
		v, err := ask(from, "INFO", "replication")
		text := fmt.Sprintf("%s %v", v, err)
		_, up := ask(sentinel, "PING")
		return strings.Contains(text, "state=online") && up == nil, text
	})
	old := client(t, from, 0)
	keys := furnish(t, old, 100)
	m := newMigration(t, "sentinel://"+sentinel+"/shop", d.dir, old, client(t, d.proxyAddr(0), 0))
	got := m.migrate()
	m.judge(got, keys)
	v, err := client(t, replica, 0).ConfigGet(t.Context(), "min-replicas-to-write").Result()
	if n, _ := strconv.Atoi(v["min-replicas-to-write"]); err != nil || n < 1000 || len(got.Reopen) != 2 {
		t.Errorf("the replica is not closed: %v, %v, %v", v, err, got.Reopen)
	}
}
