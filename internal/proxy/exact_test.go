// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// exactShard is a shard with quorum, one acknowledging replica and exact retry, its first node behind a cable.
func exactShard(t *testing.T, replicas int) (*shard, *cable) {
	t.Helper()
	var c *cable
	s := newShard(t, replicas, func(sp *spec, o *Options) {
		sp.Durability, sp.AckReplicas, o.Exact = topo.Quorum, 1, true
		sp.Timing.Park = topo.Duration(5 * time.Second)
		c = newCable(t, sp.Nodes[0].Addr)
		sp.Nodes[0].Addr = c.addr
	})
	return s, c
}

// batch sends lines of words at once, so that they travel together.
func (w *wire) batch(lines ...string) {
	w.t.Helper()
	var b []byte
	for _, line := range lines {
		b = resp.AppendCommand(b, strings.Fields(line)...)
	}
	if _, err := w.c.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// marker is the name of the only marker on a node, and whether there is one.
func (n *node) marker(t *testing.T) (string, bool) {
	t.Helper()
	v := n.do(t, "EVAL", "return redis.call('keys','"+markerPrefix+"*')[1] or ''", "0")
	return v, v != ""
}

const appliedText = "-APPLIED the command ran exactly once and is not lost; its reply, which may have been an error, was lost with the connection to the primary"

func (s *shard) counts(t *testing.T, replayed, applied, unknown uint64) {
	t.Helper()
	st := s.p.Stats()
	if st.Replayed != replayed || st.Applied != applied || st.Unknown != unknown {
		t.Fatalf("%d replayed, %d applied, %d unknown; want %d, %d, %d", st.Replayed, st.Applied, st.Unknown, replayed, applied, unknown)
	}
}

func TestExactRetryChangesNoReply(t *testing.T) {
	t.Parallel()
	s, _ := exactShard(t, 1)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	c.want("2", "INCR", "a")
	c.want("-ERR syntax error", "SET", "a", "1", "NONSENSE")
	c.want("-ERR wrong number of arguments for 'incr' command", "INCR", "a", "b")
	c.want("-WRONGTYPE Operation against a key holding the wrong kind of value", "LPUSH", "a", "x")
	c.want("$-1", "SET", "a", "1", "NX")
	c.want("2", "RPUSH", "l", "x", "y")
	c.batch("INCR a", "GET a", "LRANGE l 0 -1", "EVAL return{1,2} 0", "INCR a", "HSET h f v", "HGETALL h", "SCAN 0 MATCH nothing COUNT 1000", "PING", "DEL h", "INCR a")
	for i, want := range []string{"3", "3", "*2 $1 x $1 y", "*2 :1 :2", "4", "1", "*2 $1 f $1 v", "", "PONG", "1", "5"} {
		if got := c.recv(); got != want && want != "" {
			t.Fatalf("reply %d: %q, want %q", i, got, want)
		}
	}
	d := s.client()
	d.do("HELLO", "3")
	d.batch("HSET h f v", "HGETALL h", "INCRBYFLOAT f 0.5", "CLIENT REPLY SKIP", "INCR quiet", "INCR quiet", "INCR a")
	for _, want := range []string{"1", "%1 $1 f $1 v", "0.5", "2", "6"} {
		if got := d.recv(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if _, err := d.c.Write([]byte("INCR a\r\n")); err != nil { // an inline command
		t.Fatal(err)
	}
	if got := d.recv(); got != "7" {
		t.Fatal(got)
	}
	n := 3*groupMax + 5
	for range n {
		d.send("INCR", "many")
	}
	for i := range n {
		if got := d.recv(); got != strconv.Itoa(i+1) {
			t.Fatalf("%q, want %d", got, i+1)
		}
	}
	if v := s.nodes[0].do(t, "EVAL", "return redis.call('get', redis.call('keys','"+markerPrefix+"*')[1])", "0"); v == "0" {
		t.Fatal("nothing was sent beside a marker")
	}
	s.counts(t, 0, 0, 0)
}

func TestAWriteWhoseReplyWasLostIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	c, d := s.client(), s.client()
	c.want("1", "INCR", "n")
	wire.hold(false, true)
	c.batch("INCR n", "GET n", "SET done yes")
	d.send("SET", "m", "1")
	waitFor(t, "all ran", func() bool { return s.nodes[0].do(t, "EXISTS", "done", "m") == "2" })
	wire.cut()
	for _, want := range []string{appliedText, "2", "OK"} {
		if got := c.recv(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if got := d.recv(); got != "OK" {
		t.Fatal(got)
	}
	c.want("3", "INCR", "n")
	s.counts(t, 0, 3, 0)
}

func TestAWriteThatDidNotRunIsSentAgain(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	c, d := s.client(), s.client()
	c.want("1", "INCR", "n")
	wire.hold(true, false)
	c.batch("INCR n", "GET n", "EVAL return(redis.call('incr','n')) 0")
	d.send("INCR", "m")
	waitFor(t, "both on their way", func() bool { return wire.kept("$1\r\nn\r\n") && wire.kept("$1\r\nm\r\n") })
	wire.cut()
	for _, want := range []string{"2", "2", "3"} {
		if got := c.recv(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if got := d.recv(); got != "1" {
		t.Fatal(got)
	}
	s.counts(t, 2, 0, 0)
}

// Way 1: bytes that are still on their way run after the marker was read, unless the connection was ended first.
func TestDelayedBytesDoNotRunBesideTheirReplay(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	c := s.client()
	c.want("1", "INCR", "n")
	for i := range 10 {
		wire.hold(true, false)
		c.send("INCR", "n")
		waitFor(t, "it is on its way", func() bool { return wire.kept("INCR") })
		wire.cut()
		if got := c.recv(); got != strconv.Itoa(i+2) {
			t.Fatalf("%q, want %d", got, i+2)
		}
		wire.deliver()
		c.want(strconv.Itoa(i+2), "GET", "n")
	}
	c.want("12", "INCR", "n") // over a connection that was opened after everything had been delivered
	if got := s.nodes[0].do(t, "GET", "n"); got != "12" {
		t.Fatalf("n is %s", got)
	}
	s.counts(t, 10, 0, 0)
}

// Way 2: a marker that is missing, or that says something else, says nothing.
func TestAMissingMarkerIsAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"DEL %s", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "RENAME %s elsewhere", "SET %s 0", "SET %s 1000000", "SET %s nonsense", "PEXPIRE %s 0", "evicted"} {
		for _, ran := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/ran=%v", way, ran), func(t *testing.T) {
				t.Parallel()
				s, wire := exactShard(t, 1)
				n, c := s.nodes[0], s.client()
				c.want("OK", "SET", "n", "1")
				c.want("2", "INCR", "n")
				key, ok := n.marker(t)
				if !ok {
					t.Fatal("no marker")
				}
				wire.hold(!ran, ran)
				c.batch("INCR n", "GET n")
				if ran {
					waitFor(t, "it ran", func() bool { return n.do(t, "GET", "n") == "3" })
				} else {
					waitFor(t, "it is on its way", func() bool { return wire.kept("INCR") })
				}
				if way == "evicted" {
					n.do(t, "CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", "1")
					waitFor(t, "the marker is evicted", func() bool { _, err := n.try("SET", "x", "y"); _, there := n.marker(t); return err != nil && !there })
					n.do(t, "CONFIG", "SET", "maxmemory", "0")
				} else {
					n.do(t, strings.Fields(strings.ReplaceAll(way, "%s", key))...)
				}
				before := n.do(t, "EVAL", "return redis.call('get','n') or ''", "0")
				wire.cut()
				if got := c.recv(); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") {
					t.Fatal(got)
				}
				c.recv()
				s.counts(t, 0, 0, 1)
				if got := n.do(t, "EVAL", "return redis.call('get','n') or ''", "0"); got != before {
					t.Fatalf("n was %s, and is %s", before, got)
				}
				c.want("OK", "SET", "k", "1")
				wire.hold(false, true)
				c.send("INCR", "k") // the next one is settled again
				waitFor(t, "it ran", func() bool { return n.do(t, "GET", "k") == "2" })
				wire.cut()
				if got := c.recv(); got != appliedText {
					t.Fatal(got)
				}
				if want := way == "evicted"; s.p.Stats().Evicting != want {
					t.Fatalf("evicting: %v", !want)
				}
			})
		}
	}
}

