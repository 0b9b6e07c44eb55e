// SPDX-License-Identifier: Apache-2.0

// Package proxy is the data path of one shard: it gives clients one address that never dies. It obeys the shard's
// document as the view shows it and decides nothing about the shard. Its invariants: a command is sent only under a
// fresh lease to the very server process that was promoted; replies reach a client in the order of its commands; a
// command that may have run is never sent again unless it changes nothing; in quorum mode no effect is acknowledged
// before [marker][WAIT k] said so. Goroutines: the steering loop, the accept loops, the sightings loop, the table
// loop, one per client, one per lane and one per upstream connection; Run waits for all of them.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/event"
	"redoubt/internal/route"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// Consistency is what a read promises in a shard with quorum durability.
type Consistency string

// The consistencies of reads. In an asynchronous shard all mean ReadLocal.
const (
	// ReadLocal answers from the primary under its lease: it may show a write that is not on k replicas yet.
	ReadLocal Consistency = "local"
	// ReadLease answers from the primary while its lease is certainly good and no write of this proxy waits for replicas; otherwise
	// it does as ReadLinearizable. See lease.go.
	ReadLease Consistency = "lease"
	// ReadLinearizable withholds reads as well until [marker][WAIT k] (SAFETY B4): no clock is trusted.
	ReadLinearizable Consistency = "linearizable"
)

// ListenNowhere in place of an address: clients come by Attach alone.
const ListenNowhere = "nowhere"

// Options are what a Proxy needs. Fields without a default are required.
type Options struct {
	View            *view.View
	Clock           clock.Clock
	ID              string        // of this proxy; part of the names of its upstream connections
	Listen          string        // host:port of the read-write port, or unix:/path, or ListenNowhere
	ListenReadonly  string        // host:port of the read-only port; empty: none
	Beats           coord.Beats   // for the replicas' lag; nil: the read-only port always uses the primary
	Username        string        // upstream user; empty: default
	Password        string        // of the deployment: upstream, and what clients must present; empty: none
	ReadConsistency Consistency   // default ReadLocal
	SocketMode      fs.FileMode   // of Unix sockets; default SocketMode
	ProxyProtocol   HeaderPolicy  // default HeaderOff
	Zone            string        // of this machine: reads go to replicas of the same zone first; empty: unknown
	SplitReads      bool          // reads of the read-write port may go to replicas
	Staleness       time.Duration // of SplitReads: how old what a replica shows may be; default 1 s
	Exact           bool          // with acknowledgements: writes whose outcome is unknown are settled by a marker beside them
	Cluster         bool          // the servers are a cluster's: they may say that a slot is not theirs
	SlotTag         func() string // Cluster: a hash tag of a slot that the primary serves, and is not about to give away; empty: not known
	HangUp          bool          // a client is disconnected, instead of answered, when the outcome of its write is unknown
	Limits          Limits
	FirstID         uint64       // of the first client, less one
	Engine          *Engine      // runs for as long as the proxy does; default: one of its own, with Limits.Loops
	Inherited       []Port       // listening sockets of an earlier process, by address; New closes none of them
	Log             *slog.Logger // default: slog.Default
	Events          event.Sink   // may be nil
}

// Limits bound what clients can use up. Zero fields take the value of DefaultLimits.
type Limits struct {
	Clients        int   // connections; more are refused with the server's error
	ParkedCommands int   // commands held without a primary, in total; more are refused with TRYAGAIN
	ParkedBytes    int   // their bytes, in total
	Pipeline       int   // unanswered commands of one client; beyond it, it is not read from
	Query          int   // bytes of one client's unparsed input; beyond it, it is disconnected
	Bulk           int   // bytes of one argument
	Output         int   // bytes not yet taken by one client; beyond it, it is disconnected
	OutputSoft     int   // more than these for OutputTime also disconnects it; 0: no such limit
	Upstreams      int   // shared connections for each RESP version and database in use
	Spare          int   // own connections kept for the next transaction or blocking command
	Loops          int   // event loops, unless Engine is given; each has upstream connections of its own
	LagMax         int64 // bytes that a replica may be behind and still answer reads

	OutputTime time.Duration // see OutputSoft
	Idle       time.Duration // a client that is silent for longer is disconnected; 0: never
	Handshake  time.Duration // a client that has not authenticated by then is disconnected, where there is a password; 0: never
}

