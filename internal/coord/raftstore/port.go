// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// port is the one TCP port: it sorts incoming connections by their first byte, and dials. For Raft it implements
// raft.StreamLayer. A Raft connection begins with a hello as well, so that a process of another deployment, or one that
// took over an address, is never counted as somebody's majority.
type port struct {
	s    *Store
	ln   net.Listener
	raft chan *conn

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
	wg     sync.WaitGroup // of accepting and serving
	inRaft sync.WaitGroup // of the connections that package raft accepted and has not closed yet
}

// accepted is a connection that package raft handles. Its handlers may write terms to disk, and package raft does not
// wait for them when it shuts down; they close their connection as the last thing that they do.
type accepted struct {
	*conn
	once sync.Once
}

// Close implements net.Conn.
func (a *accepted) Close() error {
	err := a.conn.Close()
	a.once.Do(a.conn.p.inRaft.Done)
	return err
}

// conn is a connection that the port closes when it is closed itself.
type conn struct {
	net.Conn
	p    *port
	once sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.p.mu.Lock()
		delete(c.p.conns, c)
		c.p.mu.Unlock()
	})
	return c.Conn.Close()
}

const (
	connsMax     = 1024            // further connections are refused
	helloTimeout = 2 * time.Second // for a stranger to say who it is
	writeTimeout = 2 * time.Second // a peer that takes nothing for so long is cut off
)

var errPortClosed = fmt.Errorf("store port: %w", net.ErrClosed)

func openPort(s *Store, addr string) (*port, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for store traffic on %s: %w", addr, err)
	}
	return &port{s: s, ln: ln, raft: make(chan *conn), conns: map[*conn]struct{}{}}, nil
}

// start accepts connections until the port is closed.
func (p *port) start() {
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		for {
			c, err := p.ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of descriptors, or the peer is gone already
				p.s.log.Warn("accept a store connection", "err", err)
				p.s.pause(p.s.ctx, nil, retry)
				continue
			}
			if tracked, err := p.track(c); err == nil {
				p.wg.Add(1)
				go func() {
					defer p.wg.Done()
					p.sort(tracked)
				}()
			}
		}
	}()
}

func (p *port) track(c net.Conn) (*conn, error) {
	if p.s.opts.wrap != nil {
		c = p.s.opts.wrap(c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= connsMax {
		return nil, errors.Join(errPortClosed, c.Close())
	}
	t := &conn{Conn: c, p: p}
	p.conns[t] = struct{}{}
	return t, nil
}

// sort reads who calls and hands the connection to Raft or serves it.
func (p *port) sort(c *conn) {
	_ = c.SetDeadline(time.Now().Add(helloTimeout))
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		_ = c.Close()
		return
	}
	switch first[0] {
	case dialMember:
		p.s.serve(c)
	case dialPeer:
		p.s.serveAsks(c)
	case dialRaft:
		// Read unbuffered: what follows the hello belongs to Raft.
		hello, err := readFrame(bufio.NewReaderSize(oneByOne{c}, 16), helloMax)
		if err == nil {
			err = p.s.checkRaft(hello)
		}
		if err != nil {
			p.s.log.Warn("refused a raft connection", "from", c.RemoteAddr().String(), "err", err)
			_ = c.Close()
			return
		}
		_ = c.SetDeadline(time.Time{})
		select {
		case p.raft <- c:
		case <-p.s.ctx.Done():
			_ = c.Close()
		}
	default:
		_ = c.Close()
	}
}

// oneByOne keeps a buffered reader from reading ahead.
type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }

