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

// Adoption is a twemproxy pool on its way to a deployment: whoever has filled it in calls Files.
type Adoption struct {
	Pool    TwemproxyPool
	Shards  []AdoptedShard  // in the order of the pool's servers
	Members []AdoptedMember // hosts of servers without one get one of their own
	Listen  string          // of each member's proxy, HOST stands for its host; empty: where the pool listens
	API     string          // where each member's API listens, likewise
	Store   int             // port of each member where they agree
}

// AdoptedShard is one server of the pool, and the replicas that are known of it.
type AdoptedShard struct {
	Name    string   // in Redoubt
	Primary string   // host:port
	Others  []string // host:port of its replicas
}

func (s AdoptedShard) addrs() []string { return append([]string{s.Primary}, s.Others...) }

// AdoptedMember is a machine on which a member will run.
type AdoptedMember struct{ ID, Host string }

// ShardNames gives each server of a pool a name: its own where that can be one, else s1, s2, … by its place in the list.
func (p TwemproxyPool) ShardNames() []string {
	var names []string
	for i, s := range p.Servers {
		name := s.Name
		if !isID(name) || slices.Contains(names, name) {
			name = "s" + strconv.Itoa(i+1)
		}
		names = append(names, name)
	}
	return names
}

// Files completes the list of members, and returns the configuration file of each by its ID. The error says what of the pool cannot be
// a deployment.
func (a *Adoption) Files() (map[string]string, error) {
	if err := a.complete(); err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, m := range a.Members {
		text := a.file(m)
		if _, err := Parse([]byte(text), m.ID+"/redoubt.yaml", "/"); err != nil {
			return nil, fmt.Errorf("pool %s cannot be adopted as it is: %w", a.Pool.Name, err)
		}
		files[m.ID] = text
	}
	return files, nil
}

func (a *Adoption) complete() error {
	switch p := a.Pool; {
	case !p.Redis:
		return fmt.Errorf("pool %s speaks memcached's protocol (redis is not true): only pools of Redis servers can be adopted", p.Name)
	case p.RedisDB != 0:
		return fmt.Errorf("pool %s uses database %d (redis_db): have its clients select it, and remove redis_db", p.Name, p.RedisDB)
	case p.Listen.Path != "" && a.Listen == "":
		return fmt.Errorf("pool %s listens on a Unix socket, which mode ring does not: say --listen HOST:PORT", p.Name)
	}
	for _, s := range a.Shards {
		hosts := map[string]string{}
		for _, addr := range s.addrs() {
			host, _, err := net.SplitHostPort(addr)
			if err != nil || strings.HasPrefix(addr, "unix:") {
				return fmt.Errorf("shard %s: the server %s has no host and port: give it a TCP address", s.Name, addr)
			}
			if other, ok := hosts[host]; ok {
				return fmt.Errorf("shard %s has two servers on %s (%s and %s): a member has one server of each shard; stop one of them, or have it forgotten by the Sentinels", s.Name, host, other, addr)
			}
			hosts[host] = addr
			if !slices.ContainsFunc(a.Members, func(m AdoptedMember) bool { return m.Host == host }) {
				a.Members = append(a.Members, AdoptedMember{freeID(a.Members), host})
			}
		}
	}
	return nil
}

func freeID(taken []AdoptedMember) string {
	for i := 1; ; i++ {
		id := "m" + strconv.Itoa(i)
		if !slices.ContainsFunc(taken, func(m AdoptedMember) bool { return m.ID == id }) {
			return id
		}
	}
}

// foundersOf is how many of the members hold the agreed state from the beginning: an odd number, because an even one survives no more
// losses. The others join them.
func foundersOf(n int) int {
	switch {
	case n >= 5:
		return 5
	case n >= 3:
		return 3
	}
	return 1
}

func (a *Adoption) memberOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	i := slices.IndexFunc(a.Members, func(m AdoptedMember) bool { return m.Host == host })
	return a.Members[i].ID
}

// Durability is what the shards can promise: the smallest of them decides.
func (a *Adoption) Durability() topo.Durability {
	for _, s := range a.Shards {
		if len(s.Others) < 2 {
			return topo.Async
		}
	}
	return topo.Quorum
}

// file is one member's configuration, as one would write it by hand.
func (a *Adoption) file(m AdoptedMember) string {
	p := a.Pool
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by `redoubt adopt` from pool %s of twemproxy; `redoubt config sample` explains every setting.", p.Name)
	storePart(line, m, a.Members, a.Store)
	line("deployments:\n  - name: %s\n    mode: ring\n    durability: %s", p.deployment(), a.Durability())
	if p.RedisAuth != "" {
		line("    password: %q", p.RedisAuth)
	}
	line("    ring:\n      distribution: %s\n      hash: %s", p.Distribution, p.Hash)
	if p.HashTag != "" {
		line("      hash-tag: %q", p.HashTag)
	}
	if p.AutoEjectHosts {
		line("      eject-after: %s  # auto_eject_hosts", ejectLeast)
	}
	line("    shards:")
	local := a.shards(line, m)
	if local {
		line("    node: {id: %s, kind: attached}", m.ID)
	}
	listen := strings.ReplaceAll(a.Listen, "HOST", m.Host)
	if listen == "" {
		listen = net.JoinHostPort(p.Listen.Host, strconv.Itoa(p.Listen.Port))
	}
	line("proxy:\n  listen: %q\napi:\n  listen: %q", listen, strings.ReplaceAll(a.API, "HOST", m.Host))
	return b.String()
}

// shards writes the rosters, and tells whether m has a server.
func (a *Adoption) shards(line func(string, ...any), m AdoptedMember) (local bool) {
	for i, s := range a.Shards {
		server := a.Pool.Servers[i]
		line("      - name: %s\n        ring-name: %q\n        weight: %d\n        nodes:", s.Name, server.Name, server.Weight)
		for rank, addr := range s.addrs() {
			id := a.memberOf(addr)
			local = local || id == m.ID
			priority := ""
			if rank > 0 {
				priority = fmt.Sprintf(", priority: %d", rank)
			}
			host, _, _ := net.SplitHostPort(addr)
			line("          - {id: %s, host: %q, addr: %q%s}", id, host, addr, priority)
		}
	}
	return local
}

// deployment is the pool's name where that can be one.
func (p TwemproxyPool) deployment() string {
	if isID(p.Name) {
		return p.Name
	}
	return "mymaster"
}
