// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/topo"
)

// SentinelAdoption is what Sentinels watch, on its way to a deployment: whoever has filled it in calls Files.
type SentinelAdoption struct {
	Name       string          // the master's
	Shard      AdoptedShard    // Name has no meaning
	Sentinels  []string        // host:port of each
	Members    []AdoptedMember // hosts of servers and Sentinels without one get one of their own
	Password   string          // of the servers
	Gate       string          // that clients of the Sentinels send
	Durability topo.Durability
	Listen     string // of each member's proxy, HOST stands for its host; empty: none
	API        string // where each member's API listens, likewise
	Face       string // where each member answers Sentinel clients, likewise
	Store      int    // port of each member where they agree

	Notification, Reconfig string // programs of the Sentinels; empty: none
}

// Node is the member, and so the node, at whose host a server is; empty: there is none.
func (a *SentinelAdoption) Node(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	for _, m := range a.Members {
		if m.Host == host {
			return m.ID
		}
	}
	return ""
}

// Files completes the list of members, and returns the configuration file of each by its ID.
func (a *SentinelAdoption) Files() (map[string]string, error) {
	if !isID(a.Name) {
		return nil, fmt.Errorf("the master's name %q cannot be a deployment's: use letters, digits, dots, dashes and underscores", a.Name)
	}
	hosts := map[string]string{}
	for _, addr := range a.Shard.addrs() {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("the server %s has no host and port", addr)
		}
		if other, ok := hosts[host]; ok {
			return nil, fmt.Errorf("two servers are on %s (%s and %s): a member has one server; move one of them, or have the Sentinels forget it (SENTINEL RESET %s)", host, other, addr, a.Name)
		}
		hosts[host] = addr
	}
	for _, addr := range append(a.Shard.addrs(), a.Sentinels...) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("the Sentinel %s has no host and port", addr)
		}
		if !slices.ContainsFunc(a.Members, func(m AdoptedMember) bool { return m.Host == host }) {
			a.Members = append(a.Members, AdoptedMember{freeID(a.Members), host})
		}
	}
	files := map[string]string{}
	for _, m := range a.Members {
		text := a.file(m)
		if _, err := Parse([]byte(text), m.ID+"/redoubt.yaml", "/"); err != nil {
			return nil, fmt.Errorf("master %s cannot be adopted as it is: %w", a.Name, err)
		}
		files[m.ID] = text
	}
	return files, nil
}

// FaceOf is where a member answers Sentinel clients: where the Sentinel on its host did, else at the port of the first Sentinel.
func (a *SentinelAdoption) FaceOf(m AdoptedMember) string {
	if a.Face != "" {
		return strings.ReplaceAll(a.Face, "HOST", m.Host)
	}
	for _, s := range a.Sentinels {
		if host, _, _ := net.SplitHostPort(s); host == m.Host {
			return s
		}
	}
	_, port, _ := net.SplitHostPort(a.Sentinels[0])
	return net.JoinHostPort(m.Host, port)
}

// APIOf is where a member's API listens.
func (a *SentinelAdoption) APIOf(m AdoptedMember) string {
	return strings.ReplaceAll(a.API, "HOST", m.Host)
}

// file is one member's configuration, as one would write it by hand.
func (a *SentinelAdoption) file(m AdoptedMember) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by `redoubt adopt` from what Sentinels watch as %s; `redoubt config sample` explains every setting.", a.Name)
	storePart(line, m, a.Members, a.Store)
	line("deployments:\n  - name: %s\n    durability: %s\n    begin: on-order", a.Name, a.Durability)
	if a.Password != "" {
		line("    password: %q", a.Password)
	}
	line("    nodes:")
	local := false
	for rank, addr := range a.Shard.addrs() {
		id := a.Node(addr)
		local = local || id == m.ID
		priority := ""
		if rank > 0 {
			priority = fmt.Sprintf(", priority: %d", rank)
		}
		host, _, _ := net.SplitHostPort(addr)
		line("      - {id: %s, host: %q, addr: %q%s}", id, host, addr, priority)
	}
	if local {
		line("    node: {id: %s, kind: attached}", m.ID)
	}
	if a.Listen != "" {
		line("proxy:\n  listen: %q", strings.ReplaceAll(a.Listen, "HOST", m.Host))
	}
	line("sentinel:\n  listen: %q\n  addresses: direct", a.FaceOf(m))
	if a.Gate != "" {
		line("  password: %q", a.Gate)
	}
	if a.Notification != "" {
		line("  notification-script: %q", a.Notification)
	}
	if a.Reconfig != "" {
		line("  client-reconfig-script: %q", a.Reconfig)
	}
	line("api:\n  listen: %q", a.APIOf(m))
	return b.String()
}

// storePart writes a member's place among the members.
func storePart(line func(string, ...any), m AdoptedMember, all []AdoptedMember, port int) {
	at := func(host string) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	line("member:\n  id: %s\n  dir: data\n  host: %q\nstore:\n  listen: %q", m.ID, m.Host, at(m.Host))
	founders := all[:foundersOf(len(all))]
	if !slices.Contains(founders, m) {
		line("  join: %q", at(founders[0].Host))
		return
	}
	line("  members:")
	for _, o := range founders {
		line("    - {id: %s, addr: %q}", o.ID, at(o.Host))
	}
}
