// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/resp"
)

// fields reads lines of CLIENT LIST.
func fields(t *testing.T, text string) []map[string]string {
	t.Helper()
	var all []map[string]string
	for line := range strings.Lines(text) {
		m := map[string]string{}
		for _, f := range strings.Fields(line) {
			k, v, ok := strings.Cut(f, "=")
			if !ok {
				t.Fatalf("field %q in %q", f, line)
			}
			m[k] = v
		}
		all = append(all, m)
	}
	return all
}

func closed(c *wire) bool {
	_ = c.c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := c.r.ReadByte()
	return err != nil && !strings.Contains(err.Error(), "timeout")
}

// What the server says to a CLIENT command with wrong or unusual arguments, the proxy says too.
func TestClientCommandsAnswerAsTheServer(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	direct, through := dialWire(t, s.nodes[0].addr), s.client()
	for _, line := range []string{"CLIENT", "CLIENT LIST TYPE foo", "CLIENT LIST foo", "CLIENT LIST ID", "CLIENT LIST ID a", "CLIENT LIST TYPE", "CLIENT LIST TYPE normal x",
		"CLIENT LIST ID 999999", "CLIENT LIST TYPE pubsub", "CLIENT LIST TYPE master", "CLIENT LIST TYPE replica", "CLIENT INFO x", "CLIENT KILL", "CLIENT KILL 1.2.3.4:5",
		"CLIENT KILL ID x", "CLIENT KILL ID 0", "CLIENT KILL ID 999999", "CLIENT KILL USER default ID 999999", "CLIENT KILL USER nosuch", "CLIENT KILL ADDR 1.2.3.4:1 LADDR x",
		"CLIENT KILL SKIPME maybe", "CLIENT KILL SKIPME yes TYPE pubsub", "CLIENT KILL TYPE foo", "CLIENT KILL foo bar", "CLIENT KILL ID 1 foo", "CLIENT KILL type MASTER",
		"CLIENT PAUSE", "CLIENT PAUSE x", "CLIENT PAUSE -1", "CLIENT PAUSE 10 foo", "CLIENT PAUSE 1 write", "CLIENT PAUSE 1 ALL", "CLIENT PAUSE 9999999999999999999", "CLIENT UNPAUSE",
		"CLIENT UNPAUSE x", "CLIENT NO-EVICT", "CLIENT NO-EVICT on", "CLIENT NO-EVICT OFF", "CLIENT NO-EVICT x", "CLIENT GETREDIR", "CLIENT ID x", "CLIENT SETNAME", "CLIENT nosuch",
		"CLIENT UNBLOCK", "CLIENT UNBLOCK x", "CLIENT UNBLOCK 999999 foo", "CLIENT UNBLOCK 999999", "CLIENT REPLY", "CLIENT REPLY foo", "CLIENT GETNAME x", "CLIENT GETREDIR x"} {
		args := strings.Fields(line)
		if a, b := direct.do(args...), through.do(args...); a != b {
			t.Errorf("%s: server says %q, proxy %q", line, a, b)
		}
	}
	if got := through.do("CLIENT", "PAUSE", "600001"); !strings.HasPrefix(got, "-ERR through the proxy clients are paused for at most 600000") {
		t.Error(got)
	}
}

