// SPDX-License-Identifier: Apache-2.0

// Package seat makes a whole coord.Store out of documents that other processes keep (coord.Backend: etcd, Consul): one
// document says who is the controller, and members talk to it over ports of their own, for reports, reads and questions.
//
// It is not for keeping documents, knows nothing of shards, and does not encrypt or authenticate what members say to each
// other: their ports belong on a network that only members reach. Its invariants: at most one member counts itself as the
// controller, as far as the rates of clocks differ by less than the margin; and a Get is answered by a controller that read both the
// document and its own seat after the Get had arrived. DESIGN.md tells the rest.
//
// Its goroutines, all ended by Close, which waits for them: stand (takes the seat), follow (the stream to the controller),
// enrol (the list of members), one for each document that is followed, three per term in office, one reader and one
// writer per stream, and at most kit.RequestsMax per stream for requests that wait.
package seat

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Options say who this member is.
type Options struct {
	ID            string // stable name of this member, never an address
	ListenAddr    string // host:port of the one TCP port for the other members
	AdvertiseAddr string // where the others reach it; empty: the address that it listens on

	Clock  clock.Clock  // nil: the machine's clock
	Log    *slog.Logger // nil: silent
	Timing Timing       // zero: DefaultTiming
}

// Timing holds the intervals of the election.
type Timing struct {
	Lease   time.Duration // a controller that has not read its seat for so long gives up
	Margin  time.Duration // added by who takes the seat of somebody silent, for the rates of clocks
	Request time.Duration // a request gives up after this time even if its context does not end
}

// DefaultTiming suits one local network. A lost controller is replaced in about four tenths of a second.
func DefaultTiming() Timing {
	return Timing{Lease: 300 * time.Millisecond, Margin: 50 * time.Millisecond, Request: 5 * time.Second}
}

// WANTiming suits members, or a store, that are tens of milliseconds apart.
func WANTiming() Timing {
	return Timing{Lease: 1200 * time.Millisecond, Margin: 100 * time.Millisecond, Request: 10 * time.Second}
}

// pulse is how often a controller says that it lives; reread, how often it reads its seat when nobody asks.
func (t Timing) pulse() time.Duration  { return t.Lease / 6 }
func (t Timing) reread() time.Duration { return t.Lease / 4 }

// retry is the pause between attempts to reach the controller or the store; news end it early.
const retry = 20 * time.Millisecond

// Store is one member. Its methods are safe for concurrent use.
type Store struct {
	opts      Options
	log       *slog.Logger
	advertise string
	run       string // random name of this process among the members
	back      coord.Backend
	hub       *kit.Hub
	port      *kit.Port
	lines     kit.Lines

	ctx    context.Context // ends with the store
	cancel context.CancelFunc
	work   kit.Group
	ended  sync.Once

	news     kit.Signal // chair, roll, office, link, unreached or left changed
	chair    atomic.Pointer[chair]
	roll     atomic.Pointer[roll]
	office   atomic.Pointer[office] // nil unless in office
	link     atomic.Pointer[link]   // nil unless there is a stream to the controller
	stranded atomic.Pointer[string] // run of the controller that this member cannot reach
	abstain  atomic.Int64           // clock.Uptime until which this member leaves the seat to others
	inbox    kit.Inbox
	left     departure

	mu        sync.Mutex // guards what follows
	following map[string]bool
	writing   map[string]chan struct{} // documents that this process replaces now; closed when it has
	hold      time.Duration            // how long an answer waits for that
}

// departure tells that this member takes no part any more.
type departure struct {
	once sync.Once
	done chan struct{}
	why  string // set before done is closed
}

// link is the stream to a controller.
type link struct {
	*kit.Link
	id   string
	term uint64
}

var (
	_ coord.Store    = (*Store)(nil)
	_ coord.ReadAges = (*Store)(nil)
	_ coord.Members  = (*Store)(nil)
	_ coord.Peers    = (*Store)(nil)
	_ coord.Outside  = (*Store)(nil)
)

