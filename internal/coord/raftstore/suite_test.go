// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/test/ports"
)

func TestMain(m *testing.M) {
	if os.Getenv(memberEnv) != "" {
		runMember()
		return
	}
	goleak.VerifyTestMain(m)
}

// party is a store of several members in this process.
type party struct {
	t       testing.TB
	members []coord.Member
	opts    []Options
	stores  []*Store
	nets    []*network
}

// network is one member's connection to the rest. It can be cut (connections break) or held (nothing arrives, nothing
// breaks, as if packets were dropped).
type network struct {
	mu    sync.Mutex
	cut   bool
	held  chan struct{} // not nil while held; closed when released
	conns map[*testConn]struct{}
}

type testConn struct {
	net.Conn
	n *network
}

func (n *network) wrap(c net.Conn) net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := &testConn{c, n}
	if n.cut {
		_ = c.Close()
	}
	n.conns[t] = struct{}{}
	return t
}

func (n *network) setCut(cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	for c := range n.conns {
		if cut {
			_ = c.Conn.Close()
		}
	}
}

func (n *network) hold(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if on {
		n.held = make(chan struct{})
		return
	}
	if n.held != nil {
		close(n.held)
		n.held = nil
	}
}

// wait blocks while the network is held. What was held is delivered after the release, late.
func (n *network) wait() {
	n.mu.Lock()
	held := n.held
	n.mu.Unlock()
	if held != nil {
		<-held
	}
}

func (c *testConn) Read(b []byte) (int, error) {
	k, err := c.Conn.Read(b)
	c.n.wait()
	return k, err
}

func (c *testConn) Write(b []byte) (int, error) {
	c.n.wait()
	return c.Conn.Write(b)
}

func (c *testConn) Close() error {
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("STORE_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

func newParty(t testing.TB, n int) *party {
	p := &party{t: t}
	for i := range n {
		p.members = append(p.members, coord.Member{ID: fmt.Sprint("m", i+1), Addr: ports.Addr(t)})
	}
	dir := t.TempDir()
	for _, m := range p.members {
		p.nets = append(p.nets, &network{conns: map[*testConn]struct{}{}})
		p.opts = append(p.opts, Options{ID: m.ID, ListenAddr: m.Addr, Dir: filepath.Join(dir, m.ID), Bootstrap: p.members, Log: testLog(t)})
		p.opts[len(p.opts)-1].wrap = p.nets[len(p.nets)-1].wrap
	}
	p.stores = make([]*Store, n)
	for i := range p.members {
		p.open(i)
	}
	t.Cleanup(p.close)
	return p
}

func (p *party) open(i int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := Open(ctx, p.opts[i])
	if err != nil {
		p.t.Fatalf("open %s: %v", p.members[i].ID, err)
	}
	p.stores[i] = s
}

func (p *party) close() {
	for _, n := range p.nets {
		n.hold(false)
	}
	for i, s := range p.stores {
		if s != nil {
			if err := s.Close(); err != nil {
				p.t.Errorf("close %s: %v", p.members[i].ID, err)
			}
		}
		p.stores[i] = nil
	}
}

// controller returns the index of the member that is in office and that the others know.
func (p *party) controller(except ...int) int {
	p.t.Helper()
	found := -1
	coordtest.Until(p.t, "there is a controller", func() bool {
		for i, s := range p.stores {
			if s != nil && s.reign.Load() != nil && (len(except) == 0 || i != except[0]) {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

func (p *party) other(i int) int { return (i + 1) % len(p.stores) }

func startSuite(t testing.TB, n int) *coordtest.Cluster {
	p := newParty(t, n)
	c := &coordtest.Cluster{}
	for i, s := range p.stores {
		c.IDs = append(c.IDs, p.members[i].ID)
		c.Stores = append(c.Stores, s)
	}
	c.Depose = func(_ testing.TB, id string) {
		for i, m := range p.members {
			if m.ID == id {
				p.nets[i].setCut(true)
			}
		}
	}
	return c
}

func TestRaftstoreKeepsTheContract(t *testing.T) {
	coordtest.Run(t, startSuite)
}

func TestRaftstoreWorksWithFiveMembers(t *testing.T) {
	p := newParty(t, 5)
	coordtest.Put(t, p.stores[0], "k", "v")
	for _, s := range p.stores {
		doc, err := s.Get(context.Background(), "k")
		if err != nil || string(doc.Value) != "v" {
			t.Fatalf("read %q, %v", doc.Value, err)
		}
	}
}
