// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"redoubt/internal/resp"

	"redoubt/internal/topo"
)

func TestRepliesComeInTheOrderOfPipelinedCommands(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	var out []byte
	for i := range 1000 {
		out = resp.AppendCommand(out, "SET", "k", strconv.Itoa(i))
		out = resp.AppendCommand(out, "GET", "k")
		if i%100 == 0 {
			out = resp.AppendCommand(out, "CLIENT", "ID") // answered by the proxy
			out = append(out, "PING hello\r\n"...)
		}
	}
	go func() { _, _ = c.c.Write(out) }()
	for i := range 1000 {
		if got := c.recv(); got != "OK" {
			t.Fatalf("set %d: %q", i, got)
		}
		if got := c.recv(); got != strconv.Itoa(i) {
			t.Fatalf("get %d: %q", i, got)
		}
		if i%100 == 0 {
			if got := c.recv(); got == "0" || len(got) > 4 {
				t.Fatalf("client id: %q", got)
			}
			if got := c.recv(); got != "hello" {
				t.Fatalf("ping: %q", got)
			}
		}
	}
}

func TestAHundredClientsShareFewUpstreams(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Loops, o.Limits.Upstreams = 2, 1 })
	var wg sync.WaitGroup
	for id := range 100 {
		wg.Go(func() {
			c := s.client()
			key := "k" + strconv.Itoa(id)
			for i := range 50 {
				want := key + ":" + strconv.Itoa(i)
				if got, err := c.try("SET", key, want); err != nil || got != "OK" {
					t.Errorf("%q %v", got, err)
					return
				}
				if got, err := c.try("GET", key); err != nil || got != want {
					t.Errorf("%q %v, want %q", got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := strings.Count(s.nodes[0].do(t, "CLIENT", "LIST"), "name=redoubt-proxy:p1"); n != 2 {
		t.Fatalf("%d upstream connections, want 2", n)
	}
}

func TestBigValuesPassBothWays(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	big := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB
	for range 3 {
		c.want("OK", "SET", "big", big)
		if got := c.do("GET", "big"); got != big {
			t.Fatalf("got %d bytes back of %d", len(got), len(big))
		}
	}
	c.want("1", "DEL", "big")
}

func TestInlineCommandsAndProtocolErrorsAreAsTheServers(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	direct, through := dialWire(t, s.nodes[0].addr), s.client()
	for _, line := range []string{"SET a 'b c'\r\n", "get a\n", "\r\n", "SET x \"\\x41\\n\"\r\n", "GET x\r\n", "*0\r\nPING\r\n", "nosuch command\r\n", "SET onlykey\r\n"} {
		for _, w := range []*wire{direct, through} {
			if _, err := w.c.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
		if line == "\r\n" {
			continue
		}
		if a, b := direct.recv(), through.recv(); a != b {
			t.Fatalf("%q: server says %q, proxy %q", line, a, b)
		}
	}
	for _, bad := range []string{"*1\r\n+PING\r\n", "*abc\r\n", "*1\r\n$-5\r\n", "SET \"a\r\n", "*1\r\n$999999999999\r\n"} {
		direct, through := dialWire(t, s.nodes[0].addr), s.client()
		for _, w := range []*wire{direct, through} {
			_, _ = w.c.Write([]byte("PING\r\n" + bad))
			if got := w.recv(); got != "PONG" {
				t.Fatal(got)
			}
		}
		if a, b := direct.recv(), through.recv(); a != b {
			t.Fatalf("%q: server says %q, proxy %q", bad, a, b)
		}
		if _, err := through.c.Read(make([]byte, 1)); err == nil {
			t.Fatalf("%q: connection stays open", bad)
		}
	}
}

func TestHelloSwitchesToResp3AndBack(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	c.want("3", "HSET", "h", "a", "1", "b", "2", "c", "3")
	hello := c.do("HELLO", "3")
	for _, part := range []string{"%7", "server", "redis", "7.0", "proto :3", "standalone", "master", "modules"} {
		if !strings.Contains(hello, part) {
			t.Fatalf("hello lacks %q: %q", part, hello)
		}
	}
	if got := c.do("HGETALL", "h"); !strings.HasPrefix(got, "%3") {
		t.Fatal(got)
	}
	c.want("_", "GET", "nothing")
	if got := c.do("HELLO", "2"); !strings.HasPrefix(got, "*14") {
		t.Fatal(got)
	}
	c.want("$-1", "GET", "nothing")
	c.want("-NOPROTO unsupported protocol version", "HELLO", "9")
}

func TestSelectChangesTheDatabase(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, d := s.client(), s.client()
	c.want("OK", "SET", "k", "zero")
	c.want("OK", "SELECT", "5")
	c.want("$-1", "GET", "k")
	c.want("OK", "SET", "k", "five")
	d.want("zero", "GET", "k")
	c.want("-ERR DB index is out of range", "SELECT", "16")
	c.want("-ERR value is not an integer or out of range", "SELECT", "x")
	c.want("OK", "MULTI")
	c.want("QUEUED", "SELECT", "6")
	c.want("QUEUED", "SET", "k", "six")
	c.want("*2 +OK +OK", "EXEC")
	c.want("six", "GET", "k")
	c.want("OK", "SELECT", "0")
	c.want("zero", "GET", "k")
}

func TestTransactionsWorkWithWatch(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, d := s.client(), s.client()
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "a", "1")
	c.want("QUEUED", "INCR", "a")
	c.want("*2 +OK :2", "EXEC")
	c.want("OK", "WATCH", "a")
	d.want("OK", "SET", "a", "9")
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "a", "1")
	c.want("*-1", "EXEC")
	c.want("9", "GET", "a")
	c.want("OK", "MULTI")
	c.want("-ERR unknown command 'nosuch', with args beginning with: ", "nosuch")
	c.want("-EXECABORT Transaction discarded because of previous errors.", "EXEC")
	c.want("OK", "MULTI")
	if got := c.do("REPLICAOF", "NO", "ONE"); !strings.HasPrefix(got, "-ERR REPLICAOF is refused") {
		t.Fatal(got)
	}
	c.want("-EXECABORT Transaction discarded because of previous errors.", "EXEC")
	c.want("-ERR EXEC without MULTI", "EXEC")
	c.want("OK", "MULTI")
	c.want("OK", "DISCARD")
	c.want("9", "GET", "a")
	var pipe []byte
	for range 3 {
		pipe = resp.AppendCommand(pipe, "MULTI")
		pipe = resp.AppendCommand(pipe, "INCR", "a")
		pipe = resp.AppendCommand(pipe, "EXEC")
		pipe = resp.AppendCommand(pipe, "GET", "a")
	}
	_, _ = c.c.Write(pipe)
	for i := range 3 {
		n := strconv.Itoa(10 + i)
		for _, want := range []string{"OK", "QUEUED", "*1 :" + n, n} {
			if got := c.recv(); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	}
}

func TestAWatchOutlivesAChangeOfProtocol(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, other := s.client(), s.client()
	c.want("OK", "WATCH", "k")
	c.do("HELLO", "3")
	other.want("OK", "SET", "k", "v")
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "k", "mine")
	c.want("_", "EXEC")
	other.want("v", "GET", "k")
	c.do("HELLO", "2")
	c.want("$-1", "GET", "none")
}

func TestAClientThatIsDoneWithItsOwnConnectionGivesItBackWhileItIsIdle(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "k", "v")
	c.want("*1 +OK", "EXEC")
	waitFor(t, "the connection is given back", func() bool { return s.p.Stats().Pinned == 0 })
	c.want("*-1", "BLPOP", "l", "0.05")
	waitFor(t, "the connection is given back", func() bool { return s.p.Stats().Pinned == 0 })
}

func TestASubscriberIsToldWhatItMayNotDoInQuorumMode(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	c := s.client()
	c.send("SUBSCRIBE", "c")
	c.send("RPUSH", "l", "x")
	if got := c.recv(); got != "*3 $9 subscribe $1 c :1" {
		t.Fatal(got)
	}
	if got := c.recv(); !strings.HasPrefix(got, "-ERR Can't execute 'rpush'") {
		t.Fatal(got)
	}
}

func TestASelectInsideATransactionHoldsFromItsExecOn(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	for _, words := range [][]string{{"MULTI"}, {"SET", "k", "v"}, {"SELECT", "3"}, {"SET", "k3", "v"}, {"EXEC"}, {"EXISTS", "k3"}} {
		c.send(words...)
	}
	for _, want := range []string{"OK", "QUEUED", "QUEUED", "QUEUED", "*3 +OK +OK +OK", "1"} {
		if got := c.recv(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	other := s.client()
	other.want("1", "EXISTS", "k")
	other.want("0", "EXISTS", "k3")
	far := s.client()
	for _, words := range [][]string{{"MULTI"}, {"SELECT", "99999"}, {"EXEC"}, {"EXISTS", "k"}} {
		far.send(words...)
	}
	for _, want := range []string{"OK", "QUEUED", "*1 -ERR DB index is out of range", "1"} {
		if got := far.recv(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

func TestBlockingCommandsHoldUpNobody(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, d := s.client(), s.client()
	c.send("BLPOP", "list", "0")
	for range 10 {
		d.want("PONG", "PING")
	}
	d.want("1", "RPUSH", "list", "x")
	if got := c.recv(); got != "*2 $4 list $1 x" {
		t.Fatal(got)
	}
	c.want("*-1", "BLPOP", "list", "0.05")
	c.want("OK", "SET", "a", "b")
	c.send("BLPOP", "gone", "0")
	waitFor(t, "one blocked client", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	_ = c.c.Close()
	waitFor(t, "no blocked client", func() bool { return s.nodes[0].info("blocked_clients") == "0" })
}

func TestPubSubInBothProtocols(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, c3, d := s.client(), s.client(), s.client()
	c.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a", "b")
	if got := c.recv(); got != "*3 $9 subscribe $1 b :2" {
		t.Fatal(got)
	}
	c.want("*3 $10 psubscribe $2 x* :3", "PSUBSCRIBE", "x*")
	c.want("*2 $4 pong $0 ", "PING")
	if got := c.do("GET", "k"); !strings.HasPrefix(got, "-ERR Can't execute 'get'") {
		t.Fatal(got)
	}
	c3.do("HELLO", "3")
	c3.want(">3 $9 subscribe $1 a :1", "SUBSCRIBE", "a")
	c3.want("_", "GET", "k")
	d.want("2", "PUBLISH", "a", "hi")
	if got := c.recv(); got != "*3 $7 message $1 a $2 hi" {
		t.Fatal(got)
	}
	if got := c3.recv(); got != ">3 $7 message $1 a $2 hi" {
		t.Fatal(got)
	}
	d.want("1", "PUBLISH", "xyz", "hi")
	if got := c.recv(); got != "*4 $8 pmessage $2 x* $3 xyz $2 hi" {
		t.Fatal(got)
	}
	c.send("UNSUBSCRIBE")
	for range 2 {
		if got := c.recv(); !strings.HasPrefix(got, "*3 $11 unsubscribe") {
			t.Fatal(got)
		}
	}
	c.want("*3 $12 punsubscribe $2 x* :0", "PUNSUBSCRIBE")
	c.want("$-1", "GET", "k")
	c.want("*3 $11 unsubscribe $-1 :0", "UNSUBSCRIBE")
	c.want("$-1", "GET", "k")
	if n := s.p.Stats().Pinned; n != 1 {
		t.Fatalf("%d pinned, want the one RESP3 subscriber", n)
	}
}

func TestClientCommandsAreTheProxysOwn(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, d := s.client(), s.client()
	c.want("$-1", "CLIENT", "GETNAME")
	c.want("OK", "CLIENT", "SETNAME", "me")
	c.want("me", "CLIENT", "GETNAME")
	c.want("OK", "CLIENT", "SETINFO", "LIB-NAME", "x")
	id := c.do("CLIENT", "ID")
	if id == d.do("CLIENT", "ID") {
		t.Fatal("ids are not unique")
	}
	if got := d.do("CLIENT", "LIST"); !strings.Contains(got, "name=me") || strings.Contains(got, "redoubt") {
		t.Fatal(got)
	}
	c.want("-ERR This instance has cluster support disabled", "CLUSTER", "INFO")
	if got := c.do("ROLE"); !strings.HasPrefix(got, "*3 $6 master") {
		t.Fatal(got)
	}
	for _, cmd := range [][]string{{"REPLICAOF", "NO", "ONE"}, {"SLAVEOF", "NO", "ONE"}, {"SHUTDOWN"}, {"FAILOVER"}, {"PSYNC", "?", "-1"}, {"CONFIG", "REWRITE"},
		{"CONFIG", "SET", "min-replicas-to-write", "0"}, {"DEBUG", "SEGFAULT"}} {
		if got := c.do(cmd...); !strings.HasPrefix(got, "-ERR") || !strings.Contains(got, "refused") {
			t.Fatalf("%v: %q", cmd, got)
		}
	}
	d.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	c.want("1", "CLIENT", "UNBLOCK", "2", "ERROR")
	if got := d.recv(); !strings.HasPrefix(got, "-UNBLOCKED") {
		t.Fatal(got)
	}
	c.want("1", "CLIENT", "KILL", "ID", "2")
	if _, err := d.c.Read(make([]byte, 1)); err == nil {
		t.Fatal("killed client is connected")
	}
	c.want("RESET", "RESET")
	c.want("$-1", "CLIENT", "GETNAME")
	c.want("OK", "QUIT")
	if _, err := c.c.Read(make([]byte, 1)); err == nil {
		t.Fatal("connected after QUIT")
	}
}

func TestClientReplyOffAndSkip(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	var out []byte
	out = resp.AppendCommand(out, "CLIENT", "REPLY", "SKIP")
	out = resp.AppendCommand(out, "SET", "a", "1")
	out = resp.AppendCommand(out, "INCR", "a")
	out = resp.AppendCommand(out, "CLIENT", "REPLY", "OFF")
	out = resp.AppendCommand(out, "INCR", "a")
	out = resp.AppendCommand(out, "INCR", "a")
	out = resp.AppendCommand(out, "CLIENT", "REPLY", "ON")
	out = resp.AppendCommand(out, "GET", "a")
	_, _ = c.c.Write(out)
	for _, want := range []string{"2", "OK", "4"} {
		if got := c.recv(); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestASlowSubscriberDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Output = 4 << 20 })
	slow, c := s.client(), s.client()
	slow.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a")
	message := string(bytes.Repeat([]byte("x"), 256<<10))
	for i := range 200 {
		c.want(strconv.Itoa(i), "INCRBY", "n", map[bool]string{true: "0", false: "1"}[i == 0])
		if got := c.do("PUBLISH", "a", message); got == "0" {
			break // the proxy gave the slow one up
		}
	}
	waitFor(t, "slow client disconnected", func() bool { return s.p.Stats().Clients == 1 })
	c.want("PONG", "PING")
}

// Counts the descriptors of the whole process, so it does not run beside others.
func TestAConnectionThatCameTooLateIsClosed(t *testing.T) {
	s := newShard(t, 0, nil)
	s.client().want("OK", "SET", "a", "1")
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	l, o := s.p.newLane(poolKey{proto: 2}, 0), s.p.order.Load()
	l.loop, l.closed = s.p.loops[0], true
	before := count()
	for range 50 {
		if l.connect(target{t: o.t, node: o.t.node, addr: o.t.addr}, o) != nil {
			t.Fatal("a lane that is closed got a connection")
		}
	}
	if more := count() - before; more > 20 {
		t.Errorf("%d descriptors are left", more)
	}
}

// In RESP2 a reply may look like a message. It is none before the subscription is confirmed.
func TestAReplyThatLooksLikeAMessageIsAReply(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	c.want("3", "RPUSH", "l", "message", "x", "y")
	c.want("OK", "WATCH", "w") // a connection of its own
	c.send("LRANGE", "l", "0", "-1")
	c.send("SUBSCRIBE", "ch")
	for _, want := range []string{"*3 $7 message $1 x $1 y", "*3 $9 subscribe $2 ch :1"} {
		if got := c.recv(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	c.want("*3 $11 unsubscribe $2 ch :0", "UNSUBSCRIBE", "ch")
	c.want("OK", "CLIENT", "SETNAME", "ann")
}