// dial opens a connection of the given kind and says who we are; target is the member we mean, "" when unknown.
func (p *port) dial(first byte, addr, target string, timeout time.Duration) (*conn, error) {
	c, err := (&net.Dialer{Timeout: timeout, KeepAlive: time.Second}).DialContext(p.s.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	t, err := p.track(c)
	if err != nil {
		return nil, err
	}
	what := kindHello
	if first == dialMember && target == joinTarget {
		what, target = kindJoin, ""
	}
	hello := p.s.hello(what, target)
	_ = t.SetDeadline(time.Now().Add(timeout))
	if _, err := t.Write(append([]byte{first}, hello.encode()...)); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	_ = t.SetDeadline(time.Time{})
	return t, nil
}

// joinTarget stands for "any member, I want to join"; no member id contains a zero byte first.
const joinTarget = "\x00join"

// greeting is what the caller says in its hello. Empty fields are unknown and not compared.
type greeting struct {
	deployment string
	seat       string // directory of the caller
	target     string // member that the call is for
	targetSeat string // directory that the target must have
}

func (s *Store) hello(k kind, target string) frame {
	s.disk.mu.Lock()
	me := s.disk.me
	s.disk.mu.Unlock()
	return greeting{me.Store, me.Seat, target, s.machine.seat(target)}.frame(k, me.Member, s.advertise)
}

func (h greeting) frame(k kind, member, addr string) frame {
	b := appendBytes(appendBytes(nil, h.deployment), h.seat)
	return frame{Kind: k, Key: member, Text: addr, Value: appendBytes(appendBytes(b, h.target), h.targetSeat)}
}

// checkHello refuses callers of another deployment and calls that are meant for another member, or for this member as it
// was before its directory was lost: a member that forgot its votes and its log must not count towards a majority.
func (s *Store) checkHello(f frame) (greeting, error) {
	d := decoder{data: f.Value}
	h := greeting{string(d.bytes()), string(d.bytes()), string(d.bytes()), string(d.bytes())}
	if err := d.finish("hello"); err != nil || f.Kind != kindHello && f.Kind != kindJoin || f.Key == "" || h.seat == "" {
		return h, errors.Join(errFrame, err)
	}
	s.disk.mu.Lock()
	me := s.disk.me
	s.disk.mu.Unlock()
	switch {
	case h.target != "" && h.target != me.Member:
		return h, fmt.Errorf("the call of %s is for member %q, this is %q; check the addresses of the members", f.Key, h.target, me.Member)
	case h.deployment != "" && me.Store != "" && h.deployment != me.Store:
		return h, fmt.Errorf("%s belongs to deployment %s, this member to %s; check the addresses and data directories", f.Key, h.deployment, me.Store)
	case h.targetSeat != "" && h.targetSeat != me.Seat:
		return h, fmt.Errorf("%s knows this member with another data directory: it lost its data and must be removed before it joins again", f.Key)
	}
	return h, nil
}

// checkRaft is checkHello for Raft's connections, whose votes and entries a member that lost its data must not send.
func (s *Store) checkRaft(f frame) error {
	h, err := s.checkHello(f)
	if seat := s.machine.seat(f.Key); err == nil && seat != "" && seat != h.seat {
		return fmt.Errorf("%s has another data directory than before: it lost its data and must be removed before it joins again", f.Key)
	}
	return err
}

// Accept implements net.Listener for Raft.
func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.raft:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			return nil, errPortClosed // Close cut the connection
		}
		p.inRaft.Add(1)
		return &accepted{conn: c}, nil
	case <-p.s.ctx.Done():
		return nil, errPortClosed
	}
}

// Addr implements net.Listener: the address that other members use.
func (p *port) Addr() net.Addr { return advertised(p.s.advertise) }

type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// Dial implements raft.StreamLayer.
func (p *port) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	r := p.s.raft.Load()
	if r == nil {
		return nil, errors.New("store is starting")
	}
	target := ""
	for _, m := range r.GetConfiguration().Configuration().Servers {
		if m.Address == addr {
			target = string(m.ID)
		}
	}
	return p.dial(dialRaft, string(addr), target, min(timeout, p.s.opts.Timing.Election))
}

// Close implements net.Listener: it cuts every connection. Package raft may call it too.
func (p *port) Close() error {
	p.mu.Lock()
	p.closed = true
	open := make([]*conn, 0, len(p.conns))
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
