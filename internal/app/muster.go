// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"redoubt/internal/muster"
	"redoubt/internal/redisd"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

const (
	musterEvery = 500 * time.Millisecond // a look at each server's idea of the cluster
	musterTime  = 2 * time.Second        // for what one server is asked and told
	copiesEvery = 10                     // looks after which keys of a marked slot are counted again
	bookTTL     = 5 * time.Second
)

// registrar sees that the servers on this member know all servers of the cluster, and no others, and says what is wrong with it.
type registrar struct {
	m    *member
	mu   sync.Mutex // guards what follows
	desk []*desk
	gone []*desk // whose clerk is to be closed
}

// desk is one server on this member.
type desk struct {
	u      *unit
	clerk  *redisd.Clerk
	memory muster.Memory
	copies map[int]muster.Copies
	looks  int
	last   string // what was told to it, and why: each is logged once
}

// clerked is a driver that keeps books.
type clerked interface{ Clerk() *redisd.Clerk }

// startMuster starts the registrar of a cluster.
func (m *member) startMuster() {
	if m.slots == nil || m.handedBack() {
		return
	}
	m.registrar = &registrar{m: m}
	for _, u := range m.all() {
		m.registrar.admit(u)
	}
	m.parts.start("muster", m.registrar.run)
}

// admit has the server of u looked at from now on, if there is one here. Its node has been opened.
func (r *registrar) admit(u *unit) {
	n, ok := u.node.(clerked)
	if !ok {
		return
	}
	if k := n.Clerk(); k != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.desk = append(r.desk, &desk{u: u, clerk: k, copies: map[int]muster.Copies{}})
	}
}

// dismiss has the server of u not looked at any more.
func (r *registrar) dismiss(u *unit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.desk = slices.DeleteFunc(slices.Clone(r.desk), func(d *desk) bool {
		if d.u == u {
			r.gone = append(r.gone, d)
		}
		return d.u == u
	})
}

func (r *registrar) desks() []*desk {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.desk)
}

// run looks at all servers here, again and again, until ctx ends.
func (r *registrar) run(ctx context.Context) error {
	defer func() {
		for _, d := range r.desks() {
			d.clerk.Close()
		}
	}()
	tick := time.NewTicker(musterEvery)
	defer tick.Stop()
	for {
		r.round(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.m.released:
			return nil
		case <-tick.C:
		}
	}
}

func (r *registrar) round(ctx context.Context) {
	r.mu.Lock()
	for _, d := range r.gone {
		d.clerk.Close()
	}
	r.gone = nil
	r.mu.Unlock()
	desks := r.desks()
	if len(desks) == 0 {
		return
	}
	roster, whole := r.m.rollCall(ctx)
	var found []topo.ClusterFinding
	for _, d := range desks {
		asking, cancel := context.WithTimeout(ctx, musterTime)
		found = append(found, d.visit(asking, roster, whole)...)
		cancel()
	}
	body, err := json.Marshal(topo.ClusterBook{Member: r.m.o.Config.Member.ID, Findings: found, Servers: len(desks)})
	if err != nil || ctx.Err() != nil {
		return
	}
	sending, cancel := context.WithTimeout(ctx, musterTime)
	defer cancel()
	if err := r.m.store.Send(sending, topo.BeatCluster+r.m.o.Config.Member.ID, body, bookTTL); err != nil {
		r.m.log.Debug("send what was found about the cluster", "err", err)
	}
}

// rollCall is who is agreed to be of the cluster, and whether that is everybody, as of a moment ago.
func (m *member) rollCall(ctx context.Context) ([]muster.Member, bool) {
	asking, cancel := context.WithTimeout(ctx, musterTime)
	beats, err := m.store.All(asking)
	if err == nil {
		err = m.readShards(asking)
	}
	cancel()
	book := m.slots.Map()
	whole := err == nil && book != nil
	known := map[string]bool{}
	var roster []muster.Member
	for _, u := range m.all() {
		shard := u.deploy.ID()
		known[shard] = true
		snap := u.view.Load()
		whole = whole && snap != nil && snap.Fresh(m.clock.Uptime())
		primary := u.agreedPrimary()
		reports := ofShard(beats, shard)
		for _, n := range u.roster() {
			seen, there := reports.Nodes[n.ID]
			roster = append(roster, muster.Member{
				ID: u.serverID(n), Name: u.deploy.Shard + "/" + string(n.ID), ShardID: clusterShardID(m.deploy.Cluster.UID, shard), Addr: n.Addr, BusPort: n.Bus(), Host: n.Host,
				Primary: string(n.ID) == primary, Up: there && seen.Age <= nodeQuiet && seen.Health == topo.HealthUp && (seen.Addr == "" || seen.Addr == n.Addr),
			})
		}
	}
	if whole {
		for _, shard := range book.Shards() {
			whole = whole && known[shard]
		}
		list, _ := m.roster.get()
		for _, s := range list.Added { // which may not have been opened here yet
			whole = whole && known[m.deploy.Name+"-"+s.Name]
		}
	}
	return roster, whole
}