// DefaultLimits returns the limits of the shipped configuration.
func DefaultLimits() Limits {
	return Limits{
		Clients: 10_000, ParkedCommands: 100_000, ParkedBytes: 256 << 20, Pipeline: 16_384, Query: 1 << 30, Bulk: 512 << 20,
		Output: 256 << 20, Upstreams: 1, Spare: 64, Loops: min(max(runtime.NumCPU()/2, 1), 8), LagMax: 1 << 20,
	}
}

func (l *Limits) fill() {
	d := DefaultLimits()
	for _, f := range []struct{ have, def *int }{
		{&l.Clients, &d.Clients}, {&l.ParkedCommands, &d.ParkedCommands}, {&l.ParkedBytes, &d.ParkedBytes}, {&l.Pipeline, &d.Pipeline},
		{&l.Query, &d.Query}, {&l.Bulk, &d.Bulk}, {&l.Output, &d.Output}, {&l.Upstreams, &d.Upstreams}, {&l.Spare, &d.Spare}, {&l.Loops, &d.Loops},
	} {
		if *f.have == 0 {
			*f.have = *f.def
		}
	}
	if l.LagMax == 0 {
		l.LagMax = d.LagMax
	}
}

// Validate returns everything that is wrong with the options; nil when they can be used.
func (o Options) Validate() []error {
	var errs []error
	need := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	need(o.View != nil, "proxy: a view is needed")
	need(o.Clock != nil, "proxy: a clock is needed")
	need(o.ID != "", "proxy: an id is needed")
	need(o.Listen != "", "proxy: an address to listen at is needed")
	need(o.ReadConsistency == "" || o.ReadConsistency == ReadLocal || o.ReadConsistency == ReadLease || o.ReadConsistency == ReadLinearizable,
		"proxy: read consistency is local, lease or linearizable")
	need(o.ProxyProtocol == "" || o.ProxyProtocol == HeaderOff || o.ProxyProtocol == HeaderOptional || o.ProxyProtocol == HeaderRequired,
		"proxy: the PROXY protocol is off, optional or required")
	for _, v := range []int{o.Limits.Clients, o.Limits.ParkedCommands, o.Limits.ParkedBytes, o.Limits.Pipeline, o.Limits.Query,
		o.Limits.Bulk, o.Limits.Output, o.Limits.OutputSoft, int(o.Limits.OutputTime), int(o.Limits.Idle), int(o.Limits.Handshake), o.Limits.Upstreams, o.Limits.Spare, o.Limits.Loops} {
		need(v >= 0, "proxy: limits must not be negative")
	}
	return errs
}

// Proxy serves the clients of one shard.
type Proxy struct {
	o     Options
	log   *slog.Logger
	rw    listener
	ro    listener
	start time.Time
	ctx   context.Context // of Run; set before any goroutine starts
	stop  context.CancelFunc
	wg    sync.WaitGroup

	order    atomic.Pointer[order]
	evicting atomic.Bool            // a server's policy may delete the markers of exact retry
	noDisk   atomic.Pointer[string] // why the primary cannot say what is on its disk; nil: it can
	barred   atomic.Bool            // a server did not take transactions from the proxy, and that was said
	lapsed   atomic.Bool            // a lane found its lease expired and waits to be woken
	inflight atomic.Int64           // batches on their way on connections to the primary
	presence chan struct{}          // wakes stayPresent
	shut     atomic.Bool            // nothing is sent, see shut.go
	table    atomic.Pointer[route.Table]
	server   atomic.Pointer[serverInfo]
	covers   atomic.Pointer[[]cover]
	fit      atomic.Pointer[[]target] // replicas that may answer reads, best first
	budget   parking
	herald   herald
	paused   atomic.Pointer[pause]
	crowd    atomic.Pointer[crowd] // nil: nobody watches the load
	tick     atomic.Uint32         // seconds, as the sweep counts them
	prod     prod
	visible  visibility
	loss     loss
	absent   truants
	lore     lore
	marker   marker
	stats    counters
	batches  sync.Pool
	outputs  sync.Pool // of *spareOutput with a buffer
	shells   sync.Pool // of *spareOutput without
	loops    []*loop
	own      *Engine                 // nil: the loops are shared with others
	running  chan struct{}           // closed by Run
	mover    atomic.Pointer[leaving] // a hand-over of clients to another process; nil: none
	moving   sync.RWMutex            // held for reading by goroutines that give their client away

	mu       sync.Mutex // guards what follows
	doors    []*door
	fail     func(error)
	lanes    map[*lane]struct{}
	pools    map[poolKey]*pool
	spare    map[poolKey][]*lane
	sessions map[uint64]*session
	lastID   uint64

	lastMarker  uint64 // of the lanes with exact retry
	incarnation string // of this process, in the names of its markers; constant
}

