// SPDX-License-Identifier: Apache-2.0

// Package sentinel is a face that speaks Redis Sentinel's protocol, so that clients which expect Sentinels find the
// primary and follow a switch.
//
// It is not a Sentinel: it watches no server, votes for nobody and keeps no state. Its invariant: addresses come from the
// agreed document (and from members' own reports), never from looking at servers, so that it cannot disagree with the
// rest of Redoubt. Goroutines, all inside Run: one that accepts, one that follows the view of each master, one that refreshes the
// reports, one that starts scripts and one for each that runs, and two for each connection.
package sentinel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/view"
)

// Mode says which addresses clients are told.
type Mode string

// The two answer modes.
const (
	// ModeProxy answers the address of a proxy, which stays when the primary changes. Nothing switches from a client's
	// point of view, so no +switch-master is published.
	ModeProxy Mode = "proxy"
	// ModeDirect answers the primary's own address, as Sentinel does.
	ModeDirect Mode = "direct"
)

// The bounds of the face.
const (
	clientsMax    = 10_000           // further connections get the server's own error and are closed
	queueMax      = 256              // replies and messages waiting for one client; a subscriber beyond that is cut
	argumentMax   = 64 << 10         // bytes of one argument
	inputMax      = 1 << 20          // bytes of one command
	subscribedMax = 1024             // channels and patterns of one client
	writeMax      = 10 * time.Second // a client that takes nothing for so long is cut
	refreshBusy   = 300 * time.Millisecond
	refreshIdle   = 2 * time.Second
)

// Master is what clients know under one name.
type Master struct {
	Name  string // what clients call it
	Mode  Mode   // default ModeProxy
	View  *view.View
	Beats coord.Beats
	// Failover hands in a switchover and returns when it was recorded; its error is shown to the client. nil: refused.
	Failover func(ctx context.Context) error
}

// Options are what the face needs. Listen, Masters, Member and Clock are required.
type Options struct {
	Listen    string
	Listener  net.Listener // in place of Listen: one that an earlier process opened
	Advertise string       // own address as others reach it; default: where it listens
	Masters   []Master     // at least one, each with another name
	Member    string       // this member's id
	ProxyAddr string       // this member's proxy as clients reach it; empty: that of another member
	Username  string       // beside the default user; empty: none
	Password  string       // that clients must send; empty: none
	Announce  []Announce   // for clients that cannot reach what others can
	Resolve   bool         // clients are told IP addresses in place of names
	Scripts   Scripts
	Version   string // of Redoubt
	Clock     clock.Clock
	Log       *slog.Logger
	// Voters returns how many members the store has; nil: as many as report.
	Voters func() int
}

// Server is the face.
type Server struct {
	o       Options
	ln      net.Listener
	log     *slog.Logger
	began   time.Duration
	runID   string
	hub     hub
	masters []*master
	scripts *scripts
	asked   chan struct{} // wakes the refresh: the first client after a quiet time
	nextID  atomic.Int64
	wg      sync.WaitGroup

	resolved atomic.Pointer[map[string]string] // names and their addresses
	commands atomic.Int64
	rejected atomic.Int64
}

// New listens on o.Listen and returns the face; nothing is answered before Run.
func New(o Options) (*Server, error) {
	if len(o.Masters) == 0 || o.Clock == nil || o.Member == "" {
		return nil, errors.New("sentinel: Masters, Clock and Member are required")
	}
	for i := range o.Masters {
		m := &o.Masters[i]
		m.Mode = cmp.Or(m.Mode, ModeProxy)
		if m.View == nil || m.Beats == nil || m.Name == "" {
			return nil, errors.New("sentinel: each master needs View, Beats and Name")
		}
		if m.Mode != ModeProxy && m.Mode != ModeDirect {
			return nil, fmt.Errorf("sentinel: mode %q: use %s or %s", m.Mode, ModeProxy, ModeDirect)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ln := o.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("listen for Sentinel clients on %s: %w", o.Listen, err)
		}
	}
	if o.Advertise == "" {
		o.Advertise = ln.Addr().String()
	}
	s := &Server{o: o, ln: ln, log: o.Log, began: o.Clock.Uptime(), asked: make(chan struct{}, 1), scripts: newScripts(o.Scripts, o.Clock, o.Log)}
	s.runID = s.idOf(o.Member)
	s.hub.sessions = map[*session]struct{}{}
	for _, m := range o.Masters {
		x := &master{Master: m, s: s}
		x.reports.Store(&reports{})
		s.masters = append(s.masters, x)
	}
	return s, nil
}

// Addr returns where the face listens.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// File returns a copy of the listening socket, for another process. The caller closes it.
func (s *Server) File() (*os.File, error) {
	l, ok := s.ln.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("hand over the Sentinel port: %T has no descriptor", s.ln)
	}
	return l.File()
}

// Run serves until ctx ends, and returns when all connections are closed.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.refresh(ctx)
	accepted := make(chan error, 1)
	s.wg.Go(func() { accepted <- s.accept(ctx) })
	s.wg.Go(func() { s.refreshLoop(ctx) })
	s.wg.Go(func() { s.scripts.run(ctx) })
	for _, m := range s.masters {
		s.wg.Go(func() { m.follow(ctx) })
	}
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-accepted:
	}
	cancel()
	s.ln.Close()
	s.hub.closeAll()
	s.wg.Wait()
	return err
}

func (s *Server) accept(ctx context.Context) error {
	backoff := 5 * time.Millisecond
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept Sentinel clients: %w", err)
			}
			s.log.Warn("accept a Sentinel client", "err", err, "again_in", backoff)
			select { // out of file descriptors, most likely: it passes
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(backoff):
			}
			backoff = min(backoff*2, time.Second)
			continue
		}
		backoff = 5 * time.Millisecond
		se := s.session(conn)
		if !s.hub.add(se) {
			s.rejected.Add(1)
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write([]byte("-ERR max number of clients reached\r\n"))
			conn.Close()
			continue
		}
		select {
		case s.asked <- struct{}{}:
		default:
		}
		s.wg.Add(2)
		go func() { defer s.wg.Done(); se.write() }()
		go func() { defer s.wg.Done(); se.read(ctx) }()
	}
}
