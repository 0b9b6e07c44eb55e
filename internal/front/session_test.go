// SPDX-License-Identifier: Apache-2.0

package front

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/resp"
)

func TestATransactionIsOfOneShard(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	w, other := f.client(t), f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	const refused = "-" + crossSlot + "\r\n"
	steps := func(lines ...string) {
		t.Helper()
		for i := 0; i < len(lines); i += 2 {
			w.want(lines[i+1], replaceKeys(lines[i], a, b))
		}
	}
	steps("MULTI", "+OK\r\n", "EXEC", "*0\r\n")
	steps("MULTI", "+OK\r\n", "ECHO x", "+QUEUED\r\n", "PING", "+QUEUED\r\n", "EXEC", "*2\r\n$1\r\nx\r\n+PONG\r\n")
	steps("MULTI", "+OK\r\n", "ECHO x", "+QUEUED\r\n", "SET B 1", "+QUEUED\r\n", "INCR B", "+QUEUED\r\n", "MULTI", "-ERR MULTI calls can not be nested\r\n",
		"WATCH B", "-ERR WATCH inside MULTI is not allowed\r\n", "PUBLISH B x", "+QUEUED\r\n", "EXEC", "*4\r\n$1\r\nx\r\n+OK\r\n:2\r\n:0\r\n")
	steps("MULTI", "+OK\r\n", "SET B 7", "+QUEUED\r\n", "GET A", refused, "INCR B", "+QUEUED\r\n", "EXEC", "-"+execAbort+"\r\n", "GET B", "$1\r\n2\r\n")
	steps("MULTI", "+OK\r\n", "MGET A B", refused, "EXEC", "-"+execAbort+"\r\n", "EXEC", "-ERR EXEC without MULTI\r\n")
	steps("MULTI", "+OK\r\n", "SET B 8", "+QUEUED\r\n", "DISCARD", "+OK\r\n", "GET B", "$1\r\n2\r\n", "MULTI", "+OK\r\n", "PING", "+QUEUED\r\n", "DISCARD", "+OK\r\n")
	steps("MULTI", "+OK\r\n", "SET B", "-ERR wrong number of arguments for 'set' command\r\n", "EXEC", "-"+execAbort+"\r\n", "EXEC", "-ERR EXEC without MULTI\r\n")
	steps("MULTI", "+OK\r\n", "NONSENSE x", "-ERR unknown command 'NONSENSE', with args beginning with: 'x' \r\n", "EXEC", "-"+execAbort+"\r\n")
	w.want("+OK\r\n", "MULTI")
	if got := w.do("FLUSHALL"); !strings.HasPrefix(got, "-ERR FLUSHALL is refused inside MULTI") {
		t.Fatal(got)
	}
	steps("EXEC", "-"+execAbort+"\r\n")

	steps("WATCH B", "+OK\r\n", "WATCH A", refused, "MULTI", "+OK\r\n", "INCR B", "+QUEUED\r\n", "GET A", refused, "EXEC", "-"+execAbort+"\r\n")
	steps("WATCH B", "+OK\r\n", "GET A", "$-1\r\n")
	other.want(":3\r\n", "INCR "+b)
	steps("MULTI", "+OK\r\n", "INCR B", "+QUEUED\r\n", "EXEC", "*-1\r\n", "GET B", "$1\r\n3\r\n")
	steps("WATCH B", "+OK\r\n", "UNWATCH", "+OK\r\n")
	other.want(":4\r\n", "INCR "+b)
	steps("MULTI", "+OK\r\n", "INCR B", "+QUEUED\r\n", "EXEC", "*1\r\n:5\r\n")

	steps("MULTI", "+OK\r\n", "SELECT 2", "+QUEUED\r\n", "SET B x", "+QUEUED\r\n", "EXEC", "*2\r\n+OK\r\n+OK\r\n", "GET B", "$1\r\nx\r\n", "SET A y", "+OK\r\n", "DBSIZE", ":2\r\n")
	if got := w.do("CLIENT", "LIST", "ID", "1"); !strings.Contains(got, "db=2 ") {
		t.Fatal(got)
	}
}

