// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/resp"
)

// fake is a shard without a server: what it says to a command is up to the test.
type fake struct {
	mu     sync.Mutex                         // guards what follows
	answer func(conn net.Conn, args []string) // nil: +OK
	heard  []string

	conns atomic.Int32
}

// dial gives the other end of a connection that takes very little before it is read.
func (k *fake) dial(context.Context) (net.Conn, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, 4<<10); err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "fake")
		defer f.Close()
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
	}
	near, far := ends[0], ends[1]
	k.conns.Add(1)
	go k.serve(far)
	return near, nil
}

func (k *fake) serve(conn net.Conn) {
	defer k.conns.Add(-1)
	defer conn.Close()
	var buf []byte
	var p resp.Parser
	chunk := make([]byte, 64<<10)
	for {
		n, err := p.Next(buf, resp.Limits{})
		if err != nil {
			return
		}
		if n == 0 {
			m, err := conn.Read(chunk)
			if err != nil {
				return
			}
			buf = append(buf, chunk[:m]...)
			continue
		}
		var args []string
		for _, a := range p.Args {
			args = append(args, string(a))
		}
		buf = buf[n:]
		k.mu.Lock()
		k.heard = append(k.heard, strings.Join(args, " "))
		answer := k.answer
		k.mu.Unlock()
		switch {
		case args[0] == "CLIENT":
			_, err = conn.Write([]byte(":77\r\n"))
		case answer != nil:
			answer(conn, args)
		default:
			_, err = conn.Write([]byte("+OK\r\n"))
		}
		if err != nil {
			return
		}
	}
}

// says changes what it answers.
func (k *fake) says(answer func(net.Conn, []string)) {
	k.mu.Lock()
	k.answer = answer
	k.mu.Unlock()
}

func (k *fake) commands() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(k.heard, ";")
}

// fakes are two shards; keys that begin with b live on the second one.
func fakes(t *testing.T, change ...func(*Options)) (*Front, *fake, *fake) {
	a, b := &fake{}, &fake{}
	f := runFront(t, []Shard{{Name: "a", Dial: a.dial}, {Name: "b", Dial: b.dial}}, append([]func(*Options){func(o *Options) {
		o.Place = func(key []byte) int {
			if bytes.HasPrefix(key, []byte("b")) {
				return 1
			}
			if bytes.HasPrefix(key, []byte("nowhere")) {
				return -1
			}
			return 0
		}
	}}, change...)...)
	return f, a, b
}

func says(text string) func(net.Conn, []string) {
	return func(c net.Conn, _ []string) { _, _ = c.Write([]byte(text)) }
}

