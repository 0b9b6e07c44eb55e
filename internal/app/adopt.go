// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/resp"
	"redoubt/internal/sentinel"
	"redoubt/internal/topo"
)

// A deployment that begins on order: its servers are somebody else's until all members are told to take them over, and somebody
// else's again once they are handed back. Agent and Sentinel face run in between only.

const (
	adoptEvery = 200 * time.Millisecond
	probeEvery = time.Second
	probeTime  = time.Second
	bindEvery  = 20 * time.Millisecond // the port may still be a Sentinel's
)

// custody is whether this member keeps its server. The goroutine of serve owns it, but for what is atomic.
type custody struct {
	orders  chan topo.AdoptionState // from the watcher; no buffer: it is repeated until it was carried out
	held    bool                    // the agent runs
	state   atomic.Pointer[topo.AdoptionState]
	problem atomic.Pointer[string]
}

func (c *custody) is() topo.AdoptionState {
	if s := c.state.Load(); s != nil {
		return *s
	}
	return topo.AdoptionWaiting
}

func (c *custody) set(s topo.AdoptionState, problem string) {
	c.state.Store(&s)
	c.problem.Store(&problem)
}

// described is what this member reports about itself.
func (m *member) described() topo.MemberReport {
	r := m.faces
	if !m.deploy.OnOrder() {
		return r
	}
	r.Adoption = m.custody.is()
	if p := m.custody.problem.Load(); p != nil {
		r.AdoptionProblem = *p
	}
	return r
}

// waits reports whether the servers are somebody else's.
func (m *member) waits() bool { return m.deploy.OnOrder() && !m.custody.held }

// resumeCustody is for a process that takes over from another one: it keeps what that one kept.
func (m *member) resumeCustody(ctx context.Context) error {
	if !m.deploy.OnOrder() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freshTime)
	defer cancel()
	now, err := readAdoption(ctx, m.store, m.deploy.Name)
	if err != nil {
		return err
	}
	m.custody.held = now.State == topo.AdoptionArmed
	m.custody.set(now.State, "")
	return nil
}

func readAdoption(ctx context.Context, docs coord.Docs, deployment string) (topo.Adoption, error) {
	doc, err := docs.Get(ctx, topo.KeyAdoption+deployment)
	if errors.Is(err, coord.ErrNotFound) {
		return topo.Adoption{State: topo.AdoptionWaiting}, nil
	}
	if err != nil {
		return topo.Adoption{}, fmt.Errorf("read the adoption: %w", err)
	}
	return topo.DecodeAdoption(doc.Value)
}

// watchAdoption tells serve what is agreed, again and again until it was carried out. While this member waits it also sees whether
// its server could be taken over.
func (m *member) watchAdoption(ctx context.Context) error {
	pushed := m.store.Watch(ctx, topo.KeyAdoption+m.deploy.Name)
	tick := time.NewTicker(adoptEvery)
	defer tick.Stop()
	probed := time.Time{}
	for {
		reading, cancel := context.WithTimeout(ctx, adoptEvery*5)
		now, err := readAdoption(reading, m.store, m.deploy.Name)
		cancel()
		switch {
		case err != nil: // no majority at the moment: what was agreed last holds
		case now.State != m.custody.is():
			select {
			case m.custody.orders <- now.State:
			case <-ctx.Done():
				return ctx.Err()
			}
		case now.State == topo.AdoptionWaiting && time.Since(probed) > probeEvery:
			m.custody.set(now.State, m.probe(ctx))
			probed = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-pushed:
			if !ok {
				pushed = nil
			}
		case <-tick.C:
		}
	}
}

// probe says what is in the way of taking the server over; empty: nothing.
func (m *member) probe(ctx context.Context) string {
	d := m.units[0].deploy
	if d.Node == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", d.LocalAddr())
	if err != nil {
		return fmt.Sprintf("the server cannot be reached: %v", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(probeTime))
	ask := resp.AppendCommand(nil, "PING")
	switch {
	case d.Node.Username != "":
		ask = append(resp.AppendCommand(nil, "AUTH", d.Node.Username, d.Password), ask...)
	case d.Password != "":
		ask = append(resp.AppendCommand(nil, "AUTH", d.Password), ask...)
	}
	if _, err := conn.Write(ask); err != nil {
		return fmt.Sprintf("the server at %s: %v", d.LocalAddr(), err)
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	switch {
	case err != nil:
		return fmt.Sprintf("the server at %s does not answer: %v", d.LocalAddr(), err)
	case buf[0] == '-':
		line, _, _ := bytes.Cut(buf[1:n], []byte("\r\n"))
		return fmt.Sprintf("the server at %s answers %q: is the deployment's password right?", d.LocalAddr(), line)
	}
	return ""
}

// take carries out an order. What does not work is tried again when the watcher repeats it.
func (m *member) take(ctx context.Context, to topo.AdoptionState) {
	var err error
	switch {
	case to == topo.AdoptionArmed && !m.custody.held:
		err = m.takeCustody(ctx)
	case to == topo.AdoptionReleased && m.custody.held:
		err = m.giveUpCustody()
	}
	if err != nil {
		m.log.Error("adoption", "state", to, "err", err)
		m.custody.problem.Store(ptr(err.Error()))
		return
	}
	m.log.Info("adoption", "state", to)
	m.custody.set(to, "")
}

func ptr[T any](v T) *T { return &v }

// takeCustody starts the agent once the agreed order, which names the primary as it was found, is confirmed: without one it would
// fence.
func (m *member) takeCustody(ctx context.Context) error {
	u := m.units[0]
	if err := u.awaitFresh(ctx); err != nil {
		return err
	}
	m.custody.held = true
	if err := u.startNode(ctx); err != nil {
		m.custody.held = false
		return err
	}
	u.startAccord()
	m.startSentinelLater()
	return nil
}

// giveUpCustody leaves the server as it is.
func (m *member) giveUpCustody() error {
	u := m.units[0]
	m.parts.stop(m.log, "sentinel", "accord", "agent")
	m.custody.held, m.sentinel = false, nil
	u.accord.Store(nil)
	u.agent = nil
	if u.node == nil {
		return nil
	}
	err := u.node.Close()
	u.node = nil
	if err != nil {
		return fmt.Errorf("let go of the server: %w", err)
	}
	return nil
}

// startSentinelLater serves Sentinel's protocol as soon as the port is free: it may still be that of a Sentinel which is about to end.
func (m *member) startSentinelLater() {
	c := m.o.Config.Sentinel
	if c.Listen == "" {
		return
	}
	m.parts.start("sentinel", func(ctx context.Context) error {
		ln, err := m.bind(ctx, c.Listen)
		if err != nil {
			return err
		}
		s, err := sentinel.New(m.sentinelOptions(ln))
		if err != nil {
			return errors.Join(err, ln.Close())
		}
		m.lateSentinel.Store(s)
		defer m.lateSentinel.Store(nil)
		m.log.Info("answering Sentinel clients", "addr", s.Addr())
		return s.Run(ctx)
	})
}

func (m *member) bind(ctx context.Context, addr string) (net.Listener, error) {
	tick := time.NewTicker(bindEvery)
	defer tick.Stop()
	for said := false; ; {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return ln, nil
		}
		if !said {
			said = true
			m.log.Warn("waiting for the Sentinel port", "addr", addr, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
