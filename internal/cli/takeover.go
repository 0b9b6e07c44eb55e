// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/topo"
)

// The bounds of taking over and handing back.
const (
	armTime    = 10 * time.Second // from the order until the primary is kept
	syncTime   = 30 * time.Second // until the replicas are enrolled; not waited for longer
	faceTime   = 10 * time.Second // for a member to answer where a Sentinel did
	silentTime = 3 * time.Second  // of a member that does not report, until it counts as gone
	adoptPoll  = 50 * time.Millisecond
)

// adopter is one run of taking over or handing back.
type adopter struct {
	*env
	dir           string
	rec           adoptRecord
	client        *api.Client
	servers, gate string // passwords
}

// newAdopter reads a plan and how far it has been carried out. The caller closes its client.
func (e *env) newAdopter(ctx context.Context, dir string) (*adopter, api.AdoptionStatus, error) {
	rec, err := readRecord(dir)
	if err != nil {
		return nil, api.AdoptionStatus{}, err
	}
	a := &adopter{env: e, dir: dir, rec: rec}
	if a.servers, a.gate, err = rec.passwords(dir); err != nil {
		return nil, api.AdoptionStatus{}, err
	}
	a.client = api.NewClient(rec.APIs...)
	if e.api != "" {
		a.client = api.NewClient(strings.Split(e.api, ",")...)
	}
	st, err := a.client.Adoption(ctx)
	if err != nil {
		a.client.Close()
	}
	return a, st, err
}

// done tells of a step.
func (a *adopter) done(format string, args ...any) { fmt.Fprintf(a.out, "  "+format+"\n", args...) }

// takeOver makes Redoubt the one that decides. Each step can be repeated; until the members are told, everything is undone if a step
// does not work.
func (e *env) takeOver(ctx context.Context, f adoptFlags) error {
	a, st, err := e.newAdopter(ctx, f.out)
	if err != nil {
		return err
	}
	defer a.client.Close()
	if st.State != topo.AdoptionArmed {
		if err := a.membersReady(st); err != nil {
			return err
		}
		if err := e.confirm(fmt.Sprintf("Take %s over from the Sentinels at %s.", a.rec.Name, a.addresses())); err != nil {
			return err
		}
		if err := a.arm(ctx); err != nil {
			return err
		}
	}
	return a.dismiss(ctx, !f.keep)
}

func (a *adopter) addresses() string {
	var all []string
	for _, s := range a.rec.Sentinels {
		all = append(all, s.Addr)
	}
	return strings.Join(all, ", ")
}

// membersReady refuses to begin before every member is there and can reach its server.
func (a *adopter) membersReady(st api.AdoptionStatus) error {
	for _, m := range a.rec.Members {
		i := slices.IndexFunc(st.Members, func(x api.AdoptionMember) bool { return x.ID == m.ID })
		switch {
		case i < 0:
			return fail(ExitFailed, "member %s does not report: start it on %s with %s", m.ID, m.Host, filepath.Join(a.dir, m.ID, "redoubt.yaml"))
		case st.Members[i].Problem != "":
			return fail(ExitFailed, "member %s: %s", m.ID, st.Members[i].Problem)
		case st.Members[i].State == topo.AdoptionArmed:
			return fail(ExitFailed, "member %s has not let go of its server yet: try again in a moment", m.ID)
		}
	}
	a.done("%d members are there, and leave the servers alone", len(a.rec.Members))
	return nil
}

