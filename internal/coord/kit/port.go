// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// The bounds of a port.
const (
	ConnsMax     = 1024            // further connections are refused
	HelloTimeout = 2 * time.Second // for a stranger to say who it is
	acceptPause  = 20 * time.Millisecond
)

// ErrPortClosed: this process closed its port.
var ErrPortClosed = fmt.Errorf("members' port: %w", net.ErrClosed)

// Port is a member's one TCP port, and all connections that came in or went out through it. Safe for concurrent use.
type Port struct {
	// Wrap stands between the port and each of its connections, for tests that cut and hold them; nil: nothing does. It is set
	// before the first connection.
	Wrap func(net.Conn) net.Conn
	ln   net.Listener

	mu     sync.Mutex
	closed bool
	conns  map[*Conn]struct{}
	wg     sync.WaitGroup
}

// Conn is a connection that its port closes when it is closed itself.
type Conn struct {
	net.Conn
	p    *Port
	once sync.Once
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.p.mu.Lock()
		delete(c.p.conns, c)
		c.p.mu.Unlock()
	})
	return c.Conn.Close()
}

// OpenPort listens on addr.
func OpenPort(addr string) (*Port, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the other members on %s: %w", addr, err)
	}
	return &Port{ln: ln, conns: map[*Conn]struct{}{}}, nil
}

// Addr is the address that the port listens on.
func (p *Port) Addr() string { return p.ln.Addr().String() }

// Serve accepts connections until the port is closed, and gives each to serve in a goroutine that Wait waits for.
func (p *Port) Serve(log *slog.Logger, serve func(*Conn)) {
	p.wg.Go(func() {
		for {
			c, err := p.ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // too many files are open, or the peer is gone already
				log.Warn("accept a member's connection", "err", err)
				<-time.After(acceptPause)
				continue
			}
			if t, err := p.track(c); err == nil {
				p.wg.Go(func() { serve(t) })
			}
		}
	})
}

func (p *Port) track(c net.Conn) (*Conn, error) {
	if p.Wrap != nil {
		c = p.Wrap(c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= ConnsMax {
		return nil, errors.Join(ErrPortClosed, c.Close())
	}
	t := &Conn{Conn: c, p: p}
	p.conns[t] = struct{}{}
	return t, nil
}

// Dial opens a connection to another member's port.
func (p *Port) Dial(ctx context.Context, addr string, timeout time.Duration) (*Conn, error) {
	c, err := (&net.Dialer{Timeout: timeout, KeepAlive: time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return p.track(c)
}

// Wait returns when nobody serves a connection any more. Close comes first.
func (p *Port) Wait() { p.wg.Wait() }

// Close cuts every connection.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	open := make([]*Conn, 0, len(p.conns))
	for c := range p.conns {
		open = append(open, c)
	}
	p.mu.Unlock()
	err := p.ln.Close()
	for _, c := range open {
		_ = c.Close()
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
