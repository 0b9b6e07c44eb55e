// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"

	"redoubt/internal/topo"
	"redoubt/internal/view"
)

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
		age := s.o.Clock.Uptime() - s.reports.Load().at
		if age >= refreshIdle || age >= refreshBusy && s.hub.count() > 0 {
			s.refresh(ctx)
		}
	}
}

// refresh asks the controller for the reports; while it does not answer the last ones stand.
func (s *Server) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	beats, err := s.o.Beats.All(ctx)
	if err != nil {
		return
	}
	r := &reports{view.DecodeReports(beats), s.o.Clock.Uptime()}
	old := s.reports.Load()
	if len(r.Members) == 0 && len(r.Nodes) == 0 && len(old.Members) > 0 && r.at-old.at < 5*time.Second {
		return // the controller moved a moment ago, and nobody has reported to the new one yet
	}
	s.reports.Store(r)
	if old.at > 0 {
		s.announceMembers(old, r)
	}
}

// instance is one thing that Sentinel's replies describe.
type instance struct {
	name, ip, port, runID string
	down                  bool
	downFor               time.Duration
}

func (i instance) addr() string { return net.JoinHostPort(i.ip, i.port) }

// identity is a stable 40-digit id for what is not a server process.
func identity(parts ...string) string {
	h := sha1.Sum([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(h[:])
}

func split(addr string) (ip, port string) {
	ip, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr, "0"
	}
	return ip, port
}

// primary returns what clients are told to write to. ok is false when nothing is known yet.
func (s *Server) primary() (i instance, ok bool) {
	if s.o.Mode == ModeProxy {
		addr := s.proxyAddr()
		ip, port := split(addr)
		return instance{name: s.o.Name, ip: ip, port: port, runID: identity("proxy", addr)}, addr != ""
	}
	snap := s.o.View.Load()
	if snap == nil {
		return instance{}, false
	}
	a := snap.Shard.Assigned
	serving := a.Phase == topo.PhaseServing || a.Phase == topo.PhaseDraining
	node, known := snap.Shard.Spec.Node(a.Primary)
	addr := node.Addr
	if last := s.last.Load(); !serving && last != nil {
		addr = *last // Sentinel, too, names the old primary until there is a new one
	}
	if addr == "" || !known && addr == "" {
		return instance{}, false
	}
	ip, port := split(addr)
	i = instance{name: s.o.Name, ip: ip, port: port, down: !serving}
	for id, g := range s.reports.Load().Nodes {
		if n, in := snap.Shard.Spec.Node(id); in && n.Addr == addr {
			i.runID, i.downFor = g.RunID, g.HealthFor.D()
		}
	}
	return i, true
}

// proxyAddr is this member's own proxy, or the first one that reports.
func (s *Server) proxyAddr() string {
	if s.o.ProxyAddr != "" {
		return s.o.ProxyAddr
	}
	for _, m := range s.reports.Load().Members {
		if m.ProxyAddr != "" {
			return m.ProxyAddr
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
func (s *Server) replicas() []replica {
	snap, r := s.o.View.Load(), s.reports.Load()
	var out []replica
	if s.o.Mode == ModeProxy {
		best := int64(0)
		for _, g := range r.Nodes {
			best = max(best, g.Pos.Offset)
		}
		for _, m := range r.Members {
			if m.ReadonlyAddr != "" {
				ip, port := split(m.ReadonlyAddr)
				i := instance{name: m.ReadonlyAddr, ip: ip, port: port, runID: identity("readonly", m.ReadonlyAddr)}
				out = append(out, replica{instance: i, linkUp: true, priority: 100, offset: best})
			}
		}
		return out
	}
	if snap == nil {
		return nil
	}
	p, _ := s.primary()
	for _, n := range snap.Shard.Spec.Nodes {
		ip, port := split(n.Addr)
		i := instance{name: n.Addr, ip: ip, port: port}
		if i.addr() == p.addr() {
			continue
		}
		g, reported := r.Nodes[n.ID]
		i.runID, i.down, i.downFor = g.RunID, !reported || g.Health != topo.HealthUp, g.HealthFor.D()
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

// others returns the faces of the other live members.
func (s *Server) others() []instance {
	var out []instance
	for _, m := range s.reports.Load().Members {
		if m.SentinelAddr == "" || m.ID == s.o.Member {
			continue
		}
		ip, port := split(m.SentinelAddr)
		id := identity("sentinel", s.o.Name, m.ID)
		out = append(out, instance{name: id, ip: ip, port: port, runID: id})
	}
	return out
}

// usable is how many members report, and voters how many there are.
func (s *Server) usable() (usable, voters int) {
	usable = len(s.reports.Load().Members)
	voters = usable
	if s.o.Voters != nil {
		voters = max(s.o.Voters(), usable)
	}
	return usable, voters
}

func (s *Server) epoch() topo.Epoch {
	if snap := s.o.View.Load(); snap != nil {
		return snap.Shard.Assigned.Epoch
	}
	return 0
}

func (s *Server) downAfter() time.Duration {
	if snap := s.o.View.Load(); snap != nil {
		return snap.Shard.Spec.Timing.Silence.D()
	}
	return topo.LANTiming().Silence.D()
}

func ms(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
