// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"redoubt/internal/accord"
	"redoubt/internal/agent"
	"redoubt/internal/api"
	"redoubt/internal/config"
	"redoubt/internal/controller"
	"redoubt/internal/coord"
	"redoubt/internal/coord/scope"
	"redoubt/internal/event"
	"redoubt/internal/proxy"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// unit is what a member has for one shard.
type unit struct {
	*member
	deploy   config.Unit
	log      *slog.Logger
	store    coord.Store // as this shard sees it
	source   *source     // what the view and the proxy read; the store, but during a hand-over
	view     *view.View
	orders   *api.Orders
	node     localNode
	agent    *agent.Agent   // nil: no data node here
	accord   *accord.Accord // nil: the members of this store do not reach each other without it
	proxy    *proxy.Proxy
	salvaged *salvaged // nil: nothing is kept here
}

// open makes the units, and a view for each.
func (m *member) open() error {
	shards := m.deploy.Units()
	if m.deploy.Sharded() {
		shared, ok := m.store.(scope.Shared)
		if !ok {
			return fmt.Errorf("a deployment with mode %s needs a store that several shards can share", m.deploy.Mode)
		}
		var ids []string
		for _, d := range shards {
			ids = append(ids, d.ID())
		}
		var err error
		if m.hall, err = scope.Open(shared, ids...); err != nil {
			return err
		}
	}
	if m.deploy.Mode == "cluster" {
		m.slots = newSlotBook()
		m.parts.start("slots", m.keepSlots)
	}
	for _, d := range shards {
		u := &unit{member: m, deploy: d, log: m.log, store: m.store}
		if m.hall != nil {
			u.store, u.log = m.hall.Of(d.ID()), m.log.With("shard", d.ID())
		}
		u.source = newSource(u.store)
		u.view = view.New(u.source, m.clock, topo.KeyShard+d.ID(), u.log)
		m.units = append(m.units, u)
		m.parts.start("view", u.view.Run)
	}
	return nil
}

// startRest starts what ends before a member is handed over, but for the node.
func (u *unit) startRest() error {
	u.startAccord()
	u.orders = api.NewOrders(u.store, u.deploy.ID())
	if u.salvaged != nil {
		u.parts.start("salvage", u.reportSalvage)
	}
	u.parts.start("seed", func(ctx context.Context) error { return u.seed(ctx, topo.KeyShard+u.deploy.ID()) })
	ctl, err := controller.New(controller.Options{Member: u.o.Config.Member.ID, Shard: u.deploy.ID(), Store: u.store, Clock: u.clock, Log: u.log, Events: u.event})
	if err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	u.parts.start("controller", ctl.Run)
	return nil
}

// face is what the API needs of the shard.
func (u *unit) face() api.Shard {
	s := api.Shard{ID: u.deploy.ID(), Store: u.store, View: u.view, Outage: u.outage}
	if u.salvaged != nil {
		s.Salvage = u.salvaged.keeper
	}
	if u.slots != nil {
		s.Slots = u.slotsText
	}
	return s
}

func (u *unit) startNode(ctx context.Context) error {
	local := u.deploy.Node
	if local == nil {
		return nil
	}
	node, err := openNode(ctx, u.o, u.deploy, u.seat(), u.dir("attached"), u.clock, u.log)
	if err != nil {
		return fmt.Errorf("set up node %s: %w", local.ID, err)
	}
	u.node = node
	var keeper agent.Keeper // nil, and not a nil pointer in it, when nothing is kept
	if u.salvaged, err = u.openSalvage(); err != nil {
		return err
	}
	if u.salvaged != nil {
		keeper = u.salvaged.keeper
	}
	a, err := agent.New(agent.Options{
		Salvage: keeper,
		ID:      topo.NodeID(local.ID), Addr: u.deploy.LocalAddr(), Node: node, View: u.view, Beats: u.source, Clock: u.clock,
		Dir: u.dir("agent"), Log: u.log, Events: u.event,
	})
	if err != nil {
		return fmt.Errorf("set up the agent: %w", err)
	}
	u.agent = a
	u.parts.start("agent", a.Run)
	return nil
}

