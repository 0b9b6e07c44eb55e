// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/config"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// A shard is removed in three steps, each of which is agreed, so that whoever controls goes on: it is noted as leaving; its slots move to the
// others, as any slots do; then the slot map forgets it, it is noted as removed, and each member closes what it has of it. Nobody's servers know
// its servers any more then: they are in no roster, so they are forgotten wherever they show.

// leaving is a shard that is to be removed.
type leaving struct {
	Name  string `json:"name"`
	By    string `json:"by,omitempty"`
	After int    `json:"after"` // the job that was the latest when it was ordered: a later one that is cancelled ends the removal
}

// errLeaves ends a batch whose target is to be removed.
var errLeaves = errors.New("the shard that is to get these slots is to be removed")

// leaves reports whether a shard is to be removed, or was, by the latest document.
func (m *member) leaves(ctx context.Context, id string) (bool, error) {
	if err := m.readShards(ctx); err != nil {
		return false, err
	}
	list, _ := m.roster.get()
	return list.leaves(m.deploy.Name, id), nil
}

func (l shardList) leaves(deployment, id string) bool {
	return l.removed(deployment, id) || slices.ContainsFunc(l.Leaving, func(o leaving) bool { return deployment+"-"+o.Name == id })
}

func (l shardList) removed(deployment, id string) bool {
	return slices.ContainsFunc(l.Removed, func(name string) bool { return deployment+"-"+name == id })
}

// RemoveShard implements api.Resharder.
func (r reshardOrders) RemoveShard(ctx context.Context, name, by string) error {
	m := r.m
	u := m.byName(name)
	if u == nil {
		return refused("unknown-shard", "there is no shard %s", name)
	}
	j, err := m.readJob(ctx)
	if err != nil {
		return err
	}
	after := 0
	if j != nil {
		after = j.N
	}
	known := false
	err = m.changeShards(ctx, func(list *shardList) error {
		if known = list.leaves(m.deploy.Name, u.deploy.ID()); known {
			return nil
		}
		if err := r.removable(ctx, u, *list, j); err != nil {
			return err
		}
		list.Leaving = append(slices.Clone(list.Leaving), leaving{u.deploy.Shard, by, after})
		return nil
	})
	if err != nil || known {
		return err
	}
	m.log.Info("a shard is to be removed", "shard", u.deploy.ID(), "by", by)
	return nil
}

// removable refuses what cannot be removed.
func (r reshardOrders) removable(ctx context.Context, u *unit, list shardList, j *job) error {
	m := r.m
	stay, ofFile := 0, 0
	for _, o := range m.all() {
		if o == u || list.leaves(m.deploy.Name, o.deploy.ID()) {
			continue
		}
		stay++
		if slices.Contains(m.units, o) {
			ofFile++
		}
	}
	switch {
	case adopts(m.deploy):
		return refused("not-adopted", "a shard of a cluster that was adopted is not removed in this version: its servers are not Redoubt's to stop")
	case stay == 0:
		return refused("last-shard", "%s is the last shard: it has to stay", u.deploy.ID())
	case ofFile == 0:
		return refused("last-of-file", "%s is the last shard of the members' files: write the others into the files, start the members with them one after the other, and say it again", u.deploy.ID())
	case len(list.Leaving) > 0:
		return refused("busy", "shard %s is being removed: one after the other", list.Leaving[0].Name)
	case j.active():
		return refused("busy", "slots are being moved already: redoubt reshard status; wait for that, or cancel it first")
	}
	if snap := u.view.Load(); snap == nil || snap.Shard.Assigned.Phase != topo.PhaseServing {
		return refused("not-serving", "shard %s does not serve at the moment, so that its slots cannot be moved: redoubt status", u.deploy.ID())
	}
	_, _, err := r.plan(ctx, api.ReshardRequest{Weights: map[string]float64{u.deploy.ID(): 0}})
	return err
}

// byName returns a shard by its id, or by its name within the deployment; nil: there is none.
func (m *member) byName(name string) *unit {
	for _, u := range m.all() {
		if u.deploy.ID() == name || u.deploy.Shard == name {
			return u
		}
	}
	return nil
}

