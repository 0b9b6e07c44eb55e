// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"redoubt/internal/clock"
	"redoubt/internal/resp"
	"redoubt/internal/view"
)

func TestAUnixSocketServesAsAPortDoes(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "redoubt") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, ro := filepath.Join(dir, "s"), filepath.Join(dir, "ro")
	newShard(t, 0, func(_ *spec, o *Options) { o.Listen, o.ListenReadonly, o.SocketMode = "unix:"+path, "unix:"+ro, 0o660 })
	info, err := os.Stat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket || info.Mode().Perm() != 0o660 {
		t.Fatal(info.Mode(), err)
	}
	dial := func(path string) *wire {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return &wire{t: t, c: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	}
	c := dial(path)
	big := strings.Repeat("x", 4<<20)
	c.want("OK", "SET", "a", big)
	if got := c.do("GET", "a"); got != big {
		t.Fatalf("%d bytes", len(got))
	}
	l := fields(t, c.do("CLIENT", "LIST"))[0]
	if l["addr"] != path+":0" || l["laddr"] != path+":0" || l["flags"] != "U" {
		t.Fatal(l)
	}
	c.send("BLPOP", "l", "0")
	dial(path).want("1", "RPUSH", "l", "x")
	if got := c.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
	dial(ro).want("-"+errReadonly, "SET", "a", "b")
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: path})
	defer rdb.Close()
	if err := rdb.Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAUnixSocketTakesThePlaceOfADeadOneOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if len(dir) > 90 {
		t.Skip("the directory's name is too long")
	}
	path := filepath.Join(dir, "s")
	left, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	if _, err := listenAt("unix:"+path, 0); err == nil || !strings.Contains(err.Error(), "already listens") {
		t.Fatal(err)
	}
	_ = left.Close()
	l, err := listenAt("unix:"+path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatal(info, err)
	}
	_ = l.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatal("the socket is left behind", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenAt("unix:"+path, 0); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Fatal(err)
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here")
	} else {
		_ = l.Close()
	}
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Listen = "[::1]:0" })
	c := s.client()
	c.want("OK", "SET", "a", "b")
	l := fields(t, c.do("CLIENT", "LIST"))[0]
	if l["addr"] != c.c.LocalAddr().String() || l["laddr"] != s.p.Addr().String() || !strings.HasPrefix(l["addr"], "[::1]:") {
		t.Fatal(l)
	}
	c.want("1", "CLIENT", "KILL", "ADDR", l["addr"], "SKIPME", "no")
}

func header(t *testing.T, version byte, from, to string) []byte {
	t.Helper()
	addr := func(s string) *net.TCPAddr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	b, err := proxyproto.HeaderProxyFromAddrs(version, addr(from), addr(to)).Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheProxyProtocolTellsTheClientsAddress(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.ProxyProtocol, o.ListenReadonly = HeaderRequired, "127.0.0.1:0" })
	ping := resp.AppendCommand(nil, "PING")
	local := []byte(headerV2 + "\x20\x00\x00\x00")
	for i, h := range [][]byte{header(t, 2, "192.0.2.7:1234", "198.51.100.1:6379"), header(t, 1, "192.0.2.7:1234", "198.51.100.1:6379"), header(t, 2, "[2001:db8::7]:99", "[2001:db8::1]:6379"), local, []byte("PROXY UNKNOWN\r\n")} {
		for _, cut := range []int{0, 1, 12, 15, len(h) - 1, len(h)} {
			cut = min(cut, len(h))
			c := dialWire(t, []string{s.p.Addr().String(), s.p.ReadonlyAddr().String()}[cut%2])
			parts := [][]byte{h[:cut], append(bytes.Clone(h[cut:]), ping...)}
			for _, part := range parts {
				if _, err := c.c.Write(part); err != nil {
					t.Fatal(err)
				}
				if len(part) > 0 && &part[0] == &h[0] {
					waitFor(t, "the part to be read", func() bool { return unread(t, c) == 0 })
				}
			}
			if got := c.recv(); got != "PONG" {
				t.Fatalf("header %d cut at %d: %q", i, cut, got)
			}
			want := [...]string{"192.0.2.7:1234", "192.0.2.7:1234", "[2001:db8::7]:99", c.c.LocalAddr().String(), c.c.LocalAddr().String()}[i]
			if got := fields(t, c.do("CLIENT", "INFO"))[0]["addr"]; got != want {
				t.Fatalf("header %d: %s, want %s", i, got, want)
			}
			if i < 3 {
				c.want("1", "CLIENT", "KILL", "ADDR", want, "SKIPME", "no")
			}
		}
	}
}

