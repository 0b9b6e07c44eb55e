// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// relay stands between the proxy and a server and can keep the server's replies back.
type relay struct {
	addr string

	mu     sync.Mutex
	awaits []byte   // the first connection that sends this is held
	to     net.Conn // whose replies are kept
	kept   bytes.Buffer
}

func newRelay(t *testing.T, server string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String()}
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server)
			if err != nil {
				_ = c.Close()
				continue
			}
			conns.Store(c, nil)
			conns.Store(s, nil)
			wg.Go(func() { pass(c, func(b []byte) (int, error) { r.command(c, b); return s.Write(b) }); _ = s.Close() })
			wg.Go(func() { pass(s, func(b []byte) (int, error) { return r.reply(c, b) }); _ = c.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return r
}

func pass(from net.Conn, write func([]byte) (int, error)) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) reply(c net.Conn, b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != c {
		return c.Write(b)
	}
	return r.kept.Write(b)
}

func (r *relay) command(c net.Conn, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.awaits != nil && bytes.Contains(b, r.awaits) {
		r.to, r.awaits = c, nil
	}
}

// hold keeps the replies back of the connection that sends such a command.
func (r *relay) hold(command string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.awaits = []byte("\r\n" + command + "\r\n")
}

// has reports whether as many lines are kept.
func (r *relay) has(lines int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Count(r.kept.Bytes(), []byte("\n")) >= lines
}

// line lets one line through.
func (r *relay) line(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := r.kept.ReadBytes('\n')
	if err != nil {
		t.Fatal("no reply is kept")
	}
	if _, err := r.to.Write(b); err != nil {
		t.Fatal(err)
	}
}

// open lets everything through.
func (r *relay) open(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.to.Write(r.kept.Next(r.kept.Len())); err != nil {
		t.Fatal(err)
	}
	r.to = nil
}