// removal goes on with what is to be removed while no slots are on their way and no job is under way. It reports whether there may be more
// to do at once.
func (c *carrier) removal(ctx context.Context, j *job) (more bool, err error) {
	m := c.m
	list, _ := m.roster.get()
	if len(list.Leaving) == 0 {
		return false, nil
	}
	l := list.Leaving[0] // one after the other
	id := m.deploy.Name + "-" + l.Name
	now := m.slots.Map()
	i := now.Index(id)
	switch {
	case j != nil && j.N > l.After && j.Leaving == id && j.State == api.ReshardCancelled:
		m.log.Info("a shard is not removed: moving its slots was cancelled", "shard", id)
		return true, m.changeShards(ctx, func(list *shardList) error {
			list.Leaving = slices.DeleteFunc(slices.Clone(list.Leaving), func(o leaving) bool { return o.Name == l.Name })
			return nil
		})
	case i >= 0 && now.Ranges(i) != nil:
		_, err := reshardOrders{m}.start(ctx, api.ReshardRequest{By: l.By, Weights: map[string]float64{id: 0}}, cause{leaving: id})
		return err == nil, err
	}
	return true, c.forgetShard(ctx, l.Name)
}

// forgetShard has a shard without slots be one no more: by the slot map first, so that no batch can bring it slots that began before.
func (c *carrier) forgetShard(ctx context.Context, name string) error {
	m := c.m
	id := m.deploy.Name + "-" + name
	err := m.changeSlots(ctx, func(now *slots.Map) (*slots.Map, error) {
		next, empty := now.Without(id)
		if moves, err := movesOf(now); err != nil || len(moves) > 0 || !empty {
			return nil, errors.Join(err, fmt.Errorf("shard %s has slots, or is to get some", id))
		}
		return next, nil // also if it was not known there: what was read before this is not written any more
	})
	if err != nil {
		return err
	}
	if err := m.retire(ctx, name); err != nil {
		return err
	}
	m.log.Info("a shard was removed", "shard", id)
	return nil
}

// retire notes that a shard was removed, so that each member closes what it has of it.
func (m *member) retire(ctx context.Context, name string) error {
	return m.changeShards(ctx, func(list *shardList) error {
		list.Leaving = slices.DeleteFunc(slices.Clone(list.Leaving), func(o leaving) bool { return o.Name == name })
		list.Added = slices.DeleteFunc(slices.Clone(list.Added), func(o api.ShardSpec) bool { return o.Name == name })
		if !slices.Contains(list.Removed, name) {
			list.Removed = append(slices.Clone(list.Removed), name)
		}
		return nil
	})
}

// The bounds of closing what this member has of a shard.
const (
	removedMark = "removed-shard-" // + name: a file in the member's directory
	leaveWait   = 2 * time.Second  // for what is under way of its clients
)

// wasRemoved reports whether this member has closed a shard of its file for good.
func (m *member) wasRemoved(d config.Unit) bool {
	return d.Shard != "" && marked(m.o.Config.Member.Dir, removedMark+d.Shard)
}

// closeShard ends what this member has of a shard that was removed: clients are led away from it, its server is stopped, and what it had is put
// away beside where it was. If the member ends meanwhile, its next start does it again.
func (m *member) closeShard(ctx context.Context, u *unit) {
	id := u.deploy.ID()
	u.left.Store(true) // from here on it is in no roster: whoever still knows its servers is told to forget them
	m.showShards()
	if m.board != nil {
		m.board.Remove(id)
	}
	if m.front != nil {
		leaving, cancel := context.WithTimeout(ctx, leaveWait)
		if left := m.front.RemoveShard(leaving, id); left > 0 {
			m.log.Warn("clients hold on to a shard that was removed, and are disconnected", "shard", id, "clients", left)
		}
		cancel()
	}
	if m.registrar != nil {
		m.registrar.dismiss(u)
	}
	u.parts.stopOf(m.log, id, "view", "seed")
	if u.node != nil {
		if err := u.stopNode(context.WithoutCancel(ctx)); err != nil {
			m.log.Error("the server of a shard that was removed was not stopped", "shard", id, "err", err)
		}
	}
	u.parts.stopOf(m.log, id)
	if err := u.putAway(); err != nil {
		m.log.Error("what a removed shard had could not be put away: it is tried again when this member starts", "shard", id, "err", err)
		return
	}
	m.log.Info("a shard that was removed is closed here", "shard", id, "server", u.node != nil)
}

// putAway renames the directories of the shard, and has later starts not open it.
func (u *unit) putAway() error {
	at := ".removed-" + u.clock.Now().UTC().Format("20060102T150405")
	var dirs []string
	if u.deploy.Node != nil {
		dirs = append(dirs, u.dir("agent"))
		if u.deploy.Node.Dir != "" {
			dirs = append(dirs, u.deploy.Node.Dir)
		}
	}
	for _, dir := range dirs {
		if err := os.Rename(dir, filepath.Clean(dir)+at); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("put %s away: %w", dir, err)
		}
	}
	return mark(u.o.Config.Member.Dir, removedMark+u.deploy.Shard)
}
