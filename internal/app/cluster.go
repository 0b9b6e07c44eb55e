// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/redisd"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// slotBook is this member's copy of the agreed slot map. Its methods are safe for concurrent use.
type slotBook struct {
	mu      sync.Mutex // guards what follows
	now     *slots.Map // nil: not read yet
	rev     coord.Rev
	changed chan struct{} // closed at each new revision
	steered []steered
	routes  *slots.Map // now, with what was steered
}

// steered are slots that a shard has taken, which is not stored yet.
type steered struct {
	slots []int
	to    string
	rev   coord.Rev // of the document that says that it may
}

func newSlotBook() *slotBook { return &slotBook{changed: make(chan struct{})} }

// Map returns the latest map; nil: none was read yet.
func (b *slotBook) Map() *slots.Map {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// Routes returns the map by which commands find their shard; nil: none was read yet.
func (b *slotBook) Routes() *slots.Map {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.routes
}

// steer sends commands about these slots to a shard that has taken them, until the document says whose they are.
func (b *slotBook) steer(which []int, to string, rev coord.Rev) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != nil {
		b.steered = append(b.steered, steered{which, to, rev})
		b.reroute()
	}
}

// reroute works out the routes; the caller holds b.mu.
func (b *slotBook) reroute() {
	b.routes = b.now
	moves, err := movesOf(b.now)
	b.steered = slices.DeleteFunc(b.steered, func(s steered) bool {
		return err != nil || b.rev >= s.rev && !slices.ContainsFunc(moves, func(m reshard.Move) bool {
			return m.Stage == reshard.LettingGo && m.To == s.to && slices.Equal(m.Slots, s.slots)
		})
	})
	for _, s := range b.steered {
		b.routes = b.routes.WithAll(s.slots, s.to)
	}
}

