// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// A redigo connection never connects again: whatever happens to its socket is an error.

const idleClients = 200

// crowd are the clients of one member, each on a connection of its own.
type crowd struct {
	t       *testing.T
	addr    string
	name    string
	dbs     int // databases that the idle ones use
	idle    []redis.Conn
	ids     []string
	ports   []string
	writers []*steadyWriter
	blocked redis.Conn
	sub     redis.Conn
	txn     redis.Conn
	watch   redis.Conn
	heard   chan error
	popped  chan error
	last    atomic.Int64 // number of the latest message that the subscriber got
}

func dialPlain(t *testing.T, addr string) (redis.Conn, string) {
	t.Helper()
	raw, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewConn(raw, 20*time.Second, 20*time.Second)
	t.Cleanup(func() { c.Close() })
	return c, raw.LocalAddr().String()
}

func must(t *testing.T, c redis.Conn, args ...string) any {
	t.Helper()
	v, err := do(c, args...)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return v
}

func do(c redis.Conn, args ...string) (any, error) {
	rest := make([]any, len(args)-1)
	for i, a := range args[1:] {
		rest[i] = a
	}
	return c.Do(args[0], rest...)
}

// gather connects everybody, so many of them idle.
func gather(t *testing.T, addr, name string, idle int) *crowd {
	t.Helper()
	return gatherIn(t, addr, name, idle, 3)
}

// gatherIn is gather for a deployment with so many databases.
func gatherIn(t *testing.T, addr, name string, idle, dbs int) *crowd {
	t.Helper()
	c := &crowd{t: t, addr: addr, name: name, dbs: dbs, heard: make(chan error, 1), popped: make(chan error, 1)}
	for i := range idle {
		idle, port := dialPlain(t, addr)
		must(t, idle, "CLIENT", "SETNAME", fmt.Sprintf("idle-%s-%d", name, i))
		must(t, idle, "SELECT", strconv.Itoa(i%dbs))
		c.idle, c.ports = append(c.idle, idle), append(c.ports, port)
		c.ids = append(c.ids, fmt.Sprint(must(t, idle, "CLIENT", "ID")))
	}
	for i, kind := range []string{"plain", "plain", "pipeline", "transaction"} {
		w := &steadyWriter{kind: kind, key: fmt.Sprintf("up:%s:%d", name, i), stop: make(chan struct{}), done: make(chan struct{})}
		w.c, _ = dialPlain(t, addr)
		c.writers = append(c.writers, w)
		go w.run()
		t.Cleanup(w.finish)
	}
	c.blocked, _ = dialPlain(t, addr)
	go func() { c.popped <- c.pop() }()
	c.sub, _ = dialPlain(t, addr)
	if err := c.sub.Send("SUBSCRIBE", "news:"+name); err != nil {
		t.Fatal(err)
	}
	if err := c.sub.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.sub.Receive(); err != nil {
		t.Fatal(err)
	}
	go func() { c.heard <- c.listen() }()
	c.txn, _ = dialPlain(t, addr)
	must(t, c.txn, "MULTI")
	must(t, c.txn, "INCR", "txn:"+name)
	c.watch, _ = dialPlain(t, addr)
	must(t, c.watch, "SET", "watched:"+name, "1")
	must(t, c.watch, "WATCH", "watched:"+name)
	return c
}

// pop is blocked through the upgrade, and gets what is pushed after it.
func (c *crowd) pop() error {
	v, err := redis.Strings(redis.DoWithTimeout(c.blocked, 60*time.Second, "BLPOP", "box:"+c.name, "0"))
	if err != nil {
		return err
	}
	if len(v) != 2 || v[1] != "letter" {
		return fmt.Errorf("popped %v", v)
	}
	return nil
}

// listen expects the messages 1, 2, 3, … without a gap, until one says end.
func (c *crowd) listen() error {
	for next := int64(1); ; next++ {
		v, err := redis.Values(redis.ReceiveWithTimeout(c.sub, 60*time.Second))
		if err != nil {
			return err
		}
		text, err := redis.String(v[2], nil)
		if err != nil || text == "end" {
			return err
		}
		if text != strconv.FormatInt(next, 10) {
			return fmt.Errorf("message %s came in place of %d", text, next)
		}
		c.last.Store(next)
	}
}