func TestWhatFollowsABlockingCommandWaits(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	w, other := f.client(t), f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	w.send("BLPOP", b, "0")
	w.send("SET", a, "late")
	w.send("GET", a)
	other.want("+OK\r\n", "SET "+a+" early")
	if !until(5*time.Second, func() bool { return strings.Contains(other.do("CLIENT", "LIST", "ID", "1"), "flags=b ") }) {
		t.Fatal("it does not block")
	}
	other.want("$5\r\nearly\r\n", "GET "+a)
	other.want(":1\r\n", "RPUSH "+b+" x")
	for _, want := range []string{"*2\r\n" + bulk(b) + "$1\r\nx\r\n", "+OK\r\n", "$4\r\nlate\r\n"} {
		if got := w.next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	w.send("BLPOP", b, "0")
	if !until(5*time.Second, func() bool { return strings.Contains(other.do("CLIENT", "LIST", "ID", "1"), "flags=b ") }) {
		t.Fatal("it does not block")
	}
	_ = w.conn.Close() // its departure takes the wait back
	if !until(5*time.Second, func() bool { return f.Stats().Clients == 1 }) {
		t.Fatal("the client is still there")
	}
	other.want(":1\r\n", "RPUSH "+b+" y")
	if !until(5*time.Second, func() bool { return other.do("LLEN", b) == ":1\r\n" }) {
		t.Fatal("an element went to a client that is gone")
	}
}

func TestWaitIsTheLeastOfTheShardsWrittenTo(t *testing.T) {
	t.Parallel()
	f, addrs := servers(t, 2)
	w := f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	host, port, _ := strings.Cut(addrs[1], ":")
	startServer(t, "--replicaof", host+" "+port)
	w.want("+OK\r\n", "SET "+b+" 1")
	if !until(20*time.Second, func() bool { return w.do("WAIT", "1", "100") == ":1\r\n" }) {
		t.Fatal("the replica does not acknowledge")
	}
	w.want("+OK\r\n", "SET "+a+" 1")
	w.want(":0\r\n", "WAIT 1 50")
}

func TestSubscriptionsAreOfAllShards(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"2", "3"} {
		f, _ := servers(t, 2)
		w, other := f.client(t), f.client(t)
		w.do("HELLO", proto)
		kind := map[string]string{"2": "*", "3": ">"}[proto]
		a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
		expect := func(frames ...string) {
			t.Helper()
			for _, want := range frames {
				if got := w.next(); got != want {
					t.Fatalf("RESP%s: %q, want %q", proto, got, want)
				}
			}
		}
		sub := func(word, name, count string) string {
			return kind + "3\r\n" + bulk(word) + bulk(name) + ":" + count + "\r\n"
		}
		w.send("SUBSCRIBE", a, b)
		expect(sub("subscribe", a, "1"), sub("subscribe", b, "2"))
		w.send("PSUBSCRIBE", "p*")
		expect(sub("psubscribe", "p*", "3"))
		w.send("SSUBSCRIBE", "s")
		expect(sub("ssubscribe", "s", "1"))
		if proto == "2" {
			w.want("-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n", "GET x")
			w.want("*2\r\n$4\r\npong\r\n$0\r\n\r\n", "PING")
		} else {
			w.want("_\r\n", "GET x")
		}
		for _, c := range []string{a, b} {
			other.want(":1\r\n", "PUBLISH "+c+" hello")
			expect(kind + "3\r\n$7\r\nmessage\r\n" + bulk(c) + "$5\r\nhello\r\n")
		}
		other.want(":1\r\n", "SPUBLISH s hello")
		expect(kind + "3\r\n$8\r\nsmessage\r\n$1\r\ns\r\n$5\r\nhello\r\n")
		for _, c := range []string{"p1", "p2", "p3", "p4"} {
			other.want(":1\r\n", "PUBLISH "+c+" hello")
			expect(kind + "4\r\n$8\r\npmessage\r\n$2\r\np*\r\n" + bulk(c) + "$5\r\nhello\r\n")
		}
		other.want(":1\r\n", "PUBSUB NUMPAT")
		if got := sorted(other.do("PUBSUB", "CHANNELS")); got != sorted("*2\r\n"+bulk(a)+bulk(b)) {
			t.Fatal(got)
		}
		other.want("*4\r\n"+bulk(a)+":1\r\n"+bulk(b)+":1\r\n", "PUBSUB NUMSUB "+a+" "+b)
		w.send("UNSUBSCRIBE", a, "nothing")
		expect(sub("unsubscribe", a, "2"), sub("unsubscribe", "nothing", "2"))
		w.send("UNSUBSCRIBE")
		expect(sub("unsubscribe", b, "1"))
		w.send("PUNSUBSCRIBE")
		expect(sub("punsubscribe", "p*", "0"))
		w.send("SUNSUBSCRIBE")
		expect(sub("sunsubscribe", "s", "0"))
		other.want(":0\r\n", "PUBLISH "+a+" hello")
		w.want("+OK\r\n", "SET x 1")

		other.want("+OK\r\n", "CONFIG SET notify-keyspace-events KEA")
		w.send("SUBSCRIBE", "__keyevent@0__:set")
		expect(sub("subscribe", "__keyevent@0__:set", "1"))
		for _, k := range []string{a, b} {
			other.want("+OK\r\n", "SET "+k+" 1")
			expect(kind + "3\r\n$7\r\nmessage\r\n" + bulk("__keyevent@0__:set") + bulk(k))
		}
	}
}

