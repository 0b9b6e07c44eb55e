// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/redisd"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// slotBook is this member's copy of the agreed slot map. Its methods are safe for concurrent use.
type slotBook struct {
	mu      sync.Mutex // guards what follows
	now     *slots.Map // nil: not read yet
	rev     coord.Rev
	changed chan struct{} // closed at each new revision
}

func newSlotBook() *slotBook { return &slotBook{changed: make(chan struct{})} }

// Map returns the latest map; nil: none was read yet.
func (b *slotBook) Map() *slots.Map {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
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
	pushed := m.store.Watch(ctx, key)
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
			} else if err := m.slots.offer(doc); err != nil {
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
	doc, err := m.store.Get(ctx, key)
	switch {
	case errors.Is(err, coord.ErrNotFound) && first != nil:
		if _, err := m.store.Swap(ctx, key, first.Encode(), 0); err == nil {
			m.log.Info("gave the shards their slots", "shards", len(first.Shards()))
		}
		return false, nil // a conflict or an unknown outcome: look again
	case err != nil:
		return false, nil // no majority yet
	}
	if err := m.slots.offer(doc); err != nil {
		return false, err
	}
	if first != nil && !m.slots.Map().Equal(first) {
		m.log.Info("the slots of the shards are not as the configuration file gave them out at first: the agreed ones hold")
	}
	return true, nil
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
	uid, shard := u.deploy.Cluster.UID, u.deploy.ID()
	s := &redisd.ClusterSeat{ID: clusterID(uid, shard, u.deploy.Node.ID), ShardID: clusterShardID(uid, shard), Layout: u.layout}
	for _, n := range u.deploy.Nodes {
		if n.ID == u.deploy.Node.ID {
			s.BusPort = n.BusPort
		}
	}
	return s
}

// layout is the cluster as it is agreed, as far as it is known here.
func (m *member) layout() redisd.ClusterLayout {
	l := redisd.ClusterLayout{Slots: map[string][][2]int{}}
	now := m.slots.Map()
	for _, u := range m.units {
		shard := u.deploy.ID()
		id := clusterShardID(m.deploy.Cluster.UID, shard)
		primary := u.agreedPrimary()
		for _, n := range u.deploy.Nodes {
			l.Nodes = append(l.Nodes, redisd.ClusterNode{
				ID: clusterID(m.deploy.Cluster.UID, shard, n.ID), ShardID: id, Addr: n.Addr, BusPort: n.BusPort, Primary: n.ID == primary,
			})
		}
		if now == nil {
			continue
		}
		mine := [][2]int{} // known to be none
		if i := now.Index(shard); i >= 0 {
			for _, r := range now.Ranges(i) {
				mine = append(mine, [2]int{r.From, r.To})
			}
		}
		l.Slots[id] = mine
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

// busPorts are those of the nodes of a shard.
func busPorts(d config.Unit) map[topo.NodeID]int {
	ports := map[topo.NodeID]int{}
	for _, n := range d.Nodes {
		ports[topo.NodeID(n.ID)] = n.BusPort
	}
	return ports
}