// steadyWriter writes on one connection, until its first error.
type steadyWriter struct {
	kind, key string
	c         redis.Conn
	stop      chan struct{}
	once      sync.Once
	done      chan struct{}

	mu      sync.Mutex
	written int // 1, 2, 3, … in order
	slowest time.Duration
	err     error
}

func (w *steadyWriter) finish() {
	w.once.Do(func() { close(w.stop) })
	<-w.done
}

func (w *steadyWriter) run() {
	defer close(w.done)
	for n := 0; ; {
		select {
		case <-w.stop:
			return
		default:
		}
		began := time.Now()
		count, err := w.write(n)
		n += count
		w.mu.Lock()
		w.written, w.err = n, err
		w.slowest = max(w.slowest, time.Since(began))
		w.mu.Unlock()
		if err != nil {
			return
		}
		wait(time.Millisecond)
	}
}

func (w *steadyWriter) write(n int) (int, error) {
	switch w.kind {
	case "pipeline":
		for i := 1; i <= 16; i++ {
			if err := w.c.Send("RPUSH", w.key, n+i); err != nil {
				return 0, err
			}
		}
		if err := w.c.Flush(); err != nil {
			return 0, err
		}
		for i := range 16 {
			if _, err := w.c.Receive(); err != nil {
				return i, err
			}
		}
		return 16, nil
	case "transaction":
		if _, err := w.c.Do("MULTI"); err != nil {
			return 0, err
		}
		if _, err := w.c.Do("RPUSH", w.key, n+1); err != nil {
			return 0, err
		}
		if v, err := redis.Values(w.c.Do("EXEC")); err != nil || len(v) != 1 {
			return 0, fmt.Errorf("EXEC: %v %w", v, err)
		}
		return 1, nil
	}
	_, err := w.c.Do("RPUSH", w.key, n+1)
	return 1, err
}

// state returns what the writer has done, and the slowest write since the last call.
func (w *steadyWriter) state() (written int, slowest time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slowest, w.slowest = w.slowest, 0
	return w.written, slowest, w.err
}

