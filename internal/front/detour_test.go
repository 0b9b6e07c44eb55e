// SPDX-License-Identifier: Apache-2.0

package front

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/proxy"
	"redoubt/internal/slots"
)

// startCluster starts two shards of a cluster behind proxies, of which the second one has taken the slot of b (3300) from the first.
// The slot map lies behind.
func startCluster(t *testing.T, within time.Duration) (m *member, now *atomic.Pointer[slots.Map]) {
	t.Helper()
	now = &atomic.Pointer[slots.Map]{}
	now.Store(slots.Even("s0", "s1"))
	m = startMember(t, 2, func(o *Options, p *proxy.Options) {
		o.Cluster, o.Limits.Redirect, p.Cluster = &Cluster{Map: now.Load}, within, true
	})
	for _, a := range []string{m.addrs[1], m.addrs[0]} {
		dial(t, a).want("+OK\r\n", "CLUSTER SETSLOT 3300 NODE "+idOf("s1"))
	}
	return m, now
}

// detours returns how many clients have a command on a detour.
func (f *Front) detours() (n int) {
	for _, c := range f.all() {
		c.mu.Lock()
		if c.turned {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// Commands on a detour hold up what their clients say next, whoever drives them, and nobody else.
func TestADetourThroughProxies(t *testing.T) {
	t.Parallel()
	m, now := startCluster(t, time.Minute)
	const clients = 8
	var turned []*wire
	for i := range clients {
		w := m.client(t)
		if i%2 == 1 {
			w.do("HELLO", "3")
		}
		w.want("+OK\r\n", "SET f 1")
		w.send("APPEND", "b", "x")
		turned = append(turned, w)
	}
	if !until(10*time.Second, func() bool { return m.detours() == clients }) {
		t.Fatalf("%d are on a detour", m.detours())
	}
	for i, w := range turned {
		switch i % 4 {
		case 0:
			w.raw("GET f\r\nGET f\r\nGET f\r\n") // by the loop
		case 1:
			w.raw("MULTI\r\nGET f\r\nEXEC\r\n") // by a goroutine
		case 2:
			w.raw("MGET f a\r\nECHO x\r\nDBSIZE\r\n")
		case 3:
			w.raw("CLIENT GETNAME\r\nBLPOP {f}l 0.01\r\nDEL f a\r\n")
		}
	}
	other := m.client(t)
	for i := range 500 {
		other.want("+OK\r\n", "SET f "+strconv.Itoa(i))
	}
	for _, w := range turned {
		if got, err := w.try(10 * time.Millisecond); err == nil {
			t.Fatalf("%q was given before its turn", got)
		}
	}
	now.Store(now.Load().With(3300, "s1"))
	sum := 0
	for _, w := range turned {
		n, err := strconv.Atoi(strings.Trim(w.next(), ":\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
		for range 3 {
			if got := w.next(); got[0] == '-' && !strings.HasPrefix(got, "-1") {
				t.Errorf("%q", got)
			}
		}
		if got := w.do("GET", "b"); got != bulk(strings.Repeat("x", clients)) && n == clients {
			t.Errorf("%q", got)
		}
	}
	if sum != clients*(clients+1)/2 { // each exactly once
		t.Errorf("the lengths add up to %d", sum)
	}
}

// A client that is disconnected, or a front that ends, waits for no detour.
func TestADetourEndsWithItsClient(t *testing.T) {
	t.Parallel()
	m, _ := startCluster(t, time.Hour)
	w, other := m.client(t), m.client(t)
	id := strings.Trim(w.do("CLIENT", "ID"), ":\r\n")
	w.raw("SET b 1\r\n")
	if !until(10*time.Second, func() bool { return m.detours() == 1 }) {
		t.Fatal("there is no detour")
	}
	other.want(":1\r\n", "CLIENT KILL ID "+id)
	if !until(5*time.Second, func() bool { return m.Stats().Clients == 1 }) {
		t.Fatal("the client is still there")
	}
	other.raw("SET b 1\r\n") // the front ends meanwhile, and its end is waited for
	if !until(10*time.Second, func() bool { return m.detours() == 1 }) {
		t.Fatal("there is no detour")
	}
}

// A reply that is larger than what is read at once, or than what a connection in memory takes, comes whole.
func TestALongReplyByADetour(t *testing.T) {
	t.Parallel()
	m, now := startCluster(t, time.Minute)
	long := strings.Repeat("0123456789", 100_000)
	dial(t, m.addrs[1]).do("SET", "b", long)
	w := m.client(t)
	w.send("GET", "b")
	if !until(10*time.Second, func() bool { return m.detours() == 1 }) {
		t.Fatal("there is no detour")
	}
	now.Store(now.Load().With(3300, "s1"))
	if got := w.next(); got != bulk(long) {
		t.Fatalf("%d bytes", len(got))
	}
	w.want("+PONG\r\n", "PING")
}