// unread returns how many bytes the other side's kernel has not acknowledged.
func unread(t *testing.T, c *wire) int {
	t.Helper()
	raw, err := c.c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n = outq(int(fd)) })
	return n
}

func TestBadProxyHeadersEndTheConnection(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.ProxyProtocol = HeaderRequired })
	ping := string(resp.AppendCommand(nil, "PING"))
	for _, bad := range []string{
		ping, "PING\r\n", "PROXY \r\n" + ping, "PROXY TCP4 1.1.1.1 2.2.2.2 x y\r\n" + ping, "PROXY " + strings.Repeat("x", 200), headerV2 + "\x21\x11\xff\xff",
		headerV2 + "\x21\x11\x00\x04abcd" + ping, headerV2 + "\x31\x11\x00\x0cabcdabcdabcd" + ping, "\r\n\r\nPING\r\n",
	} {
		c := s.client()
		if _, err := c.c.Write([]byte(bad)); err != nil {
			t.Fatal(err)
		}
		_ = c.c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := c.r.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%q: got %q, %v", bad, b, err)
		}
	}
	trickle := s.client()
	_, _ = trickle.c.Write([]byte(headerV2[:5]))
	begun := time.Now()
	_ = trickle.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(trickle.r); err != nil && strings.Contains(err.Error(), "timeout") || time.Since(begun) > 8*time.Second {
		t.Errorf("half a header is kept for %v: %v", time.Since(begun), err)
	}
}

func TestAnOptionalProxyHeaderIsOptional(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.ProxyProtocol = HeaderOptional })
	for _, first := range []string{"*1\r\n$4\r\nPING\r\n", "PING\r\n", "\r\nPING\r\n"} {
		c := s.client()
		for i := range len(first) { // one by one: P and CR could begin a header
			_, _ = c.c.Write([]byte{first[i]})
			waitFor(t, "it is read", func() bool { return unread(t, c) == 0 })
		}
		if got := c.recv(); got != "PONG" {
			t.Fatalf("%q: %q", first, got)
		}
	}
	c := s.client()
	_, _ = c.c.Write(append(header(t, 2, "192.0.2.7:1", "192.0.2.8:2"), resp.AppendCommand(nil, "CLIENT", "INFO")...))
	if l := fields(t, c.recv())[0]; l["addr"] != "192.0.2.7:1" || l["laddr"] != "192.0.2.8:2" {
		t.Fatal(l)
	}
	if _, err := New(Options{View: &view.View{}, Clock: clock.Real{}, ID: "p", Listen: "127.0.0.1:0", ProxyProtocol: "yes"}); err == nil {
		t.Fatal("an unknown policy is accepted")
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte(headerV2 + "\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02"))
	f.Add([]byte("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n*1\r\n"))
	f.Add([]byte("PROXY TCP6 ::1 ::2 1 2\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := measure(b)
		if n > len(b) || n > headerMax || n > 0 && err != nil || n == 0 && err == nil && len(b) > headerMax {
			t.Fatal(n, err)
		}
		if n > 0 {
			s := &session{sock: &sock{}}
			if s.believe(b[:n]) == nil {
				_ = fmt.Sprint(s.vis.far, s.vis.near)
			}
		}
	})
}

func outq(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return -1
	}
	return n
}
