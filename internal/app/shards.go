// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/front"
	"redoubt/internal/topo"
)

// Shards of a cluster that came after it was created are agreed: they stand in a document, and not in the members' files. Each member opens
// what it has of one when it learns of it: a view, a proxy, a place in the front, a server where one is to be here, a controller.

// shardList is the document.
type shardList struct {
	Format  int             `json:"format"`
	Added   []api.ShardSpec `json:"added"`
	Leaving []leaving       `json:"leaving,omitempty"` // to be emptied, and removed then
	Removed []string        `json:"removed,omitempty"` // names that had a shard, also of a file; none is used again
}

const shardsFormat = 1

// shardBook is this member's copy of it. Safe for concurrent use.
type shardBook struct {
	mu    sync.Mutex // guards what follows
	now   shardList
	rev   coord.Rev
	known chan struct{} // closed once it was read, or is known not to be there
}

func newShardBook() *shardBook { return &shardBook{known: make(chan struct{})} }

func (b *shardBook) get() (shardList, coord.Rev) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now, b.rev
}

// offer takes a version of the document; nil: there is none.
func (b *shardBook) offer(doc *coord.Doc) error {
	var l shardList
	if doc != nil {
		if err := json.Unmarshal(doc.Value, &l); err != nil || l.Format != shardsFormat {
			return fmt.Errorf("the agreed list of shards cannot be used (format %d): all members need the same version: %w", l.Format, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if doc != nil && doc.Rev > b.rev {
		b.now, b.rev = l, doc.Rev
	}
	select {
	case <-b.known:
	default:
		close(b.known)
	}
	return nil
}

func (m *member) shardsKey() string { return topo.KeyShards + m.deploy.Name }

// readShards reads the document.
func (m *member) readShards(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	doc, err := m.store.Get(ctx, m.shardsKey())
	switch {
	case errors.Is(err, coord.ErrNotFound):
		return m.roster.offer(nil)
	case err != nil:
		return err
	}
	return m.roster.offer(&doc)
}

// startShards follows the list, where there is one. A process that takes a member over has to have all of them before it is the member.
func (m *member) startShards() error {
	if m.roster == nil {
		return nil
	}
	if p := m.o.Predecessor; p != nil && !p.up.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), freshTime)
		defer cancel()
		if err := errors.Join(m.readShards(ctx), m.openLater(ctx)); err != nil {
			return fmt.Errorf("take over the shards that came later: %w", err)
		}
	}
	m.parts.start("shards", m.keepShards)
	return nil
}

