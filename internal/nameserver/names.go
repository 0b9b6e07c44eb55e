// SPDX-License-Identifier: Apache-2.0

package nameserver

import (
	"slices"
	"strings"

	"github.com/miekg/dns"

	"redoubt/internal/view"
)

// The names, in front of the zone. D stands for the deployment, S for a shard's name or id.
//
//	ns                                   who answers
//	D, proxies.D, readonly.D             the members' proxies
//	sentinels.D                          the members' Sentinel faces
//	primary.D, replicas.D                real servers, of all shards
//	primary.S.D, replicas.S.D            real servers, of one shard
//	N.node.D, M.member.D                 one node, one member: the targets of SRV records
//	_redis._tcp. in front of these       SRV; the names themselves have SRV records, too
//	_D._primary and the like             SRV, in the form of Consul's RFC 2782 look-ups
//
// Letters do not have a case. Dots and underscores of ids and names are dashes here.

// found is what a name stands for.
type found struct {
	places   []view.Place
	kind     string // of places: "node" or "member"
	service  bool   // SRV records only
	apex, ns bool
	unknown  bool // nothing is known about the deployment yet
}

// Label is how an id or name is written in DNS.
func Label(name string) string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(strings.ToLower(name))
}

// roles are the names of places, each with those that mean the same.
func role(label string) string {
	switch label {
	case "primary", "master":
		return "primary"
	case "replicas", "replica", "slave":
		return "replicas"
	case "proxies", "proxy":
		return "proxies"
	case "readonly", "sentinels":
		return label
	}
	return ""
}

// find returns what the labels in front of the zone stand for.
func (s *Server) find(p view.Picture, labels []string) (found, bool) {
	if len(labels) == 0 {
		return found{apex: true}, true
	}
	last := len(labels) - 1
	if labels[0] == "ns" && last == 0 {
		return found{ns: true, kind: "member"}, true
	}
	d := Label(p.Deployment)
	if kind, ok := strings.CutPrefix(labels[last], "_"); ok { // as Consul writes it
		if kind == "tcp" {
			kind = "proxies"
		}
		f, known := deploymentName(p, role(kind))
		switch {
		case role(kind) == "" || !known || last > 1 || last == 1 && labels[0] != "_"+d:
			return found{}, false
		case last == 0:
			return found{}, true // nothing by itself
		}
		f.service, f.unknown = true, !p.Known
		return f, true
	}
	if labels[last] != d {
		return found{}, false
	}
	rest := labels[:last]
	service := false
	switch {
	case len(rest) > 0 && rest[0] == "_tcp":
		_, ok := below(p, rest[1:])
		return found{unknown: !p.Known}, ok // nothing by itself
	case len(rest) > 1 && rest[0] == "_redis" && rest[1] == "_tcp":
		rest, service = rest[2:], true
	}
	f, ok := below(p, rest)
	f.service = service
	f.unknown = !p.Known
	return f, ok || !p.Known
}

// below returns what the labels in front of the deployment's stand for.
func below(p view.Picture, labels []string) (found, bool) {
	switch len(labels) {
	case 0:
		return found{places: p.Proxies, kind: "member"}, true
	case 1:
		return deploymentName(p, labels[0])
	case 2:
		if r := role(labels[0]); r == "primary" || r == "replicas" {
			if sh, ok := shardOf(p, labels[1]); ok {
				return found{places: of(sh, r), kind: "node"}, true
			}
		}
		return one(p, labels[0], labels[1])
	}
	return found{}, false
}

// deploymentName returns what one label in front of the deployment's stands for.
func deploymentName(p view.Picture, label string) (found, bool) {
	switch r := role(label); r {
	case "proxies":
		return found{places: p.Proxies, kind: "member"}, true
	case "readonly":
		return found{places: p.ReadonlyProxies, kind: "member"}, true
	case "sentinels":
		return found{places: p.Sentinels, kind: "member"}, true
	case "primary", "replicas":
		f := found{kind: "node"}
		for _, sh := range p.Shards {
			f.places = append(f.places, of(sh, r)...)
		}
		return f, true
	}
	if label == "node" || label == "member" {
		return found{}, true // nothing by itself
	}
	_, ok := shardOf(p, label)
	return found{}, ok
}

