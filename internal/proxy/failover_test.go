// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/topo"
)

// load is a number of clients that count up a key of their own and check that nothing is lost, doubled or reordered.
type load struct {
	stop    chan struct{}
	wg      sync.WaitGroup
	done    atomic.Int64
	errs    atomic.Int64
	unknown atomic.Int64
	mu      sync.Mutex
	longest time.Duration
	first   string
	acked   map[string]int
}

func startLoad(s *shard, clients int) *load {
	l := &load{stop: make(chan struct{}), acked: map[string]int{}}
	for id := range clients {
		c := s.client()
		l.wg.Go(func() { l.one(c, "n"+strconv.Itoa(id)) })
	}
	return l
}

func (l *load) one(c *wire, key string) {
	last, open := 0, 0 // open: increments whose outcome is unknown
	for {
		select {
		case <-l.stop:
			l.mu.Lock()
			l.acked[key] = last
			l.mu.Unlock()
			return
		default:
		}
		begun := time.Now()
		v, err := c.try("INCR", key)
		took := time.Since(begun)
		l.mu.Lock()
		l.longest = max(l.longest, took)
		l.mu.Unlock()
		switch {
		case err != nil && strings.HasPrefix(err.Error(), "OUTCOMEUNKNOWN"):
			l.unknown.Add(1)
			open++
			continue
		case err != nil:
			l.fail(key + ": " + err.Error())
			return
		}
		n, _ := strconv.Atoi(v)
		if n < last+1 || n > last+1+open {
			l.fail(fmt.Sprintf("%s: %d after %d with %d unknown", key, n, last, open))
		}
		last, open = n, 0
		l.done.Add(1)
	}
}

func (l *load) fail(text string) {
	l.errs.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == "" {
		l.first = text
	}
}

func (l *load) end() { close(l.stop); l.wg.Wait() }

func (l *load) more(t testing.TB, n int64) {
	t.Helper()
	from := l.done.Load()
	waitFor(t, "more traffic", func() bool { return l.done.Load() >= from+n || l.errs.Load() > 0 })
}

func testSwitchovers(t *testing.T, durability topo.Durability) {
	s := newShard(t, 2, func(sp *spec, _ *Options) {
		if sp.Durability = durability; durability == topo.Quorum {
			sp.AckReplicas = 1
		}
	})
	l := startLoad(s, 8)
	blocked, subscriber, inTxn := s.client(), s.client(), s.client()
	blocked.send("BLPOP", "list", "0")
	subscriber.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a")
	inTxn.want("OK", "MULTI")
	inTxn.want("QUEUED", "SET", "txn", "yes")
	for i := range 6 {
		l.more(t, 200)
		s.switchover(s.nodes[i%3], s.nodes[(i+1)%3])
		l.more(t, 200)
	}
	l.end()
	t.Logf("%s: %d increments, longest %s", durability, l.done.Load(), l.longest)
	if l.errs.Load() > 0 || l.unknown.Load() > 0 {
		t.Fatalf("%d errors, %d unknown: %s", l.errs.Load(), l.unknown.Load(), l.first)
	}
	c := s.client()
	for key, n := range l.acked {
		c.want(strconv.Itoa(n), "GET", key)
	}
	c.want("1", "RPUSH", "list", "x")
	if got := blocked.recv(); got != "*2 $4 list $1 x" {
		t.Fatal(got)
	}
	waitFor(t, "subscription restored", func() bool { return c.do("PUBLISH", "a", "hi") == "1" })
	if got := subscriber.recv(); got != "*3 $7 message $1 a $2 hi" {
		t.Fatal(got)
	}
	inTxn.want("*1 +OK", "EXEC")
	c.want("yes", "GET", "txn")
}

func TestASwitchoverUnderLoadShowsNoErrors(t *testing.T) {
	t.Parallel()
	testSwitchovers(t, topo.Async)
}

func TestASwitchoverUnderLoadShowsNoErrorsInQuorumMode(t *testing.T) {
	t.Parallel()
	testSwitchovers(t, topo.Quorum)
}

func TestAKilledPrimaryCostsOnlyCommandsInFlight(t *testing.T) {
	t.Parallel()
	s := newShard(t, 2, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	l := startLoad(s, 8)
	reader := s.client()
	l.more(t, 500)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := reader.try("GET", "n0"); err != nil {
				l.fail("read: " + err.Error())
				return
			}
		}
	})
	s.nodes[0].signal(syscall.SIGKILL)
	<-s.nodes[0].gone
	parked := s.client()
	parked.send("SET", "parked", "yes")
	waitFor(t, "something parked", func() bool { return s.p.Stats().Parked > 0 })
	s.failover()
	l.more(t, 500)
	close(stop)
	wg.Wait()
	l.end()
	if got := parked.recv(); got != "OK" {
		t.Fatal(got)
	}
	t.Logf("%d increments, %d unknown, longest %s", l.done.Load(), l.unknown.Load(), l.longest)
	if l.errs.Load() > 0 || l.unknown.Load() > 8 {
		t.Fatalf("%d errors, %d unknown: %s", l.errs.Load(), l.unknown.Load(), l.first)
	}
}

