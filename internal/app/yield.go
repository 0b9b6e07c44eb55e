// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// Letting go of everything but the clients, and taking it back (ADR 0016, 0050).

// yield gives up everything but the proxy, and returns when the new process has taken over. The primary's lease goes on
// meanwhile: if it is about to end, it is an error, so that this agent comes back and carries out what it must.
func (m *member) yield(ctx context.Context, h *heir) error {
	m.parts.stopAll(m.log, goesOn()...)
	for _, u := range m.opened()[len(m.units):] { // what came later has parts of its own
		u.parts.stopAll(m.log, goesOn()...)
	}
	_ = m.awaitMoment(ctx, heirPause) // the views still read
	left, _, err := m.leaseLeft()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(left)
	for _, u := range m.all() {
		if u.node == nil {
			continue
		}
		if err := u.node.Close(); err != nil {
			return fmt.Errorf("let go of the server of shard %s: %w", u.deploy.ID(), err)
		}
		u.node = nil
	}
	m.supply(nil)
	if m.hall != nil {
		m.hall.Close()
	}
	err = m.store.Close()
	m.store = nil
	if err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	var files []int
	for _, f := range append([]*os.File{m.claim.f}, h.files...) {
		fd, err := fdOf(f)
		if err != nil {
			return err
		}
		files = append(files, fd)
	}
	to := takeover{Ports: h.ports}
	if id, some := m.lastID(); some {
		to.FirstID = id + idsApart
	}
	if err := h.send(whatGo, to, files...); err != nil {
		return err
	}
	m.supply(h.relay)
	f, err := m.hear(ctx, h, deadline)
	if err == nil && f.what != whatUp {
		err = fmt.Errorf("it said %c", f.what)
	}
	return err
}

// goesOn names the parts that run while the member is handed over: those that serve clients, and those that tell them what is agreed.
func goesOn() []string {
	return []string{"view", "proxy", "loops", "front", "cluster face", "ejection", "slots", "ring", "reshard orders", "adopted"}
}

// awaitMoment waits until the leases of all primaries here have most of their time left: the new process has no more than that.
func (m *member) awaitMoment(ctx context.Context, most time.Duration) error {
	for end := time.Now().Add(most); ; {
		left, good, err := m.leaseLeft()
		switch {
		case err == nil && good:
			return nil
		case time.Now().After(end) && err != nil:
			return fmt.Errorf("the store answers late: %w", err)
		case time.Now().After(end):
			return fmt.Errorf("the store answers late: %s are left of a primary's lease", left+heirMargin)
		}
		if err := nap(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// leaseLeft returns for how long every primary here may go on without its agent, but for what this process needs to come back. good: that is most of its lease.
func (m *member) leaseLeft() (least time.Duration, good bool, err error) {
	least, good = heirUp, true
	for _, u := range m.all() {
		s := u.view.Load()
		if u.node == nil || string(s.Shard.Assigned.Primary) != u.deploy.Node.ID {
			continue
		}
		lease := s.Shard.Spec.Timing.Lease.D()
		left := s.ReadStart + lease - m.clock.Uptime() - heirMargin
		if left < heirLeast {
			return left, false, fmt.Errorf("the lease of the primary of %s ends in %s", u.deploy.ID(), left+heirMargin)
		}
		least, good = min(least, left), good && left+heirMargin > lease*3/4
	}
	return least, good, nil
}

// lastID returns the highest id that a client has had; some: there may be clients.
func (m *member) lastID() (id uint64, some bool) {
	for _, u := range m.opened() {
		if u.proxy != nil {
			id, some = max(id, u.proxy.LastID()), true
		}
	}
	if m.front != nil {
		id = max(id, m.front.LastID())
	}
	return id, some
}

// supply has what goes on read the store through another process, or not at all (nil).
func (m *member) supply(r *relay) {
	if r == nil {
		m.shared.set(nil)
	} else {
		m.shared.set(r)
	}
	for _, u := range m.opened() {
		switch {
		case r == nil:
			u.source.set(nil)
		case m.hall == nil:
			u.source.set(r)
		default:
			u.source.set(u.supplied(r.of(u.deploy.ID())))
		}
	}
}

// resign hands control over to another member, so that nobody has to elect one because this one is away.
func (m *member) resign(ctx context.Context) {
	if m.store.Controller() != m.o.Config.Member.ID || m.voters.Load() < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resignTime)
	defer cancel()
	lease, err := m.store.Campaign(ctx)
	if err == nil {
		err = lease.Release(ctx)
	}
	if err != nil {
		m.log.Warn("handing over control before the hand-over", "err", err)
	}
}

// takeBack makes this process the member again. The agent comes first: it must be back before the primary's lease ends.
// The new process is stopped until this agent's guard is in place, because its own would fence a primary whose agent dies.
func (m *member) takeBack(ctx context.Context, h *heir) {
	_ = h.cmd.Process.Signal(syscall.SIGSTOP)
	if m.store == nil {
		m.supply(nil)
	}
	m.inherited = inheritance{h.ports, h.files}
	defer func() { m.inherited = inheritance{} }()
	var errs []error
	for _, u := range m.all() {
		if u.node != nil { // it was not given up yet, but its agent was
			errs = append(errs, u.node.Close())
			u.node = nil
		}
	}
	errs = append(errs, m.takeNodes(ctx))
	h.end()
	errs = append(errs, m.claim.write(m.o.File), m.reopen(ctx))
	if err := errors.Join(errs...); err != nil {
		select {
		case m.parts.failed <- fmt.Errorf("take the member back: %w", err):
		default:
		}
		return
	}
	if m.front != nil {
		m.front.Stay()
	}
	for _, u := range m.all() {
		if u.proxy != nil {
			u.proxy.Stay()
		}
	}
	m.log.Info("this process is the member again")
}

// takeNodes is startNodes for servers that run, in a hand-over: at the same time, and primaries first, because their leases run.
func (m *member) takeNodes(ctx context.Context) error {
	var primaries, others []*unit
	for _, u := range m.all() {
		if s := u.view.Load(); u.deploy.Node != nil && s != nil && string(s.Shard.Assigned.Primary) == u.deploy.Node.ID {
			primaries = append(primaries, u)
		} else {
			others = append(others, u)
		}
	}
	var errs []error
	for _, some := range [][]*unit{primaries, others} {
		each := make([]error, len(some))
		var starting sync.WaitGroup
		for i, u := range some {
			starting.Go(func() { each[i] = u.startNode(ctx) })
		}
		starting.Wait()
		errs = append(errs, each...)
	}
	return errors.Join(errs...)
}

// reopen starts again what yield has stopped, but for the node.
func (m *member) reopen(ctx context.Context) error {
	until := time.Now().Add(reclaimTime)
	closed := m.store == nil
	for m.store == nil {
		s, err := openStore(ctx, m.o.Config, m.clock, m.log)
		if err == nil {
			m.store = s
			break
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return err
		}
		t := time.NewTimer(20 * time.Millisecond)
		<-t.C
	}
	if closed && m.hall != nil {
		if err := m.openHall(); err != nil {
			return err
		}
	}
	m.shared.set(m.store)
	for _, u := range m.opened() {
		if u.store = m.store; m.hall != nil {
			u.store = m.hall.Of(u.deploy.ID())
		}
		u.source.set(u.supplied(u.store))
	}
	return m.startRest()
}
