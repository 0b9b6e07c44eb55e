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

	"redoubt/internal/coord/kit"
)

// port is the one TCP port: it sorts incoming connections by their first byte, and dials. For Raft it implements
// raft.StreamLayer. A Raft connection begins with a hello as well, so that a process of another deployment, or one that
// took over an address, is never counted as somebody's majority.
type port struct {
	*kit.Port
	s    *Store
	raft chan *kit.Conn

	mu     sync.Mutex // guards closed
	closed bool
	inRaft sync.WaitGroup // of the connections that package raft accepted and has not closed yet
}

// accepted is a connection that package raft handles. Its handlers may write terms to disk, and package raft does not
// wait for them when it shuts down; they close their connection as the last thing that they do.
type accepted struct {
	*kit.Conn
	p    *port
	once sync.Once
}

// Close implements net.Conn.
func (a *accepted) Close() error {
	err := a.Conn.Close()
	a.once.Do(a.p.inRaft.Done)
	return err
}

// dialRaft begins a connection for package raft; package kit has the others.
const dialRaft = 'R'

func openPort(s *Store, addr string) (*port, error) {
	in, err := kit.OpenPort(addr)
	if err != nil {
		return nil, err
	}
	in.Wrap = s.opts.wrap
	return &port{Port: in, s: s, raft: make(chan *kit.Conn)}, nil
}

// start accepts connections until the port is closed.
func (p *port) start() { p.Serve(p.s.log, p.sort) }

// sort reads who calls and hands the connection to Raft or serves it.
func (p *port) sort(c *kit.Conn) {
	_ = c.SetDeadline(time.Now().Add(kit.HelloTimeout))
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		_ = c.Close()
		return
	}
	switch first[0] {
	case kit.DialMember:
		p.s.serve(c)
	case kit.DialPeer:
		p.s.serveAsks(c)
	case dialRaft:
		// Read unbuffered: what follows the hello belongs to Raft.
		hello, err := kit.ReadFrame(bufio.NewReaderSize(oneByOne{c}, 16), kit.HelloMax)
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
func (p *port) dial(first byte, addr, target string, timeout time.Duration) (*kit.Conn, error) {
	t, err := p.Port.Dial(p.s.ctx, addr, timeout)
	if err != nil {
		return nil, err
	}
	what, rev := kit.KindHello, uint64(0)
	switch {
	case first == kit.DialMember && target == joinTarget:
		what, target = kit.KindJoin, ""
	case first == kit.DialMember && target == risesTarget:
		what, target, rev = kit.KindJoin, "", caughtUp
	}
	hello := p.s.hello(what, target)
	hello.Rev = rev
	_ = t.SetDeadline(time.Now().Add(timeout))
	if _, err := t.Write(append([]byte{first}, hello.Encode()...)); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	_ = t.SetDeadline(time.Time{})
	return t, nil
}

// joinTarget stands for "any member, I want to join"; no member id contains a zero byte first.
const joinTarget = "\x00join"

// risesTarget is the same for the second half: "and I have what the others have".
const risesTarget = "\x00rise"

// greeting is what the caller says in its hello. Empty fields are unknown and not compared.
type greeting struct {
	deployment string
	seat       string // directory of the caller
	target     string // member that the call is for
	targetSeat string // directory that the target must have
}

func (s *Store) hello(k kit.Kind, target string) kit.Frame {
	s.disk.mu.Lock()
	me := s.disk.me
	s.disk.mu.Unlock()
	return greeting{me.Store, me.Seat, target, s.machine.seat(target)}.frame(k, me.Member, s.advertise)
}

func (h greeting) frame(k kit.Kind, member, addr string) kit.Frame {
	b := kit.Append(kit.Append(nil, h.deployment), h.seat)
	return kit.Frame{Kind: k, Key: member, Text: addr, Value: kit.Append(kit.Append(b, h.target), h.targetSeat)}
}

// checkHello refuses callers of another deployment and calls that are meant for another member, or for this member as it
// was before its directory was lost: a member that forgot its votes and its log must not count towards a majority.
func (s *Store) checkHello(f kit.Frame) (greeting, error) {
	d := kit.NewDecoder(f.Value)
	h := greeting{string(d.Bytes()), string(d.Bytes()), string(d.Bytes()), string(d.Bytes())}
	if err := d.Finish("hello"); err != nil || f.Kind != kit.KindHello && f.Kind != kit.KindJoin || f.Key == "" || h.seat == "" {
		return h, errors.Join(kit.ErrFrame, err)
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
func (s *Store) checkRaft(f kit.Frame) error {
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
			return nil, kit.ErrPortClosed // Close cut the connection
		}
		p.inRaft.Add(1)
		return &accepted{Conn: c, p: p}, nil
	case <-p.s.ctx.Done():
		return nil, kit.ErrPortClosed
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
	p.mu.Unlock()
	return p.Port.Close()
}
