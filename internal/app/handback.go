// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/redisd"
	"redoubt/internal/topo"
)

// The bounds of handing a cluster back.
const (
	wellPatience   = 5 * time.Second         // for a shard that is about to be well
	agentsQuiet    = 1500 * time.Millisecond // an agent that runs is heard every beat
	agentsPatience = 15 * time.Second        // for all agents to stop
	linksPatience  = 10 * time.Second        // for replicas to log in as before
	handBackPoll   = 100 * time.Millisecond
)

// errNotAdopted: there is nothing to hand back.
var errNotAdopted = errors.New("the servers of this deployment were founded by Redoubt, or somebody else's all the time: only a cluster that was adopted can be handed back")

// handBack gives an adopted cluster back to itself: no shard is failed over any more, the agents let go of their servers, each setting
// becomes what it was, and last of all the servers may elect themselves again. Nobody is without service meanwhile. It can be
// repeated after it was interrupted.
func (m *member) handBack(ctx context.Context, by string) error {
	found, rev, err := m.adopted(ctx)
	if errors.Is(err, coord.ErrNotFound) {
		return errNotAdopted
	}
	if err != nil {
		return fmt.Errorf("read what was found when the cluster was adopted: %w", err)
	}
	if found.Released == nil {
		if err := m.await(ctx, wellPatience, func(ctx context.Context) error { return m.mayHandBack(ctx, found) }); err != nil {
			return err
		}
		for _, u := range m.units {
			if err := u.orders.Pause(ctx, &topo.Pause{By: by, Reason: "the cluster is handed back"}); err != nil {
				return fmt.Errorf("stop automatic failovers: %w", err)
			}
		}
		found.Released = &topo.Pause{By: by, Reason: "handed back"}
		body, err := json.Marshal(found)
		if err != nil {
			return fmt.Errorf("note that the cluster is handed back: %w", err)
		}
		if _, err := m.store.Swap(ctx, topo.KeyAdopted+m.deploy.Name, body, rev); err != nil {
			return fmt.Errorf("note that the cluster is handed back: %w (order it again)", err)
		}
		m.log.Info("the cluster is handed back", "by", by)
	}
	if err := m.agentsStopped(ctx); err != nil {
		return err
	}
	return m.restore(ctx, found)
}

// mayHandBack: everything is well, so that nothing is left half done. A server that is not there would come back with our settings.
func (m *member) mayHandBack(ctx context.Context, found topo.Adopted) error {
	j, err := m.readJob(ctx)
	moves, merr := movesOf(m.slots.Map())
	switch {
	case err != nil || merr != nil:
		return fmt.Errorf("read whether slots are being moved: %w", errors.Join(err, merr))
	case j.active() || len(moves) > 0:
		return errors.New("slots are being moved: wait for that (redoubt reshard status), or cancel it")
	}
	for _, u := range m.units {
		snap := u.view.Load()
		if snap == nil || !snap.Fresh(m.clock.Uptime()) {
			return fmt.Errorf("the agreed state of shard %s is not known for certain: try again", u.deploy.Shard)
		}
		a := snap.Shard.Assigned
		if a.Phase != topo.PhaseServing || a.Change != nil || a.Intent != nil {
			return fmt.Errorf("shard %s is %s, or an order is under way: wait until it serves", u.deploy.Shard, a.Phase)
		}
		for _, n := range snap.Shard.Spec.Nodes {
			if _, ok := found.Servers[u.serverID(n)]; !ok {
				return fmt.Errorf("node %s of shard %s joined after the cluster was adopted: remove it first (redoubt node remove)", n.ID, u.deploy.Shard)
			}
		}
		beats, err := m.store.All(ctx)
		if err != nil {
			return fmt.Errorf("ask for the reports: %w", err)
		}
		reports := ofShard(beats, u.deploy.ID())
		for _, n := range snap.Shard.Spec.Nodes {
			s, ok := reports.Nodes[n.ID]
			if !ok || s.Age > nodeQuiet || s.Health != topo.HealthUp || n.ID != a.Primary && !s.LinkUp {
				return fmt.Errorf("node %s of shard %s is not well (%s, link up: %t, heard %s ago): bring it back, or remove it (redoubt node remove)", n.ID, u.deploy.Shard, s.Health, s.LinkUp, s.Age)
			}
		}
	}
	return nil
}

// agentsStopped waits until no agent is heard any more.
func (m *member) agentsStopped(ctx context.Context) error {
	return m.await(ctx, agentsPatience, func(ctx context.Context) error {
		beats, err := m.store.All(ctx)
		if err != nil {
			return err
		}
		for name, b := range beats {
			if strings.HasPrefix(name, topo.BeatNode) && b.Age < agentsQuiet {
				return fmt.Errorf("the agent of %s has not stopped yet", strings.TrimPrefix(name, topo.BeatNode))
			}
		}
		return nil
	})
}

// restore puts the settings back on every server, the right to elect last, and waits until all replicas have their links again: ours
// ends with our user.
func (m *member) restore(ctx context.Context, found topo.Adopted) error {
	settings, addrs := map[string]map[string]string{}, map[string]string{}
	for _, u := range m.units { // who has left the roster since is no member of the cluster any more
		for _, n := range u.roster() {
			addrs[u.serverID(n)] = n.Addr
		}
	}
	for id := range addrs {
		f := found.Servers[id]
		s := map[string]string{"masterauth": ""}
		for name, value := range f.Settings {
			s[name] = value
		}
		if f.Auth {
			s["masterauth"] = m.deploy.Password
		}
		settings[id] = s
	}
	each := func(what string, do func(context.Context, string, redisd.Login, map[string]string) error) error {
		var errs []error
		for id, addr := range addrs {
			one, cancel := context.WithTimeout(ctx, surveyTime)
			if err := do(one, addr, m.login(), settings[id]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
			}
			cancel()
		}
		return errors.Join(errs...)
	}
	if err := each("put back the settings", redisd.GiveBack); err != nil {
		return fmt.Errorf("%w (order it again when the server is there)", err)
	}
	if err := each("let the servers elect", redisd.LetElect); err != nil {
		return fmt.Errorf("%w (order it again when the server is there)", err)
	}
	return m.await(ctx, linksPatience, func(ctx context.Context) error {
		for _, addr := range addrs {
			s, err := redisd.SurveyServer(ctx, addr, m.login())
			if err != nil {
				return err
			}
			if s.Role == topo.RoleReplica && !s.LinkUp {
				return fmt.Errorf("the settings are as they were; %s has no link to its primary yet", addr)
			}
		}
		return nil
	})
}

// await tries again until it works, for a time at most.
func (m *member) await(ctx context.Context, patience time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(handBackPoll)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
