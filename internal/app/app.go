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
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"redoubt/internal/accord"
	"redoubt/internal/agent"
	"redoubt/internal/api"
	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/controller"
	"redoubt/internal/coord"
	"redoubt/internal/event"
	"redoubt/internal/proxy"
	"redoubt/internal/redis"
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
	source    *source // what the view and the proxy read; the store, but during a hand-over
	view      *view.View
	orders    *api.Orders
	node      localNode
	agent     *agent.Agent   // nil: no data node here
	accord    *accord.Accord // nil: the members of this store do not reach each other without it
	proxy     *proxy.Proxy
	sentinel  *sentinel.Server
	api       *api.Server
	claim     *claimed
	faces     topo.MemberReport
	voters    atomic.Int64
	parts     stack
	salvaged  *salvaged         // nil: nothing is kept here
	upgrades  chan upgradeOrder // from the API; capacity one
	inherited inheritance       // while faces are started
	firstID   uint64
	stopAsked *StopMode // during a hand-over that was not finished
}

// leaver is a store that learns when it goes on without this member.
type leaver interface{ Removed() <-chan struct{} }

// localNode is what app needs of the driver besides the port.
type localNode interface {
	redis.Node
	Stop(ctx context.Context) error
}

// Run runs the member until it is asked to stop, ctx ends or a part fails.
func Run(ctx context.Context, o Options) (err error) {
	m := &member{o: o, log: o.Log, clock: clock.Real{}, deploy: o.Config.Deployments[0], upgrades: make(chan upgradeOrder, 1)}
	if o.Predecessor != nil {
		defer o.Predecessor.close()
		m.claim, err = o.Predecessor.take(o)
		m.inherited, m.firstID = o.Predecessor.left, o.Predecessor.first
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
		}
		if handed {
			return nil
		}
		if m.stopAsked != nil {
			return m.stopAs(ctx, *m.stopAsked)
		}
	}
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
	shard := m.deploy.ShardID()
	key := topo.KeyShard + shard
	var err error
	if m.store, err = openStore(ctx, c, m.clock, m.log); err != nil {
		return err
	}
	m.voters.Store(int64(len(c.Store.Members)))
	m.source = newSource(m.store)
	m.view = view.New(m.source, m.clock, key, m.log)
	m.parts.start("view", m.view.Run)
	if m.o.Predecessor != nil {
		if err := m.awaitFresh(ctx); err != nil {
			return err
		}
	}
	if err := m.startProxy(); err != nil {
		return err
	}
	if err := m.startNode(ctx); err != nil {
		return err
	}
	if err := m.startRest(); err != nil {
		return err
	}
	m.inherited.close()
	m.inherited = inheritance{}
	if p := m.o.Predecessor; p != nil {
		if err := p.send(whatUp, struct{}{}); err != nil {
			return fmt.Errorf("take over from process %d: %w", p.offer.PID, err)
		}
		p.up = true
		m.parts.start("succession", m.succeed)
	}
	return nil
}

// startRest starts what ends before a member is handed over, and is started again if that does not work; but for the node.
func (m *member) startRest() error {
	c := m.o.Config
	shard := m.deploy.ShardID()
	if gone, ok := m.store.(leaver); ok {
		m.parts.start("store", func(ctx context.Context) error { return m.stay(ctx, gone) })
	}
	m.startAccord()
	m.orders = api.NewOrders(m.store, shard)
	if m.salvaged != nil {
		m.parts.start("salvage", m.reportSalvage)
	}
	m.parts.start("seed", func(ctx context.Context) error { return m.seed(ctx, topo.KeyShard+shard) })
	ctl, err := controller.New(controller.Options{Member: c.Member.ID, Shard: shard, Store: m.store, Clock: m.clock, Log: m.log, Events: m.event})
	if err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	m.parts.start("controller", ctl.Run)
	proxyAddr, readonlyAddr := m.faces.ProxyAddr, m.faces.ReadonlyAddr
	m.faces = topo.MemberReport{ID: c.Member.ID, PID: os.Getpid(), Version: m.o.Version, StartedMS: m.clock.Now().UnixMilli(), StoreAddr: m.reach(c.Store.Listen)}
	m.faces.ProxyAddr, m.faces.ReadonlyAddr = proxyAddr, readonlyAddr
	if err := m.startFaces(shard); err != nil {
		return err
	}
	m.parts.start("report", m.report)
	return nil
}

