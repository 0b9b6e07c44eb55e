// SPDX-License-Identifier: Apache-2.0

// Package app builds the parts that one member's configuration asks for, starts them in order and stops them in reverse.
//
// It decides nothing and speaks to no client. It also hands a running member over to a new process, and takes one over.
// Its invariant: when Run returns, every goroutine that it started has ended and a managed server does not run without its
// agent, here or in the process that took over. Goroutines: one for each part, and those of the parts; during a hand-over one
// that hears the new process and one that waits for its end.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/address"
	"redoubt/internal/api"
	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/consul"
	"redoubt/internal/coord"
	"redoubt/internal/coord/scope"
	"redoubt/internal/event"
	"redoubt/internal/front"
	"redoubt/internal/nameserver"
	"redoubt/internal/proxy"
	"redoubt/internal/redis"
	"redoubt/internal/render"
	"redoubt/internal/sentinel"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// StopMode says how a member stops.
type StopMode int

// The ways to stop.
const (
	// StopHandover moves the primary to another node first, if it is here.
	StopHandover StopMode = iota
	// StopNow leaves at once: for a deployment that stops as a whole.
	StopNow
)

// The bounds of stopping.
const (
	handoverBudget = 5 * time.Second
	handoverWait   = 8 * time.Second
	serverStop     = 15 * time.Second // SIGTERM waits for replicas that lag; then SIGKILL
)

// Options are what a member needs.
type Options struct {
	Config       config.Config // as Load returned it
	File         string        // where it came from, for people
	Version      string
	Log          *slog.Logger
	GuardCommand []string        // argv that runs redisd.RunGuard
	HoldCommand  []string        // argv that runs address.RunHolder
	Stop         <-chan StopMode // asks Run to stop; nil: only ctx does, and then at once

	Command     []string         // argv that runs this member again, from the program on disk; empty: it cannot be handed over
	Upgrade     <-chan os.Signal // asks Run to hand the member over to a new process
	Predecessor *Predecessor     // the process to take over from; nil: an ordinary start
}

// member is a running member. Its fields are set in order by start and read by stop.
type member struct {
	o         Options
	log       *slog.Logger
	clock     clock.Clock
	deploy    config.Deployment
	store     coord.Store
	ballast   []byte                      // never touched: the heap counts as that much larger
	hall      *scope.Hall                 // the store as the shards of a ring share it; nil: there is one shard
	shared    *source                     // what the agreed slots, ring and jobs are read from; the store, but during a hand-over
	succeeds  atomic.Bool                 // an earlier process of this member still hands clients over
	units     []*unit                     // one for each shard of the file
	later     atomic.Pointer[[]*unit]     // mode cluster: those of shards that came later; nil: none
	released  chan struct{}               // closed when an adopted cluster was handed back
	takes     sync.Mutex                  // guards what follows
	taken     *taking                     // the latest look at a cluster that is taken over
	slots     *slotBook                   // mode cluster: which shard has which slots; nil otherwise
	roster    *shardBook                  // mode cluster: shards that came later; nil otherwise
	registrar *registrar                  // mode cluster: sees that the servers know each other; nil otherwise
	ring      *ringBook                   // mode ring, where it can change: how keys are placed; nil otherwise
	jobs      *jobBook                    // mode cluster: what is to be moved; nil otherwise
	front     *front.Front                // nil: there is one shard, whose proxy clients speak to
	holder    atomic.Pointer[front.Front] // the same, for parts that start before it
	loops     *loops                      // of the front and all proxies; nil: the proxy has its own
	sentinel  *sentinel.Server
	custody   custody // of a deployment that begins on order
	api       *api.Server
	board     *view.Board // what may be announced
	feed      *api.Feed   // what happened here
	names     *nameserver.Server
	rendered  *render.Renderer
	consul    *consul.Announcer
	address   *address.Face
	claim     *claimed
	faces     topo.MemberReport
	voters    atomic.Int64
	parts     stack
	upgrades  chan upgradeOrder // from the API; capacity one
	inherited inheritance       // while faces are started
	firstID   uint64

	lateSentinel atomic.Pointer[sentinel.Server] // one that began on order
	stopAsked    *StopMode                       // during a hand-over that was not finished
}

// leaver is a store that learns when it goes on without this member.
type leaver interface{ Removed() <-chan struct{} }

// localNode is what app needs of the driver besides the port.
type localNode interface {
	redis.Node
	Stop(ctx context.Context) error
}

// ballast is memory that is asked for and never touched, so that it costs address space alone. What a member without clients uses is a few
// MiB, and the runtime would look through them whenever as much garbage has come together: six times a second with four shards.
const ballast = 16 << 20

