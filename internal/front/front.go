// SPDX-License-Identifier: Apache-2.0

// Package front is one address in front of several shards: it gives each command to the shard of its keys, and makes one
// answer of several where a command concerns more than one. It is not for failures: a shard is something that can be dialled
// and behaves like one server that never goes away (the proxy of a shard is that), and a connection to one that ends, ends
// its client. It does not know how keys are placed either. Its invariants: replies reach a client in the order of its
// commands; commands of one client for one shard keep their order, on one connection; no reply mixes values and errors of
// several shards; what is held for a client is bounded. Goroutines: the accept loop, the sweep, one for a client while it waits for
// something, and one for its command on a detour; Run waits for all of them. Everything else is done by the loops that it is given.
package front

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/route"
)

// Shard is one shard, as the front sees it.
type Shard struct {
	Name string
	Dial func(context.Context) (net.Conn, error) // not needed with Options.Join
	gone bool                                    // it was removed; its number stays
}

// Options are what a Front needs. Fields without a default are required.
type Options struct {
	Shards   []Shard              // 1 to ShardsMax; their order is that of the numbers which Place returns
	Place    func(key []byte) int // the number of the shard that has the key; safe for concurrent use; nil with Cluster
	Ring     func() *Ring         // nil, or the present ring, in place of Place; safe for concurrent use. It changes only between Still and Resume
	Cluster  *Cluster             // keys are placed by slot, and the shards' servers refuse keys of several slots; nil: plain servers
	Table    func() *route.Table  // what is known of commands; default: the built-in table
	Password string               // what clients must present; the shards check it. Empty: none
	Limits   Limits
	Listener net.Listener // closed by Run
	Loops    Loops        // run for longer than Run
	// Join returns a new connection to a shard on a loop, at once; event is as for Loops.Take. Default: shards are dialled.
	Join func(shard, loop int, event func()) (Stream, error)
	// Rejoin goes on with a connection to a shard that Stream.Depart has taken out of another process, or this one: it owns file. Without it, clients with
	// something at a shard are not handed over.
	Rejoin  func(shard, loop int, event func(), record []byte, file int) (Stream, error)
	FirstID uint64       // of the first client, less one
	Log     *slog.Logger // default: slog.Default
}

// ShardsMax is the largest number of shards: the number of one is part of the cursors of SCAN.
const ShardsMax = 1 << ordinalBits

// Limits bound what clients can use up. Zero fields take the value of DefaultLimits.
type Limits struct {
	Clients  int // connections; more are refused with the server's error
	Pipeline int // unanswered commands of one client; beyond it, it is not read from
	Query    int // bytes of one client's unparsed input, or of its open transaction; beyond it, it is disconnected
	Bulk     int // bytes of one argument
	Output   int // bytes that one client has not taken, or of a reply that is put together; beyond it, it is disconnected
	Ahead    int // bytes that a long reply is ahead of its client; beyond it, its shard is not read from
	Held     int // bytes that a shard is ahead of the client's order; beyond it, it is not read from

	Idle      time.Duration // a client that is silent for longer is disconnected; 0: never
	Handshake time.Duration // a client that has not authenticated by then is disconnected, where there is a password; 0: never
	Dial      time.Duration // to connect to a shard
	Redirect  time.Duration // for which a command is tried again that a shard of a cluster is not responsible for
}

// DefaultLimits returns the limits of the shipped configuration.
func DefaultLimits() Limits {
	return Limits{Clients: 10_000, Pipeline: 16_384, Query: 1 << 30, Bulk: 512 << 20, Output: 256 << 20, Ahead: 4 << 20, Held: 1 << 20, Dial: 5 * time.Second, Redirect: 10 * time.Second}
}

func (l *Limits) fill() {
	d := DefaultLimits()
	for _, f := range []struct{ have, def *int }{
		{&l.Clients, &d.Clients}, {&l.Pipeline, &d.Pipeline}, {&l.Query, &d.Query}, {&l.Bulk, &d.Bulk}, {&l.Output, &d.Output},
		{&l.Ahead, &d.Ahead}, {&l.Held, &d.Held},
	} {
		if *f.have == 0 {
			*f.have = *f.def
		}
	}
	l.Dial, l.Redirect = cmp.Or(l.Dial, d.Dial), cmp.Or(l.Redirect, d.Redirect)
}

// Validate returns everything that is wrong with the options; nil when they can be used.
func (o Options) Validate() []error {
	var errs []error
	need := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	need(len(o.Shards) > 0 && len(o.Shards) <= ShardsMax, fmt.Sprintf("front: 1 to %d shards are needed", ShardsMax))
	names := map[string]bool{}
	for _, s := range o.Shards {
		need(s.Name != "" && (s.Dial != nil || o.Join != nil), "front: a shard needs a name and a way to reach it")
		need(!names[s.Name], "front: two shards have the name "+s.Name)
		names[s.Name] = true
	}
	need((o.Place != nil || o.Ring != nil) != (o.Cluster != nil), "front: either a placement of keys or a cluster is needed")
	if o.Cluster != nil {
		errs = append(errs, o.Cluster.validate()...)
	}
	need(o.Listener != nil && o.Loops != nil, "front: a listener and loops are needed")
	l := o.Limits
	for _, v := range []int{l.Clients, l.Pipeline, l.Query, l.Bulk, l.Output, l.Ahead, l.Held, int(l.Idle), int(l.Handshake), int(l.Dial), int(l.Redirect)} {
		need(v >= 0, "front: limits must not be negative")
	}
	return errs
}