// arm quiets the Sentinels and has the members begin. From the quiet on no Sentinel fails over; before it, no member does anything.
func (a *adopter) arm(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	found, err := discover(ctx, a.someSentinels(), a.gate, a.rec.Name)
	if err != nil {
		return fail(ExitFailed, "the Sentinels: %w", err)
	}
	if err := a.sameSetup(found); err != nil {
		return err
	}
	ours := false // the members have begun, or may have: then the Sentinels stay quiet, whatever else happens
	defer func() {
		if err != nil && !ours {
			err = errors.Join(err, a.unmuffle(context.WithoutCancel(ctx)))
		}
	}()
	for _, s := range a.rec.Sentinels {
		if err := s.set(ctx, a.gate, a.rec.Name, map[string]string{"down-after-milliseconds": muffled}); err != nil {
			return fail(ExitFailed, "quiet the Sentinel at %s: %w", s.Addr, err)
		}
	}
	if found, err = discover(ctx, a.someSentinels(), a.gate, a.rec.Name); err != nil { // a failover that began a moment ago
		return fail(ExitFailed, "the Sentinels: %w", err)
	}
	a.done("the Sentinels decide nothing any more; the primary is %s", found.primary)
	p, err := a.primary(ctx, found.primary)
	if err != nil {
		return err
	}
	ours = true
	err = a.client.OrderAdoption(ctx, api.AdoptionOrder{State: topo.AdoptionArmed, Found: p, By: whoami()})
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && slices.Contains([]string{"bad-request", "not-on-order", "bad-state"}, refused.Code): // nothing was written
		ours = false
		return err
	case err != nil:
		return fail(ExitUnknown, "it is unknown whether the members have begun (%w): the Sentinels stay quiet for now; repeat this, which goes on or begins anew", err)
	}
	if err = a.awaitArmed(ctx); err == nil {
		return nil
	}
	back, end := context.WithTimeout(context.WithoutCancel(ctx), armTime)
	defer end()
	if undone := a.release(back); undone != nil {
		return errors.Join(err, undone)
	}
	ours = false
	return err
}

func (a *adopter) someSentinels() []string {
	var addrs []string
	for _, s := range a.rec.Sentinels {
		addrs = append(addrs, s.Addr)
	}
	return addrs
}

// sameSetup refuses what the plan does not know: a Sentinel or a server that would be left out.
func (a *adopter) sameSetup(now discovered) error {
	for _, s := range now.sentinels {
		if !slices.ContainsFunc(a.rec.Sentinels, func(o oldSentinel) bool { return o.Addr == s.Addr }) {
			return fail(ExitFailed, "the Sentinel at %s is not in the plan: make a new one, or stop it and have the others forget it (SENTINEL RESET %s)", s.Addr, a.rec.Name)
		}
	}
	for _, addr := range append([]string{now.primary}, now.others...) {
		if _, ok := a.rec.node(addr); !ok {
			return fail(ExitFailed, "the server at %s is not in the plan: make a new one", addr)
		}
	}
	if len(now.others)+1 != len(a.rec.Nodes) {
		return fail(ExitFailed, "the Sentinels know %d servers, the plan %d: make a new plan", len(now.others)+1, len(a.rec.Nodes))
	}
	return nil
}

// primary reads who serves, from the server itself.
func (a *adopter) primary(ctx context.Context, addr string) (topo.Found, error) {
	n, _ := a.rec.node(addr)
	c, err := dialPeer(ctx, addr, a.servers)
	if err != nil {
		return topo.Found{}, fail(ExitFailed, "the primary at %s: %w", addr, err)
	}
	defer c.close()
	s, err := describeServer(c)
	if err != nil {
		return topo.Found{}, fail(ExitFailed, "the primary at %s: %w", addr, err)
	}
	if s.role != "master" {
		return topo.Found{}, fail(ExitFailed, "the server at %s is no primary any more", addr)
	}
	return topo.Found{Node: n.ID, RunID: s.run, ReplID: s.replid}, nil
}

// unmuffle gives the Sentinels their settings back.
func (a *adopter) unmuffle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var errs []error
	for _, s := range a.rec.Sentinels {
		if err := s.set(ctx, a.gate, a.rec.Name, map[string]string{"down-after-milliseconds": s.Settings["down-after-milliseconds"]}); err != nil && !errors.Is(err, errOurs) && !unknownMaster(err) {
			errs = append(errs, fmt.Errorf("give the Sentinel at %s its down-after-milliseconds %s back: %w", s.Addr, s.Settings["down-after-milliseconds"], err))
		}
	}
	if len(errs) == 0 {
		a.done("the Sentinels decide again, as before")
	}
	return errors.Join(errs...)
}