func TestClientListShowsWhatClientsDo(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.ListenReadonly = "127.0.0.1:0" })
	me, sub, txn, popper, tracker, monitor := s.client(), s.client(), s.client(), s.client(), s.client(), s.client()
	monitor.want("6", "CLIENT", "ID")
	reader := dialWire(t, s.p.ReadonlyAddr().String())
	sub.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a", "b")
	sub.recv()
	sub.want("*3 $10 psubscribe $2 x* :3", "PSUBSCRIBE", "x*")
	sub.want("*3 $10 ssubscribe $1 s :1", "SSUBSCRIBE", "s")
	txn.want("OK", "SELECT", "3")
	txn.want("OK", "MULTI")
	txn.want("QUEUED", "SET", "a", "b")
	txn.want("QUEUED", "GET", "a")
	popper.send("BLPOP", "nothing", "0")
	tracker.do("HELLO", "3")
	tracker.want("OK", "CLIENT", "SETNAME", "tracker")
	tracker.want("OK", "CLIENT", "SETINFO", "LIB-NAME", "lib")
	tracker.want("OK", "CLIENT", "TRACKING", "ON", "BCAST")
	tracker.want("0", "CLIENT", "GETREDIR")
	reader.do("HELLO", "3")
	monitor.want("OK", "MONITOR")
	for _, c := range []*wire{me, reader} {
		c.want("OK", "CLIENT", "NO-EVICT", "ON")
	}
	reader.want("OK", "CLIENT", "NO-TOUCH", "ON")
	me.want("$-1", "OBJECT", "ENCODING", "a")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	list := fields(t, me.do("CLIENT", "LIST"))
	if len(list) != 7 {
		t.Fatalf("%d clients", len(list))
	}
	for i, want := range []map[string]string{
		{"addr": me.c.LocalAddr().String(), "laddr": s.p.Addr().String(), "flags": "e", "cmd": "client|list", "user": "default", "db": "0", "resp": "2", "redir": "-1", "multi": "-1", "sub": "0", "idle": "0"},
		{"flags": "P", "sub": "2", "psub": "1", "ssub": "1", "cmd": "ssubscribe"},
		{"flags": "x", "db": "3", "multi": "2", "cmd": "get"},
		{"flags": "b", "cmd": "blpop"},
		{"flags": "tB", "resp": "3", "name": "tracker", "lib-name": "lib", "redir": "0", "cmd": "client|getredir"},
		{"flags": "O", "cmd": "monitor"},
		{"flags": "reT", "resp": "3", "cmd": "client|no-touch"},
	} {
		for k, v := range want {
			if list[i][k] != v {
				t.Errorf("client %d: %s=%s, want %s", i+1, k, list[i][k], v)
			}
		}
	}
	direct := dialWire(t, s.nodes[0].addr)
	for k := range fields(t, direct.do("CLIENT", "INFO"))[0] {
		if _, ok := list[0][k]; !ok {
			t.Errorf("the server shows %s", k)
		}
	}
	for filter, want := range map[string]int{"TYPE normal": 6, "TYPE pubsub": 1, "ID 1 3 999": 2, "USER default": 7, "USER x": 0, "NAME tracker": 1, "ADDR 1.1.1.1:1": 0,
		"ADDR " + txn.c.LocalAddr().String(): 1, "ID 1 2 3 SKIPME yes": 2, "MAXAGE 1000": 0, "LADDR " + s.p.Addr().String(): 6} {
		if got := len(fields(t, me.do(append([]string{"CLIENT", "LIST"}, strings.Fields(filter)...)...))); got != want {
			t.Errorf("CLIENT LIST %s: %d lines, want %d", filter, got, want)
		}
	}
	if got := reader.do("CLIENT", "INFO"); fields(t, got)[0]["cmd"] != "client|info" {
		t.Error(got)
	}
	reader.send("CLIENT", "LIST")
	if f, err := reader.frame(); err != nil || f[0] != '=' {
		t.Errorf("%.20q %v", f, err)
	}
	txn.want("*2 +OK $1 b", "EXEC")
	if l := fields(t, me.do("CLIENT", "LIST", "ID", "3"))[0]; l["flags"] != "N" || l["multi"] != "-1" || l["cmd"] != "exec" {
		t.Error(l)
	}
	waitFor(t, "idle seconds", func() bool { return fields(t, me.do("CLIENT", "LIST", "ID", "7"))[0]["idle"] != "0" })
}

func TestClientKillTakesTheServersFilters(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	me := s.client()
	id := func(c *wire) string { return c.do("CLIENT", "ID") }
	other := func() *wire { c := s.client(); c.want("PONG", "PING"); return c }
	a, b := other(), other()
	me.want("1", "CLIENT", "KILL", "ADDR", a.c.LocalAddr().String())
	if !closed(a) {
		t.Fatal("ADDR")
	}
	me.want("OK", "CLIENT", "KILL", b.c.LocalAddr().String())
	if !closed(b) {
		t.Fatal("old form")
	}
	a, b = other(), other()
	me.want("2", "CLIENT", "KILL", "ID", id(a), id(b), "LADDR", s.p.Addr().String(), "USER", "default", "TYPE", "normal")
	if !closed(a) || !closed(b) {
		t.Fatal("ID list")
	}
	a, b = other(), other()
	b.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a")
	me.want("1", "CLIENT", "KILL", "TYPE", "PubSub")
	if !closed(b) {
		t.Fatal("TYPE pubsub")
	}
	me.want("0", "CLIENT", "KILL", "MAXAGE", "1000")
	waitFor(t, "a second", func() bool { return me.do("CLIENT", "KILL", "MAXAGE", "1") == "1" })
	if !closed(a) {
		t.Fatal("MAXAGE")
	}
	me.want("PONG", "PING")
	me.want("1", "CLIENT", "KILL", "ID", id(me), "SKIPME", "no")
	if !closed(me) {
		t.Fatal("itself")
	}
}