// Way 3: one bad command makes EXEC refuse the batch of everybody.
func TestABadCommandDoesNotSpoilTheBatch(t *testing.T) {
	t.Parallel()
	s, _ := exactShard(t, 1)
	n := s.nodes[0]
	n.do(t, "ACL", "SETUSER", "default", "-getdel", "-expire")
	c := s.client()
	c.batch("INCR n", "GETDEL n", "INCR n", "EXPIRE n 0", "GET n", "INCR n")
	for i, want := range []string{"1", "-NOPERM", "2", "-NOPERM", "2", "3"} {
		if got := c.recv(); !strings.HasPrefix(got, want) {
			t.Fatalf("reply %d: %q, want %s", i, got, want)
		}
	}
	c.want("OK", "SET", "big", strings.Repeat("x", 1000))
	n.do(t, "CONFIG", "SET", "maxmemory", "1")
	c.batch("DEL big", "SET big x", "INCR n", "GET n")
	for i, want := range []string{"1", "-OOM command not allowed", "-OOM command not allowed", "3"} {
		if got := c.recv(); !strings.HasPrefix(got, want) {
			t.Fatalf("reply %d with no memory left: %q, want %s", i, got, want)
		}
	}
	n.do(t, "CONFIG", "SET", "maxmemory", "0")
	c.want("4", "INCR", "n")
	s.counts(t, 0, 0, 0)
}

