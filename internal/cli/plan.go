// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/config"
	"redoubt/internal/topo"
)

// planFile records, in the directory of a deployment, what `redoubt up` made there.
const planFile = "up.json"

// replicasMax bounds a deployment of `redoubt up`: seven members have their ports in steps of ten.
const replicasMax = 6

// shardsMax bounds a ring or cluster of `redoubt up`, which has a server for each shard on each member.
const shardsMax = 16

// plan is a deployment on one machine.
type plan struct {
	Format     int             `json:"format"` // 1
	BasePort   int             `json:"base_port"`
	Replicas   int             `json:"replicas"`
	Shards     int             `json:"shards,omitempty"` // 0: mode single
	Mode       string          `json:"mode,omitempty"`   // ring (default) or cluster, where there are shards
	Durability topo.Durability `json:"durability"`
	Persist    string          `json:"persistence,omitempty"`        // aof (default), rdb or none
	Sentinel   string          `json:"sentinel_addresses,omitempty"` // proxy (default) or direct
	Outside    string          `json:"outside,omitempty"`            // URL of a store outside, as config.ParseStoreURL reads it; empty: embedded Raft
	Members    []planMember    `json:"members"`
}

// planMember is one member and, unless Node is empty, its data node.
type planMember struct {
	ID       string   `json:"id"`
	Dir      string   `json:"dir"` // relative to the deployment's directory
	Node     string   `json:"node,omitempty"`
	Server   string   `json:"server,omitempty"`
	Servers  []string `json:"servers,omitempty"` // of a ring or cluster: one for each shard, in place of Server; empty: that shard has none here
	Buses    []int    `json:"buses,omitempty"`   // of a cluster: for each of Servers the port of its bus
	Proxy    string   `json:"proxy"`
	Readonly string   `json:"readonly"`
	Sentinel string   `json:"sentinel"`
	API      string   `json:"api"`
	Store    string   `json:"store"`
}

// newPlan lays out the ports: proxies from base, read-only ones from base + 10, Sentinel faces from base + 20000 (or
// base + 20 where that does not fit), APIs from base + 30, stores from base + 40, servers from base + 100, those of the
// next shard ten further, the buses of a cluster 200 above their servers, where the kernel gives no ports to clients. shards is 0 in mode
// single. In a ring the nodes of all shards are on the same members; in a cluster each shard begins on the next member, so that no
// host has half of the primaries.
func newPlan(base, replicas, shards int, mode string, d topo.Durability) (plan, error) {
	if replicas < 0 || replicas > replicasMax {
		return plan{}, fail(ExitUsage, "--replicas %d: use 0 to %d", replicas, replicasMax)
	}
	if shards < 0 || shards > shardsMax {
		return plan{}, fail(ExitUsage, "--shards %d: use 1 to %d", shards, shardsMax)
	}
	last := 65535 - 120 - 10*shards
	if mode == "cluster" {
		last -= busAbove
	}
	if base < 1024 || base > last {
		return plan{}, fail(ExitUsage, "--base-port %d: use 1024 to %d", base, last)
	}
	nodes := replicas + 1
	if d == "" {
		d = topo.Async
		if nodes >= 3 {
			d = topo.Quorum
		}
	}
	if d != topo.Async && !d.Waits() {
		return plan{}, fail(ExitUsage, "--durability %s: use quorum, quorum+disk or async", d)
	}
	if d.Waits() && nodes < 2 {
		return plan{}, fail(ExitUsage, "--durability %s needs at least one replica", d)
	}
	members := max(3, nodes|1) // an odd number: an even one survives no more failures
	sentinels := base + 20_000
	if sentinels+members > ephemeral {
		sentinels = base + 20
	}
	p := plan{Format: 1, BasePort: base, Replicas: replicas, Shards: shards, Durability: d}
	if mode == "cluster" {
		p.Mode = mode
	}
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	for i := range members {
		m := planMember{
			ID: fmt.Sprintf("n%d", i+1), Dir: fmt.Sprintf("member-%d", i+1),
			Proxy: at(base + i), Sentinel: at(sentinels + i), API: at(base + 30 + i), Store: at(base + 40 + i),
		}
		if shards == 0 {
			m.Readonly = at(base + 10 + i)
		}
		switch {
		case p.Mode == "cluster":
			p.seats(&m, i, members)
		case i < nodes:
			m.Node = m.ID
			if shards == 0 {
				m.Server = at(base + 100 + i)
			}
			for k := range shards {
				m.Servers = append(m.Servers, at(base+100+10*k+i))
			}
		default:
			m.ID = fmt.Sprintf("arbiter%d", i+1-nodes)
		}
		p.Members = append(p.Members, m)
	}
	return p, nil
}