func (m *member) startNode(ctx context.Context) error {
	local := m.deploy.Node
	if local == nil {
		return nil
	}
	node, err := openNode(ctx, m.o, m.deploy, m.clock, m.log)
	if err != nil {
		return fmt.Errorf("set up node %s: %w", local.ID, err)
	}
	m.node = node
	var keeper agent.Keeper // nil, and not a nil pointer in it, when nothing is kept
	if m.salvaged, err = m.openSalvage(); err != nil {
		return err
	}
	if m.salvaged != nil {
		keeper = m.salvaged.keeper
	}
	a, err := agent.New(agent.Options{
		Salvage: keeper,
		ID:      topo.NodeID(local.ID), Addr: m.deploy.LocalAddr(), Node: node, View: m.view, Beats: m.source, Clock: m.clock,
		Dir: filepath.Join(m.o.Config.Member.Dir, "agent"), Log: m.log, Events: m.event,
	})
	if err != nil {
		return fmt.Errorf("set up the agent: %w", err)
	}
	m.agent = a
	m.parts.start("agent", a.Run)
	return nil
}

func (m *member) startProxy() error {
	c := m.o.Config
	if c.Proxy.Listen != "" {
		limits := proxy.Limits{Clients: c.Proxy.Clients, ParkedCommands: c.Proxy.ParkCommands, ParkedBytes: int(c.Proxy.ParkBytes), LagMax: int64(c.Proxy.ReadonlyLag)}
		limits.Query, limits.Output, limits.OutputSoft = int(c.Proxy.QueryBytes), int(c.Proxy.OutputBytes), int(c.Proxy.OutputSoftBytes)
		limits.OutputTime, limits.Idle, limits.Handshake = c.Proxy.OutputSoftTime.D(), c.Proxy.Idle.D(), c.Proxy.Handshake.D()
		mode, err := c.Proxy.Mode()
		if err != nil {
			return fmt.Errorf("set up the proxy: socket mode: %w", err)
		}
		limits.Loops = proxy.DefaultLimits().Loops
		if os.Getenv("GOMAXPROCS") == "" {
			// A loop that waits for events counts as running for up to 10 ms; nothing else may have to wait for that.
			runtime.GOMAXPROCS(runtime.NumCPU() + limits.Loops)
		}
		p, err := proxy.New(proxy.Options{
			View: m.view, Clock: m.clock, ID: c.Member.ID, Listen: c.Proxy.Listen, ListenReadonly: c.Proxy.ReadonlyListen,
			Beats: m.source, Password: m.deploy.Password, ReadConsistency: proxy.Consistency(c.Proxy.Reads), HangUp: c.Proxy.UnknownOutcome == "disconnect",
			Exact: m.deploy.Retry == "exact",
			Zone:  c.Zone(), SplitReads: c.Proxy.SplitReads, Staleness: c.Proxy.MaxStaleness.D(), Log: m.log, Events: m.event,
			Limits:    limits,
			Inherited: m.inherited.of("proxy"), FirstID: m.firstID,
			SocketMode: mode, ProxyProtocol: proxy.HeaderPolicy(c.Proxy.ProxyProtocol),
		})
		if err != nil {
			return fmt.Errorf("set up the proxy: %w", err)
		}
		m.proxy = p
		if p.Addr().Network() == "tcp" { // nobody else can reach a Unix socket
			m.faces.ProxyAddr = m.reach(p.Addr().String())
		}
		if ro := p.ReadonlyAddr(); ro != nil && ro.Network() == "tcp" {
			m.faces.ReadonlyAddr = m.reach(ro.String())
		}
		m.parts.start("proxy", p.Run)
	}
	return nil
}