// Run runs the member until it is asked to stop, ctx ends or a part fails.
func Run(ctx context.Context, o Options) (err error) {
	m := &member{
		o: o, log: o.Log, clock: clock.Real{}, deploy: o.Config.Deployments[0], upgrades: make(chan upgradeOrder, 1), released: make(chan struct{}), feed: api.NewFeed(),
	}
	m.custody.orders = make(chan topo.AdoptionState)
	if o.Predecessor != nil {
		defer o.Predecessor.close()
		m.claim, err = o.Predecessor.take(o)
		m.inherited, m.firstID = o.Predecessor.left, o.Predecessor.first
		m.succeeds.Store(true)
	} else {
		m.claim, err = claim(o.Config.Member.Dir, o.File)
	}
	if err != nil {
		return err
	}
	defer m.claim.release()
	m.parts.failed = make(chan error, 32)
	defer func() { err = errors.Join(err, m.stop(ctx)) }()
	if err := m.start(ctx); err != nil {
		return err
	}
	m.log.Info("member is up", "member", m.o.Config.Member.ID, "version", o.Version, "pid", os.Getpid(), "proxy", cmp.Or(m.faces.ProxyAddr, m.o.Config.Proxy.Listen), "sentinel", m.faces.SentinelAddr, "api", m.faces.APIAddr)
	notify(m.log, "READY=1")
	return m.serve(ctx)
}

// serve waits for a reason to stop.
func (m *member) serve(ctx context.Context) error {
	for {
		if m.stopAsked != nil {
			return m.stopAs(ctx, *m.stopAsked)
		}
		handed := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-m.parts.failed:
			m.log.Error("a part of this member failed; stopping", "err", err)
			return err
		case mode := <-m.o.Stop:
			return m.stopAs(ctx, mode)
		case <-m.o.Upgrade:
			handed = m.upgrade(ctx, upgradeOrder{})
		case o := <-m.upgrades:
			handed = m.upgrade(ctx, o)
		case to := <-m.custody.orders:
			m.take(ctx, to)
		}
		if handed {
			return nil
		}
	}
}

// unlessStopped does what may wait for others while the member starts; who asks it to stop meanwhile ends the waiting.
func (m *member) unlessStopped(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case mode := <-m.o.Stop:
			m.stopAsked = &mode
			cancel()
		case <-done:
		}
	}()
	err := do(ctx)
	close(done)
	<-watched
	return err
}

func (m *member) stopAs(ctx context.Context, mode StopMode) error {
	m.log.Info("stopping", "handover", mode == StopHandover)
	if mode == StopHandover {
		m.handOver(ctx)
	}
	return nil
}

// start builds and starts the parts in order. What was started when it fails is stopped by stop.
func (m *member) start(ctx context.Context) error {
	c := m.o.Config
	err := m.unlessStopped(ctx, func(ctx context.Context) (err error) {
		m.store, err = openStore(ctx, c, m.clock, m.log)
		return err
	})
	if err != nil {
		return err
	}
	m.shared = newSource(m.store)
	m.voters.Store(int64(len(c.Store.Members)))
	if err := m.open(); err != nil {
		return err
	}
	if m.o.Predecessor != nil {
		if err := errors.Join(m.awaitAgreed(ctx), m.resumeCustody(ctx)); err != nil {
			return err
		}
	}
	if c.Proxy.Listen != "" && os.Getenv("GOMAXPROCS") == "" {
		// A loop that waits for events counts as running for up to 10 ms; nothing else may have to wait for that.
		runtime.GOMAXPROCS(runtime.NumCPU() + proxy.DefaultLimits().Loops)
	}
	m.ballast = make([]byte, ballast)
	if err := m.startLoops(); err != nil {
		return err
	}
	for _, u := range m.units {
		if err := u.startProxy(); err != nil {
			return err
		}
	}
	if err := m.startFront(); err != nil {
		return err
	}
	begin := m.startNodes
	if m.o.Predecessor != nil {
		begin = m.takeNodes
	}
	if err := begin(ctx); err != nil {
		return err
	}
	if err := m.startRest(); err != nil {
		return err
	}
	m.inherited.close()
	m.inherited = inheritance{}
	if m.o.Predecessor != nil {
		return m.startSuccession(ctx)
	}
	return nil
}

// startRest starts what ends before a member is handed over, and is started again if that does not work; but for the nodes.
func (m *member) startRest() error {
	c := m.o.Config
	if gone, ok := m.store.(leaver); ok {
		m.parts.start("store", func(ctx context.Context) error { return m.stay(ctx, gone) })
	}
	for _, u := range m.all() {
		if err := u.startRest(); err != nil {
			return err
		}
	}
	m.startMuster()
	proxyAddr, readonlyAddr := m.faces.ProxyAddr, m.faces.ReadonlyAddr
	m.faces = topo.MemberReport{ID: c.Member.ID, PID: os.Getpid(), Version: m.o.Version, StartedMS: m.clock.Now().UnixMilli(), StoreAddr: m.reach(c.Store.Listen)}
	m.faces.ProxyAddr, m.faces.ReadonlyAddr = proxyAddr, readonlyAddr
	if err := m.startFaces(); err != nil {
		return err
	}
	if m.deploy.OnOrder() {
		m.parts.start("adoption", m.watchAdoption)
	}
	m.parts.start("report", m.report)
	if m.slots != nil {
		m.hall.Of(m.deploy.Name).Answer(m.answerMoves)
		m.parts.start("reshard", m.carry)
	}
	if m.ring != nil {
		m.startRing()
	}
	if err := m.startShards(); err != nil {
		return err
	}
	return m.startKube()
}

