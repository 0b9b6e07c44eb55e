// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// cable stands between the proxy and one server. It can keep back what goes in either direction, lose connections on the
// proxy's side only, and deliver what it kept afterwards.
type cable struct {
	addr   string
	server string

	mu       sync.Mutex
	requests bool // are kept back
	replies  bool
	pairs    map[*pair]struct{}
}

type pair struct {
	near, far net.Conn // towards the proxy, towards the server
	kept      []byte   // requests
	gone      bool     // near was cut; far lives on
}

func newCable(t *testing.T, server string) *cable {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{addr: ln.Addr().String(), server: server, pairs: map[*pair]struct{}{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				_ = near.Close()
				continue
			}
			p := &pair{near: near, far: far}
			c.mu.Lock()
			c.pairs[p] = struct{}{}
			c.mu.Unlock()
			wg.Go(func() { pass(near, func(b []byte) (int, error) { return c.request(p, b) }); c.end(p) })
			wg.Go(func() { pass(far, func(b []byte) (int, error) { return c.reply(p, b) }); _ = near.Close() })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		c.mu.Lock()
		for p := range c.pairs {
			_ = p.near.Close()
			_ = p.far.Close()
		}
		c.mu.Unlock()
		wg.Wait()
	})
	return c
}

func (c *cable) request(p *pair, b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests || len(p.kept) > 0 { // a connection's bytes stay in their order, also those that were read just before a cut
		p.kept = append(p.kept, b...)
		return len(b), nil
	}
	return p.far.Write(b)
}

func (c *cable) reply(p *pair, b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replies || p.gone {
		return len(b), nil // lost with the connection
	}
	return p.near.Write(b)
}

// end closes the server's side, unless bytes are still on their way to it.
func (c *cable) end(p *pair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p.kept) == 0 {
		_ = p.far.Close()
	}
}

func (c *cable) hold(requests, replies bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.replies = requests, replies
}

// kept reports whether something of the text is on its way to the server.
func (c *cable) kept(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.pairs {
		if strings.Contains(string(p.kept), text) {
			return true
		}
	}
	return false
}

// cut breaks all connections on the proxy's side; new ones work. What was kept can be delivered later.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.replies = false, false
	for p := range c.pairs {
		p.gone = true
		_ = p.near.Close()
	}
}

// deliver sends what was kept, to servers that may have ended those connections.
func (c *cable) deliver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.pairs {
		_, _ = p.far.Write(p.kept)
		p.kept = nil
	}
}

// tally is clients that increment a key each and know exactly what it must be.
type tally struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	want   map[string]int
	wrong  string
	lost   int // replies that said APPLIED
	wild   int // unknown outcomes
	passes int
}

func startCounters(s *shard, clients int) *tally {
	l := &tally{stop: make(chan struct{}), want: map[string]int{}}
	for id := range clients {
		c, key := s.client(), "n"+strconv.Itoa(id)
		l.wg.Go(func() { l.one(c, key) })
	}
	return l
}

func (l *tally) one(c *wire, key string) {
	n := 0
	for {
		select {
		case <-l.stop:
			l.mu.Lock()
			l.want[key] = n
			l.mu.Unlock()
			return
		default:
		}
		v, err := c.try("INCR", key)
		l.mu.Lock()
		switch {
		case err == nil:
			if n++; v != strconv.Itoa(n) && l.wrong == "" {
				l.wrong = fmt.Sprintf("%s is %s after %d increments", key, v, n)
			}
		case strings.HasPrefix(err.Error(), "APPLIED "):
			n++
			l.lost++
		default:
			l.wild++
			if l.wrong == "" {
				l.wrong = err.Error()
			}
		}
		l.passes++
		broken := l.wrong != ""
		l.mu.Unlock()
		if broken {
			return
		}
	}
}

func (l *tally) more(t *testing.T, n int) {
	t.Helper()
	l.mu.Lock()
	from := l.passes
	l.mu.Unlock()
	waitFor(t, "more traffic", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.passes >= from+n || l.wrong != "" })
}

func (l *tally) end(t *testing.T, s *shard) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	if l.wrong != "" {
		t.Fatal(l.wrong)
	}
	c := s.client()
	for key, n := range l.want {
		c.want(strconv.Itoa(n), "GET", key)
	}
	st := s.p.Stats()
	t.Logf("%d increments, %d answered APPLIED, %d sent again, %d unknown", l.passes, l.lost, st.Replayed, st.Unknown)
	if l.wild > 0 || st.Unknown > 0 || st.Applied != uint64(l.lost) {
		t.Fatalf("%d unknown outcomes; %d of %d APPLIED arrived", st.Unknown, l.lost, st.Applied)
	}
}