type counters struct {
	commands, unknown, resent, parked, refused, replayed, applied atomic.Uint64
}

// Stats is what a proxy is doing; counters grow from its start.
type Stats struct {
	Clients     int
	Pinned      int // clients with an upstream connection of their own
	Parked      int // commands held now
	ParkedBytes int
	InFlight    int // batches sent and not answered
	Epoch       topo.Epoch
	Sending     bool
	Commands    uint64
	Unknown     uint64 // answered with OUTCOMEUNKNOWN
	Resent      uint64 // sent again after a failure, because that was safe
	WasParked   uint64
	Replayed    uint64 // writes of doubtful outcome that had not run, and were sent again
	Applied     uint64 // writes of doubtful outcome that had run
	Evicting    bool   // a server may evict the markers of exact retry
	Refused     uint64 // refused with TRYAGAIN because a parking limit was reached
}

// New checks the options and opens the listeners. Clients are served once Run is called.
func New(o Options) (*Proxy, error) {
	if errs := o.Validate(); errs != nil {
		return nil, errors.Join(errs...)
	}
	o.Limits.fill()
	if o.Staleness == 0 {
		o.Staleness = time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	p := &Proxy{
		o: o, log: o.Log, start: time.Now(), running: make(chan struct{}), lastID: o.FirstID,
		lanes: map[*lane]struct{}{}, pools: map[poolKey]*pool{}, spare: map[poolKey][]*lane{}, sessions: map[uint64]*session{},
	}
	p.incarnation = strings.ToLower(rand.Text()[:12])
	p.prod.wake, p.herald.wake, p.loss.wake = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	p.absent.wake, p.presence = make(chan struct{}, 1), make(chan struct{}, 1)
	p.lore, p.marker = newLore(), newMarker(o)
	p.batches.New = func() any { return new(batch) }
	p.budget.commandsMax, p.budget.bytesMax = int64(o.Limits.ParkedCommands), int64(o.Limits.ParkedBytes)
	p.order.Store(&order{why: "the shard's document has not been read yet"})
	p.table.Store(route.Builtin())
	p.fit.Store(&[]target{})
	p.covers.Store(&[]cover{})
	p.server.Store(&serverInfo{name: "redis", version: "7.0.0", databases: 0})
	var err error
	if o.Listen != ListenNowhere {
		if p.rw, err = o.portOf(o.Listen); err != nil {
			return nil, fmt.Errorf("open the read-write port: %w", err)
		}
	}
	if o.ListenReadonly != "" {
		if p.ro, err = o.portOf(o.ListenReadonly); err != nil {
			p.closePorts()
			return nil, fmt.Errorf("open the read-only port: %w", err)
		}
	}
	engine := o.Engine
	if engine == nil {
		if engine, err = NewEngine(o.Limits.Loops); err != nil {
			p.closePorts()
			return nil, err
		}
		p.own = engine
	}
	p.loops = engine.loops
	return p, nil
}

func (p *Proxy) closePorts() {
	for _, l := range []listener{p.rw, p.ro} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// openDoors begins to take clients; the caller holds p.mu.
func (p *Proxy) openDoors() {
	if p.rw != nil {
		p.doors = append(p.doors, p.open(p.rw, false, p.fail))
	}
	if p.ro != nil {
		p.doors = append(p.doors, p.open(p.ro, true, p.fail))
	}
}

// Addr returns the address of the read-write port; nil with ListenNowhere.
func (p *Proxy) Addr() net.Addr {
	if p.rw == nil {
		return nil
	}
	return p.rw.Addr()
}

// ReadonlyAddr returns the address of the read-only port; nil when there is none.
func (p *Proxy) ReadonlyAddr() net.Addr {
	if p.ro == nil {
		return nil
	}
	return p.ro.Addr()
}

// Table returns the commands of the server behind the proxy, as far as they are known by now. Safe for concurrent use.
func (p *Proxy) Table() *route.Table { return p.table.Load() }

// Stats returns what the proxy is doing. Safe for concurrent use.
func (p *Proxy) Stats() Stats {
	o := p.order.Load()
	s := Stats{
		Parked: int(p.budget.commands.Load()), ParkedBytes: int(p.budget.bytes.Load()), InFlight: int(p.inflight.Load()), Sending: o.sending,
		Commands: p.stats.commands.Load(), Unknown: p.stats.unknown.Load(), Resent: p.stats.resent.Load(),
		WasParked: p.stats.parked.Load(), Refused: p.stats.refused.Load(),
		Replayed: p.stats.replayed.Load(), Applied: p.stats.applied.Load(), Evicting: p.evicting.Load(),
	}
	if o.t != nil {
		s.Epoch = o.t.epoch
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Clients = len(p.sessions)
	for l := range p.lanes {
		if l.key.own && l.owned() {
			s.Pinned++
		}
	}
	return s
}

// Run serves clients until ctx ends, then closes all connections and waits for every goroutine. It returns ctx's error,
// or the error of a listener that failed. A Proxy runs once.
func (p *Proxy) Run(ctx context.Context) error {
	p.ctx, p.stop = context.WithCancel(ctx)
	defer p.stop()
	halt := func() {}
	if p.own != nil {
		halt = p.own.start()
	}
	failed := make(chan error, 1)
	p.spawn(p.steer)
	p.spawn(p.stayPresent)
	p.spawn(p.learn)
	p.spawn(p.prodReplicas)
	p.spawn(p.gauge)
	p.spawn(p.absentees)
	p.spawn(p.announce)
	p.spawn(p.tidy)
	p.spawn(p.teach)
	if p.o.SplitReads {
		p.spawn(p.measure)
	}
	if p.o.Beats != nil && p.ro != nil {
		p.spawn(p.sight)
	}
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	p.mu.Lock()
	p.fail = fail
	p.openDoors()
	p.mu.Unlock()
	close(p.running)
	var err error
	select {
	case <-p.ctx.Done():
	case err = <-failed:
	}
	p.stop()
	p.mu.Lock()
	for _, d := range p.doors {
		d.leave()
	}
	p.doors = nil
	p.closePorts()
	for _, s := range p.sessions {
		s.kill()
	}
	for l := range p.lanes {
		l.shut()
	}
	p.mu.Unlock()
	p.wg.Wait()
	halt()
	if err == nil {
		err = ctx.Err()
	}
	return err
}

func (p *Proxy) spawn(f func()) {
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		f()
	}()
}

// pause waits for d and reports whether the proxy is still to run.
func (p *Proxy) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (p *Proxy) admit(c *sock, readonly bool) *session {
	p.mu.Lock()
	full := len(p.sessions) >= p.o.Limits.Clients
	if p.ctx.Err() != nil || full {
		p.mu.Unlock()
		if full {
			_, _ = c.write([]byte("-ERR max number of clients reached\r\n")) // a fresh socket takes 40 bytes at once
		}
		c.close()
		return nil
	}
	p.lastID++
	if c.loop == nil {
		c.loop = p.loops[p.lastID%uint64(len(p.loops))]
	}
	s := newSession(p, c, p.lastID, readonly)
	p.sessions[s.id] = s
	p.wg.Add(1) // until s.end
	p.mu.Unlock()
	c.loop.post(s.begin)
	return s
}

func (p *Proxy) now() time.Duration { return p.o.Clock.Uptime() }

// stamp is milliseconds since the start of the proxy: for how long something has been parked.
func (p *Proxy) stamp() uint32 { return uint32(time.Since(p.start)/time.Millisecond) + 1 }

// parking counts what is held without a primary.
type parking struct {
	commandsMax, bytesMax int64
	commands, bytes       atomic.Int64
}

func (b *parking) add(commands, bytes int64) {
	b.commands.Add(commands)
	b.bytes.Add(bytes)
}

func (b *parking) room(commands, bytes int64) bool {
	return b.commands.Load()+commands <= b.commandsMax && b.bytes.Load()+bytes <= b.bytesMax
}
