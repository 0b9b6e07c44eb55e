// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
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
	parts    *stack // the member's, or its own, if it came later
	deploy   config.Unit
	log      *slog.Logger
	store    coord.Store // as this shard sees it
	source   *source     // what the view and the proxy read; the store, but during a hand-over
	view     *view.View
	orders   *api.Orders
	node     localNode
	agent    *agent.Agent                  // nil: no data node here
	accord   atomic.Pointer[accord.Accord] // nil: the members of this store do not reach each other without it
	proxy    *proxy.Proxy
	salvaged *salvaged                  // nil: nothing is kept here
	tagged   atomic.Pointer[taggedSlot] // mode cluster: see slotTag
	left     atomic.Bool                // the shard was removed, and nothing of it runs here any more
}

// open makes the units, and a view for each.
func (m *member) open() error {
	shards := m.deploy.Units()
	if m.deploy.Sharded() {
		if err := m.openHall(); err != nil {
			return err
		}
	}
	if m.deploy.Mode == "ring" && m.deploy.Ring.EjectAfter == 0 {
		m.ring = newRingBook(m)
		m.roster = newShardBook()
	}
	if m.deploy.Mode == "cluster" {
		m.slots, m.jobs, m.roster = newSlotBook(), newJobBook(), newShardBook()
		m.parts.start("slots", m.keepSlots)
		if adopts(m.deploy) {
			m.parts.start("adopted", m.keepAdopted)
		}
		m.parts.start("reshard orders", m.keepJobs)
	}
	for _, d := range shards {
		if m.wasRemoved(d) {
			continue
		}
		u := m.newUnit(d, &m.parts)
		m.units = append(m.units, u)
		u.start("view", u.view.Run)
	}
	if m.ring != nil {
		m.parts.start("ring", m.ring.keep)
	}
	return nil
}

// openHall has the shards share the store.
func (m *member) openHall() error {
	shared, ok := m.store.(scope.Shared)
	if !ok {
		return fmt.Errorf("a deployment with mode %s needs a store that several shards can share", m.deploy.Mode)
	}
	var ids []string
	for _, d := range m.deploy.Units() {
		ids = append(ids, d.ID())
	}
	for _, u := range m.opened()[len(m.units):] {
		ids = append(ids, u.deploy.ID())
	}
	if m.deploy.Mode == "cluster" || m.deploy.Ring.EjectAfter == 0 { // for what concerns all shards
		ids = append(ids, m.deploy.Name)
	}
	var err error
	m.hall, err = scope.Open(shared, ids...)
	return err
}

func (m *member) newUnit(d config.Unit, parts *stack) *unit {
	u := &unit{member: m, parts: parts, deploy: d, log: m.log, store: m.store}
	if m.hall != nil {
		u.store, u.log = m.hall.Of(d.ID()), m.log.With("shard", d.ID())
	}
	u.source = newSource(u.supplied(u.store))
	u.view = view.New(u.source, m.clock, topo.KeyShard+d.ID(), u.log)
	return u
}

// opened are the shards that this member has opened since it began, in that order: those of its file, those that came later, and those of them
// that were removed since.
func (m *member) opened() []*unit {
	if later := m.later.Load(); later != nil {
		return slices.Concat(m.units, *later)
	}
	return m.units
}

// all are the shards that there are, as far as this member knows.
func (m *member) all() []*unit {
	all := m.opened()
	if !slices.ContainsFunc(all, (*unit).gone) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), (*unit).gone)
}

func (u *unit) gone() bool { return u.left.Load() }

// start starts a part of this shard.
func (u *unit) start(name string, run func(context.Context) error) {
	u.parts.startFor(u.deploy.ID(), name, run)
}

// startRest starts what ends before a member is handed over, but for the node.
func (u *unit) startRest() error {
	if !u.waits() {
		u.startAccord()
	}
	u.orders = api.NewOrders(u.store, u.deploy.ID())
	if u.salvaged != nil {
		u.start("salvage", u.reportSalvage)
	}
	if !u.deploy.OnOrder() { // the order to take over makes the document
		u.start("seed", func(ctx context.Context) error { return u.seed(ctx, topo.KeyShard+u.deploy.ID()) })
	}
	ctl, err := controller.New(controller.Options{Member: u.o.Config.Member.ID, Shard: u.deploy.ID(), Store: u.store, Clock: u.clock, Log: u.log, Events: u.event})
	if err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	u.start("controller", ctl.Run)
	return nil
}

// face is what the API needs of the shard.
func (u *unit) face() api.Shard {
	s := api.Shard{ID: u.deploy.ID(), Name: u.deploy.Shard, Store: u.store, View: u.view, Outage: u.outage}
	if u.agent != nil {
		s.Node, s.Seen = topo.NodeID(u.deploy.Node.ID), u.agent.Seen
	}
	if u.salvaged != nil {
		s.Salvage = u.salvaged.keeper
	}
	if u.slots != nil {
		s.Slots = u.slotsText
	}
	if u.proxy != nil {
		s.Load = u.proxy.Watch
	}
	return s
}

// startNodes starts or finds the servers beside this member, in turn.
func (m *member) startNodes(ctx context.Context) error {
	for _, u := range m.units {
		if err := u.startNode(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (u *unit) startNode(ctx context.Context) error {
	local := u.deploy.Node
	if local == nil {
		return nil
	}
	var err error
	if u.salvaged == nil { // before the faces, which show it
		if u.salvaged, err = u.openSalvage(); err != nil {
			return err
		}
	}
	if u.waits() {
		return nil
	}
	node, err := openNode(ctx, u.o, u.deploy, u.seat(), u.ringMover(), u.dir("attached"), u.clock, u.log)
	if err != nil {
		return fmt.Errorf("set up node %s: %w", local.ID, err)
	}
	if u.node = node; u.slots != nil {
		u.node = promotable{node, u.member}
	}
	var keeper agent.Keeper // nil, and not a nil pointer in it, when nothing is kept
	if u.salvaged != nil {
		keeper = u.salvaged.keeper
	}
	self, _ := u.deploy.Spec().Node(topo.NodeID(local.ID))
	a, err := agent.New(agent.Options{
		Salvage: keeper,
		ID:      topo.NodeID(local.ID), Addr: u.deploy.LocalAddr(), Bus: self.BusPort, Server: self.ServerID, Node: u.node, View: u.view, Beats: u.source, Clock: u.clock,
		Dir: u.dir("agent"), Log: u.log, Events: u.event,
	})
	if err != nil {
		return fmt.Errorf("set up the agent: %w", err)
	}
	u.agent = a
	u.start("agent", u.duty(a))
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
			Exact: u.deploy.Retry == "exact", Cluster: u.slots != nil, SlotTag: u.slotTag,
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
		u.start("proxy", p.Run)
	}
	return nil
}

// handOver asks for a switchover if the primary is here, and waits for it within bounds. Stopping goes on either way:
// what did not succeed politely is a failover then.
func (u *unit) handOver(ctx context.Context) {
	snap := u.view.Load()
	if u.node == nil || snap == nil || u.slots != nil && u.handedBack() {
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
	if p := u.o.Predecessor; p != nil && !p.up.Load() {
		return nil // the earlier process takes it back
	}
	if u.deploy.Node.Kind == "attached" && u.slots != nil && u.handedBack() {
		return nil
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
