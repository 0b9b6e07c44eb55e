// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/proxy"
	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/test/ports"
)

// until polls a condition.
func until(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; <-time.After(2 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// startServer starts a plain server and returns its address.
func startServer(t testing.TB, args ...string) string {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed")
	}
	port := ports.Free(t)
	if tryServer(t, bin, strconv.Itoa(port), t.TempDir(), args) {
		return "127.0.0.1:" + strconv.Itoa(port)
	}
	t.Fatal("redis-server did not start")
	return ""
}

// startAt starts a server at a port, with its data in dir.
func startAt(t testing.TB, port int, dir string, args ...string) string {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed")
	}
	if !tryServer(t, bin, strconv.Itoa(port), dir, args) {
		t.Fatal("redis-server did not start")
	}
	return "127.0.0.1:" + strconv.Itoa(port)
}

// tryServer starts a server until the test ends, and reports whether it answers.
func tryServer(t testing.TB, bin, port, dir string, args []string) bool {
	t.Helper()
	cmd := exec.Command(bin, append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--enable-debug-command", "yes",
		"--logfile", filepath.Join(t.TempDir(), "log")}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { _ = cmd.Wait(); close(gone) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-gone })
	ended := func() bool {
		select {
		case <-gone:
			return true
		default:
			return false
		}
	}
	up := until(10*time.Second, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil || ended()
	})
	return up && !ended()
}

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// placeOver is a placement for tests.
func placeOver(n int) func([]byte) int {
	return func(key []byte) int {
		h := fnv.New32a()
		if open := strings.IndexByte(string(key), '{'); open >= 0 {
			if length := strings.IndexByte(string(key[open+1:]), '}'); length > 0 {
				key = key[open+1 : open+1+length]
			}
		}
		_, _ = h.Write(key)
		return int(h.Sum32()>>3) % n
	}
}

// keyOn returns a key of a shard.
func keyOn(n, shard int, prefix string) string {
	place := placeOver(n)
	for i := 0; ; i++ {
		if k := prefix + strconv.Itoa(i); place([]byte(k)) == shard {
			return k
		}
	}
}

// loops are what drives connections in a member, too.
type loops struct{ *proxy.Engine }

func (l loops) Take(conn net.Conn, loop int, event func()) (Stream, error) {
	return l.Engine.Take(conn, loop, event)
}

// runLoops runs two loops until the test ends.
func runLoops(t testing.TB) loops {
	t.Helper()
	e, err := proxy.NewEngine(2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = e.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	return loops{e}
}

// front runs a Front until the test ends.
func runFront(t testing.TB, shards []Shard, change ...func(*Options)) *Front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Shards: shards, Place: placeOver(len(shards)), Listener: l, Loops: runLoops(t), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, c := range change {
		c(&o)
	}
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = f.Run(ctx); close(done) }()
	t.Cleanup(func() {
		stop()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("the front did not end")
		}
	})
	return f
}

// servers starts plain servers and a front of them, which has the servers' own table of commands. With REDOUBT_SHARDS, addresses
// between commas, the shards are those.
func servers(t testing.TB, n int, change ...func(*Options)) (*Front, []string) {
	t.Helper()
	var shards []Shard
	var addrs []string
	given := strings.Split(os.Getenv("REDOUBT_SHARDS"), ",")
	for i := range n {
		if given[0] != "" && len(given) >= n {
			addrs = append(addrs, given[i])
			dial(t, given[i]).want("+OK\r\n", "FLUSHALL")
		} else {
			addrs = append(addrs, startServer(t))
		}
		shards = append(shards, Shard{Name: "s" + strconv.Itoa(i), Dial: dialer(addrs[i])})
	}
	table, ok := route.FromCommand([]byte(dial(t, addrs[0]).do("COMMAND")))
	if !ok {
		t.Fatal("the server's table cannot be read")
	}
	change = append([]func(*Options){func(o *Options) { o.Table = func() *route.Table { return table } }}, change...)
	return runFront(t, shards, change...), addrs
}

// wire is a client.
type wire struct {
	t    testing.TB
	conn net.Conn
	buf  []byte
	scan resp.Scanner
}

func dial(t testing.TB, addr string) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{t: t, conn: conn}
}

func (f *Front) client(t testing.TB) *wire { return dial(t, f.Addr().String()) }

func (w *wire) send(args ...string) { w.raw(string(resp.AppendCommand(nil, args...))) }

func (w *wire) raw(text string) {
	w.t.Helper()
	if _, err := w.conn.Write([]byte(text)); err != nil {
		w.t.Fatalf("write: %v", err)
	}
}

// next returns the next reply or push as it is on the wire.
func (w *wire) next() string {
	w.t.Helper()
	f, err := w.try(10 * time.Second)
	if err != nil {
		w.t.Fatalf("no reply: %v; %q", err, w.buf[:min(len(w.buf), 200)])
	}
	return f
}

func (w *wire) try(limit time.Duration) (string, error) {
	chunk := make([]byte, 64<<10)
	for {
		if len(w.buf) > 0 {
			n, err := w.scan.Next(w.buf)
			if err != nil {
				return "", err
			}
			if n > 0 {
				f := string(w.buf[:n])
				w.buf = w.buf[n:]
				return f, nil
			}
		}
		_ = w.conn.SetReadDeadline(time.Now().Add(limit))
		n, err := w.conn.Read(chunk)
		w.buf = append(w.buf, chunk[:n]...)
		if err != nil {
			return "", err
		}
	}
}

func (w *wire) do(args ...string) string {
	w.t.Helper()
	w.send(args...)
	return w.next()
}

// want compares the reply to a command, given as its words.
func (w *wire) want(reply, command string) {
	w.t.Helper()
	if got := w.do(strings.Fields(command)...); got != reply {
		w.t.Fatalf("%s: %q, want %q", command, got, reply)
	}
}

// ended reports whether the other side ends the connection.
func (w *wire) ended() error {
	_ = w.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := w.conn.Read(make([]byte, 1))
	if err == io.EOF || strings.Contains(fmt.Sprint(err), "reset") {
		return nil
	}
	return fmt.Errorf("the connection is still open: %v", err)
}

func bulk(s string) string { return string(resp.AppendBulk(nil, s)) }