// check looks at everybody after the upgrade.
func (c *crowd) check(pub redis.Conn) {
	t := c.t
	t.Helper()
	for i, idle := range c.idle {
		if id := fmt.Sprint(must(t, idle, "CLIENT", "ID")); id != c.ids[i] {
			t.Fatalf("idle client %d of %s is client %s now, was %s", i, c.name, id, c.ids[i])
		}
		info, err := redis.String(idle.Do("CLIENT", "INFO"))
		if err != nil || !strings.Contains(info, fmt.Sprintf(" name=idle-%s-%d ", c.name, i)) || !strings.Contains(info, " addr="+c.ports[i]+" ") || !strings.Contains(info, fmt.Sprintf(" db=%d ", i%c.dbs)) {
			t.Fatalf("idle client %d of %s: %q %v, from %s", i, c.name, info, err, c.ports[i])
		}
	}
	if v, err := redis.Ints(c.txn.Do("EXEC")); err != nil || !slices.Equal(v, []int{1}) {
		t.Errorf("EXEC of %s: %v %v", c.name, v, err)
	}
	must(t, c.watch, "MULTI")
	must(t, c.watch, "INCR", "watched:"+c.name)
	if v, err := redis.Ints(c.watch.Do("EXEC")); err != nil || !slices.Equal(v, []int{2}) {
		t.Errorf("EXEC behind WATCH of %s, nothing of which was changed: %v %v", c.name, v, err)
	}
	must(t, pub, "RPUSH", "box:"+c.name, "letter")
	must(t, pub, "PUBLISH", "news:"+c.name, "end")
	for what, ch := range map[string]chan error{"BLPOP": c.popped, "SUBSCRIBE": c.heard} {
		select {
		case err := <-ch:
			if err != nil {
				t.Errorf("%s of %s: %v", what, c.name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s of %s got nothing", what, c.name)
		}
	}
}

// TestUpgrade replaces the process of each member in turn, under its clients.
func TestUpgrade(t *testing.T) {
	d := up(t)
	epoch := d.waitHealthy(20 * time.Second).epoch()
	members := []string{"n1", "n2", "n3"}
	for round := range roundsOr(1) {
		var crowds []*crowd
		for i, m := range members {
			crowds = append(crowds, gather(t, d.proxyAddr(i), fmt.Sprintf("%s-%d", m, round), idleClients))
		}
		pub, _ := dialPlain(t, "127.0.0.1:"+strconv.Itoa(d.base+100+primaryIndex(t, d)))
		stopNews := publish(t, pub, crowds)
		for i, m := range members {
			upgradeOne(t, d, m, i, crowds)
		}
		stopNews()
		settle(t, pub, crowds)
	}
	if now := d.waitHealthy(20 * time.Second); now.epoch() != epoch {
		t.Errorf("epoch %d, was %d: an upgrade must not fail over", now.epoch(), epoch)
	}
}

// settle ends the crowds, and checks that each client got all that it was owed.
func settle(t *testing.T, pub redis.Conn, crowds []*crowd) {
	for _, c := range crowds {
		c.check(pub)
		for _, w := range c.writers {
			w.finish()
			n, _, err := w.state()
			if err != nil {
				t.Errorf("%s writer %s: %v", w.kind, w.key, err)
			}
			verify(t, pub, w.key, n)
		}
	}
}

// upgradeOne replaces one member's process and reports how long its clients and the others' waited at most.
func upgradeOne(t *testing.T, d *deployment, m string, i int, crowds []*crowd) {
	t.Helper()
	usual := time.Duration(0)
	before := map[*steadyWriter]int{}
	for range 2 {
		usual = 0
		for _, c := range crowds {
			for _, w := range c.writers {
				var slow time.Duration
				before[w], slow, _ = w.state()
				usual = max(usual, slow)
			}
		}
		wait(400 * time.Millisecond) // of ordinary life
	}
	old := memberPID(t, d, m)
	began := time.Now()
	if i == len(crowds)-1 { // the other way to ask for it
		signal(t, old, syscall.SIGUSR2)
		d.until(15*time.Second, m+" is a new process", func() (bool, string) {
			now := memberPID(t, d, m)
			return now != old, fmt.Sprint(now)
		})
	} else if out, err := d.run("upgrade", "--member", m); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	took := time.Since(began)
	if now := memberPID(t, d, m); now == old {
		t.Fatalf("%s is process %d still", m, now)
	}
	d.waitHealthy(20 * time.Second)
	worst := [2]time.Duration{}
	for j, c := range crowds {
		for _, w := range c.writers {
			n, slow, err := w.state()
			if err != nil || n <= before[w] {
				t.Errorf("%s writer %s after the upgrade of %s: %d writes, %d before, %v", w.kind, w.key, m, n, before[w], err)
			}
			k := min(1, max(j-i, i-j))
			worst[k] = max(worst[k], slow)
		}
	}
	t.Logf("%s: replaced in %s; slowest write before %s, then of its own clients %s, of the others' %s", m, took.Round(time.Millisecond), usual.Round(100*time.Microsecond), worst[0].Round(100*time.Microsecond), worst[1].Round(100*time.Microsecond))
}

func primaryIndex(t *testing.T, d *deployment) int {
	t.Helper()
	s := d.waitHealthy(20 * time.Second)
	n, err := strconv.Atoi(strings.TrimPrefix(s.primary(), "n"))
	if err != nil {
		t.Fatal(err)
	}
	return n - 1
}

// publish sends numbered messages to every crowd's channel, directly at the primary, until the returned function is called.
func publish(t *testing.T, c redis.Conn, crowds []*crowd) func() {
	stop, done := make(chan struct{}), make(chan error, 1)
	sent := int64(0)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			case <-time.After(time.Millisecond):
			}
			sent++
			for _, crowd := range crowds {
				if _, err := c.Do("PUBLISH", "news:"+crowd.name, sent); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	end := sync.OnceFunc(func() {
		close(stop)
		if err := <-done; err != nil {
			t.Errorf("publish: %v", err)
		}
		t.Logf("%d messages to each subscriber", sent)
	})
	t.Cleanup(end)
	return end
}

// verify reads a writer's list: every number once, in order.
func verify(t *testing.T, c redis.Conn, key string, n int) {
	t.Helper()
	items, err := redis.Ints(c.Do("LRANGE", key, 0, -1))
	if err != nil {
		t.Fatal(err)
	}
	if len(items) != n {
		t.Errorf("%s has %d elements, %d were acknowledged", key, len(items), n)
	}
	for i, v := range items {
		if v != i+1 {
			t.Errorf("%s holds %d at place %d", key, v, i)
			return
		}
	}
}

// TestUpgradeIsRefused: a configuration that cannot be used, and a program that is no Redoubt, change nothing.
func TestUpgradeIsRefused(t *testing.T) {
	d := up(t)
	epoch := d.waitHealthy(20 * time.Second).epoch()
	c, _ := dialPlain(t, d.proxyAddr(0))
	id := fmt.Sprint(must(t, c, "CLIENT", "ID"))
	old := memberPID(t, d, "n1")
	file := filepath.Join(d.dir, "member-1", "redoubt.yaml")
	sound, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(sound, "\nnonsense: true\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := d.run("upgrade", "--member", "n1")
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("upgrade to a broken configuration: %v\n%s", err, out)
	}
	moved := strings.Replace(string(sound), "\n  dir: data\n", "\n  dir: elsewhere\n", 1)
	if moved == string(sound) {
		t.Fatalf("no directory in %s", sound)
	}
	if err := os.WriteFile(file, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err = d.run("upgrade", "--member", "n1"); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("upgrade to another directory: %v\n%s", err, out)
	}
	if err := os.WriteFile(file, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, c, "SET", "after", "refusal")
	if now := fmt.Sprint(must(t, c, "CLIENT", "ID")); now != id || memberPID(t, d, "n1") != old {
		t.Errorf("client %s, process %d; were %s, %d", now, memberPID(t, d, "n1"), id, old)
	}
	if now := d.waitHealthy(20 * time.Second).epoch(); now != epoch {
		t.Errorf("epoch %d, was %d", now, epoch)
	}
}

// TestUpgradeIsTakenBack: the new process fails after the old one has let go of the store. The old one goes on.
func TestUpgradeIsTakenBack(t *testing.T) {
	d := up(t)
	d.waitHealthy(20 * time.Second)
	i := primaryIndex(t, d)
	m := fmt.Sprintf("n%d", i+1)
	c := gather(t, d.proxyAddr(i), m, idleClients)
	old := memberPID(t, d, m)
	// The running process has read it long ago; the next one refuses to open the store.
	identity := filepath.Join(d.dir, "member-"+strings.TrimPrefix(m, "n"), "data", "store", "identity.json")
	sound, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(identity, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	signal(t, old, syscall.SIGUSR2)
	log := filepath.Join(d.dir, "member-"+strings.TrimPrefix(m, "n"), "redoubt.log")
	saw := func(text string) func() (bool, string) {
		return func() (bool, string) {
			b, err := os.ReadFile(log)
			return err == nil && strings.Contains(string(b), text), fmt.Sprint(err)
		}
	}
	for ok, end := false, time.Now().Add(10*time.Second); !ok; ok, _ = saw("takes everything back")() {
		if time.Now().After(end) {
			t.Fatal("nothing was taken back")
		}
		wait(2 * time.Millisecond)
	}
	if err := os.WriteFile(identity, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	d.until(10*time.Second, "the old process is the member", saw("this process is the member again"))
	now := d.waitHealthy(20 * time.Second)
	if memberPID(t, d, m) != old || now.node(m).AgentPID != old {
		t.Errorf("process %d, agent %d; was %d", memberPID(t, d, m), now.node(m).AgentPID, old)
	}
	out, err := d.run("upgrade", "--member", m) // and once more, when nothing is wrong
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pub, _ := dialPlain(t, "127.0.0.1:"+strconv.Itoa(d.base+100+primaryIndex(t, d)))
	c.check(pub)
	for _, w := range c.writers {
		w.finish()
		n, _, err := w.state()
		if err != nil {
			t.Errorf("%s writer %s: %v", w.kind, w.key, err)
		}
		verify(t, pub, w.key, n)
	}
}