// ephemeral is the first port that Linux gives to outgoing connections: a face there could find its port taken when it starts again.
const ephemeral = 32_768

// busAbove is how far the ports of buses are above those of their servers.
const busAbove = 200

// seats gives the member with index i of so many its servers of a cluster.
func (p plan) seats(m *planMember, i, members int) {
	m.Node = ""
	for k := range p.Shards {
		server, bus := "", 0
		if rank := ((i-k)%members + members) % members; rank <= p.Replicas {
			port := p.BasePort + 100 + 10*k + i
			server, bus, m.Node = net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), port+busAbove, m.ID
		}
		m.Servers, m.Buses = append(m.Servers, server), append(m.Buses, bus)
	}
	if m.Node == "" {
		m.ID = fmt.Sprintf("arbiter%d", i-p.Shards-p.Replicas+1)
	}
}

func readPlan(dir string) (plan, error) {
	path := filepath.Join(dir, planFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return plan{}, fmt.Errorf("read the deployment: %w", err)
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return plan{}, fmt.Errorf("read the deployment: %s: %w", path, err)
	}
	if p.Format != 1 || len(p.Members) == 0 {
		return plan{}, fmt.Errorf("read the deployment: %s was written by another version of Redoubt", path)
	}
	return p, nil
}

// write makes the directories and files of the deployment.
func (p plan) write(dir string) error {
	for _, m := range p.Members {
		at := filepath.Join(dir, m.Dir)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return fmt.Errorf("make the member's directory: %w", err)
		}
		if err := os.WriteFile(filepath.Join(at, "redoubt.yaml"), []byte(p.file(m)), 0o600); err != nil {
			return fmt.Errorf("write the member's configuration: %w", err)
		}
	}
	return p.record(dir)
}

func (p plan) encode() ([]byte, error) {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the deployment: %w", err)
	}
	return append(b, '\n'), nil
}

// file is one member's configuration, as one would write it by hand.
func (p plan) file(m planMember) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by `redoubt up`; `redoubt config sample` explains every setting.")
	line("member:\n  id: %s\n  dir: data\n  host: 127.0.0.1\nstore:", m.ID)
	p.store(line, m)
	line("deployments:\n  - name: mymaster\n    durability: %s", p.Durability)
	if p.Shards == 0 {
		p.roster(line, "    ", 0, func(o planMember) string { return o.Server })
	} else {
		line("    mode: %s\n    shards:", cmp.Or(p.Mode, "ring"))
		for k := range p.Shards {
			line("      - name: s%d", k+1)
			p.roster(line, "        ", k, func(o planMember) string {
				if k < len(o.Servers) {
					return o.Servers[k]
				}
				return ""
			})
		}
	}
	if m.Node != "" {
		line("    node: {id: %s, persistence: %s}", m.Node, cmp.Or(p.Persist, "aof"))
	}
	line("proxy:\n  listen: %q", m.Proxy)
	if m.Readonly != "" {
		line("  readonly-listen: %q", m.Readonly)
	}
	line("sentinel:\n  listen: %q\n  addresses: %s\napi:\n  listen: %q", m.Sentinel, cmp.Or(p.Sentinel, "proxy"), m.API)
	return b.String()
}

