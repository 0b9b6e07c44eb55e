// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Taking over what another process had (ADR 0016).

// Port is a listening socket on its way to another process.
type Port struct {
	Addr string // as configured
	File *os.File
}

// Ports returns copies of the listening sockets, which go on listening when this proxy ends. The caller closes them.
func (p *Proxy) Ports() ([]Port, error) {
	var ports []Port
	for _, x := range []struct {
		l    listener
		addr string
	}{{p.rw, p.o.Listen}, {p.ro, p.o.ListenReadonly}} {
		if x.l == nil {
			continue
		}
		c, err := duplicate(x.l, nil)
		if err != nil {
			for _, port := range ports {
				_ = port.File.Close()
			}
			return nil, err
		}
		ports = append(ports, Port{Addr: x.addr, File: os.NewFile(uintptr(c.fd), x.addr)})
	}
	return ports, nil
}

// GaveAway notes that another process listens on the ports from now on: Unix sockets stay when this proxy ends.
func (p *Proxy) GaveAway() {
	for _, l := range []listener{p.rw, p.ro} {
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
	}
}

// inherit makes a listener of a socket that another process listened on.
func inherit(f *os.File) (listener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over a listening socket: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(true)
	}
	own, ok := l.(listener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("take over a listening socket: %T has no descriptor", l)
	}
	return own, nil
}

// portOf returns the listener for an address: one that was inherited, or a new one.
func (o *Options) portOf(addr string) (listener, error) {
	for _, p := range o.Inherited {
		if p.Addr == addr {
			return inherit(p.File)
		}
	}
	return listenAt(addr, o.SocketMode)
}

// LastID returns the highest id that a client has had.
func (p *Proxy) LastID() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastID
}

// Adopt goes on with a client that another proxy has given away. It owns the descriptors from now on, also when it fails.
// Run must have been called.
func (p *Proxy) Adopt(g Given) error { return p.adopt(g, false) }

func (p *Proxy) adopt(g Given, stays bool) error {
	<-p.running
	if g.Client < 0 {
		closeAll(g.Upstream)
		return errors.New("a client came without its socket")
	}
	if err := unix.SetNonblock(g.Client, true); err != nil {
		closeAll(g.Client, g.Upstream)
		return os.NewSyscallError("fcntl", err)
	}
	c := &sock{fd: g.Client, far: g.Record.Far, door: g.Record.Door}
	_, err := p.readmit(c, g, stays)
	return err
}

// readmit goes on with a client at this end of its connection. It owns the descriptors from now on, also when it fails.
func (p *Proxy) readmit(c *sock, g Given, stays bool) (*session, error) {
	r := g.Record
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.ctx.Err()
	if err == nil && p.sessions[r.ID] != nil {
		err = fmt.Errorf("there is a client %d already", r.ID)
	}
	if err != nil {
		closeAll(g.Client, g.Upstream)
		return nil, err
	}
	p.lastID = max(p.lastID, r.ID)
	if c.loop == nil {
		c.loop = p.loops[r.ID%uint64(len(p.loops))]
	}
	s := newSession(p, c, r.ID, r.Readonly)
	p.restoreSession(s, r)
	s.huge = stays
	p.sessions[s.id] = s
	p.wg.Add(1) // until s.end
	if r.Own != nil {
		p.adoptLane(s, r.Own, g.Upstream)
	} else {
		closeAll(g.Upstream)
	}
	c.loop.post(s.resume)
	return s, nil
}

// closeAll closes descriptors; negative ones are none.
func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func (p *Proxy) restoreSession(s *session, r *Record) {
	now := p.tick.Load()
	s.born = time.Now().Add(-time.Duration(r.AgeMS) * time.Millisecond)
	s.proto, s.db, s.authed, s.user, s.pass = r.Proto, r.DB, r.Authed, string(r.User), string(r.Pass)
	s.protoA.Store(int32(r.Proto))
	s.dbA.Store(int32(r.DB))
	s.quiet, s.skip, s.multi, s.poison, s.lax = r.Quiet, r.Skip, r.Multi, r.Poison, r.Lax
	s.name, s.lib, s.libVer = r.Name, r.Lib, r.LibVer
	s.vis.user, s.vis.far, s.vis.near = string(r.Shown), r.SaidFar, r.SaidOur
	s.vis.noEvict.Store(r.NoEvict)
	s.vis.noTouch.Store(r.NoTouch)
	s.vis.seen.Store(now - r.IdleS)
	s.vis.due.Store(0)
	if r.DueS > 0 {
		s.vis.due.Store(now + r.DueS)
	}
	if args := lastCommand(r); args != nil {
		s.show(p.table.Load().Classify(args).Row, args)
	}
	s.preface, s.begun = r.Preface, r.Begun
	s.wrote.Store(r.Wrote)
	s.wroteAt.Store(r.WroteAt)
	s.buf, s.r, s.w = r.Input, 0, len(r.Input)
	if r.Maint {
		p.herald.resumed(s, r.Told)
	}
}

