// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/mover"
	"redoubt/internal/redis"
	"redoubt/internal/reshard"
	"redoubt/internal/route"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const (
	reshardEvery = 100 * time.Millisecond
	reshardAgain = 200 * time.Millisecond // behind an error
	liveEvery    = 250 * time.Millisecond
	balanceEvery = time.Second

	complainAfter = 2 * time.Second
	complainEvery = 10 * time.Second
)

// carrier moves slots while this member is the controller of the store. One goroutine has it, but for live.
type carrier struct {
	m      *member
	parker *parker
	mover  *mover.Mover
	made   string       // for what it was made
	now    reshard.Move // the batch in its hands, as it was last stored
	report mover.Report
	live   map[string][]topo.NodeID // by shard: nodes that report and are up
	asked  time.Time
	looked time.Time // for shards without their part
	since  time.Time // when trouble began; zero: there is none
	said   time.Time
}

// carry moves what there is to move until ctx ends.
func (m *member) carry(ctx context.Context) error {
	c := &carrier{m: m}
	c.parker = newParker(m, m.hall.Of(m.deploy.Name), func() string { return c.now.To })
	defer c.drop()
	if err := m.slots.await(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(reshardEvery)
	defer tick.Stop()
	for {
		_, _, changed := m.jobs.get()
		if m.store.Controller() != m.o.Config.Member.ID {
			c.drop()
			m.jobs.setTrouble("")
		} else if more, err := c.step(ctx); err != nil && ctx.Err() == nil {
			c.drop()
			m.jobs.setTrouble(err.Error())
			c.complain(err)
			if err := nap(ctx, reshardAgain); err != nil {
				return err
			}
			continue
		} else if more {
			m.jobs.setTrouble("")
			c.since = time.Time{}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-changed:
		}
	}
}

// complain says what has not ended by itself after a moment, and then now and then: a failover ends, and servers hear of the mover's password
// within a second.
func (c *carrier) complain(err error) {
	if c.since.IsZero() {
		c.since = time.Now()
	}
	if time.Since(c.since) > complainAfter && time.Since(c.said) > complainEvery {
		c.said = time.Now()
		c.m.log.Warn("slots cannot be moved at the moment", "for", time.Since(c.since).Round(time.Second), "err", err)
	}
}

func nap(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *carrier) drop() {
	if c.mover != nil {
		c.mover.Close()
		c.mover, c.made = nil, ""
	}
}

// step carries one batch to its end, and reports whether there may be more to do at once.
func (c *carrier) step(ctx context.Context) (more bool, err error) {
	m := c.m
	if m.handedBack() {
		return false, nil
	}
	now, _ := m.slots.latest()
	moves, err := movesOf(now)
	if err != nil {
		return false, err
	}
	j, _, _ := m.jobs.get()
	if len(moves) == 0 {
		switch {
		case !j.active():
			if more, err := c.removal(ctx, j); more || err != nil {
				return more, err
			}
			c.drop()
			return false, c.balance(ctx, j)
		case j.Wish == reshard.Cancel:
			return true, c.end(ctx, j.N, api.ReshardCancelled, "it was cancelled")
		case j.Wish == reshard.Pause:
			return false, nil
		}
		mv, any := j.next()
		if !any {
			return true, c.end(ctx, j.N, api.ReshardDone, "")
		}
		begun, err := m.beginMove(ctx, mv)
		if errors.Is(err, errLeaves) {
			return true, c.end(ctx, j.N, api.ReshardCancelled, err.Error())
		}
		if err != nil {
			return false, err
		}
		if !begun { // they were moved already, and that was not noted
			return true, c.note(ctx, mv, false)
		}
		moves = []reshard.Move{mv}
	}
	if err := c.make(j, moves[0]); err != nil {
		return false, err
	}
	c.now = moves[0]
	reigning, over := c.m.whileController(ctx)
	got, err := c.mover.Run(reigning, moves[0])
	over()
	if errors.Is(err, mover.ErrHalted) && j.active() {
		m.log.Error("moving slots needs a person", "batch", got.String(), "err", err)
	}
	if err != nil {
		return false, err
	}
	return true, c.note(ctx, got, got.Stage == reshard.Done)
}

// whileController returns a context that ends when this member is not the controller any more. over ends it, and waits for what looked.
func (m *member) whileController(ctx context.Context) (reigning context.Context, over func()) {
	reigning, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for nap(reigning, reshardEvery) == nil {
			if m.store.Controller() != m.o.Config.Member.ID {
				cancel()
			}
		}
	}()
	return reigning, func() {
		cancel()
		<-done
	}
}