func (m *member) startFaces(shard string) error {
	c := m.o.Config
	if c.Sentinel.Listen != "" {
		ln, err := m.inherited.listener("sentinel", c.Sentinel.Listen)
		if err != nil {
			return err
		}
		s, err := sentinel.New(sentinel.Options{
			Listen: c.Sentinel.Listen, Listener: ln, Advertise: m.reach(c.Sentinel.Listen), Name: m.deploy.Name, Mode: sentinel.Mode(c.Sentinel.Addresses),
			Member: c.Member.ID, ProxyAddr: m.faces.ProxyAddr, Password: c.Sentinel.Password, Version: m.o.Version,
			View: m.view, Beats: m.store, Clock: m.clock, Log: m.log,
			Voters: func() int { return int(m.voters.Load()) }, Failover: m.sentinelFailover,
		})
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
	var files api.SalvageFiles
	if m.salvaged != nil {
		files = m.salvaged.keeper
	}
	a, err := api.New(api.Options{
		Salvage: files, Password: m.deploy.Password,
		Listen: c.API.Listen, Listener: ln, Upgrade: m.orderUpgrade, Version: m.o.Version, Member: c.Member.ID, Shard: shard, Store: m.store, View: m.view, Clock: m.clock, Log: m.log, Metrics: m.metrics, Outage: m.outage,
	})
	if err != nil {
		return err
	}
	m.api = a
	m.faces.APIAddr = m.reach(a.Addr())
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

func (m *member) sentinelFailover(ctx context.Context) error {
	_, err := m.orders.Submit(ctx, api.IntentRequest{Kind: topo.IntentSwitchover, By: "sentinel face of " + m.o.Config.Member.ID})
	return err
}

// event notes at debug level what the parts have already put into words in the log.
func (m *member) event(e event.Event) {
	if e.Kind == agent.SalvageEvent {
		m.noteSalvage(e)
	}
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

// handOver asks for a switchover if the primary is here, and waits for it within bounds. Stopping goes on either way:
// what did not succeed politely is a failover then.
func (m *member) handOver(ctx context.Context) {
	snap := m.view.Load()
	if m.node == nil || snap == nil {
		return
	}
	a := snap.Shard.Assigned
	if a.Phase != topo.PhaseServing || string(a.Primary) != m.deploy.Node.ID || len(snap.Shard.Spec.Nodes) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handoverWait)
	defer cancel()
	in, err := m.orders.Submit(ctx, api.IntentRequest{Kind: topo.IntentSwitchover, Budget: topo.Duration(handoverBudget), By: m.o.Config.Member.ID + " stopping"})
	if err != nil {
		m.log.Warn("handing over before stopping", "err", err)
		return
	}
	st, err := m.orders.Await(ctx, in.ID)
	switch {
	case err != nil:
		m.log.Warn("handing over before stopping", "err", err)
	case !st.Outcome.OK:
		m.log.Warn("handing over before stopping was refused", "why", st.Outcome.Why)
	default:
		m.log.Info("handed over", "primary", st.Primary, "epoch", st.Epoch)
	}
}

// stop ends the parts in reverse order and then the server. It also runs after a start that failed half-way.
func (m *member) stop(ctx context.Context) error {
	m.parts.stopAll(m.log, "view", "seed")
	var errs []error
	if m.node != nil {
		errs = append(errs, m.stopNode(context.WithoutCancel(ctx)))
	}
	m.parts.stopAll(m.log)
	if m.store != nil {
		if err := m.store.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the store: %w", err))
		}
	}
	m.log.Info("member has stopped")
	return errors.Join(errs...)
}

// stopNode makes sure that no server accepts writes without its agent: a managed one ends, an attached one is fenced.
func (m *member) stopNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serverStop)
	defer cancel()
	defer m.node.Close()
	if p := m.o.Predecessor; p != nil && !p.up {
		return nil // the earlier process takes it back
	}
	if m.deploy.Node.Kind == "attached" {
		if err := m.node.Fence(ctx); err != nil {
			return fmt.Errorf("fence the server of node %s before leaving it: %w", m.deploy.Node.ID, err)
		}
		return nil
	}
	if err := m.node.Stop(ctx); err != nil {
		m.log.Warn("the server did not stop; killing it", "err", err)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return m.node.Kill(last)
	}
	return nil
}