// Way 4: an error inside EXEC rolls nothing back, so that "it ran" is all that can be said.
func TestARuntimeErrorIsThatCommandsReply(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	c := s.client()
	c.want("1", "RPUSH", "l", "x")
	c.want("1", "INCR", "n")
	wire.hold(false, true)
	c.batch("INCR n", "INCR l", "INCR n", "SET n 7 NONSENSE")
	waitFor(t, "they ran", func() bool { return s.nodes[0].do(t, "GET", "n") == "3" })
	wire.cut()
	for range 4 {
		if got := c.recv(); got != appliedText {
			t.Fatal(got)
		}
	}
	c.want("3", "GET", "n")
	c.want("*1 $1 x", "LRANGE", "l", "0", "-1")
	s.counts(t, 0, 4, 0)
}

// Way 5: what refuses or changes its meaning inside MULTI stays outside, with an unknown outcome as before.
func TestOtherCommandsStayOutside(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	c, b := s.client(), s.client()
	c.want("OK", "SET", "n", "1")
	c.want("OK", "WATCH", "n")
	c.want("OK", "MULTI")
	c.want("QUEUED", "INCR", "n")
	c.want("*1 :2", "EXEC")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	c.want("1", "RPUSH", "l", "x")
	if got := b.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
	b.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a")
	c.want("1", "PUBLISH", "a", "hi")
	if got := b.recv(); got != "*3 $7 message $1 a $2 hi" {
		t.Fatal(got)
	}
	c.want("OK", "SAVE")
	c.want("3", "EVAL", "return redis.call('incr','n')", "0")
	lax := s.client()
	lax.want("OK", "PROXY", "DURABILITY", "ASYNC")
	key, _ := s.nodes[0].marker(t)
	before := s.nodes[0].do(t, "GET", key)
	lax.want("4", "INCR", "n")
	lax.want("OK", "SELECT", "0")
	if after := s.nodes[0].do(t, "GET", key); after != before {
		t.Fatal("a session that asks for less than quorum has a marker")
	}
	wire.hold(false, true)
	c.send("EVAL", "return redis.call('incr','n')", "0")
	waitFor(t, "it ran", func() bool { return s.nodes[0].do(t, "GET", "n") == "5" })
	wire.cut()
	if got := c.recv(); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") {
		t.Fatal(got)
	}
	s.counts(t, 0, 0, 1)
}

// Way 7: a write that was discarded by one election can come back by the next. Its replay has the same number.
func TestADiscardedWriteThatComesBackCountsOnce(t *testing.T) {
	t.Parallel()
	s, _ := exactShard(t, 1)
	old, next := s.nodes[0], s.nodes[1]
	c := s.client()
	c.want("1", "INCR", "n")
	waitFor(t, "replicated", func() bool { return s.caughtUp(old) })
	next.do(t, "REPLICAOF", "127.0.0.1", "0")
	c.send("INCR", "n")
	waitFor(t, "it ran on the old primary only", func() bool { return old.do(t, "GET", "n") == "2" && next.do(t, "GET", "n") == "1" })
	s.phase(topo.PhaseFencing)
	next.do(t, "REPLICAOF", "NO", "ONE")
	s.serve(next)
	waitFor(t, "it was sent again", func() bool { return next.do(t, "GET", "n") == "2" })
	s.phase(topo.PhaseFencing) // nobody has acknowledged that, and the new primary is lost as well
	s.serve(old)
	s.follow(next, old)
	if got := c.recv(); got != appliedText {
		t.Fatal(got)
	}
	c.want("2", "GET", "n")
	c.want("3", "INCR", "n")
	s.counts(t, 0, 1, 0)
}

