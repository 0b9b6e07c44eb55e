// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strings"

	"redoubt/internal/muster"
	"redoubt/internal/slots"
)

// ClusterAdoption is a Redis Cluster on its way to a deployment: whoever has filled it in calls Files.
type ClusterAdoption struct {
	Name     string
	Shards   []muster.Shard
	Members  []AdoptedMember // hosts of servers without one get one of their own
	Username string          // of the servers
	Password string
	Listen   string // of each member's proxy, HOST stands for its host
	API      string // where each member's API listens, likewise
	Store    int    // port of each member where they agree
}

// Files completes the list of members, and returns the configuration file of each by its ID. The error says what of the cluster cannot
// be a deployment.
func (a *ClusterAdoption) Files() (map[string]string, error) {
	hosts := Adoption{Members: a.Members}
	for _, s := range a.Shards {
		seen := map[string]string{}
		for _, n := range nodesOf(s) {
			if other, ok := seen[n.Host]; ok {
				return nil, fmt.Errorf("slots %s have two servers on %s (%s and %s): a member has one server of each shard; make one of them a replica of another shard (CLUSTER REPLICATE)", s.Primary.Slots, n.Host, other, n.Addr())
			}
			seen[n.Host] = n.Addr()
			if !slices.ContainsFunc(hosts.Members, func(m AdoptedMember) bool { return m.Host == n.Host }) {
				hosts.Members = append(hosts.Members, AdoptedMember{freeID(hosts.Members), n.Host})
			}
		}
	}
	a.Members = hosts.Members
	files := map[string]string{}
	for _, m := range a.Members {
		text := a.file(hosts, m)
		if _, err := Parse([]byte(text), m.ID+"/redoubt.yaml", "/"); err != nil {
			return nil, fmt.Errorf("the cluster cannot be adopted as it is: %w", err)
		}
		files[m.ID] = text
	}
	return files, nil
}

// nodesOf are the servers of a shard, its primary first.
func nodesOf(s muster.Shard) []slots.Node { return append([]slots.Node{s.Primary}, s.Replicas...) }

// file is one member's configuration, as one would write it by hand.
func (a *ClusterAdoption) file(hosts Adoption, m AdoptedMember) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by `redoubt adopt --cluster`; `redoubt config sample` explains every setting.")
	storePart(line, m, a.Members, a.Store)
	line("deployments:\n  - name: %s\n    mode: cluster", a.Name)
	if a.Password != "" {
		line("    password: %q", a.Password)
	}
	line("    shards:")
	local := false
	for i, s := range a.Shards {
		line("      - name: s%d\n        slots: %q\n        nodes:", i+1, s.Primary.Slots)
		for rank, n := range nodesOf(s) {
			id := hosts.memberOf(n.Addr())
			local = local || id == m.ID
			priority := ""
			if rank > 0 {
				priority = fmt.Sprintf(", priority: %d", rank)
			}
			line("          - {id: %s, host: %q, addr: %q, bus-port: %d, server-id: %q%s}", id, n.Host, n.Addr(), n.BusPort, n.ID, priority)
		}
	}
	if local {
		user := ""
		if a.Username != "" {
			user = fmt.Sprintf(", username: %q", a.Username)
		}
		line("    node: {id: %s, kind: attached%s}", m.ID, user)
	}
	line("proxy:\n  listen: %q\napi:\n  listen: %q", strings.ReplaceAll(a.Listen, "HOST", m.Host), strings.ReplaceAll(a.API, "HOST", m.Host))
	return b.String()
}