func TestTrackingIsOfAllShards(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	w, other := f.client(t), f.client(t)
	a, b := keyOn(2, 0, "a"), keyOn(2, 1, "b")
	w.want("-ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled\r\n", "CLIENT CACHING YES")
	w.do("HELLO", "3")
	w.want("+OK\r\n", "CLIENT TRACKING ON OPTIN")
	w.want("_\r\n", "GET "+a)
	w.want("+OK\r\n", "CLIENT CACHING YES")
	w.want("*2\r\n_\r\n_\r\n", "MGET "+a+"x "+b+"x")
	// Of what was read, only the MGET was to be tracked: on both shards.
	keys := []string{a + "x", b + "x"}
	var told []string
	for _, k := range append([]string{a}, keys...) {
		other.want("+OK\r\n", "SET "+k+" 1")
	}
	for range keys {
		told = append(told, w.next())
	}
	slices.Sort(told)
	for i, k := range keys {
		if want := ">2\r\n$10\r\ninvalidate\r\n*1\r\n" + bulk(k); told[i] != want {
			t.Fatalf("%q, want %q", told[i], want)
		}
	}
	w.want("+OK\r\n", "CLIENT TRACKING OFF")
}

func TestTheLastRepliesReachAClientThatSendsNoMore(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	w := f.client(t)
	for range 50 {
		w.send("MGET", "a", "b", "c", "d", "e")
	}
	if err := w.conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if got := w.next(); !strings.HasPrefix(got, "*5\r\n") {
			t.Fatal(got)
		}
	}
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
}