// resumed goes on with telling a client of another process: numbers never go back.
func (h *herald) resumed(s *session, told int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq = max(h.seq, told)
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	s.maint.Store(true)
	s.told = h.seq
	if h.away {
		s.push(h.frame())
	}
}

// resume is the first thing that the loop does with a client that was taken over.
func (s *session) resume() {
	if s.begin(); s.over {
		return
	}
	s.out.flush()
	if s.lane != nil || s.w > s.r && s.preface == HeaderOff {
		s.drive() // it gives the client back when there is no need for it
	}
}

// adoptLane gives the session the own connection that it had, or one in the same state; the caller holds p.mu.
func (p *Proxy) adoptLane(s *session, own *Own, upstream int) {
	key := poolKey{proto: s.proto, db: s.db, readonly: s.ro, own: true, user: s.user, password: s.pass}
	l := p.newLane(key, int(s.id))
	l.own = s
	l.st.restoreFrom(own)
	s.lane = l
	if k := l.adoptLink(own.Upstream, upstream); k != nil {
		l.link = k
		p.startLane(l)
		go k.read()
		return
	}
	l.st.died(nil)
	p.startLane(l)
}

func (st *state) restoreFrom(own *Own) {
	st.watch, st.lost, st.monitor, st.tracking, st.caching, st.db = own.Watch, own.Lost, own.Monitor, own.Tracking, flagsOf(own.Caching), own.DB
	for kind, names := range own.Subs {
		if len(names) > 0 {
			st.subs[kind] = map[string]struct{}{}
		}
		for _, name := range names {
			st.subs[kind][string(name)] = struct{}{}
		}
	}
	if t := own.Txn; t != nil {
		st.txn = &txn{log: t.Log, answered: len(t.Log), broken: t.Broken, caching: flagsOf(t.Caching), db: t.DB}
	}
}

// adoptLink goes on with an upstream connection of the present tenure; nil: it is of no use.
func (l *lane) adoptLink(up *Upstream, fd int) *link {
	if fd < 0 {
		return nil
	}
	f := os.NewFile(uintptr(fd), "upstream")
	defer f.Close()
	t := l.p.order.Load().t
	if up == nil || t == nil || uint64(t.epoch) != up.Epoch || t.addr != up.Addr || t.runID != up.Process || t.history != up.History || string(t.node) != up.Node {
		return nil
	}
	conn, err := net.FileConn(f)
	if err != nil {
		l.p.log.Warn("take over an upstream connection", "addr", up.Addr, "err", err)
		return nil
	}
	k := &link{
		l: l, to: target{t: t, node: t.node, addr: t.addr}, conn: conn, done: make(chan struct{}), buf: make([]byte, max(readBuffer, 2*len(up.Input))),
		clientID: up.ClientID, runID: up.RunID, mark: markOf(up.RunID),
	}
	k.w = copy(k.buf, up.Input)
	k.idle.Store(true)
	return k
}

// copyOf returns another descriptor of an own connection.
func (k *link) copyOf() (int, error) {
	sc, ok := k.conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("%T has no descriptor", k.conn)
	}
	c, err := duplicate(sc, nil)
	if err != nil {
		return -1, err
	}
	return c.fd, nil
}

// Scripts returns the bodies of the scripts that clients have used.
func (p *Proxy) Scripts() [][]byte {
	p.lore.mu.Lock()
	defer p.lore.mu.Unlock()
	return slices.Collect(maps.Values(p.lore.scripts))
}

// Learn remembers a script that another process knew.
func (p *Proxy) Learn(script []byte) { p.lore.script(script) }

// lastCommand splits what CLIENT LIST shows.
func lastCommand(r *Record) [][]byte {
	if r.Last == "" {
		return nil
	}
	args := [][]byte{[]byte(strings.ToUpper(r.Last))}
	if r.LastSub != "" {
		args = append(args, []byte(r.LastSub))
	}
	return args
}
