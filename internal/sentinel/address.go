// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"net"
	"net/netip"
	"time"

	"redoubt/internal/topo"
)

// Announce says what clients of one subnet are told instead of addresses that they cannot reach (NAT, port forwarding, Docker).
type Announce struct {
	Clients netip.Prefix
	Map     map[string]string // host:port to host:port, or host to host for all its ports
}

// tell is the form in which one client is told addresses.
type tell struct {
	announce *Announce // nil: as they are
	hosts    map[string]string
}

// at returns the host and the port that the client is told for an address.
func (t tell) at(addr string) (host, port string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr, "0"
	}
	if t.announce != nil {
		if to, ok := t.announce.Map[addr]; ok {
			if h, p, err := net.SplitHostPort(to); err == nil {
				return h, p
			}
		}
		if to, ok := t.announce.Map[host]; ok {
			return to, port
		}
	}
	if ip, ok := t.hosts[host]; ok {
		host = ip
	}
	return host, port
}

func (t tell) addr(addr string) string { return net.JoinHostPort(t.at(addr)) }

// pair is the form of events.
func (t tell) pair(addr string) string {
	host, port := t.at(addr)
	return host + " " + port
}

// announceFor finds what a client at an address is told; nil: addresses as they are. The first subnet that has it counts.
func (s *Server) announceFor(remote net.Addr) *Announce {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return nil
	}
	ip := tcp.AddrPort().Addr().Unmap()
	for i := range s.o.Announce {
		if s.o.Announce[i].Clients.Contains(ip) {
			return &s.o.Announce[i]
		}
	}
	return nil
}

func (s *Server) tell(a *Announce) tell {
	t := tell{announce: a}
	if hosts := s.resolved.Load(); hosts != nil {
		t.hosts = *hosts
	}
	return t
}

// resolve looks up the hosts that are names, and keeps what it knew of those that cannot be looked up.
func (s *Server) resolve(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	old, now := s.tell(nil).hosts, map[string]string{}
	for _, addr := range s.known() {
		host, _, err := net.SplitHostPort(addr)
		if _, seen := now[host]; err != nil || seen || net.ParseIP(host) != nil {
			continue
		}
		if ip, ok := old[host]; ok {
			now[host] = ip
		}
		if ips, err := net.DefaultResolver.LookupHost(ctx, host); err == nil && len(ips) > 0 {
			now[host] = ips[0]
		}
	}
	s.resolved.Store(&now)
}

// known are all addresses that clients may be told.
func (s *Server) known() []string {
	out := []string{s.o.ProxyAddr}
	for _, m := range s.masters {
		var nodes []topo.Node
		if snap := m.View.Load(); snap != nil {
			nodes = snap.Shard.Spec.Nodes
		}
		for _, n := range nodes {
			out = append(out, n.Addr)
		}
		for _, r := range m.reports.Load().Members {
			out = append(out, r.ProxyAddr, r.ReadonlyAddr, r.SentinelAddr)
		}
	}
	return out
}