func TestKeyPositionsAreTheServers(t *testing.T) {
	t.Parallel()
	f, addrs := servers(t, 1)
	w := dial(t, addrs[0])
	table := f.o.Table()
	for _, command := range []string{"GET a", "MGET a b c", "MSET a 1 b 2", "MSETNX a 1 b 2", "DEL a b", "BLPOP a b 0", "BZPOPMIN a b 0", "RENAME a b", "BITOP AND d a b", "OBJECT ENCODING a", "MEMORY USAGE a",
		"EVAL x 2 a b c", "EVALSHA x 0 a", "FCALL f 1 a b", "LMPOP 2 a b LEFT", "BLMPOP 0 2 a b LEFT", "ZMPOP 1 a MIN", "BZMPOP 0 1 a MIN", "ZUNIONSTORE d 2 a b WEIGHTS 1 2", "ZUNION 2 a b", "ZINTERCARD 2 a b LIMIT 1",
		"XREAD COUNT 1 STREAMS a b 0 0", "XREADGROUP GROUP g c STREAMS a b > >", "XGROUP CREATE a g 0", "XINFO STREAM a", "GEORADIUS a 1 1 1 m", "GEORADIUS a 1 1 1 m STORE b", "SORT a BY x STORE b", "SORT a",
		"MIGRATE h 1 a 0 10", "MIGRATE h 1 \x00 0 10 KEYS a b", "COPY a b", "LCS a b", "SMOVE a b x", "PFCOUNT a b", "PFMERGE a b", "ZADD a 1 b", "SET a b EX 1", "GEOSEARCHSTORE d a FROMLONLAT 1 1 BYRADIUS 1 m", "ZRANGESTORE d a 0 1",
		"SINTERCARD 2 a b", "BLMOVE a b LEFT LEFT 0", "XADD a * f v", "XACK a g 1", "LPOS a x", "BITFIELD a GET u8 0", "SINTERSTORE d a b", "PING", "EXISTS a b", "WATCH a b", "RESTORE a 0 x"} {
		words := strings.Fields(command)
		args := make([][]byte, len(words))
		for i, word := range words {
			if word == "\x00" {
				word, words[i] = "", ""
			}
			args[i] = []byte(word)
		}
		var want, got []string
		reply := w.do(append([]string{"COMMAND", "GETKEYS"}, words...)...)
		for _, e := range resp.Elements([]byte(reply), nil) {
			want = append(want, string(resp.Text(e)))
		}
		for _, i := range table.Lookup(args[0]).Keys(args, nil) {
			got = append(got, words[i])
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("%s: server %q (%.60q), here %q", command, want, reply, got)
		}
	}
}

// A message that is longer than what a shard may be ahead of the order waits for nobody's turn.
func TestALongMessageArrives(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"2", "3"} {
		f, _ := servers(t, 2)
		w, other := f.client(t), f.client(t)
		w.do("HELLO", proto)
		w.send("SUBSCRIBE", "a")
		w.next()
		long := strings.Repeat("x", 3<<20)
		if got := other.do("PUBLISH", "a", long); got != ":1\r\n" {
			t.Fatal(got)
		}
		if got := w.next(); !strings.HasSuffix(got, bulk(long)) {
			t.Fatalf("%.100q", got)
		}
	}
}

// A client that sends no more, or says goodbye, gets all of what it is owed, also when it reads nothing for a while.
func TestAClientThatSendsNoMoreGetsLargeReplies(t *testing.T) {
	t.Parallel()
	f, _ := servers(t, 2)
	const size, times = 1 << 20, 6 // more than the network takes, and less than what makes the shard wait
	f.client(t).want("+OK\r\n", "SET large "+strings.Repeat("x", size))
	whole := int64(times * (len("$1048576\r\n") + size + len("\r\n")))
	for _, how := range []string{"closes its side", "QUIT", "speaks no RESP"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w, want := f.client(t), whole
			for range times {
				w.send("GET", "large")
			}
			switch how {
			case "QUIT":
				w.send("QUIT")
				want += int64(len("+OK\r\n"))
			case "speaks no RESP":
				w.raw("*x\r\n")
				want += int64(len("-ERR Protocol error: invalid multibulk length\r\n"))
			default:
				_ = w.conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			<-time.After(1500 * time.Millisecond)
			n, err := int64(0), error(nil)
			for k := int64(0); err == nil; n += k {
				k, err = io.CopyN(io.Discard, w.conn, 64<<10)
				<-time.After(time.Millisecond)
			}
			if n != want || err != io.EOF {
				t.Errorf("%d of %d bytes: %v", n, want, err)
			}
		})
	}
}