func (u *unit) startProxy() error {
	c := u.o.Config
	listen, readonly, header := c.Proxy.Listen, c.Proxy.ReadonlyListen, proxy.HeaderPolicy(c.Proxy.ProxyProtocol)
	if u.hall != nil {
		listen, readonly, header = proxy.ListenNowhere, "", proxy.HeaderOff // clients come by the front
	}
	if c.Proxy.Listen != "" {
		limits := proxy.Limits{Clients: c.Proxy.Clients, ParkedCommands: c.Proxy.ParkCommands, ParkedBytes: int(c.Proxy.ParkBytes), LagMax: int64(c.Proxy.ReadonlyLag)}
		limits.Query, limits.Output, limits.OutputSoft = int(c.Proxy.QueryBytes), int(c.Proxy.OutputBytes), int(c.Proxy.OutputSoftBytes)
		limits.OutputTime, limits.Idle, limits.Handshake = c.Proxy.OutputSoftTime.D(), c.Proxy.Idle.D(), c.Proxy.Handshake.D()
		mode, err := c.Proxy.Mode()
		if err != nil {
			return fmt.Errorf("set up the proxy: socket mode: %w", err)
		}
		limits.Loops = proxy.DefaultLimits().Loops
		p, err := proxy.New(proxy.Options{
			View: u.view, Clock: u.clock, ID: c.Member.ID, Listen: listen, ListenReadonly: readonly,
			Beats: u.source, Password: u.deploy.Password, ReadConsistency: proxy.Consistency(c.Proxy.Reads), HangUp: c.Proxy.UnknownOutcome == "disconnect",
			Exact: u.deploy.Retry == "exact", Cluster: u.slots != nil,
			Zone: c.Zone(), SplitReads: c.Proxy.SplitReads, Staleness: c.Proxy.MaxStaleness.D(), Log: u.log, Events: u.event,
			Limits:    limits,
			Inherited: u.inherited.of("proxy"), FirstID: u.firstID,
			SocketMode: mode, ProxyProtocol: header, Engine: u.engine(),
		})
		if err != nil {
			return fmt.Errorf("set up the proxy: %w", err)
		}
		u.proxy = p
		if u.hall == nil && p.Addr().Network() == "tcp" { // nobody else can reach a Unix socket
			u.faces.ProxyAddr = u.reach(p.Addr().String())
		}
		if ro := p.ReadonlyAddr(); ro != nil && ro.Network() == "tcp" {
			u.faces.ReadonlyAddr = u.reach(ro.String())
		}
		u.parts.start("proxy", p.Run)
	}
	return nil
}

func (u *unit) sentinelFailover(ctx context.Context) error {
	_, err := u.orders.Submit(ctx, api.IntentRequest{Kind: topo.IntentSwitchover, By: "sentinel face of " + u.o.Config.Member.ID})
	return err
}

// handOver asks for a switchover if the primary is here, and waits for it within bounds. Stopping goes on either way:
// what did not succeed politely is a failover then.
func (u *unit) handOver(ctx context.Context) {
	snap := u.view.Load()
	if u.node == nil || snap == nil {
		return
	}
	a := snap.Shard.Assigned
	if a.Phase != topo.PhaseServing || string(a.Primary) != u.deploy.Node.ID || len(snap.Shard.Spec.Nodes) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handoverWait)
	defer cancel()
	in, err := u.orders.Submit(ctx, api.IntentRequest{Kind: topo.IntentSwitchover, Budget: topo.Duration(handoverBudget), By: u.o.Config.Member.ID + " stopping"})
	if err != nil {
		u.log.Warn("handing over before stopping", "err", err)
		return
	}
	st, err := u.orders.Await(ctx, in.ID)
	switch {
	case err != nil:
		u.log.Warn("handing over before stopping", "err", err)
	case !st.Outcome.OK:
		u.log.Warn("handing over before stopping was refused", "why", st.Outcome.Why)
	default:
		u.log.Info("handed over", "primary", st.Primary, "epoch", st.Epoch)
	}
}

// stopNode makes sure that no server accepts writes without its agent: a managed one ends, an attached one is fenced.
func (u *unit) stopNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serverStop)
	defer cancel()
	defer u.node.Close()
	if p := u.o.Predecessor; p != nil && !p.up {
		return nil // the earlier process takes it back
	}
	if u.deploy.Node.Kind == "attached" {
		if err := u.node.Fence(ctx); err != nil {
			return fmt.Errorf("fence the server of node %s before leaving it: %w", u.deploy.Node.ID, err)
		}
		return nil
	}
	if err := u.node.Stop(ctx); err != nil {
		u.log.Warn("the server did not stop; killing it", "err", err)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return u.node.Kill(last)
	}
	return nil
}

// dir is where the unit keeps things of that kind: in a ring, each shard has a place of its own.
func (u *unit) dir(kind string) string {
	return filepath.Join(u.o.Config.Member.Dir, kind, u.deploy.Shard)
}

// event notes what the shard's parts report.
func (u *unit) event(e event.Event) {
	if e.Kind == agent.SalvageEvent {
		u.noteSalvage(e)
	}
	u.member.event(e)
}