// keepShards opens the shards that came later, until ctx ends.
func (m *member) keepShards(ctx context.Context) error {
	pushed := m.store.Watch(ctx, m.shardsKey())
	tick := time.NewTicker(seedEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		if n%int(slotsEvery/seedEvery) == 0 {
			if err := m.readShards(ctx); err != nil && ctx.Err() == nil {
				m.log.Debug("read the list of shards", "err", err)
			}
		}
		_ = m.openLater(ctx) // said, and tried again by a start of the member
		list, _ := m.roster.get()
		for _, name := range list.Removed {
			if u := m.unitOf(m.deploy.Name + "-" + name); u != nil && m.parted(name) {
				m.closeShard(ctx, u)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case doc, ok := <-pushed:
			if !ok {
				pushed = nil
			} else if err := m.roster.offer(&doc); err != nil {
				return err
			}
		}
	}
}

// openLater opens the shards that came later, as far as they are known and not open yet.
func (m *member) openLater(ctx context.Context) error {
	list, _ := m.roster.get()
	var errs []error
	for _, s := range list.Added {
		if m.unitOf(m.deploy.Name+"-"+s.Name) == nil && !slices.Contains(list.Removed, s.Name) {
			errs = append(errs, m.openShard(ctx, s))
		}
	}
	return errors.Join(errs...)
}

// unitOf returns what this member has for a shard; nil: it does not know it.
func (m *member) unitOf(id string) *unit {
	all := m.all()
	if i := slices.IndexFunc(all, func(u *unit) bool { return u.deploy.ID() == id }); i >= 0 {
		return all[i]
	}
	return nil
}

// openShard opens what this member has for a shard. What does not work is said, and tried again by a start of the member.
func (m *member) openShard(ctx context.Context, s api.ShardSpec) (err error) {
	d := m.deploy.UnitOf(shardOf(s))
	wrong := func(text string, why error) {
		m.log.Error(text, "shard", d.ID(), "err", why)
		err = errors.Join(err, why)
	}
	if err := m.hall.Add(d.ID()); err != nil {
		wrong("a shard cannot be opened", err)
		return err
	}
	u := m.newUnit(d, &stack{failed: m.parts.failed})
	u.start("view", u.view.Run)
	if err := u.startProxy(); err != nil {
		wrong("the proxy of a shard cannot be started", err)
	}
	if u.proxy != nil {
		select {
		case <-u.proxy.Running():
		case <-ctx.Done():
		}
	}
	later := []*unit{u}
	if now := m.later.Load(); now != nil {
		later = append(slices.Clone(*now), u)
	}
	m.later.Store(&later)
	if m.front != nil {
		m.front.AddShard(front.Shard{Name: d.ID()})
	}
	if p := m.o.Predecessor; p != nil && !p.up.Load() {
		if err := u.awaitFresh(ctx); err != nil {
			wrong("a shard cannot be taken over", err)
			return err
		}
	}
	if err := u.startNode(ctx); err != nil {
		wrong("the server of a shard cannot be started: mend that and start this member again", err)
	} else if m.registrar != nil {
		m.registrar.admit(u)
	}
	if m.board != nil {
		m.board.Add(m.boardPart(u))
	}
	if err := u.startRest(); err != nil {
		wrong("a shard cannot be controlled from here", err)
	}
	m.showShards()
	m.log.Info("a shard has come", "shard", d.ID(), "nodes", len(d.Nodes), "here", d.Node != nil)
	return err
}

// showShards has the API show the shards that there are.
func (m *member) showShards() {
	var faces []api.Shard
	for _, u := range m.all() {
		faces = append(faces, u.face())
	}
	if err := m.api.SetShards(faces); err != nil {
		m.log.Error("the shards cannot be shown", "err", err)
	}
}

func shardOf(s api.ShardSpec) config.Shard {
	sh := config.Shard{Name: s.Name}
	for _, n := range s.Nodes {
		sh.Nodes = append(sh.Nodes, config.Node{ID: n.ID, Host: n.Host, Zone: n.Zone, Addr: n.Addr, BusPort: n.BusPort, Priority: n.Priority})
	}
	return sh
}

// AddShard implements api.Resharder.
func (r reshardOrders) AddShard(ctx context.Context, s api.ShardSpec) error {
	m := r.m
	if err := r.checkShard(&s); err != nil {
		return err
	}
	return m.changeShards(ctx, func(list *shardList) error {
		switch {
		case slices.ContainsFunc(list.Added, func(o api.ShardSpec) bool { return o.Name == s.Name }):
			return refused("known", "there is a shard %s already", s.Name)
		case slices.Contains(list.Removed, s.Name):
			return refused("name-used", "a shard %s was removed: give the new one another name", s.Name)
		}
		list.Added = append(slices.Clone(list.Added), s)
		return nil
	})
}

// changeShards changes the document by what change makes of the present one.
func (m *member) changeShards(ctx context.Context, change func(*shardList) error) error {
	doc, err := m.rewrite(ctx, m.shardsKey(), func() ([]byte, coord.Rev, error) {
		if err := m.readShards(ctx); err != nil {
			return nil, 0, err
		}
		list, rev := m.roster.get()
		if err := change(&list); err != nil {
			return nil, 0, err
		}
		list.Format = shardsFormat
		value, err := json.Marshal(list)
		if err != nil {
			return nil, 0, fmt.Errorf("encode the list of shards: %w", err)
		}
		return value, rev, nil
	})
	if err != nil {
		return err
	}
	return m.roster.offer(&doc)
}

// checkShard completes what is asked for, and refuses what cannot be.
func (r reshardOrders) checkShard(s *api.ShardSpec) error {
	if adopts(r.m.deploy) {
		return refused("not-adopted", "a shard cannot be added to a cluster that was adopted in this version: its servers are not Redoubt's to start")
	}
	if !config.ValidID(s.Name) || len(s.Nodes) == 0 {
		return refused("bad-shard", "a shard needs a name like s4, and nodes")
	}
	taken := map[string]string{}
	for _, u := range r.m.all() {
		if u.deploy.Shard == s.Name {
			return refused("known", "there is a shard %s already", s.Name)
		}
		for _, n := range u.roster() {
			host, _, _ := net.SplitHostPort(n.Addr)
			taken[n.Addr] = u.deploy.Shard
			if r.m.slots != nil {
				taken[net.JoinHostPort(host, strconv.Itoa(n.Bus()))] = u.deploy.Shard
			}
		}
	}
	ids := map[string]bool{}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		host, port, err := net.SplitHostPort(n.Addr)
		number, nerr := strconv.Atoi(port)
		if err != nil || nerr != nil || net.ParseIP(host) == nil || !config.ValidID(n.ID) || ids[n.ID] {
			return refused("bad-shard", "node %q at %q: write each node once, with the id of its member and an IP address and port", n.ID, n.Addr)
		}
		if ids[n.ID] = true; r.m.slots == nil { // servers of a ring have no bus
			if of, is := taken[n.Addr]; is {
				return refused("address-taken", "%s is an address of shard %s", n.Addr, of)
			}
			taken[n.Addr], n.BusPort = s.Name, 0
			continue
		}
		if n.BusPort == 0 {
			n.BusPort = number + topo.BusAbove
		}
		if n.BusPort < 1 || n.BusPort > 65535 || n.BusPort == number {
			return refused("bad-shard", "node %s: bus-port %d: use a port from 1 to 65535, and another one than the server's", n.ID, n.BusPort)
		}
		for _, addr := range []string{n.Addr, net.JoinHostPort(host, strconv.Itoa(n.BusPort))} {
			if of, is := taken[addr]; is {
				return refused("address-taken", "%s is an address of shard %s", addr, of)
			}
			taken[addr] = s.Name
		}
	}
	return nil
}