// Open starts this member over back, which Close closes, also after an error. That it returns says nothing about whether the
// store outside answers.
func Open(back coord.Backend, opts Options) (*Store, error) {
	if opts.Clock == nil {
		opts.Clock = clock.Real{}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	opts.Timing = cmp.Or(opts.Timing, DefaultTiming())
	if opts.ID == "" || len(opts.ID) > 255 || opts.Timing.Lease < 20*time.Millisecond || opts.Timing.Margin <= 0 || opts.Timing.Request < opts.Timing.Lease {
		return nil, errors.Join(fmt.Errorf("member %q with timing %+v: the id must have 1 to 255 bytes, lease at least 20ms, margin more than 0, request at least lease", opts.ID, opts.Timing), back.Close())
	}
	port, err := kit.OpenPort(opts.ListenAddr)
	if err != nil {
		return nil, errors.Join(err, back.Close())
	}
	var name [16]byte
	_, _ = rand.Read(name[:]) // never fails
	s := &Store{opts: opts, log: opts.Log.With("member", opts.ID), run: hex.EncodeToString(name[:]), back: back, hub: kit.NewHub(),
		port: port, inbox: kit.NewInbox(), following: map[string]bool{}, writing: map[string]chan struct{}{}, hold: holdMax}
	s.advertise = cmp.Or(opts.AdvertiseAddr, port.Addr())
	s.left.done = make(chan struct{})
	s.lines.Dial, s.lines.Idle = func(addr, member string, timeout time.Duration) (net.Conn, error) {
		return s.dial(kit.DialPeer, addr, member, timeout)
	}, opts.Timing.Request
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.port.Serve(s.log, s.accept)
	for _, run := range []func(){
		s.stand, s.follow, s.enrol,
		func() { s.back.Follow(s.ctx, keyChair, s.learnChair) },
		func() { s.back.Follow(s.ctx, keyRoll, s.learnRoll) },
	} {
		s.work.Spawn(run)
	}
	return s, nil
}

// closeTime bounds how long Close tries to give the seat back.
const closeTime = 300 * time.Millisecond

// Close stops this member and waits for all its goroutines. A controller gives its seat back, so that nobody has to wait for
// its end; call Release first to be sure of it.
func (s *Store) Close() error {
	var errs []error
	s.ended.Do(func() {
		if g := s.office.Load(); g != nil {
			s.abstain.Store(int64(s.uptime() + s.opts.Timing.Request))
			ctx, cancel := context.WithTimeout(s.ctx, closeTime)
			if err := s.resign(ctx, g); err != nil {
				s.log.Debug("give the seat back", "err", err)
			}
			cancel()
		}
		s.cancel()
		s.news.Fire()
		errs = append(errs, s.port.Close())
		s.port.Wait()
		s.work.Wait()
		s.hub.Close()
		errs = append(errs, s.back.Close())
	})
	return errors.Join(errs...)
}

// Addr is the address that this member gives to others.
func (s *Store) Addr() string { return s.advertise }

// Health implements coord.Outside.
func (s *Store) Health() coord.Health { return s.back.Health() }

// Removed is closed when this member learned that the others go on without it: it was removed, or another process is that
// member. Its calls answer ErrUnavailable from then on.
func (s *Store) Removed() <-chan struct{} { return s.left.done }

// Why says what happened, once Removed is closed.
func (s *Store) Why() string { return s.left.why }

// leave stops taking part.
func (s *Store) leave(why string) {
	s.left.once.Do(func() {
		s.log.Error(why)
		s.left.why = why
		close(s.left.done)
	})
	if g := s.office.Load(); g != nil {
		s.lose(g)
	}
	s.news.Fire()
}

// gone tells why this member takes no part any more.
func (s *Store) gone() error {
	if s.ctx.Err() != nil {
		return coord.ErrClosed
	}
	select {
	case <-s.left.done:
		return fmt.Errorf("%s: %w", s.left.why, coord.ErrUnavailable)
	default:
		return nil
	}
}

// pause waits for d, or until early or the store ends.
func (s *Store) pause(early <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-s.ctx.Done():
	}
}

func (s *Store) uptime() time.Duration { return s.opts.Clock.Uptime() }