func TestAHungPrimaryIsLeftBehindWhenTheNextOneServes(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	c, r, b := s.client(), s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	r.want("1", "GET", "a")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	waitFor(t, "replicated", func() bool { return s.nodes[1].do(t, "GET", "a") == "1" })
	s.nodes[0].signal(syscall.SIGSTOP)
	c.send("SET", "a", "2")
	waitFor(t, "in flight", func() bool { return s.p.Stats().InFlight >= 2 })
	r.send("GET", "a")
	waitFor(t, "in flight", func() bool { return s.p.Stats().InFlight >= 3 })
	s.write(func(a *topo.Assigned) { a.Epoch++; a.Phase = topo.PhaseFencing })
	s.nodes[1].do(t, "REPLICAOF", "NO", "ONE")
	s.serve(s.nodes[1])
	if got := c.recv(); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") {
		t.Fatal(got)
	}
	if got := r.recv(); got != "1" {
		t.Fatal(got)
	}
	c.want("OK", "SET", "a", "3")
	c.want("1", "RPUSH", "l", "x")
	if got := b.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
}

func TestAWatchedTransactionIsNullAfterAFailover(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	early, late, plain, sent := s.client(), s.client(), s.client(), s.client()
	early.want("OK", "WATCH", "a")
	late.want("OK", "WATCH", "a")
	late.want("OK", "MULTI")
	late.want("QUEUED", "SET", "late", "1")
	plain.want("OK", "MULTI")
	plain.want("QUEUED", "SET", "plain", "1")
	sent.want("OK", "MULTI")
	sent.want("QUEUED", "SET", "sent", "1")
	s.nodes[0].signal(syscall.SIGSTOP)
	sent.send("EXEC")
	waitFor(t, "EXEC in flight", func() bool { return s.p.Stats().InFlight > 0 })
	s.nodes[0].signal(syscall.SIGKILL)
	s.failover()
	early.want("OK", "MULTI")
	early.want("QUEUED", "SET", "early", "1")
	early.want("*-1", "EXEC")
	late.want("QUEUED", "SET", "late", "2")
	late.want("*-1", "EXEC")
	plain.want("QUEUED", "INCR", "plain")
	plain.want("*2 +OK :2", "EXEC")
	if got := sent.recv(); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") {
		t.Fatal(got)
	}
	early.want("$-1", "GET", "early")
	late.want("$-1", "GET", "late")
}

func TestAClientMayBeDisconnectedInsteadOfToldThatTheOutcomeIsUnknown(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(_ *spec, o *Options) { o.HangUp = true })
	c, other := s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	s.nodes[0].signal(syscall.SIGSTOP)
	c.send("SET", "a", "2")
	waitFor(t, "in flight", func() bool { return s.p.Stats().InFlight > 0 })
	s.nodes[0].signal(syscall.SIGKILL)
	s.failover()
	if b, err := c.r.ReadByte(); err == nil {
		t.Fatalf("got %q, want the end of the connection", b)
	}
	other.want("1", "GET", "a")
}

func TestParkingIsBoundedInNumberAndTime(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(sp *spec, o *Options) {
		sp.Timing.Park = topo.Duration(400 * time.Millisecond)
		o.Limits.ParkedCommands = 5
	})
	c := s.client()
	c.want("OK", "SET", "a", "1")
	s.phase(topo.PhaseFencing)
	waitFor(t, "no sending", func() bool { return !s.p.Stats().Sending })
	c.want("PONG", "PING")
	var waiting []*wire
	for range 5 {
		w := s.client()
		w.send("GET", "a")
		waiting = append(waiting, w)
	}
	waitFor(t, "five parked", func() bool { return s.p.Stats().Parked == 5 })
	begun := time.Now()
	if got := c.do("GET", "a"); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed: too many commands") || time.Since(begun) > 200*time.Millisecond {
		t.Fatal(got, time.Since(begun))
	}
	for _, w := range waiting {
		if got := w.recv(); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed: it was held for 400ms") {
			t.Fatal(got)
		}
	}
	waitFor(t, "nothing parked", func() bool { return s.p.Stats().Parked == 0 })
	s.phase(topo.PhaseServing)
	c.want("1", "GET", "a")
}

