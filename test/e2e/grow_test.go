// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// growth is a deployment under the load of several clients while what it promises changes.
type growth struct {
	t  *testing.T
	d  *deployment
	ws []*writer
}

// step runs a verb of the command line and says how long it took and what the longest pause of a client was meanwhile.
func (g *growth) step(args ...string) string {
	g.t.Helper()
	begun := time.Now()
	out, err := g.d.run(args...)
	for try := 1; err != nil && strings.Contains(out+errText(err), "start its member first") && try < 20; try++ { // its first report is on its way
		wait(200 * time.Millisecond)
		begun = time.Now()
		out, err = g.d.run(args...)
	}
	if err != nil {
		g.t.Fatalf("%v\n%s", err, out)
	}
	ended := time.Now()
	wait(300 * time.Millisecond)
	worst, who := time.Duration(0), ""
	for _, w := range g.ws {
		last := time.Time{}
		for _, a := range w.all() {
			if !a.ok {
				continue
			}
			if gap := a.end.Sub(last); !last.IsZero() && a.end.After(begun) && last.Before(ended) && gap > worst {
				worst, who = gap, w.name
			}
			last = a.end
		}
	}
	g.t.Logf("%-28s %4.0f ms; longest time without a write %.1f ms (%s)", strings.Join(args, " "), ms(ended.Sub(begun)), ms(worst), who)
	return out
}

// calm ends the writers, and requires that no client saw an error and that nothing is lost.
func (g *growth) calm(addr string) {
	g.t.Helper()
	v := g.end(addr)
	if v.errors > 0 {
		g.t.Errorf("%d errors: %v", v.errors, v.messages)
	}
}

func (g *growth) end(addr string) verdict {
	g.t.Helper()
	for _, w := range g.ws {
		w.finish()
	}
	v := judge(g.t, addr, g.ws)
	g.t.Logf("%d writes acknowledged, %d lost, %d duplicated, %d errors", v.acked, v.lost, v.duplicated, v.errors)
	requireNothingLost(g.t, v)
	g.ws = nil
	return v
}

// load starts writers through the proxies of the first two members.
func (g *growth) load(run string) {
	g.t.Helper()
	for i := range 2 {
		addr, key := g.d.proxyAddr(i), fmt.Sprintf("w:%s:%d:", run, i)
		host, port, _ := net.SplitHostPort(addr)
		for j := range 3 {
			g.ws = append(g.ws, goRedisWriter(fmt.Sprintf("go-redis %d of proxy %d", j, i), key+fmt.Sprint(j), redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})))
		}
		g.ws = append(g.ws, cliWriter(g.t, key+"cli", host, port))
	}
	ws := g.ws
	g.t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	for _, w := range ws {
		waitAcked(g.t, w, 20)
	}
}

