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

	mu   sync.Mutex
	shut bool
	kept bytes.Buffer
	to   net.Conn // whose replies are kept
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
			wg.Go(func() { pass(c, s.Write); _ = s.Close() })
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
	if !r.shut {
		return c.Write(b)
	}
	r.to = c
	return r.kept.Write(b)
}

// hold keeps replies back from now on.
func (r *relay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
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
	r.shut = false
	if _, err := r.to.Write(r.kept.Next(r.kept.Len())); err != nil {
		t.Fatal(err)
	}
}
