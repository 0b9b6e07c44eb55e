// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"redoubt/internal/api"
	"redoubt/internal/reshard"
	"redoubt/internal/ring"
)

// ringOrders are the orders about a ring, as the API takes them.
type ringOrders struct{ m *member }

// ringShardsMax bounds a ring that changes: cursors of SCAN tell rings apart by it.
const ringShardsMax = 64

// next is the ring with other weights.
func (o ringOrders) next(weights map[string]float64) ([]ringShard, error) {
	doc, _, _, _ := o.m.ring.get()
	next := slices.Clone(doc.Shards)
	for name, w := range weights {
		i := slices.IndexFunc(next, func(s ringShard) bool { return s.Name == name || o.m.deploy.Name+"-"+s.Name == name })
		if i < 0 || w < 1 || w != math.Trunc(w) || w > math.MaxUint16 {
			return nil, refused("bad-weight", "weight %s=%v: name a shard of the ring, and a whole number of 1 or more; to empty a shard, remove it", name, w)
		}
		next[i].Weight = uint32(w)
	}
	if slices.Equal(next, doc.Shards) {
		return nil, refused("nothing", "the shards have these weights already")
	}
	return next, nil
}

// Plan implements api.Resharder.
func (o ringOrders) Plan(_ context.Context, r api.ReshardRequest) (api.ReshardPlan, error) {
	doc, _, _, _ := o.m.ring.get()
	next, err := o.next(r.Weights)
	for name, w := range r.Weights {
		if w == 0 && len(r.Weights) == 1 { // to be removed
			next, err = o.without(doc.Shards, name)
		}
	}
	if err != nil {
		return api.ReshardPlan{}, err
	}
	text, err := o.text(doc.Shards, next)
	return api.ReshardPlan{Text: text}, err
}

// text says how much of the keys changes its shard, by keys that stand for all.
func (o ringOrders) text(was, next []ringShard) (string, error) {
	before, err := o.m.ringSpec(was)
	if err != nil {
		return "", refused("bad-ring", "%v", err)
	}
	after, err := o.m.ringSpec(next)
	if err != nil {
		return "", refused("bad-ring", "%v", err)
	}
	const sample = 20_000
	moved := 0
	part := map[string]int{}
	for i := range sample {
		key := fmt.Appendf(nil, "sample:%d", i)
		f, t := was[before.Shard(key, 0)].Name, next[after.Shard(key, 0)].Name
		if part[t]++; f != t {
			moved++
		}
	}
	var parts []string
	for _, s := range next {
		parts = append(parts, fmt.Sprintf("%s %d %%", s.Name, part[s.Name]*100/sample))
	}
	return fmt.Sprintf("About %d %% of the keys change their shard: %s\n", moved*100/sample, strings.Join(parts, ", ")), nil
}

// begin puts a change into the document.
func (o ringOrders) begin(ctx context.Context, by, what, leaves string, next func([]ringShard) ([]ringShard, error)) (api.ReshardStatus, error) {
	var why error
	doc, err := o.m.ring.change(ctx, func(d *ringDoc) bool {
		if why = nil; d.Change != nil {
			why = refused("busy", "the ring is being changed already: redoubt reshard status; cancel that first")
			return false
		}
		var to []ringShard
		if to, why = next(d.Shards); why != nil {
			return false
		}
		if _, err := o.m.ringSpec(to); err != nil {
			why = refused("bad-ring", "%v", err)
			return false
		}
		n := 1
		if d.Last != nil {
			n = d.Last.N + 1
		}
		d.Change = &ringChange{N: n, By: by, What: what, Stage: ringCopying, Other: to, Leaves: leaves, Secret: newMoverSecret(), StartedMS: o.m.clock.Now().UnixMilli()}
		return true
	})
	if err = errors.Join(why, err); err != nil {
		if why != nil {
			err = why
		}
		return api.ReshardStatus{}, err
	}
	return o.status(doc), nil
}

// Start implements api.Resharder: other weights.
func (o ringOrders) Start(ctx context.Context, r api.ReshardRequest) (api.ReshardStatus, error) {
	to, err := o.next(r.Weights)
	if err != nil {
		return api.ReshardStatus{}, err
	}
	if err := o.able(); err != nil {
		return api.ReshardStatus{}, err
	}
	return o.begin(ctx, r.By, "the shards get other weights", "", func([]ringShard) ([]ringShard, error) { return to, nil })
}

// able refuses what cannot be in this deployment.
func (o ringOrders) able() error {
	if n := o.m.deploy.Node; n != nil && n.Kind == "attached" {
		return refused("not-managed", "the servers of this ring are not Redoubt's own: who copies keys has no user there; its ring cannot change")
	}
	return nil
}