// awaitArmed waits until the primary is kept.
func (a *adopter) awaitArmed(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, armTime)
	defer cancel()
	why := ""
	ok := poll(waiting, func() bool {
		st, err := a.client.Status(waiting)
		if err != nil || len(st.Deployments) == 0 {
			why = fmt.Sprint("nothing is agreed yet ", err)
			return false
		}
		sh := st.Deployments[0].Shards[0]
		why = fmt.Sprintf("phase %s (%s)", sh.Phase, sh.Why)
		return sh.Phase == topo.PhaseServing && slices.ContainsFunc(sh.Nodes, func(n api.NodeStatus) bool { return n.ID == sh.Primary && n.State == api.StateServing })
	})
	if ok {
		a.done("the members keep the servers; nothing has failed over")
		return nil
	}
	return fail(ExitFailed, "the primary was not taken over within %s: %s", armTime, why)
}

// poll asks until f says so or ctx ends.
func poll(ctx context.Context, f func() bool) bool {
	tick := time.NewTicker(adoptPoll)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// dismiss has the Sentinels forget the master, and ends them one after the other, so that clients always find somebody who knows it.
func (a *adopter) dismiss(ctx context.Context, end bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var failures []error
	var running []string
	for _, s := range a.rec.Sentinels {
		ended, err := a.dismissOne(ctx, s, end)
		switch {
		case err != nil:
			failures = append(failures, fmt.Errorf("the Sentinel at %s: %w", s.Addr, err))
		case !ended:
			running = append(running, s.Addr)
		}
	}
	if err := errors.Join(failures...); err != nil {
		return fail(ExitFailed, "%s is taken over, but a Sentinel may still act on it: stop its process, or repeat this:\n%w", a.rec.Name, err)
	}
	if len(running) > 0 {
		a.done("stop the Sentinels at %s, if that is where members answer: they do as soon as the port is free", strings.Join(running, ", "))
	}
	return a.awaitReplicas(ctx)
}

// dismissOne reports whether the Sentinel's process is gone.
func (a *adopter) dismissOne(ctx context.Context, s oldSentinel, end bool) (bool, error) {
	left, err := s.forget(ctx, a.gate, a.rec.Name)
	switch {
	case errors.Is(err, errOurs):
		a.done("a member answers at %s", s.Addr)
		return true, nil
	case err != nil && nobodyThere(err):
		a.done("nobody answers at %s", s.Addr)
		return true, nil
	case err != nil:
		return false, err
	case !end || left > 0:
		a.done("the Sentinel at %s has forgotten %s", s.Addr, a.rec.Name)
		return false, nil
	}
	if err := s.shutDown(ctx, a.gate); err != nil && !nobodyThere(err) {
		return false, fmt.Errorf("shut it down: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, faceTime)
	defer cancel()
	ours := poll(waiting, func() bool {
		c, err := dialPeer(waiting, s.Addr, a.gate)
		if err != nil {
			return !a.hasFace(s.Addr)
		}
		defer c.close()
		return errors.Is(c.isSentinel(), errOurs)
	})
	if !ours {
		a.done("the Sentinel at %s was shut down, and is there again: stop its service", s.Addr)
		return false, nil
	}
	a.done("the Sentinel at %s is shut down%s", s.Addr, map[bool]string{true: "; a member answers there"}[a.hasFace(s.Addr)])
	return true, nil
}

// hasFace reports whether a member is to answer there.
func (a *adopter) hasFace(addr string) bool {
	return slices.ContainsFunc(a.rec.Faces, func(f string) bool { return f == addr })
}

// nobodyThere tells that nobody listens there.
func nobodyThere(err error) bool {
	return strings.Contains(err.Error(), "connection refused")
}

// awaitReplicas is only for the operator's peace: replicas are enrolled when they are in sync.
func (a *adopter) awaitReplicas(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	enrolled, all := 0, 0
	poll(waiting, func() bool {
		st, err := a.client.Status(waiting)
		if err != nil || len(st.Deployments) == 0 {
			return false
		}
		enrolled, all = 0, 0
		for _, n := range st.Deployments[0].Shards[0].Nodes {
			all++
			if n.Enrolled {
				enrolled++
			}
		}
		return enrolled == all
	})
	a.done("%d of %d servers are in sync and have a vote", enrolled, all)
	fmt.Fprintf(a.out, "%s is Redoubt's. The way back: redoubt hand-back --out %s\n", a.rec.Name, a.dir)
	return nil
}