// The other way round: what ran on the new primary and is acknowledged there is final, whatever the old one holds.
func TestAReplayIsRefusedUntilReplicasAreThere(t *testing.T) {
	t.Parallel()
	s, _ := exactShard(t, 2)
	c := s.client()
	c.want("1", "INCR", "n")
	waitFor(t, "replicated", func() bool { return s.caughtUp(s.nodes[0]) })
	for _, n := range s.nodes[1:] {
		n.do(t, "REPLICAOF", "127.0.0.1", "0")
		n.do(t, "CONFIG", "SET", "min-replicas-to-write", "1")
	}
	c.send("INCR", "n")
	c.send("INCR", "n")
	waitFor(t, "they ran on the old primary only", func() bool { return s.nodes[0].do(t, "GET", "n") == "3" })
	s.nodes[0].signal(syscall.SIGKILL)
	s.phase(topo.PhaseFencing)
	s.nodes[1].do(t, "REPLICAOF", "NO", "ONE")
	s.serve(s.nodes[1])
	waitFor(t, "the replay is refused", func() bool { return strings.Contains(s.nodes[1].do(t, "INFO", "errorstats"), "NOREPLICAS") })
	s.follow(s.nodes[2], s.nodes[1])
	if got := c.recv() + " " + c.recv(); got != "2 3" {
		t.Fatal(got)
	}
	c.want("4", "INCR", "n")
	s.counts(t, 2, 0, 0)
}

func TestWhatCannotBeSettledInTimeIsUnknown(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	c := s.client()
	c.want("1", "INCR", "n")
	wire.hold(true, false)
	c.batch("INCR n", "GET n")
	waitFor(t, "it is on its way", func() bool { return wire.kept("INCR") })
	s.phase(topo.PhaseFencing)
	wire.cut()
	if got := c.recv(); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN the write was sent to a primary that failed") {
		t.Fatal(got)
	}
	if got := c.recv(); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Fatal(got)
	}
	s.counts(t, 0, 0, 1)
	s.serve(s.nodes[0])
	c.want("2", "INCR", "n")
}

func TestMarkersAreKeptFreshAndExpire(t *testing.T) {
	t.Parallel()
	s, _ := exactShard(t, 1)
	c := s.client()
	c.want("1", "INCR", "n")
	n := s.nodes[0]
	key, _ := n.marker(t)
	if ttl, _ := strconv.Atoi(n.do(t, "TTL", key)); ttl <= 0 || ttl > 3600 {
		t.Fatalf("expires in %d s", ttl)
	}
	n.do(t, "EXPIRE", key, "1000")
	s.p.mu.Lock()
	for l := range s.p.lanes {
		if l.ex != nil {
			l.mu.Lock()
			l.ex.written -= markerFresh
			l.mu.Unlock()
		}
	}
	s.p.mu.Unlock()
	waitFor(t, "the marker is written again", func() bool { ttl, _ := strconv.Atoi(n.do(t, "TTL", key)); return ttl > 3000 })
	c.want("2", "INCR", "n")
	if !strings.Contains(c.do("INFO", "redoubt"), "retry:exact\r\nretry_replayed:0\r\nretry_applied:0\r\nretry_evicting:false") {
		t.Fatal("INFO does not tell")
	}
}

func TestCountersAreExactThroughCuts(t *testing.T) {
	t.Parallel()
	s, wire := exactShard(t, 1)
	l := startCounters(s, 8)
	for i := range 30 {
		l.more(t, 50)
		switch i % 3 {
		case 0:
			wire.hold(true, false) // with delayed bytes: perhaps only the end of a batch, and then no other follows
			waitFor(t, "bytes are kept", func() bool { return wire.kept("\r\n") })
		case 1:
			wire.hold(false, true)
		}
		wire.cut()
		l.more(t, 20)
		wire.deliver()
	}
	l.end(t, s)
}

func TestCountersAreExactThroughFailoversAndSwitchovers(t *testing.T) {
	t.Parallel()
	s := newShard(t, 3, func(sp *spec, o *Options) { sp.Durability, sp.AckReplicas, o.Exact = topo.Quorum, 2, true })
	l := startCounters(s, 8)
	l.more(t, 100)
	s.switchover(s.nodes[0], s.nodes[1])
	l.more(t, 100)
	s.nodes[1].signal(syscall.SIGKILL)
	waitFor(t, "killed", s.nodes[1].isGone)
	s.failover()
	l.more(t, 100)
	l.end(t, s)
}