// AddShard implements api.Resharder: the shard is founded, and then it gets its part of the ring.
func (o ringOrders) AddShard(ctx context.Context, s api.ShardSpec) error {
	if err := o.able(); err != nil {
		return err
	}
	doc, _, _, _ := o.m.ring.get()
	switch {
	case doc.Change != nil:
		return refused("busy", "the ring is being changed already: redoubt reshard status")
	case len(doc.Shards) >= ringShardsMax:
		return refused("too-many", "a ring that changes has at most %d shards", ringShardsMax)
	}
	if err := (reshardOrders(o)).AddShard(ctx, s); err != nil && !o.idle(ctx, s.Name) {
		return err
	}
	_, err := o.begin(ctx, s.By, "shard "+s.Name+" joins the ring", "", func(now []ringShard) ([]ringShard, error) {
		return append(slices.Clone(now), ringShard{s.Name, s.Name, uint32(max(1, s.Weight))}), nil
	})
	return err
}

// idle reports whether a shard came and has no part in the ring: its change was cancelled, or was never begun.
func (o ringOrders) idle(ctx context.Context, name string) bool {
	if o.m.readShards(ctx) != nil || o.m.ring.read(ctx) != nil {
		return false
	}
	list, _ := o.m.roster.get()
	doc, _, _, _ := o.m.ring.get()
	came := slices.ContainsFunc(list.Added, func(s api.ShardSpec) bool { return s.Name == name }) && !slices.Contains(list.Removed, name)
	return came && doc.Change == nil && !slices.ContainsFunc(doc.Shards, func(s ringShard) bool { return s.Name == name })
}

// RemoveShard implements api.Resharder: the others get its keys, and then its servers are stopped.
func (o ringOrders) RemoveShard(ctx context.Context, name, by string) error {
	if err := o.able(); err != nil {
		return err
	}
	if o.m.deploy.RingSpec().Distribution == ring.Random {
		return refused("random", "with distribution random no shard is known to have a key: none can be removed")
	}
	if o.m.units[0].deploy.Shard == name {
		return refused("home", "shard %s is the first one of the files, which answers what concerns no key: it cannot be removed in this version", name)
	}
	if o.idle(ctx, name) {
		return o.m.retire(ctx, name)
	}
	_, err := o.begin(ctx, by, "shard "+name+" leaves the ring", name, func(now []ringShard) ([]ringShard, error) { return o.without(now, name) })
	return err
}

// without is the ring without a shard.
func (o ringOrders) without(now []ringShard, name string) ([]ringShard, error) {
	next := slices.DeleteFunc(slices.Clone(now), func(s ringShard) bool { return s.Name == name })
	if len(next) == len(now) || len(next) == 0 {
		return nil, refused("unknown-shard", "there is no shard %s that the ring can do without", name)
	}
	return next, nil
}

// Status implements api.Resharder.
func (o ringOrders) Status(ctx context.Context) (api.ReshardStatus, error) {
	if err := o.m.ring.read(ctx); err != nil {
		return api.ReshardStatus{}, err
	}
	doc, _, _, _ := o.m.ring.get()
	return o.status(doc), nil
}

func (o ringOrders) status(doc ringDoc) api.ReshardStatus {
	c := cmp.Or(doc.Change, doc.Last)
	if c == nil {
		return api.ReshardStatus{State: api.ReshardNone}
	}
	st := api.ReshardStatus{
		State: api.ReshardRunning, By: c.By, What: c.What, Stage: c.Stage, Keys: c.Keys, Bytes: c.Bytes, OfKeys: c.Of, Removed: c.Removed, Without: c.Without,
		Longest: c.Waited, StartedMS: c.StartedMS, EndedMS: c.EndedMS,
	}
	if c.Waited > 0 {
		st.Stops = 1
	}
	switch c.Stage {
	case ringDone:
		st.State = api.ReshardDone
	case ringUndone:
		st.State, st.Why = api.ReshardCancelled, "it was cancelled"
	}
	if doc.Change != nil {
		o.m.ring.mu.Lock()
		st.Trouble = o.m.ring.trouble
		o.m.ring.mu.Unlock()
	}
	return st
}

// Wish implements api.Resharder.
func (o ringOrders) Wish(ctx context.Context, w reshard.Wish) (api.ReshardStatus, error) {
	var why error
	doc, err := o.m.ring.change(ctx, func(d *ringDoc) bool {
		why = nil
		switch {
		case d.Change == nil:
			why = refused("nothing", "the ring is not being changed")
		case w != reshard.Cancel:
			why = refused("refused", "a change of a ring can be cancelled, and does not stand still")
		case d.Change.Stage != ringCopying && d.Change.Stage != ringClosing:
			why = refused("too-late", "the ring has changed already (%s)", d.Change.Stage)
		case !d.Change.Cancel:
			d.Change.Cancel = true
			return true
		}
		return false
	})
	if why != nil {
		return api.ReshardStatus{}, why
	}
	return o.status(doc), err
}

// parted reports whether this member has nothing to do with a shard any more that was removed.
func (m *member) parted(name string) bool {
	if m.ring == nil {
		return true
	}
	doc, _, known, _ := m.ring.get()
	m.ring.mu.Lock()
	defer m.ring.mu.Unlock()
	return known && (m.front == nil || m.ring.begun && m.ring.gen == doc.Gen) && !slices.ContainsFunc(doc.Shards, func(s ringShard) bool { return s.Name == name })
}
