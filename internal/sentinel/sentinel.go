// SPDX-License-Identifier: Apache-2.0

// Package sentinel is a face that speaks Redis Sentinel's protocol, so that clients which expect Sentinels find the
// primary and follow a switch.
//
// It is not a Sentinel: it watches no server, votes for nobody and keeps no state. Its invariant: addresses come from the
// agreed document (and from members' own reports), never from looking at servers, so that it cannot disagree with the
// rest of Redoubt. Goroutines, all inside Run: one that accepts, one that follows the view, one that refreshes the
// reports, and two for each connection.
package sentinel

import (
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

// Options are what the face needs. Listen, Name, Member, View, Beats and Clock are required.
type Options struct {
	Listen    string
	Listener  net.Listener // in place of Listen: one that an earlier process opened
	Advertise string       // own address as others reach it; default: where it listens
	Name      string       // what clients call the deployment
	Mode      Mode         // default ModeProxy
	Member    string       // this member's id
	ProxyAddr string       // this member's proxy as clients reach it; empty: that of another member
	Password  string       // that clients must send; empty: none
	Version   string       // of Redoubt
	View      *view.View
	Beats     coord.Beats
	Clock     clock.Clock
	Log       *slog.Logger
	// Voters returns how many members the store has; nil: as many as report.
	Voters func() int
	// Failover hands in a switchover and returns when it was recorded; its error is shown to the client. nil: refused.
	Failover func(ctx context.Context) error
}

// Server is the face.
type Server struct {
	o       Options
	ln      net.Listener
	log     *slog.Logger
	began   time.Duration
	runID   string
	hub     hub
	reports atomic.Pointer[reports]
	asked   chan struct{} // wakes the refresh: the first client after a quiet time
	nextID  atomic.Int64
	last    atomic.Pointer[string] // address of the primary that served last, direct mode
	wg      sync.WaitGroup
}

// New listens on o.Listen and returns the face; nothing is answered before Run.
func New(o Options) (*Server, error) {
	if o.View == nil || o.Beats == nil || o.Clock == nil || o.Name == "" || o.Member == "" {
		return nil, errors.New("sentinel: View, Beats, Clock, Name and Member are required")
	}
	if o.Mode == "" {
		o.Mode = ModeProxy
	}
	if o.Mode != ModeProxy && o.Mode != ModeDirect {
		return nil, fmt.Errorf("sentinel: mode %q: use %s or %s", o.Mode, ModeProxy, ModeDirect)
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
	s := &Server{o: o, ln: ln, log: o.Log, began: o.Clock.Uptime(), runID: identity("sentinel", o.Name, o.Member), asked: make(chan struct{}, 1)}
	s.hub.sessions = map[*session]struct{}{}
	s.reports.Store(&reports{})
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
	s.wg.Add(3)
	go func() { defer s.wg.Done(); accepted <- s.accept(ctx) }()
	go func() { defer s.wg.Done(); s.refreshLoop(ctx) }()
	go func() { defer s.wg.Done(); s.follow(ctx) }()
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