func TestRepliesKeepTheOrderOfTheCommands(t *testing.T) {
	t.Parallel()
	f, a, b := fakes(t)
	late := make(chan struct{})
	a.says(func(c net.Conn, _ []string) { <-late; says("$1\r\na\r\n")(c, nil) })
	b.says(says("$1\r\nb\r\n"))
	w := f.client(t)
	w.raw("GET a\r\nGET b\r\nPING\r\nGET b\r\nGET a\r\n")
	if !until(5*time.Second, func() bool { return strings.Count(b.commands(), "GET b") == 2 }) {
		t.Fatal("the second shard is not asked meanwhile")
	}
	close(late)
	for _, want := range []string{"$1\r\na\r\n", "$1\r\nb\r\n", "+PONG\r\n", "$1\r\nb\r\n", "$1\r\na\r\n"} {
		if got := w.next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if got := w.do("GET", "nowhere"); got != "-"+noShard+"\r\n" {
		t.Fatal(got)
	}
	if got := w.do("MGET", "a", "nowhere"); got != "-"+noShard+"\r\n" {
		t.Fatal(got)
	}
}

func TestAnErrorOfOneShardIsTheAnswer(t *testing.T) {
	t.Parallel()
	f, a, b := fakes(t)
	w := f.client(t)
	for _, c := range []struct{ command, a, b, want string }{
		{"MGET a b", "*1\r\n$1\r\nx\r\n", "-ERR b\r\n", "-ERR b\r\n"},
		{"MGET b a b", "*1\r\n$1\r\nx\r\n", "*2\r\n$-1\r\n$1\r\ny\r\n", "*3\r\n$-1\r\n$1\r\nx\r\n$1\r\ny\r\n"},
		{"MGET b a b", "*1\r\n$1\r\nx\r\n", "*1\r\n$-1\r\n", "-ERR a shard answered for fewer keys than it was asked for\r\n"},
		{"MSET a 1 b 2", "+OK\r\n", "-OOM b\r\n", "-OOM b\r\n"},
		{"DEL a b", "-ERR a\r\n", "-ERR b\r\n", "-ERR a\r\n"},
		{"DEL a b", ":1\r\n", ":2\r\n", ":3\r\n"},
		{"FLUSHALL", "+OK\r\n", "-ERR b\r\n", "-ERR b\r\n"},
		{"KEYS *", "*1\r\n$1\r\nx\r\n", "*0\r\n", "*1\r\n$1\r\nx\r\n"},
		{"SCRIPT KILL", "-NOTBUSY a\r\n", "+OK\r\n", "+OK\r\n"},
		{"SCRIPT KILL", "-NOTBUSY a\r\n", "-NOTBUSY b\r\n", "-NOTBUSY a\r\n"},
		{"SCAN 0", "*2\r\n$16\r\n9007199254740991\r\n*0\r\n", "", "*2\r\n$19\r\n9223372036854774784\r\n*0\r\n"},
		{"SCAN 9223372036854774785", "", "*2\r\n$16\r\n9007199254740991\r\n*0\r\n", "*2\r\n$19\r\n9223372036854774785\r\n*0\r\n"},
		{"SCAN 0", "*2\r\n$16\r\n9007199254740992\r\n*0\r\n", "", "-ERR shard a gave a cursor that is too large\r\n"},
		{"SCAN 0", "*2\r\n$1\r\n0\r\n*0\r\n", "", "*2\r\n$1\r\n1\r\n*0\r\n"},
		{"SCAN 1", "", "*2\r\n$1\r\n0\r\n*0\r\n", "*2\r\n$1\r\n0\r\n*0\r\n"},
		{"RANDOMKEY", ":0\r\n", ":0\r\n", "$-1\r\n"},
		{"DBSIZE", ":5\r\n", ":7\r\n", ":12\r\n"},
	} {
		a.says(says(c.a))
		b.says(says(c.b))
		w.want(c.want, c.command)
	}
}

func TestALongReplyPassesInBoundedMemory(t *testing.T) {
	const size, ahead, held = 32 << 20, 1 << 20, 1 << 20
	f, a, b := fakes(t, func(o *Options) { o.Limits.Ahead, o.Limits.Held = ahead, held })
	var sent atomic.Int64
	value := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	long := func(c net.Conn, args []string) {
		if strings.HasPrefix(args[1], "small") {
			says("+small\r\n")(c, nil)
			return
		}
		says("*2\r\n$33554432\r\n")(c, nil)
		for range size / len(value) {
			n, err := c.Write(value)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
		says("\r\n:1\r\n")(c, nil)
	}
	a.says(long)
	b.says(long)
	w := f.client(t)
	for _, key := range []string{"along", "blong"} { // at the head of the queue, and behind a slower one
		sent.Store(0)
		first := "GET small\r\n"
		if key == "blong" {
			a.says(func(net.Conn, []string) {}) // never answers
			first = "GET asilent\r\n"
		}
		w.raw(first + "LRANGE " + key + " 0 1\r\n")
		most := int64(ahead + held + 16<<20) // sockets take up to that
		if key == "blong" {
			most = held + 1<<20
		}
		still := int64(-1)
		if !until(20*time.Second, func() bool { now := sent.Load(); ok := now > 0 && now == still; still = now; return ok }) {
			t.Fatal("the shard goes on")
		}
		if still > most {
			t.Fatalf("%d bytes were taken from the shard for a client that takes none", still)
		}
		if key == "along" {
			if got := w.next(); got != "+small\r\n" {
				t.Fatal(got)
			}
			if got := w.next(); len(got) != size+len("*2\r\n$33554432\r\n\r\n:1\r\n") {
				t.Fatalf("%d bytes", len(got))
			}
			if got := w.do("GET", "small"); got != "+small\r\n" {
				t.Fatalf("%.100q", got)
			}
		}
	}
}

func TestAClientThatReadsNothingBeforeItHasSaidAll(t *testing.T) {
	t.Parallel()
	f, a, b := fakes(t, func(o *Options) { o.Limits.Pipeline = 1000 })
	value := bulk(strings.Repeat("v", 4000))
	a.says(says(value))
	b.says(says(value))
	w := f.client(t)
	const n = 6000 // 24 MB of replies, more commands than the limit of unanswered ones
	sent := make(chan error, 1)
	go func() {
		_, err := w.conn.Write([]byte(strings.Repeat("GET a\r\nGET b\r\nMGET b\r\n", n/2)))
		sent <- err
	}()
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("it is not read from")
	}
	for i := range n {
		if got := w.next(); got != value {
			t.Fatalf("reply %d: %.100q", i, got)
		}
	}
}

func TestAClientThatTakesNothingIsDisconnected(t *testing.T) {
	t.Parallel()
	f, a, _ := fakes(t, func(o *Options) { o.Limits.Output = 1 << 20 })
	a.says(says(bulk(strings.Repeat("v", 10_000))))
	w := f.client(t)
	go func() { _, _ = w.conn.Write([]byte(strings.Repeat("GET a\r\n", 10_000))) }()
	if !until(20*time.Second, func() bool { return f.Stats().Clients == 0 && a.conns.Load() == 0 }) {
		t.Fatal("it is still there")
	}
}

func TestAReplyThatIsPutTogetherIsBounded(t *testing.T) {
	f, a, b := fakes(t, func(o *Options) { o.Limits.Output = 1 << 20 })
	a.says(says("*1\r\n" + bulk(strings.Repeat("v", 600_000))))
	b.says(says("*1\r\n" + bulk(strings.Repeat("v", 600_000))))
	w := f.client(t)
	w.want("-"+tooLong+"\r\n", "KEYS *")
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
}

func TestLimitsAreTheServers(t *testing.T) {
	t.Parallel()
	f, a, _ := fakes(t, func(o *Options) {
		o.Limits.Clients, o.Limits.Query, o.Limits.Bulk, o.Limits.Pipeline = 2, 100_000, 1000, 10
	})
	w, second := f.client(t), f.client(t)
	w.want("+PONG\r\n", "PING")
	second.want("+PONG\r\n", "PING")
	third := f.client(t)
	if got := third.next(); got != "-ERR max number of clients reached\r\n" {
		t.Fatal(got)
	}
	w.raw("*2\r\n$3\r\nGET\r\n$1001\r\n")
	if got := w.next(); got != "-ERR Protocol error: invalid bulk length\r\n" {
		t.Fatal(got)
	}
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
	a.says(func(net.Conn, []string) {})
	second.raw(strings.Repeat("GET a\r\n", 100))
	if !until(5*time.Second, func() bool { return strings.Count(a.commands(), "GET a") >= 10 }) {
		t.Fatal(a.commands())
	}
	if n := strings.Count(a.commands(), "GET a"); n > 100 {
		t.Fatal(n)
	}
	w = f.client(t)
	w.raw("*200\r\n" + strings.Repeat("$1000\r\n"+strings.Repeat("x", 1000)+"\r\n", 110))
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
}

func TestAConnectionThatEndsEndsItsClient(t *testing.T) {
	t.Parallel()
	f, _, b := fakes(t)
	w, other := f.client(t), f.client(t)
	other.want("+OK\r\n", "SET b 1")
	b.says(func(c net.Conn, _ []string) { _ = c.Close() })
	w.want("-OUTCOMEUNKNOWN the connection to shard b ended before it answered; it may or may not have been applied\r\n", "SET b 1")
	if err := w.ended(); err != nil {
		t.Fatal(err)
	}
	other.want("+OK\r\n", "SET a 1")
	var conn atomic.Value
	b.says(func(c net.Conn, _ []string) { conn.Store(c); says("+OK\r\n")(c, nil) })
	other.want("+OK\r\n", "SET b 1")
	_ = conn.Load().(net.Conn).Close() // nothing is on its way: the next command opens another one
	if !until(5*time.Second, func() bool { return b.conns.Load() == 0 }) {
		t.Fatal("the connection is still there")
	}
	other.want("+OK\r\n", "SET b 1")
	other.want("+OK\r\n", "WATCH b")
	_ = conn.Load().(net.Conn).Close()
	if got := other.next(); !strings.HasPrefix(got, "-ERR the connection to shard b ended") {
		t.Fatal(got)
	}
}

func TestAShardThatCannotBeReachedIsNamed(t *testing.T) {
	t.Parallel()
	f, a, _ := fakes(t, func(o *Options) {
		o.Shards[1].Dial = func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }
	})
	w := f.client(t)
	for _, command := range []string{"SET b 1", "MSET a 1 b 2", "FLUSHALL", "RANDOMKEY", "CLIENT TRACKING ON", "PSUBSCRIBE x"} {
		w.want("-TRYAGAIN the command was not executed: shard b cannot be reached\r\n", command)
	}
	w.want("+OK\r\n", "SET a 1")
	if got := a.commands(); strings.Contains(got, "MSET") || strings.Contains(got, "FLUSHALL") || strings.Contains(got, "PSUBSCRIBE") {
		t.Fatal(got)
	}
}

