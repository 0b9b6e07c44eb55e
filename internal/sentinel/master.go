// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// master is what clients know under one name: a deployment, or one shard of it.
type master struct {
	Master
	s       *Server
	reports atomic.Pointer[reports]
	last    atomic.Pointer[string] // address of the primary that served last, direct mode
}

// reports is what members and agents said lately. It is replaced as a whole, never changed.
type reports struct {
	view.Reports
	at time.Duration // clock.Uptime; zero: never read
}

// refreshLoop keeps the reports at most refreshBusy old while somebody is connected.
func (s *Server) refreshLoop(ctx context.Context) {
	tick := time.NewTicker(refreshBusy)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.asked:
		case <-tick.C:
		}
		age := s.o.Clock.Uptime() - s.masters[0].reports.Load().at
		if age >= refreshIdle || age >= refreshBusy && s.hub.count() > 0 {
			s.refresh(ctx)
		}
	}
}

// refresh asks the controller for the reports, and the resolver for names; while they do not answer the last ones stand.
func (s *Server) refresh(ctx context.Context) {
	for _, m := range s.masters {
		m.refresh(ctx)
	}
	if s.o.Resolve {
		s.resolve(ctx)
	}
}

func (m *master) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	beats, err := m.Beats.All(ctx)
	if err != nil {
		return
	}
	r := &reports{view.DecodeReports(beats), m.s.o.Clock.Uptime()}
	old := m.reports.Load()
	if len(r.Members) == 0 && len(r.Nodes) == 0 && len(old.Members) > 0 && r.at-old.at < 5*time.Second {
		return // the controller moved a moment ago, and nobody has reported to the new one yet
	}
	m.reports.Store(r)
	if old.at > 0 {
		m.announceMembers(old, r)
	}
}

// instance is one thing that Sentinel's replies describe. A name that is its address is left out.
type instance struct {
	name, addr, runID string
	down              bool
	downFor           time.Duration
}

// identity is a stable 40-digit id for what is not a server process.
func identity(parts ...string) string {
	h := sha1.Sum([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(h[:])
}

// primary returns what clients are told to write to. ok is false when nothing is known yet.
func (m *master) primary() (i instance, ok bool) {
	if m.Mode == ModeProxy {
		addr := m.proxyAddr()
		return instance{name: m.Name, addr: addr, runID: identity("proxy", addr)}, addr != ""
	}
	snap := m.View.Load()
	if snap == nil {
		return instance{}, false
	}
	a := snap.Shard.Assigned
	serving := a.Phase == topo.PhaseServing || a.Phase == topo.PhaseDraining
	node, _ := snap.Shard.Spec.Node(a.Primary)
	addr := node.Addr
	if last := m.last.Load(); !serving && last != nil {
		addr = *last // Sentinel, too, names the old primary until there is a new one
	}
	if addr == "" {
		return instance{}, false
	}
	i = instance{name: m.Name, addr: addr, down: !serving}
	for id, g := range m.reports.Load().Nodes {
		if n, in := snap.Shard.Spec.Node(id); in && n.Addr == addr {
			i.runID, i.downFor = g.RunID, g.HealthFor.D()
		}
	}
	return i, true
}

// proxyAddr is this member's own proxy, or the first one that reports.
func (m *master) proxyAddr() string {
	if m.s.o.ProxyAddr != "" {
		return m.s.o.ProxyAddr
	}
	for _, r := range m.reports.Load().Members {
		if r.ProxyAddr != "" {
			return r.ProxyAddr
		}
	}
	return ""
}

// replica is an instance with what Sentinel says of replicas only.
type replica struct {
	instance
	linkUp   bool
	linkDown time.Duration
	priority int
	offset   int64
}

// replicas returns where reads may go: the read-only proxies, or the other servers of the roster.
func (m *master) replicas() []replica {
	if m.Mode == ModeProxy {
		return m.readers()
	}
	snap, r := m.View.Load(), m.reports.Load()
	if snap == nil {
		return nil
	}
	var out []replica
	p, _ := m.primary()
	for _, n := range snap.Shard.Spec.Nodes {
		if n.Addr == p.addr {
			continue
		}
		g, reported := r.Nodes[n.ID]
		i := instance{addr: n.Addr, runID: g.RunID, down: !reported || g.Health != topo.HealthUp, downFor: g.HealthFor.D()}
		rep := replica{instance: i, linkUp: g.LinkUp && g.Role == topo.RoleReplica, priority: n.Priority, offset: g.Pos.Offset}
		if rep.priority == 0 {
			rep.priority = 100 // what Sentinel shows by default; 0 would mean "never promote"
		}
		if !rep.linkUp {
			rep.linkDown = g.Age + time.Millisecond
		}
		out = append(out, rep)
	}
	return out
}

// readers are the read-only proxies.
func (m *master) readers() []replica {
	r := m.reports.Load()
	best := int64(0)
	for _, g := range r.Nodes {
		best = max(best, g.Pos.Offset)
	}
	var out []replica
	for _, x := range r.Members {
		if x.ReadonlyAddr != "" {
			i := instance{addr: x.ReadonlyAddr, runID: identity("readonly", x.ReadonlyAddr)}
			out = append(out, replica{instance: i, linkUp: true, priority: 100, offset: best})
		}
	}
	return out
}

// others returns the faces of the other live members.
func (m *master) others() []instance {
	var out []instance
	for _, r := range m.reports.Load().Members {
		if r.SentinelAddr == "" || r.ID == m.s.o.Member {
			continue
		}
		id := m.s.idOf(r.ID)
		out = append(out, instance{name: id, addr: r.SentinelAddr, runID: id})
	}
	return out
}

// idOf is the id of a member's face.
func (s *Server) idOf(member string) string { return identity("sentinel", s.o.Masters[0].Name, member) }

// usable is how many members report, and voters how many there are.
func (m *master) usable() (usable, voters int) {
	usable = len(m.reports.Load().Members)
	voters = usable
	if m.s.o.Voters != nil {
		voters = max(m.s.o.Voters(), usable)
	}
	return usable, voters
}

func (m *master) epoch() topo.Epoch {
	if snap := m.View.Load(); snap != nil {
		return snap.Shard.Assigned.Epoch
	}
	return 0
}

func (m *master) timing() topo.Timing {
	if snap := m.View.Load(); snap != nil {
		return snap.Shard.Spec.Timing
	}
	return topo.LANTiming()
}

func ms(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