// next returns a channel that is closed at the next change.
func (b *slotBook) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// await waits until a map is known.
func (b *slotBook) await(ctx context.Context) error {
	for {
		changed := b.next()
		if b.Map() != nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitShards waits until it is known which shard has which slots, and each that has some is open here.
func (m *member) awaitShards(ctx context.Context) error {
	if err := m.slots.await(ctx); err != nil {
		return err
	}
	for {
		now := m.slots.Map()
		if !slices.ContainsFunc(now.Shards(), func(id string) bool { return m.unitOf(id) == nil && now.Ranges(now.Index(id)) != nil }) {
			return nil
		}
		if err := nap(ctx, reshardEvery); err != nil {
			return err
		}
	}
}

// offer takes a version of the document, unless it is older than what is known.
func (b *slotBook) offer(doc coord.Doc) error {
	m, err := slots.Decode(doc.Value)
	if err != nil {
		return fmt.Errorf("the agreed slot map cannot be used: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if doc.Rev > b.rev {
		b.now, b.rev = m, doc.Rev
		b.reroute()
		close(b.changed)
		b.changed = make(chan struct{})
	}
	return nil
}

// slotsEvery is how often the document is read besides being watched.
const slotsEvery = time.Second

// keepSlots writes the slot map if nobody has yet, and keeps this member's copy of it current until ctx ends.
func (m *member) keepSlots(ctx context.Context) error {
	first, err := m.deploy.SlotMap()
	if err != nil {
		return fmt.Errorf("the slots of the shards: %w", err)
	}
	key := topo.KeySlots + m.deploy.Name
	pushed := m.shared.Watch(ctx, key)
	tick := time.NewTicker(seedEvery)
	defer tick.Stop()
	known := false
	for {
		if !known {
			if known, err = m.readSlots(ctx, key, first); err != nil {
				return err
			}
			if known {
				tick.Reset(slotsEvery)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case doc, ok := <-pushed:
			if !ok {
				pushed = nil
			} else if err := m.offerSlots(doc); err != nil {
				return err
			}
		case <-tick.C:
			if known {
				if _, err := m.readSlots(ctx, key, nil); err != nil {
					return err
				}
			}
		}
	}
}

// readSlots reads the document, and writes it if there is none. It reports whether the document is known.
func (m *member) readSlots(ctx context.Context, key string, first *slots.Map) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	doc, err := m.shared.Get(ctx, key)
	switch {
	case errors.Is(err, coord.ErrNotFound) && first != nil:
		if _, err := m.shared.Swap(ctx, key, first.Encode(), 0); err == nil {
			m.log.Info("gave the shards their slots", "shards", len(first.Shards()))
		}
		return false, nil // a conflict or an unknown outcome: look again
	case err != nil:
		return false, nil // no majority yet
	}
	if err := m.offerSlots(doc); err != nil {
		return false, err
	}
	if first != nil && !m.slots.Map().Equal(first) {
		m.log.Info("the slots of the shards are not as the configuration file gave them out at first: the agreed ones hold")
	}
	return true, nil
}

// offerSlots takes a version of the document. When no slots are between two owners by it, no command has to wait: who asked for that may not have
// been heard when it said that they flow.
func (m *member) offerSlots(doc coord.Doc) error {
	if err := m.slots.offer(doc); err != nil {
		return err
	}
	moves, err := movesOf(m.slots.Map())
	if f := m.holder.Load(); f != nil && err == nil && !slices.ContainsFunc(moves, func(mv reshard.Move) bool { return mv.Stage == reshard.LettingGo }) {
		f.Release()
	}
	return nil
}

// slotsText is what a shard has, in words; empty: not known.
func (u *unit) slotsText() string {
	m := u.slots.Map()
	if m == nil {
		return ""
	}
	i := m.Index(u.deploy.ID())
	if i < 0 {
		return "none"
	}
	if text := slots.Text(m.Ranges(i)); text != "" {
		return text
	}
	return "none"
}

// clusterID is the id of a server, for ever.
func clusterID(uid, shard, node string) string { return slots.Derived(uid, shard, node) }

// clusterShardID is the id of a shard, for ever.
func clusterShardID(uid, shard string) string { return slots.Derived(uid, shard) }

// seat is the place of this member's server in the cluster; nil: there is none.
func (u *unit) seat() *redisd.ClusterSeat {
	if u.slots == nil {
		return nil
	}
	s := &redisd.ClusterSeat{ShardID: clusterShardID(u.deploy.Cluster.UID, u.deploy.ID()), Layout: u.seating, Mover: u.jobs.secret}
	for _, n := range u.deploy.Spec().Nodes {
		if string(n.ID) == u.deploy.Node.ID {
			s.ID, s.BusPort = u.serverID(n), n.Bus()
		}
	}
	return s
}

// roster are the servers of the shard, and one that is about to join it: as agreed, or as the file has them while nothing is known
// to be agreed. Where the agreed ones do not say where their bus is, and it is not where it usually is, the file does.
func (u *unit) roster() []topo.Node {
	spec := u.deploy.Spec()
	snap := u.view.Load()
	if snap == nil {
		return spec.Nodes
	}
	nodes := slices.Clone(snap.Shard.Spec.Nodes)
	if c := snap.Shard.Assigned.Change; c != nil && c.Kind == topo.ChangeAdd && !c.Void {
		nodes = append(nodes, c.Node)
	}
	for i, n := range nodes {
		if own, ok := spec.Node(n.ID); ok && own.Addr == n.Addr && n.BusPort == 0 {
			nodes[i].BusPort = own.BusPort
		}
	}
	return nodes
}

// serverID is the id of a node's server in the cluster, for ever.
func (u *unit) serverID(n topo.Node) string {
	if n.ServerID != "" {
		return n.ServerID
	}
	return clusterID(u.deploy.Cluster.UID, u.deploy.ID(), string(n.ID))
}

// seating is the layout as this unit's server needs it: it has a place in it also before it has joined, and after it has left.
func (u *unit) seating() redisd.ClusterLayout {
	l, shard := u.layout(), clusterShardID(u.deploy.Cluster.UID, u.deploy.ID())
	l.Agreed = u.view.Load() != nil
	for _, n := range u.deploy.Spec().Nodes {
		known := slices.ContainsFunc(l.Nodes, func(o redisd.ClusterNode) bool { return o.ID == u.serverID(n) })
		if u.deploy.Node != nil && string(n.ID) == u.deploy.Node.ID && !known {
			l.Nodes = append(l.Nodes, redisd.ClusterNode{ID: u.serverID(n), ShardID: shard, Addr: n.Addr, BusPort: n.Bus()})
		}
	}
	return l
}

// layout is the cluster as it is agreed, as far as it is known here.
func (m *member) layout() redisd.ClusterLayout {
	l := redisd.ClusterLayout{Slots: map[string][][2]int{}, Either: map[string][][2]int{}}
	now := m.slots.Map()
	moves, err := movesOf(now)
	if err != nil { // of another version: nobody is promoted by guess
		now = nil
	}
	either, flux := between(moves)
	for _, u := range m.all() {
		shard := u.deploy.ID()
		id := clusterShardID(m.deploy.Cluster.UID, shard)
		primary := u.agreedPrimary()
		for _, n := range u.roster() {
			l.Nodes = append(l.Nodes, redisd.ClusterNode{ID: u.serverID(n), ShardID: id, Addr: n.Addr, BusPort: n.Bus(), Primary: string(n.ID) == primary})
		}
		if now == nil {
			continue
		}
		mine := [][2]int{} // known to be none
		if i := now.Index(shard); i >= 0 {
			for _, r := range now.Ranges(i) {
				for s := r.From; s <= r.To && len(flux) > 0; s++ {
					if flux[s] {
						mine = append(mine, [2]int{r.From, s - 1})
						r.From = s + 1
					}
				}
				mine = append(mine, [2]int{r.From, r.To})
			}
		}
		l.Slots[id] = slices.DeleteFunc(mine, func(r [2]int) bool { return r[0] > r[1] })
		for s := range either[shard] {
			l.Either[id] = append(l.Either[id], [2]int{s, s})
		}
	}
	return l
}

// agreedPrimary is the shard's primary, or the last one; empty: there was none yet, or nothing is known.
func (u *unit) agreedPrimary() string {
	snap := u.view.Load()
	if snap == nil || snap.Shard.Assigned.Phase == topo.PhaseNew {
		return ""
	}
	return string(snap.Shard.Assigned.Primary)
}

// taggedSlot is a slot and a hash tag of it.
type taggedSlot struct {
	slot int
	tag  string
}

// slotTag is a hash tag of a slot of the shard; empty: it is not known to have one.
func (u *unit) slotTag() string {
	m := u.slots.Map()
	if m == nil {
		return ""
	}
	i := m.Index(u.deploy.ID())
	if i < 0 {
		return ""
	}
	ranges := m.Ranges(i)
	if len(ranges) == 0 {
		return ""
	}
	slot := ranges[len(ranges)-1].To
	if known := u.tagged.Load(); known != nil && known.slot == slot {
		return known.tag
	}
	t := &taggedSlot{slot, slots.Tag(slot)}
	u.tagged.Store(t)
	return t.tag
}