func TestSilentClientsAndStrangersAreDisconnected(t *testing.T) {
	t.Parallel()
	f, _, b := fakes(t, func(o *Options) { o.Limits.Idle = time.Second })
	b.says(func(net.Conn, []string) {})
	silent, waiting := f.client(t), f.client(t) // who waits for something is not silent
	silent.want("+OK\r\n", "SET a 1")
	waiting.send("BLPOP", "bsilent", "0")
	if err := silent.ended(); err != nil {
		t.Fatal(err)
	}
	if !until(5*time.Second, func() bool { return f.Stats().Clients == 1 }) { // its end is seen before it is counted
		t.Fatalf("%d clients", f.Stats().Clients)
	}
	f, _, _ = fakes(t, func(o *Options) { o.Limits.Handshake, o.Password = time.Second, "secret" })
	stranger, known := f.client(t), f.client(t)
	known.want("+OK\r\n", "AUTH secret")
	if err := stranger.ended(); err != nil {
		t.Fatal(err)
	}
	known.want("+PONG\r\n", "PING")
	known.raw("POST / HTTP/1.1\r\nHost: x\r\n\r\nFLUSHALL\r\n")
	if err := known.ended(); err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("front", func(t *testing.T) {
		f, a, b := fakes(t)
		b.says(func(net.Conn, []string) {})
		for i := range 20 {
			w := f.client(t)
			w.want("+OK\r\n", "SET a 1")
			switch i % 4 {
			case 0:
				w.send("BLPOP", "b", "0")
			case 1:
				w.send("GET", "b")
			case 2:
				_ = w.conn.Close()
			}
		}
		if !until(5*time.Second, func() bool { return f.Stats().Clients == 15 && a.conns.Load() == 15 }) {
			t.Fatalf("%d clients, %d connections", f.Stats().Clients, a.conns.Load())
		}
	})
	if !until(10*time.Second, func() bool { return runtime.NumGoroutine() <= before }) {
		buf := make([]byte, 1<<20)
		t.Fatalf("%d goroutines were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
	}
}

func TestWrongOptionsAreNamed(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{Shards: []Shard{{Name: "a"}, {Name: "a"}}, Limits: Limits{Query: -1}}); err == nil ||
		strings.Count(err.Error(), "front: ") != 6 {
		t.Fatal(err)
	}
}

// A write that one shard carried out and another refused is neither done nor not done.
func TestAWriteThatIsRefusedInPartHasAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	f, a, b := fakes(t)
	w := f.client(t)
	w.want("+OK\r\n", "SET a 1")
	refuse := func(c net.Conn, _ []string) { _, _ = c.Write([]byte("-TRYAGAIN the command was not executed\r\n")) }
	b.says(refuse)
	w.want("-OUTCOMEUNKNOWN a part of the command was carried out by its shard, another one was refused: TRYAGAIN the command was not executed\r\n", "MSET a 1 b 2")
	w.want("-TRYAGAIN the command was not executed\r\n", "MGET a b")
	a.says(refuse)
	w.want("-TRYAGAIN the command was not executed\r\n", "MSET a 1 b 2")
}