func TestNothingIsSentWhenTheStoreCannotBeRead(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	s.docs.setOutage(true)
	waitFor(t, "lease over", func() bool { return !s.p.maySend(s.p.order.Load()) })
	c.send("SET", "a", "2")
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
	if got := s.nodes[0].do(t, "GET", "a"); got != "1" {
		t.Fatal("a write passed without a lease:", got)
	}
	s.docs.setOutage(false)
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
}

func TestAnotherProcessAtThePrimarysAddressGetsNothing(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	s.write(func(a *topo.Assigned) { a.Epoch++; a.RunID = strings.Repeat("0", 40) })
	waitFor(t, "the next epoch", func() bool { return s.p.Stats().Epoch == 2 })
	c.send("SET", "a", "2")
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
	s.serve(s.nodes[0])
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
}

func TestTheSameProcessPromotedAgainGetsNothingBeforeThatIsRecorded(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	n := s.nodes[0]
	c := s.client()
	c.want("OK", "SET", "a", "1")
	n.do(t, "REPLICAOF", "127.0.0.1", "0")
	n.do(t, "REPLICAOF", "NO", "ONE")
	n.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	c.send("SET", "a", "2")
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked > 0 })
	if until(300*time.Millisecond, func() bool { return n.do(t, "GET", "a") != "1" }) {
		t.Fatal("a write reached a promotion that nobody had recorded")
	}
	s.serve(n)
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	c.want("2", "GET", "a")
}

func TestGoRedisWorksWithItsDefaults(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	for _, proto := range []int{2, 3} {
		ctx := context.Background()
		c := redis.NewClient(&redis.Options{Addr: s.p.Addr().String(), Protocol: proto, DB: 1})
		defer c.Close()
		if err := c.Set(ctx, "a", "1", time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		sub := c.Subscribe(ctx, "ch"+strconv.Itoa(proto))
		defer sub.Close()
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Publish(ctx, "ch"+strconv.Itoa(proto), "hi").Result(); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if m, err := sub.ReceiveMessage(ctx); err != nil || m.Payload != "hi" {
			t.Fatal(m, err)
		}
		res, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "a"); p.Get(ctx, "a"); return nil })
		if err != nil || len(res) != 2 || res[1].(*redis.StringCmd).Val() != "2" {
			t.Fatal(res, err)
		}
		err = c.Watch(ctx, func(tx *redis.Tx) error {
			_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "a", "5", 0); return nil })
			return err
		}, "a")
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.BLPop(ctx, time.Second, "nolist").Result(); err != redis.Nil {
			t.Fatal(v, err)
		}
		if _, err := c.Command(ctx).Result(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTrackingClientsAreToldAndForgetAfterASwitchover(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	c, d := s.client(), s.client()
	c.do("HELLO", "3")
	c.want("OK", "CLIENT", "TRACKING", "ON")
	c.want("_", "GET", "a")
	d.want("OK", "SET", "a", "1")
	if got := c.recv(); got != ">2 $10 invalidate *1 $1 a" {
		t.Fatal(got)
	}
	s.switchover(s.nodes[0], s.nodes[1])
	if got := c.recv(); got != ">2 $10 invalidate _" {
		t.Fatal(got)
	}
	c.want("1", "GET", "a")
	d.want("OK", "SET", "a", "2")
	if got := c.recv(); got != ">2 $10 invalidate *1 $1 a" {
		t.Fatal(got)
	}
}

func TestWaitSpeaksOfWritesOnSharedConnections(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	c.want("1", "WAIT", "1", "1000")
	s.nodes[1].signal(syscall.SIGSTOP)
	c.want("OK", "SET", "a", "2")
	c.want("0", "WAIT", "1", "50")
	s.nodes[1].signal(syscall.SIGCONT)
}

func TestMonitorShowsCommands(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, d := s.client(), s.client()
	c.want("OK", "MONITOR")
	d.want("OK", "SET", "watched", "1")
	waitFor(t, "the command shown", func() bool { return strings.Contains(c.recv(), "watched") })
}

func TestThePasswordIsTheDeployments(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Password = "secret" })
	s.nodes[0].do(t, "CONFIG", "SET", "requirepass", "secret")
	c := s.client()
	c.want("-NOAUTH Authentication required.", "GET", "a")
	if got := c.do("HELLO", "3"); !strings.HasPrefix(got, "-NOAUTH HELLO must be called") {
		t.Fatal(got)
	}
	c.want("-WRONGPASS invalid username-password pair or user is disabled.", "AUTH", "wrong")
	c.want("OK", "AUTH", "secret")
	c.want("OK", "SET", "a", "1")
	d := s.client()
	d.do("HELLO", "3", "AUTH", "default", "secret", "SETNAME", "x")
	d.want("1", "GET", "a")
}