// TestDurabilityChangesUnderLoad strengthens and weakens what an acknowledgement means while clients write, wait for jobs, are in
// the middle of a transaction and listen; then the primary is killed right after quorum is promised.
func TestDurabilityChangesUnderLoad(t *testing.T) {
	d := up(t, "--durability", "async", "--persistence", "none")
	d.waitHealthy(30 * time.Second)
	g := &growth{t: t, d: d}
	g.load("grow")
	b := bystandersOf(t, d.proxyAddr(1))
	for range roundsOr(1) {
		if out := g.step("set", "durability=quorum"); !strings.Contains(out, "quorum, 1 of 2 replicas") {
			t.Errorf("set durability=quorum said %q", out)
		}
		if out := g.step("set", "ack-replicas=2"); !strings.Contains(out, "2 of 2 replicas") {
			t.Errorf("set ack-replicas=2 said %q", out)
		}
		g.step("set", "ack-replicas=1")
		if out := g.step("set", "durability=async"); !strings.Contains(out, "durability: async") {
			t.Errorf("set durability=async said %q", out)
		}
	}
	b.judge()
	g.calm(d.proxyAddr(0))

	for i := range roundsOr(1) {
		s := d.waitHealthy(30 * time.Second)
		g.load(fmt.Sprint("kill", i))
		g.step("set", "durability=quorum")
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		d.until(10*time.Second, "another primary serves", func() (bool, string) {
			now, err := d.status()
			return err == nil && now.phase() == "serving" && now.epoch() > s.epoch(), errText(err)
		})
		wait(300 * time.Millisecond)
		g.end(d.proxyAddr(0))
		d.waitHealthy(30 * time.Second)
		if _, err := d.run("set", "durability=async"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.run("set", "ack-replicas=2"); err == nil || !strings.Contains(err.Error(), "durability") {
		t.Errorf("ack-replicas of an asynchronous deployment: %v", err)
	}
	if _, err := d.run("set", "durability=quorum", "ack-replicas=3"); err == nil || !strings.Contains(err.Error(), "needs 1 to 2") {
		t.Errorf("more acknowledgements than replicas: %v", err)
	}
}

// bystanders are clients that do not just write: a change must not be noticed by them either.
type bystanders struct {
	t      *testing.T
	c      *redis.Client
	popped chan error
	txn    *redis.Conn
	sub    *redis.PubSub
	heard  <-chan *redis.Message
}

func bystandersOf(t *testing.T, addr string) *bystanders {
	t.Helper()
	b := &bystanders{t: t, c: redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ReadTimeout: time.Minute}), popped: make(chan error, 1)}
	t.Cleanup(func() { _ = b.c.Close() })
	go func() {
		v, err := b.c.BLPop(t.Context(), 50*time.Second, "jobs").Result()
		if err == nil && (len(v) != 2 || v[1] != "job") {
			err = fmt.Errorf("popped %v", v)
		}
		b.popped <- err
	}()
	b.txn = b.c.Conn()
	t.Cleanup(func() { _ = b.txn.Close() })
	for _, cmd := range [][]any{{"MULTI"}, {"SET", "in:txn", "1"}} {
		if err := b.txn.Do(t.Context(), cmd...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	b.sub = b.c.Subscribe(t.Context(), "news")
	t.Cleanup(func() { _ = b.sub.Close() })
	if _, err := b.sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.heard = b.sub.Channel()
	return b
}

// judge requires that all of them got what they waited for.
func (b *bystanders) judge() {
	b.t.Helper()
	if err := b.txn.Do(b.t.Context(), "EXEC").Err(); err != nil {
		b.t.Errorf("the transaction that was open: %v", err)
	}
	if v, err := b.c.Get(b.t.Context(), "in:txn").Result(); err != nil || v != "1" {
		b.t.Errorf("what the transaction wrote: %q, %v", v, err)
	}
	if err := b.c.RPush(b.t.Context(), "jobs", "job").Err(); err != nil {
		b.t.Error(err)
	}
	if err := b.c.Publish(b.t.Context(), "news", "hello").Err(); err != nil {
		b.t.Error(err)
	}
	select {
	case err := <-b.popped:
		if err != nil {
			b.t.Errorf("the blocked pop: %v", err)
		}
	case <-time.After(5 * time.Second):
		b.t.Error("the blocked pop got nothing")
	}
	select {
	case m := <-b.heard:
		if m.Payload != "hello" {
			b.t.Errorf("the subscriber heard %q", m.Payload)
		}
	case <-time.After(5 * time.Second):
		b.t.Error("the subscriber heard nothing")
	}
}

// TestNodesJoinAndLeaveUnderLoad: a fourth node joins, more replicas acknowledge, the primary dies, a node leaves, the
// primary dies again.
func TestNodesJoinAndLeaveUnderLoad(t *testing.T) {
	c := managedCrew(t, 3)
	g := &growth{t: t, d: c.d}
	fill(t, c.d.proxyAddr(0), 20_000)
	c.nodes = 4
	g.load("join")
	c.start("n4", c.at(40, 1))
	c.awaitMembers("n1 n2 n3 n4")
	c.d.until(5*time.Second, "its agent reports", func() (bool, string) { return strings.Contains(c.log("n4"), "member is up"), "" })
	if out := g.step("node", "add", "n4", "--yes"); !strings.Contains(out, "4 nodes") {
		t.Errorf("node add said %q", out)
	}
	s := c.d.waitHealthy(20 * time.Second)
	if len(s.nodes()) != 4 {
		t.Fatalf("the roster is %v", s.nodes())
	}
	g.step("set", "ack-replicas=2")
	g.calm(c.d.proxyAddr(0))

	g.load("grown")
	g.killPrimary()
	g.end(c.d.proxyAddr(0))

	s = c.d.waitHealthy(20 * time.Second)
	leaver := s.replica()
	g.load("leave")
	if _, err := c.d.run("node", "remove", s.primary(), "--yes"); err == nil || !strings.Contains(err.Error(), "switchover first") {
		t.Errorf("the primary was removed: %v", err)
	}
	g.step("set", "ack-replicas=1")
	if out := g.step("node", "remove", leaver, "--yes"); !strings.Contains(out, "3 nodes") {
		t.Errorf("node remove said %q", out)
	}
	g.calm(c.d.proxyAddr(0))
	g.load("left")
	g.killPrimary()
	g.end(c.d.proxyAddr(0))
	if s = c.d.waitHealthy(20 * time.Second); s.node(leaver).ID != "" || len(s.nodes()) != 3 {
		t.Errorf("the roster after the removal: %v", s.nodes())
	}
	c.kill(leaver)
	c.endManaged(leaver)
	if out, err := c.d.run("member", "remove", leaver, "--yes"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func (s status) replica() string {
	for _, n := range slices.Backward(s.nodes()) {
		if n.ID != s.primary() {
			return n.ID
		}
	}
	return ""
}

// killPrimary kills the primary's server and waits for the next one.
func (g *growth) killPrimary() {
	g.t.Helper()
	s := g.d.waitHealthy(20 * time.Second)
	signal(g.t, s.node(s.primary()).PID, syscall.SIGKILL)
	g.d.until(10*time.Second, "another primary serves", func() (bool, string) {
		now, err := g.d.status()
		return err == nil && now.phase() == "serving" && now.epoch() > s.epoch(), errText(err)
	})
	wait(500 * time.Millisecond)
}

// fill writes keys, so that there is something to copy.
func fill(t *testing.T, addr string, n int) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	p := c.Pipeline()
	for i := range n {
		p.Set(t.Context(), fmt.Sprint("fill:", i), strings.Repeat("x", 200), 0)
		if i%1000 == 999 || i == n-1 {
			if _, err := p.Exec(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOfTwoNodesThePrimaryGoesOnAlone: the set of two shrinks only when the document says so, which status shows; what is
// acknowledged then is not lost by an election, and the set grows again by itself. min-copies: 2 forbids it, and the error
// names the node that is missing.
func TestOfTwoNodesThePrimaryGoesOnAlone(t *testing.T) { goesOnAlone(t, newCrew(t)) }

// goesOnAlone is the test of one kind of deployment.
func goesOnAlone(t *testing.T, c *crew) {
	c.nodes, c.extra = 2, "    durability: quorum\n    timing: {park: 1s}\n"
	for _, id := range []string{"n1", "n2", "n3"} {
		c.start(id, "")
	}
	s := c.d.waitHealthy(20 * time.Second)
	r := c.d.client(2)
	other := s.replica()
	signal(t, s.node(other).AgentPID, syscall.SIGSTOP)
	signal(t, s.node(other).PID, syscall.SIGSTOP)
	begun := time.Now()
	if err := r.Set(t.Context(), "alone", "1", 0).Err(); err != nil {
		c.d.until(10*time.Second, "the primary goes on alone", func() (bool, string) {
			err := r.Set(t.Context(), "alone", "1", 0).Err()
			return err == nil, errText(err)
		})
	}
	t.Logf("a write took %.0f ms after the replica had stopped", ms(time.Since(begun)))
	c.d.until(5*time.Second, "status says that there is one copy", func() (bool, string) {
		out, err := c.d.run("status")
		return err == nil && strings.Contains(out, "ONE COPY"), out
	})
	signal(t, s.node(other).PID, syscall.SIGCONT)
	signal(t, s.node(other).AgentPID, syscall.SIGCONT)
	c.d.until(20*time.Second, "there is more than one copy again", func() (bool, string) {
		out, err := c.d.run("status")
		return err == nil && !strings.Contains(out, "ONE COPY"), out
	})

	if out, err := c.d.run("set", "min-copies=2"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s = c.d.waitHealthy(20 * time.Second)
	other = s.replica()
	signal(t, s.node(other).AgentPID, syscall.SIGSTOP)
	signal(t, s.node(other).PID, syscall.SIGSTOP)
	wait(2 * time.Second) // silence and the lease are over
	begun = time.Now()
	err := r.Set(t.Context(), "alone", "2", 0).Err()
	t.Logf("with min-copies 2, after %.0f ms: %v", ms(time.Since(begun)), err)
	if err == nil || !strings.Contains(err.Error(), other) {
		t.Errorf("with min-copies 2: %v; want an error that names %s", err, other)
	}
	signal(t, s.node(other).PID, syscall.SIGCONT)
	signal(t, s.node(other).AgentPID, syscall.SIGCONT)
	c.d.until(20*time.Second, "writes go on", func() (bool, string) {
		err := r.Set(t.Context(), "alone", "3", 0).Err()
		return err == nil, errText(err)
	})
}