func TestClientPauseHoldsTheProxysClients(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	me, w, r, txn, gone := s.client(), s.client(), s.client(), s.client(), s.client()
	txn.want("OK", "MULTI")
	me.want("OK", "CLIENT", "PAUSE", "60000", "WRITE")
	txn.want("QUEUED", "INCR", "n")
	w.send("INCR", "n")
	txn.send("EXEC")
	gone.send("INCR", "n")
	held := func(n int) func() bool {
		return func() bool { return strings.Count(me.do("CLIENT", "LIST"), "b ") >= n && countHeld(s.p) == n }
	}
	waitFor(t, "three writers held", held(3))
	_ = gone.c.Close()
	waitFor(t, "one has left", held(2))
	long := s.client()
	go func() { _, _ = long.c.Write(resp.AppendCommand(nil, "SET", "long", strings.Repeat("x", 2*streamMin))) }() // would pass as it arrives
	waitFor(t, "the long one is held, too", held(3))
	r.want("0", "EXISTS", "long")
	me.want("1", "CLIENT", "KILL", "ADDR", long.c.LocalAddr().String())
	waitFor(t, "it has left", held(2))
	r.want("$-1", "GET", "n")
	begun := time.Now()
	if got, err := s.nodes[0].try("INCR", "direct"); err != nil || got != "1" || time.Since(begun) > 5*time.Second {
		t.Fatal("the server itself must not be paused", got, err)
	}
	me.want("OK", "CLIENT", "PAUSE", "1", "ALL") // stricter, and not shorter
	r.send("GET", "m")
	waitFor(t, "a reader held", func() bool { return countHeld(s.p) == 3 })
	me.want("OK", "CLIENT", "UNPAUSE")
	if got := r.recv(); got != "$-1" {
		t.Fatal(got)
	}
	a, b := w.recv(), txn.recv()
	if a+b != "1*1 :2" && a+b != "2*1 :1" {
		t.Fatal(a, b)
	}
	r.want("2", "GET", "n")
	begun = time.Now()
	me.want("OK", "CLIENT", "PAUSE", "150")
	var out []byte
	for range 3 {
		out = resp.AppendCommand(out, "INCR", "n")
	}
	_, _ = w.c.Write(out)
	for i := range 3 {
		if got := w.recv(); got != strconv.Itoa(3+i) {
			t.Fatal(got)
		}
	}
	if d := time.Since(begun); d < 150*time.Millisecond {
		t.Fatalf("held for only %v", d)
	}
}

func countHeld(p *Proxy) int {
	n := 0
	for _, s := range p.everybody() {
		if s.vis.held.Load() {
			n++
		}
	}
	return n
}

func TestIdleClientsAreDisconnected(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Idle = time.Second })
	idle, busy, sub, popper := s.client(), s.client(), s.client(), s.client()
	idle.want("PONG", "PING")
	sub.want("*3 $9 subscribe $1 a :1", "SUBSCRIBE", "a")
	popper.send("BLPOP", "l", "0")
	waitFor(t, "the idle one is gone", func() bool { busy.want("PONG", "PING"); return s.p.Stats().Clients == 3 })
	if !closed(idle) {
		t.Fatal("it is another one")
	}
	busy.want("1", "RPUSH", "l", "x")
	if got := popper.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
	busy.want("1", "PUBLISH", "a", "hi")
}

func TestClientsMustIntroduceThemselvesInTime(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Handshake, o.Password = time.Second, "secret" })
	s.nodes[0].do(t, "CONFIG", "SET", "requirepass", "secret")
	silent, knocker, known := s.client(), s.client(), s.client()
	known.want("OK", "AUTH", "secret")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			if _, err := knocker.c.Write(resp.AppendCommand(nil, "PING")); err != nil { // activity is no introduction
				return
			}
			if _, err := knocker.frame(); err != nil {
				return
			}
		}
	}()
	if !closed(silent) {
		t.Fatal("a silent client stays")
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("a client without password stays")
	}
	known.want("PONG", "PING")
}

func TestTheSoftLimitOfUntakenReplies(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.OutputSoft, o.Limits.OutputTime = 1<<20, time.Second })
	c, slow := s.client(), s.client()
	c.want("OK", "SET", "big", strings.Repeat("x", 1<<20))
	conn, err := net.Dial("tcp", s.p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	for range 16 {
		_, _ = conn.Write(resp.AppendCommand(nil, "GET", "big"))
	}
	slow.want("PONG", "PING")
	waitFor(t, "it is shown", func() bool { return regexp.MustCompile(`oll=1 omem=\d{7,} `).MatchString(c.do("CLIENT", "LIST")) })
	waitFor(t, "the slow one is gone", func() bool { return s.p.Stats().Clients == 2 })
	_, _ = bufio.NewReader(conn).ReadByte()
}