// visit looks at one server, tells it what it has to be told, and returns what is wrong with the cluster by its view.
func (d *desk) visit(ctx context.Context, roster []muster.Member, whole bool) []topo.ClusterFinding {
	books, err := d.clerk.Read(ctx)
	if err != nil {
		d.u.log.Debug("look at the cluster", "err", err)
		return nil // it is loading, hangs, or is not there: its agent reports that
	}
	s := muster.Scene{Now: d.u.clock.Uptime(), Roster: roster, Whole: whole, Slots: map[string]slots.Set{}, Moving: d.u.member.moving(), View: books.View, Down: books.Down, Hasty: books.Hurried, Spreads: books.Spreads}
	for shard, ranges := range d.u.layout().Slots {
		s.Slots[shard] = slots.SetOf(ranges...)
	}
	d.memory = muster.Remember(d.memory, s)
	s.Memory = d.memory
	d.count(ctx, &s)
	for _, step := range muster.Next(s) {
		d.tell(ctx, step)
	}
	var out []topo.ClusterFinding
	for _, f := range muster.Findings(s) {
		out = append(out, topo.ClusterFinding{Server: d.u.deploy.Shard + "/" + d.u.deploy.Node.ID, Name: f.Name, Text: f.Text, Does: f.Does, Person: f.Person})
	}
	return out
}

func (d *desk) tell(ctx context.Context, s muster.Step) {
	var err error
	switch s.Do {
	case muster.Meet:
		err = d.clerk.Meet(ctx, s.Host, s.Port, s.BusPort)
	case muster.Forget:
		err = d.clerk.Forget(ctx, s.ID)
	case muster.Stable:
		err = d.clerk.Stable(ctx, s.Slot)
	case muster.Hurry:
		err = d.clerk.Hurry(ctx)
	case muster.Calm:
		err = d.clerk.Calm(ctx)
	}
	switch text := fmt.Sprint(s, err); {
	case text == d.last:
	case err != nil:
		d.u.log.Warn("the server was not told", "what", s.Do, "why", s.Why, "err", err)
	default:
		d.u.log.Info("told the server", "what", s.Do, "id", s.ID, "why", s.Why)
	}
	d.last = fmt.Sprint(s, err)
}

// count looks for keys of slots with marks, here and on the other primaries.
func (d *desk) count(ctx context.Context, s *muster.Scene) {
	if len(s.Memory.Marks) == 0 {
		d.copies, d.looks = map[int]muster.Copies{}, 0
		return
	}
	d.looks++
	if d.looks%copiesEvery == 1 {
		d.copies = map[int]muster.Copies{}
		self, _ := s.View.Self()
		for slot := range s.Memory.Marks {
			if c, ok := d.search(ctx, s, self.ID, slot); ok {
				d.copies[slot] = c
			}
			if len(d.copies) >= searchMax {
				break
			}
		}
	}
	s.Copies = d.copies
}

// searchMax bounds how many marked slots are looked into at once; the others have their turn when those are settled.
const searchMax = 16

func (d *desk) search(ctx context.Context, s *muster.Scene, self string, slot int) (muster.Copies, bool) {
	here, err := d.clerk.Keys(ctx, slot)
	if err != nil {
		return muster.Copies{}, false
	}
	c := muster.Copies{Known: true, Here: here}
	for _, m := range s.Roster {
		if m.ID == self || !m.Primary || s.Slots[m.ShardID].Has(slot) {
			continue
		}
		n, err := d.clerk.KeysAt(ctx, m.Addr, slot)
		if err != nil {
			return muster.Copies{}, false
		}
		c.Other += n
	}
	return c, true
}

// moving are the slots that are on their way between shards, by agreement; nil: that is not known.
func (m *member) moving() *slots.Set {
	book := m.slots.Map()
	moves, err := movesOf(book)
	if book == nil || err != nil {
		return nil
	}
	var set slots.Set
	for _, mv := range moves {
		for _, s := range mv.Slots {
			set.Add(s)
		}
	}
	return &set
}