func (m *member) startFaces() error {
	c := m.o.Config
	if c.Sentinel.Listen != "" && m.waits() {
		m.faces.SentinelAddr = m.reach(c.Sentinel.Listen)
	} else if c.Sentinel.Listen != "" {
		ln, err := m.inherited.listener("sentinel", c.Sentinel.Listen)
		if err != nil {
			return err
		}
		s, err := sentinel.New(m.sentinelOptions(ln))
		if err != nil {
			return err
		}
		m.sentinel = s
		m.faces.SentinelAddr = m.reach(s.Addr())
		m.parts.start("sentinel", s.Run)
	}
	ln, err := m.inherited.listener("api", c.API.Listen)
	if err != nil {
		return err
	}
	checks, err := m.inherited.listener("checks", c.API.ChecksListen)
	if err != nil {
		return err
	}
	if err := m.openBoard(); err != nil {
		return err
	}
	var shards []api.Shard
	var adoption *api.Adoption
	if m.deploy.OnOrder() {
		adoption = &api.Adoption{Docs: m.store, Deployment: m.deploy.Name, Spec: m.deploy.Spec()}
	}
	for _, u := range m.all() {
		shards = append(shards, u.face())
	}
	var handBack func(context.Context, string) error
	if m.slots != nil && adopts(m.deploy) {
		handBack = m.handBack
	}
	var orders api.Resharder // nil, and not a struct in it, where there are no slots
	if m.slots != nil {
		orders = reshardOrders{m}
	}
	if m.ring != nil {
		orders = ringOrders{m}
	}
	a, err := api.New(api.Options{
		Reshard: orders, HandBack: handBack, Password: m.deploy.Password, Mode: m.deploy.Mode, Shards: shards,
		Listen: c.API.Listen, Listener: ln, Upgrade: m.orderUpgrade, Version: m.o.Version, Member: c.Member.ID, Clock: m.clock, Log: m.log, Metrics: m.metrics, Health: m.health, Address: m.addressStatus, Adoption: adoption,
		Board: m.board, Proxy: c.Proxy.Listen != "", Events: m.feed, ChecksListen: c.API.ChecksListen, ChecksListener: checks,
	})
	if err != nil {
		return err
	}
	m.api = a
	m.faces.APIAddr = m.reach(a.Addr())
	if at := a.ChecksAddr(); at != "" {
		m.faces.ChecksAddr = m.reach(at)
	}
	if err := m.startDiscovery(); err != nil { // before the API shows its metrics
		return err
	}
	m.parts.start("api", a.Run)
	return nil
}

// reach is where others reach what listens on addr: the member's own host stands for "all interfaces".
func (m *member) reach(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = m.o.Config.Member.Host
	}
	return net.JoinHostPort(host, port)
}

// event notes at debug level what the parts have already put into words in the log.
func (m *member) event(e event.Event) {
	m.feed.Note(e)
	attrs := []slog.Attr{slog.String("kind", e.Kind), slog.String("shard", e.Shard), slog.Uint64("epoch", e.Epoch), slog.String("text", e.Text)}
	if e.Node != "" {
		attrs = append(attrs, slog.String("node", e.Node))
	}
	if e.Rule != "" {
		attrs = append(attrs, slog.String("rule", e.Rule))
	}
	for k, v := range e.Facts {
		attrs = append(attrs, slog.String(k, v))
	}
	m.log.LogAttrs(context.Background(), slog.LevelDebug, "event", attrs...)
}

// handOver moves the primaries that are here to other nodes, all at the same time.
func (m *member) handOver(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, u := range m.all() {
		all.Go(func() { u.handOver(ctx) })
	}
}

// stop ends the parts in reverse order and then the servers. It also runs after a start that failed half-way.
func (m *member) stop(ctx context.Context) error {
	m.parts.end()
	m.parts.stopAll(m.log, "view", "seed", "loops")
	units := m.opened()
	for _, u := range units[len(m.units):] {
		u.parts.stopAll(m.log, "view", "seed")
	}
	m.parts.stop(m.log, "loops") // on which all of them had connections
	var stopping sync.WaitGroup
	stopped := make([]error, len(units))
	for i, u := range units {
		if u.node != nil && !u.gone() {
			stopping.Go(func() { stopped[i] = u.stopNode(context.WithoutCancel(ctx)) })
		}
	}
	stopping.Wait()
	errs := stopped
	for _, u := range units[len(m.units):] {
		u.parts.stopAll(m.log)
	}
	m.parts.stopAll(m.log)
	if m.hall != nil && m.store != nil {
		m.hall.Close()
	}
	if m.store != nil {
		if err := m.store.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the store: %w", err))
		}
	}
	m.log.Info("member has stopped")
	return errors.Join(errs...)
}