// store writes where the agreed state lives.
func (p plan) store(line func(string, ...any), m planMember) {
	if o, err := config.ParseStoreURL(p.Outside); p.Outside != "" && err == nil {
		line("  kind: %s\n  listen: %q\n  prefix: %q", o.Kind, m.Store, o.Prefix)
		if _, k, err := config.ParseKubernetesURL(p.Outside); err == nil {
			line("kubernetes:\n  api: %q\n  namespace: %q\n  token-file: %q\n  ca: %q\n  service: %q\n  endpoints: %v", k.API, k.Namespace, k.TokenFile, k.CA, k.Service, k.Endpoints)
			return
		}
		line("  endpoints:")
		for _, e := range o.Endpoints {
			line("    - %q", e)
		}
		for _, x := range []struct{ name, value string }{{"username", o.Username}, {"password-file", o.PasswordFile}, {"token-file", o.TokenFile}} {
			if x.value != "" {
				line("  %s: %q", x.name, x.value)
			}
		}
		if t := o.TLS; t != (config.StoreTLS{}) {
			line("  tls: {ca: %q, cert: %q, key: %q, server-name: %q}", t.CA, t.Cert, t.Key, t.ServerName)
		}
		return
	}
	line("  members:")
	for _, o := range p.Members {
		line("    - {id: %s, addr: %q}", o.ID, o.Store)
	}
}

// outside puts the agreed state into a store outside, so that no member is needed that has no node. Without a prefix in the URL the
// deployment gets one of its own.
func (p *plan) outside(store string) error {
	o, err := config.ParseStoreURL(store)
	if err != nil {
		return fail(ExitUsage, "--store %v", err)
	}
	if o.Prefix == "" {
		at, query, _ := strings.Cut(store, "?")
		store = strings.TrimSuffix(at, "/") + "/redoubt/up-" + strings.ToLower(rand.Text()[:8])
		if query != "" {
			store += "?" + query
		}
	}
	p.Outside = store
	p.Members = slices.DeleteFunc(p.Members, func(m planMember) bool { return m.Node == "" })
	return nil
}

// roster writes the nodes of one shard. first is the one that is preferred among equals, so that a ring's primaries are on
// different members.
func (p plan) roster(line func(string, ...any), indent string, first int, server func(planMember) string) {
	line(indent + "nodes:")
	n := p.Replicas + 1
	if p.Mode == "cluster" {
		n = len(p.Members)
	}
	for i, o := range p.Members {
		more := ""
		if rank := ((i-first)%n + n) % n; p.Shards > 0 && rank > 0 {
			more = fmt.Sprintf(", priority: %d", rank)
		}
		if p.Mode == "cluster" && server(o) != "" {
			more = fmt.Sprintf(", bus-port: %d", o.Buses[first]) + more
		}
		if server(o) != "" {
			line(indent+"  - {id: %s, host: %s, addr: %q%s}", o.Node, o.ID, server(o), more)
		}
	}
}

// ports lists who listens where, for the check before the first start.
func (m planMember) ports() [][2]string {
	ps := [][2]string{{"proxy", m.Proxy}, {"Sentinel", m.Sentinel}, {"API", m.API}, {"store", m.Store}}
	if m.Readonly != "" {
		ps = append(ps, [2]string{"read-only proxy", m.Readonly})
	}
	for _, server := range m.servers() {
		ps = append(ps, [2]string{"server", server})
	}
	for _, bus := range m.Buses {
		if bus > 0 {
			ps = append(ps, [2]string{"server", net.JoinHostPort("127.0.0.1", strconv.Itoa(bus))})
		}
	}
	return ps
}

// servers lists the addresses of the member's servers.
func (m planMember) servers() []string {
	if m.Server != "" {
		return []string{m.Server}
	}
	return slices.DeleteFunc(slices.Clone(m.Servers), func(s string) bool { return s == "" })
}

// serverDirs lists where the member's servers keep their data.
func (p plan) serverDirs(data string, m planMember) []string {
	if p.Shards == 0 {
		return []string{filepath.Join(data, "redis")}
	}
	var dirs []string
	for k, server := range m.Servers {
		if server == "" {
			continue
		}
		dirs = append(dirs, filepath.Join(data, "redis", fmt.Sprintf("s%d", k+1)))
	}
	return dirs
}