// balance gives a shard that has come its part, where that is to happen by itself: once everything serves, and once for each that comes, so that
// what an operator has cancelled stays as it is.
func (c *carrier) balance(ctx context.Context, j *job) error {
	m := c.m
	if m.deploy.Cluster.Rebalance != "auto" || time.Since(c.looked) < balanceEvery {
		return nil
	}
	c.looked = time.Now()
	now := m.slots.Map()
	list, _ := m.roster.get()
	var came []string
	for _, u := range m.all() {
		id := u.deploy.ID()
		if list.leaves(m.deploy.Name, id) {
			continue
		}
		if now.Index(id) < 0 && (j == nil || !slices.Contains(j.Came, id)) {
			came = append(came, id)
		}
		snap := u.view.Load()
		if snap == nil || snap.Shard.Assigned.Phase != topo.PhaseServing || len(c.alive(u)) < len(snap.Shard.Spec.Nodes) {
			return nil
		}
	}
	if len(came) == 0 {
		return nil
	}
	m.log.Info("shards have come without slots: they are given their part", "shards", came)
	_, err := reshardOrders{m}.start(ctx, api.ReshardRequest{By: "rebalance: auto"}, cause{came: came})
	return err
}

// note notes that a batch is over.
func (c *carrier) note(ctx context.Context, mv reshard.Move, done bool) error {
	_, err := c.m.changeJob(ctx, func(j *job) (*job, error) {
		if j == nil {
			return nil, nil
		}
		if mv.Stage != reshard.Cancelled {
			j.Todo = without(j.Todo, mv)
		}
		if done && c.report.Move.String() == mv.String() {
			r := c.report
			j.Keys, j.Bytes, j.Took = j.Keys+r.Keys, j.Bytes+r.Bytes, j.Took+topo.Duration(r.Took)
			if r.Parked > 0 {
				j.Stops++
				j.Longest = max(j.Longest, topo.Duration(r.Parked))
				j.countStop(r.Parked)
			}
			c.m.log.Debug("slots were moved", "batch", mv.String(), "keys", r.Keys, "took", r.Took, "stop", r.Parked, "steps", fmt.Sprint(r.Steps))
		}
		if mv.Stage != reshard.Cancelled {
			j.Moved += len(mv.Slots)
		}
		return j, nil
	})
	return err
}

func (c *carrier) end(ctx context.Context, n int, state, why string) error {
	j, err := c.m.changeJob(ctx, func(j *job) (*job, error) {
		if !j.active() || j.N != n {
			return nil, nil
		}
		j.State, j.Why, j.Secret, j.Wish, j.EndedMS = state, why, "", reshard.GoOn, c.m.clock.Now().UnixMilli()
		return j, nil
	})
	if err == nil && j != nil {
		c.m.log.Info("moving slots is over", "state", j.State, "slots", j.Moved, "keys", j.Keys, "longest stop", j.Longest)
	}
	return err
}

// make makes a mover for a batch; the one of the batch before is kept where it can be, and with it its connections.
func (c *carrier) make(j *job, mv reshard.Move) error {
	replicas := c.replicas(mv.To)
	rate, secret, n := reshard.Rate{Stall: stallDefault}, "", 0
	if j != nil {
		rate, secret, n = j.Rate, j.Secret, j.N
	}
	login := c.login(secret)
	made := fmt.Sprint(n, rate, replicas, login)
	if c.mover != nil && c.made == made {
		return nil
	}
	c.drop()
	m := c.m
	next, err := mover.New(mover.Options{
		Name: m.deploy.Name, Shards: c.shards, Login: login, Slot: slots.Of, Keys: m.keysOf, Parker: c.parker, Replicas: replicas, Rate: rate,
		Store: func(ctx context.Context, next reshard.Move) error {
			err := m.storeMove(ctx, c.now, next)
			if err == nil {
				c.now = next
			}
			return err
		},
		Wish: func() reshard.Wish {
			if j, _, _ := m.jobs.get(); j.active() {
				return j.Wish
			}
			return reshard.GoOn
		},
		Confirm: c.confirm,
		Done:    func(r mover.Report) { c.report = r },
	})
	if err != nil {
		return err
	}
	c.mover, c.made = next, made
	return nil
}