// Front serves the clients of several shards at one address.
type Front struct {
	o     Options
	log   *slog.Logger
	start time.Time
	ctx   context.Context // of Run; set before any goroutine starts
	wg    sync.WaitGroup
	lore  lore
	paths atomic.Pointer[paths]   // of the present slot map
	known atomic.Pointer[[]Shard] // Options.Shards, and those that came later
	tick  atomic.Uint32           // seconds, as the sweep counts them
	holds holds
	still atomic.Pointer[chan struct{}] // nil: commands are given to shards
	stats struct{ commands, split atomic.Uint64 }

	scratches []scratch               // by loop
	running   chan struct{}           // closed by Run
	mover     atomic.Pointer[leaving] // a hand-over of clients to another process; nil: none
	moving    sync.RWMutex            // held for reading by who begins to give a client away

	mu      sync.Mutex    // guards what follows
	shut    chan struct{} // closed when clients are let in again; nil: they are
	clients map[uint64]*client
	lastID  uint64
}

// Stats is what a front is doing; counters grow from its start.
type Stats struct {
	Clients  int
	Commands uint64
	Split    uint64 // commands that went to more than one shard
}

// New checks the options. Clients are served once Run is called.
func New(o Options) (*Front, error) {
	if errs := o.Validate(); errs != nil {
		return nil, errors.Join(errs...)
	}
	o.Limits.fill()
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Table == nil {
		t := route.Builtin()
		o.Table = func() *route.Table { return t }
	}
	f := &Front{o: o, log: o.Log, start: time.Now(), lore: newLore(len(o.Shards)), clients: map[uint64]*client{}, running: make(chan struct{}), lastID: o.FirstID}
	f.known.Store(&o.Shards)
	for range o.Loops.Len() {
		f.scratches = append(f.scratches, scratch{input: make([]byte, scratchSize), reply: make([]byte, scratchSize)})
	}
	return f, nil
}

// shards are those that are known now, and those that were removed: the number of one never changes.
func (f *Front) shards() []Shard { return *f.known.Load() }

// AddShard makes one more shard known: Options.Join, or its Dial, reaches it under the next number. One that is known is left as it is.
func (f *Front) AddShard(s Shard) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.shards()
	if slices.ContainsFunc(now, func(o Shard) bool { return o.Name == s.Name }) || len(now) == ShardsMax {
		return
	}
	next := append(slices.Clone(now), s)
	f.known.Store(&next)
	f.paths.Store(nil)
}

// Addr returns the address that is served.
func (f *Front) Addr() net.Addr { return f.o.Listener.Addr() }

// Stats returns what the front is doing. Safe for concurrent use.
func (f *Front) Stats() Stats {
	f.mu.Lock()
	n := len(f.clients)
	f.mu.Unlock()
	return Stats{Clients: n, Commands: f.stats.commands.Load(), Split: f.stats.split.Load()}
}

// Run serves clients until ctx ends, then closes all connections and waits for every goroutine. It returns ctx's error, or that
// of the listener. A Front runs once.
func (f *Front) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	f.ctx = ctx
	failed := make(chan error, 1)
	f.wg.Go(func() { failed <- f.accept() })
	f.wg.Go(f.sweep)
	close(f.running)
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-failed:
	}
	stop()
	_ = f.o.Listener.Close()
	for _, c := range f.all() {
		c.kill()
	}
	f.wg.Wait()
	return err
}

// acceptPause is the time after which the listener is asked again when it was out of descriptors.
const acceptPause = 10 * time.Millisecond

func (f *Front) accept() error {
	for {
		conn, err := f.o.Listener.Accept()
		if err != nil && f.awaitDoor(err) {
			continue
		}
		if err != nil {
			var passing interface{ Temporary() bool }
			if f.ctx.Err() == nil && errors.As(err, &passing) && passing.Temporary() {
				f.log.Warn("a client could not be accepted", "err", err)
				select {
				case <-time.After(acceptPause):
				case <-f.ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accept clients: %w", err)
		}
		f.admit(conn)
	}
}

// admit begins to serve a connection, if there is room.
func (f *Front) admit(conn net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.ctx.Err() != nil:
		_ = conn.Close()
		return
	case len(f.clients) >= f.o.Limits.Clients:
		_ = conn.SetWriteDeadline(time.Now().Add(acceptPause)) // a fresh socket takes these bytes at once
		_, _ = conn.Write([]byte("-ERR max number of clients reached\r\n"))
		_ = conn.Close()
		return
	}
	f.lastID++
	c := newClient(f, f.lastID)
	if err := c.adopt(conn); err != nil {
		f.log.Warn("a client could not be accepted", "err", err)
		_ = conn.Close()
		return
	}
	f.clients[c.id] = c
	f.wg.Add(1) // until forget
}

// forget ends the account of a client.
func (f *Front) forget(c *client) {
	f.mu.Lock()
	delete(f.clients, c.id)
	f.mu.Unlock()
	f.wg.Done()
}

// all returns the present clients.
func (f *Front) all() []*client {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*client, 0, len(f.clients))
	for _, c := range f.clients {
		out = append(out, c)
	}
	return out
}

// sweep looks at all clients each second, in place of a timer for each.
func (f *Front) sweep() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-t.C:
		}
		now := f.tick.Add(1)
		l := f.o.Limits
		if l.Idle == 0 && (l.Handshake == 0 || f.o.Password == "") {
			continue
		}
		for _, c := range f.all() {
			silent := time.Duration(now-c.vis.seen.Load()) * time.Second
			stranger := l.Handshake > 0 && f.o.Password != "" && !c.vis.known.Load() && time.Since(c.born) > l.Handshake
			if stranger || l.Idle > 0 && silent > l.Idle && c.quietNow() {
				c.kill()
			}
		}
	}
}