func of(sh view.ShardPicture, role string) []view.Place {
	if role == "replicas" {
		return sh.Replicas
	}
	if sh.Primary != nil {
		return []view.Place{*sh.Primary}
	}
	return nil
}

func shardOf(p view.Picture, label string) (view.ShardPicture, bool) {
	for _, sh := range p.Shards {
		if Label(sh.Name) == label || Label(sh.ID) == label {
			return sh, true
		}
	}
	return view.ShardPicture{}, false
}

// one returns a node or a member by its id. A node of several shards is one host.
func one(p view.Picture, id, kind string) (found, bool) {
	var all []view.Place
	switch kind {
	case "node":
		for _, sh := range p.Shards {
			all = append(all, sh.Nodes...)
		}
	case "member":
		all = slices.Concat(p.Proxies, p.ReadonlyProxies, p.Sentinels, p.Nameservers)
	}
	for _, at := range all {
		if Label(at.ID) == id {
			return found{places: []view.Place{at}, kind: kind}, true
		}
	}
	return found{}, false
}

// hostsOf are the hosts of all places, names and addresses alike.
func hostsOf(p view.Picture) []string {
	var all []string
	for _, places := range [][]view.Place{p.Proxies, p.ReadonlyProxies, p.Sentinels, p.Nameservers} {
		for _, at := range places {
			all = append(all, at.Host)
		}
	}
	for _, sh := range p.Shards {
		for _, at := range sh.Nodes {
			all = append(all, at.Host)
		}
	}
	return all
}

// fill writes the records of what was found.
func (s *Server) fill(m *dns.Msg, q dns.Question, f found) {
	switch {
	case f.apex && q.Qtype == dns.TypeSOA:
		m.Answer = append(m.Answer, s.soa(q.Name))
	case f.apex && q.Qtype == dns.TypeNS:
		m.Answer = append(m.Answer, &dns.NS{Hdr: s.header(q.Name, dns.TypeNS), Ns: "ns." + s.zone})
		m.Extra = append(s.addresses("ns."+s.zone, 0, s.nameservers()), m.Extra...)
	case f.ns:
		m.Answer = s.addresses(q.Name, q.Qtype, s.nameservers())
	case q.Qtype == dns.TypeSRV:
		for _, at := range s.rotated(f.places) {
			target := Label(at.ID) + "." + f.kind + "." + Label(s.o.Board.Deployment()) + "." + s.zone
			m.Answer = append(m.Answer, &dns.SRV{Hdr: s.header(q.Name, dns.TypeSRV), Priority: 1, Weight: 1, Port: uint16(at.Port), Target: target})
			m.Extra = append(s.addresses(target, 0, []string{at.Host}), m.Extra...)
		}
	case !f.service:
		var hosts []string
		for _, at := range s.rotated(f.places) {
			if !slices.Contains(hosts, at.Host) {
				hosts = append(hosts, at.Host)
			}
		}
		m.Answer = s.addresses(q.Name, q.Qtype, hosts)
	}
}

// nameservers are the hosts that answer for the zone: this one first.
func (s *Server) nameservers() []string {
	hosts := []string{s.o.Host}
	for _, at := range s.o.Board.Look().Nameservers {
		if !slices.Contains(hosts, at.Host) {
			hosts = append(hosts, at.Host)
		}
	}
	return hosts
}

// rotated has another place first each time: many clients take the first one.
func (s *Server) rotated(places []view.Place) []view.Place {
	if len(places) < 2 {
		return places
	}
	n := int(s.turn.Add(1)) % len(places)
	return slices.Concat(places[n:], places[:n])
}

// addresses are the A and AAAA records of hosts, or those of one type.
func (s *Server) addresses(name string, kind uint16, hosts []string) []dns.RR {
	var out []dns.RR
	for _, host := range hosts {
		for _, ip := range s.hosts.of(host) {
			switch {
			case ip.Is4() && (kind == dns.TypeA || kind == 0):
				out = append(out, &dns.A{Hdr: s.header(name, dns.TypeA), A: ip.AsSlice()})
			case ip.Is6() && (kind == dns.TypeAAAA || kind == 0):
				out = append(out, &dns.AAAA{Hdr: s.header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
			}
		}
	}
	return out
}