// login is how the servers are spoken to that slots are moved between: by the user that they have for it. Servers that were adopted and do not
// let their access rules be changed know the user alone that agents go by.
func (c *carrier) login(secret string) [][]string {
	open := false
	if adopts(c.m.deploy) {
		for _, u := range c.m.all() {
			snap := u.view.Load()
			open = open || snap == nil || snap.Shard.Assigned.Secret == ""
		}
	}
	l := c.m.login()
	switch {
	case !open && secret != "":
		return [][]string{{"AUTH", redis.MoverUser, secret}}
	case open && l.Username != "":
		return [][]string{{"AUTH", l.Username, l.Password}}
	case open && l.Password != "":
		return [][]string{{"AUTH", l.Password}}
	}
	return nil
}

// keysOf appends the places of a command's keys.
func (m *member) keysOf(args [][]byte, dst []int) ([]int, bool) {
	table := route.Builtin
	if p := m.all()[0].proxy; p != nil {
		table = p.Table
	}
	row := table().Lookup(args[0])
	return row.Keys(args, dst), row.Name != ""
}

// replicas is how many replicas of a shard have to have what is copied: as many as acknowledge a write there; without such a promise, one, if
// there is one, because the copies are of writes that were acknowledged long ago.
func (c *carrier) replicas(shard string) int {
	for _, u := range c.m.all() {
		snap := u.view.Load()
		if u.deploy.ID() != shard || snap == nil {
			continue
		}
		if k := snap.Shard.Spec.Replicas(); k > 0 {
			return k
		}
		return min(1, max(0, len(c.alive(u))-1))
	}
	return 0
}

// alive are the nodes of a shard that are up, by their agents' word.
func (c *carrier) alive(u *unit) []topo.NodeID {
	if time.Since(c.asked) > liveEvery {
		c.live = map[string][]topo.NodeID{}
		ctx, cancel := context.WithTimeout(context.Background(), liveEvery)
		defer cancel()
		for _, u := range c.m.all() {
			beats, err := u.store.All(ctx)
			if err != nil {
				continue
			}
			for id, n := range view.DecodeReports(beats).Nodes {
				if n.Health == topo.HealthUp && n.Age < nodeQuiet && (n.Role == topo.RolePrimary || n.LinkUp) {
					c.live[u.deploy.ID()] = append(c.live[u.deploy.ID()], id)
				}
			}
		}
		c.asked = time.Now()
	}
	return c.live[u.deploy.ID()]
}

// shards are the shards as the mover has to know them.
func (c *carrier) shards() []mover.Shard {
	var out []mover.Shard
	for _, u := range c.m.all() {
		s := mover.Shard{ID: u.deploy.ID()}
		snap := u.view.Load()
		if snap == nil {
			s.Busy = "nothing is known of it yet"
			out = append(out, s)
			continue
		}
		a := snap.Shard.Assigned
		if s.Tenure = tenureOf(a); a.Phase != topo.PhaseServing {
			s.Busy = fmt.Sprintf("it is %s", a.Phase)
		}
		live := c.alive(u)
		for _, n := range snap.Shard.Spec.Nodes {
			node := mover.Node{ID: u.serverID(n), Addr: n.Addr}
			switch {
			case n.ID == a.Primary:
				s.Primary = node
			case slices.Contains(live, n.ID):
				s.Replicas = append(s.Replicas, node)
			default:
				s.Absent = append(s.Absent, node)
			}
		}
		out = append(out, s)
	}
	return out
}

func tenureOf(a topo.Assigned) string { return fmt.Sprintf("%d/%s/%s", a.Epoch, a.Primary, a.RunID) }

// confirm reads the tenures of two shards anew.
func (c *carrier) confirm(ctx context.Context, from, to string) (string, string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var got [2]string
	for i, shard := range []string{from, to} {
		doc, err := c.m.store.Get(ctx, topo.KeyShard+shard)
		if err != nil {
			return "", "", fmt.Errorf("shard %s: %w", shard, err)
		}
		s, err := topo.DecodeShard(doc.Value)
		if err != nil {
			return "", "", fmt.Errorf("shard %s: %w", shard, err)
		}
		if s.Assigned.Phase != topo.PhaseServing {
			return "", "", fmt.Errorf("shard %s is %s", shard, s.Assigned.Phase)
		}
		got[i] = tenureOf(s.Assigned)
	}
	return got[0], got[1], nil
}
