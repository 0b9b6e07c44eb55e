// SPDX-License-Identifier: Apache-2.0

// Package config reads one member's file: what runs on this machine and which roster it belongs to. It also reads the
// nutcracker.yml of a twemproxy, or the sentinel.conf of Sentinels, that a deployment is to replace.
//
// It is not the place for what the cluster has agreed: the file seeds a shard's document when that is first created,
// and is compared with it afterwards. Its invariant: Load returns either a configuration that Validate accepts, or all
// of its problems, each with its line. No goroutines.
package config

import (
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"redoubt/internal/ring"
	"redoubt/internal/topo"
)

// Sample is an annotated file that names every setting. It decodes and validates.
//
//go:embed redoubt.sample.yaml
var Sample []byte

// Config is one member's file.
type Config struct {
	Member      Member       `yaml:"member"`
	Store       Store        `yaml:"store"`
	Deployments []Deployment `yaml:"deployments"`
	Proxy       Proxy        `yaml:"proxy"`
	Sentinel    Sentinel     `yaml:"sentinel"`
	API         API          `yaml:"api"`
	DNS         DNS          `yaml:"dns"`
	Templates   []Template   `yaml:"templates"`
	Consul      Consul       `yaml:"consul"`
	Address     Address      `yaml:"address"`
	Kubernetes  Kubernetes   `yaml:"kubernetes"`
	Salvage     Salvage      `yaml:"salvage"`
	Log         Log          `yaml:"log"`
}

// Member is this process.
type Member struct {
	ID   string `yaml:"id"`   // stable identity among the members
	Dir  string `yaml:"dir"`  // what this member keeps; relative to the file
	Host string `yaml:"host"` // the name or address at which others reach this machine
	Zone string `yaml:"zone"` // of this machine, as in the nodes' zone; default: that of the node on it
}

// Zone is where this member's machine is; empty when nothing says so.
func (c Config) Zone() string {
	if c.Member.Zone != "" {
		return c.Member.Zone
	}
	for _, d := range c.Deployments {
		for _, u := range d.Units() {
			for _, n := range u.Nodes {
				if u.Node != nil && n.ID == u.Node.ID {
					return n.Zone
				}
			}
		}
	}
	return ""
}

// Deployment is what a client sees as one Redis.
type Deployment struct {
	Name        string          `yaml:"name"`
	Mode        string          `yaml:"mode"` // "single", "ring" or "cluster"
	Durability  topo.Durability `yaml:"durability"`
	AckReplicas int             `yaml:"ack-replicas"`
	MinCopies   int             `yaml:"min-copies"` // quorum with two nodes: 1 or 2
	MaxLoss     MaxLoss         `yaml:"max-loss"`   // async only
	Retry       string          `yaml:"retry"`      // "none" or "exact"; exact: quorum and quorum+disk only
	Password    string          `yaml:"password"`
	Begin       string          `yaml:"begin"` // "at-once" or "on-order"
	Timing      Timing          `yaml:"timing"`
	Nodes       []Node          `yaml:"nodes"`   // single: the roster, the same on all members
	Ring        Ring            `yaml:"ring"`    // ring: how keys find their shard
	Cluster     Cluster         `yaml:"cluster"` // cluster: what the servers' ids follow from
	Shards      []Shard         `yaml:"shards"`  // ring and cluster: each with its roster, the same on all members
	Node        *LocalNode      `yaml:"node"`    // what is on this member; nil: no data node (an arbiter)
}

// Cluster is what only a cluster has.
type Cluster struct {
	UID       string `yaml:"uid"`       // the servers' ids follow from it, so it never changes; default: the deployment's name
	Rebalance string `yaml:"rebalance"` // "manual", or "auto": a shard that comes is given its part by itself
}

// Ring says how keys find their shard. The words are twemproxy's, and mean the same.
type Ring struct {
	Hash         string `yaml:"hash"`
	Distribution string `yaml:"distribution"`
	HashTag      string `yaml:"hash-tag"` // two characters; a key that has something between them is placed by that alone
	// EjectAfter is for caches: a shard that cannot be used for so long is left out, and its keys belong to the others until it is
	// back; 0s: never, commands wait for it.
	EjectAfter topo.Duration `yaml:"eject-after"`
}

// Shard is one part of a ring or a cluster: a primary and its replicas.
type Shard struct {
	Name     string `yaml:"name"`      // its id in a cluster follows from it
	RingName string `yaml:"ring-name"` // ring only: its place on the ring follows from it; default: the name
	Weight   int    `yaml:"weight"`    // ring only
	Slots    string `yaml:"slots"`     // cluster only, when it is created: 0-5460,…; default: equal parts in the order of the list
	Nodes    []Node `yaml:"nodes"`
}

// MaxLoss is the dial of an asynchronous deployment; zero: no bound.
type MaxLoss struct {
	Time  topo.Duration `yaml:"time"`
	Bytes Bytes         `yaml:"bytes"`
}

func (m MaxLoss) spec() topo.Loss { return topo.Loss{Time: m.Time, Bytes: int64(m.Bytes)} }

// Node is one data node of the roster.
type Node struct {
	ID       string `yaml:"id"`
	Host     string `yaml:"host"`
	Zone     string `yaml:"zone"`
	Addr     string `yaml:"addr"`
	BusPort  int    `yaml:"bus-port"` // cluster only: where the servers reach each other; default: 10000 above that of Addr
	Priority int    `yaml:"priority"`
	ServerID string `yaml:"server-id"` // attached servers of a cluster only: what CLUSTER MYID says
}

// LocalNode is the data node beside this member.
type LocalNode struct {
	ID          string            `yaml:"id"`
	Kind        string            `yaml:"kind"`        // "managed" or "attached"
	Dir         string            `yaml:"dir"`         // managed only: of its data; relative to member.dir
	Binary      string            `yaml:"binary"`      // managed only
	Persistence string            `yaml:"persistence"` // managed only: "aof", "rdb" or "none"
	Directives  map[string]string `yaml:"directives"`  // managed only: further lines for the server
	Username    string            `yaml:"username"`    // attached only: ACL user of the agent
	PIDFile     string            `yaml:"pid-file"`    // attached only: where its supervisor writes the server's pid
}

// Timing is a profile and what differs from it.
type Timing struct {
	Profile  string         `yaml:"profile"` // "lan" or "wan"
	Beat     *topo.Duration `yaml:"beat"`
	Lease    *topo.Duration `yaml:"lease"`
	Margin   *topo.Duration `yaml:"margin"`
	Silence  *topo.Duration `yaml:"silence"`
	Hang     *topo.Duration `yaml:"hang"`
	Loading  *topo.Duration `yaml:"loading"`
	Busy     *topo.Duration `yaml:"busy"`
	Gather   *topo.Duration `yaml:"gather"`
	Promote  *topo.Duration `yaml:"promote"`
	Park     *topo.Duration `yaml:"park"`
	Recovery *topo.Duration `yaml:"recovery"`
	Burst    *int           `yaml:"burst"`
}

// Proxy is the data plane of this member.
type Proxy struct {
	Listen         string        `yaml:"listen"`          // read-write; empty: no proxy here
	ReadonlyListen string        `yaml:"readonly-listen"` // replicas; empty: none
	Clients        int           `yaml:"clients"`         // most client connections
	ParkCommands   int           `yaml:"park-commands"`   // most commands held while there is no primary
	ParkBytes      Bytes         `yaml:"park-bytes"`
	SplitReads     bool          `yaml:"split-reads"`     // reads of the read-write port may go to replicas
	MaxStaleness   topo.Duration `yaml:"max-staleness"`   // of split reads
	UnknownOutcome string        `yaml:"unknown-outcome"` // error or disconnect
	ReadonlyLag    Bytes         `yaml:"readonly-lag"`    // a replica further behind serves no reads
	Reads          string        `yaml:"reads"`           // "local", "lease" or "linearizable"

	SocketMode      string        `yaml:"socket-mode"`       // permissions of Unix sockets, in octal
	ProxyProtocol   string        `yaml:"proxy-protocol"`    // "off", "optional" or "required"
	Idle            topo.Duration `yaml:"idle"`              // a silent client is disconnected after it; 0s: never
	Handshake       topo.Duration `yaml:"handshake"`         // a client that has not sent the password by then is disconnected; 0s: never
	QueryBytes      Bytes         `yaml:"query-bytes"`       // most bytes of one client's unhandled input
	OutputBytes     Bytes         `yaml:"output-bytes"`      // most bytes that one client has not taken
	OutputSoftBytes Bytes         `yaml:"output-soft-bytes"` // more than these for OutputSoftTime is too much as well; 0: no such limit
	OutputSoftTime  topo.Duration `yaml:"output-soft-time"`
	UpgradeDrain    topo.Duration `yaml:"upgrade-drain"` // clients that cannot be handed over to a new process within it are disconnected

	ClusterFace string `yaml:"cluster-face"` // cluster only: what cluster-aware clients are told of: "proxy", "nodes" or "off"
}

// Sentinel is the face that speaks Sentinel's protocol.
type Sentinel struct {
	Listen    string `yaml:"listen"`    // empty: none
	Addresses string `yaml:"addresses"` // "proxy" or "direct"
	Username  string `yaml:"username"`  // beside the default user
	Password  string `yaml:"password"`

	Announce []Announce `yaml:"announce"` // for clients that cannot reach what others can; the first subnet that has a client counts
	Resolve  bool       `yaml:"resolve"`  // clients are told IP addresses in place of names

	NotificationScript   string `yaml:"notification-script"`    // a program; empty: none
	ClientReconfigScript string `yaml:"client-reconfig-script"` // likewise
}

// Announce says what clients of a subnet are told instead of addresses that they cannot reach.
type Announce struct {
	Clients string            `yaml:"clients"` // like 192.168.0.0/16
	Map     map[string]string `yaml:"map"`     // host:port to host:port, or host to host
}

// API is the HTTP face.
type API struct {
	Listen       string `yaml:"listen"`
	ChecksListen string `yaml:"checks-listen"` // a port that takes no orders, for load balancers and monitors; empty: none
}

// Salvage bounds what a member keeps of the writes that failovers discard.
type Salvage struct {
	Bytes Bytes `yaml:"bytes"` // most bytes of one node's discarded writes
	Keep  int   `yaml:"keep"`  // most files; 0: nothing is kept
}

// Log is what this process writes to its standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// Default returns what holds where a file says nothing.
func Default() Config {
	return Config{
		Member: Member{Dir: "data", Host: "127.0.0.1"},
		Store:  Store{Kind: StoreRaft, Prefix: "redoubt"},
		Proxy: Proxy{
			Clients: 10_000, ParkCommands: 100_000, ParkBytes: 256 << 20,
			ReadonlyLag: 1 << 20, Reads: "local", UnknownOutcome: "error", MaxStaleness: topo.Duration(time.Second),
			SocketMode: "0700", ProxyProtocol: "off", Handshake: topo.Duration(10 * time.Second),
			QueryBytes: 1 << 30, OutputBytes: 256 << 20, OutputSoftTime: topo.Duration(time.Minute), UpgradeDrain: topo.Duration(time.Minute),
			ClusterFace: "proxy",
		},
		Sentinel: Sentinel{Addresses: "proxy"},
		API:      API{Listen: "127.0.0.1:7379"},
		Consul:   Consul{KeyPrefix: "redoubt", TTL: topo.Duration(5 * time.Second)},
		DNS:      DNS{Zone: "redoubt", TTL: topo.Duration(time.Second)},
		Salvage:  Salvage{Bytes: 64 << 20, Keep: 20},
		Log:      Log{Level: "info", Format: "text"},
	}
}

// Load reads, decodes, completes and validates a file. Its error is Problems when the file could be read.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Config{}, fmt.Errorf("locate the configuration: %w", err)
	}
	return Parse(data, path, filepath.Dir(abs))
}

// Parse is Load for bytes: name is used in messages, and base is the directory that relative paths start from.
func Parse(data []byte, name, base string) (Config, error) {
	c := Default()
	d := decoder{lines: map[string]int{}}
	d.file(data, &c)
	c.complete(base)
	if !d.fatal {
		decoded := d.problems
		for _, f := range c.Validate() {
			if !covered(decoded, f.Path) {
				d.problem(d.line(f.Path), f.Path, "%s", f.Text)
			}
		}
	}
	if len(d.problems) == 0 {
		return c, nil
	}
	return c, d.of(name)
}

// of returns the problems of the file with this name, in the order of its lines.
func (d *decoder) of(name string) Problems {
	for i := range d.problems {
		d.problems[i].File = name
	}
	sort.SliceStable(d.problems, func(i, j int) bool { return d.problems[i].Line < d.problems[j].Line })
	return d.problems
}

// complete fills in what follows from other settings. Relative directories start at base.
func (c *Config) complete(base string) {
	if !filepath.IsAbs(c.Member.Dir) {
		c.Member.Dir = filepath.Join(base, c.Member.Dir)
	}
	c.Store.complete(base, c.Member.ID)
	c.completeDiscovery(base)
	c.Kubernetes.complete(base)
	c.Consul.complete(base)
	for i := range c.Deployments {
		if n := c.Deployments[i].Node; n != nil && n.ID == "" {
			n.ID = c.Member.ID
		}
		c.Deployments[i].complete(c.Member.Dir)
	}
}

func (d *Deployment) complete(dir string) {
	d.Mode, d.Begin = cmp.Or(d.Mode, "single"), cmp.Or(d.Begin, "at-once")
	if d.Durability == "" {
		d.Durability = topo.Async
		if d.size() >= 3 {
			d.Durability = topo.Quorum
		}
	}
	if d.AckReplicas == 0 && d.Durability.Waits() {
		d.AckReplicas = d.size() / 2
	}
	if d.Mode == "ring" {
		d.Ring.Hash, d.Ring.Distribution = cmp.Or(d.Ring.Hash, "fnv1a_64"), cmp.Or(d.Ring.Distribution, "ketama")
		for i := range d.Shards {
			sh := &d.Shards[i]
			sh.Weight, sh.RingName = cmp.Or(sh.Weight, 1), cmp.Or(sh.RingName, sh.Name)
		}
	}
	if d.Mode == "cluster" {
		d.completeCluster()
	}
	if d.MinCopies == 0 {
		d.MinCopies = 1
	}
	if d.Retry == "" {
		d.Retry = "none"
	}
	if d.Timing.Profile == "" {
		d.Timing.Profile = "lan"
	}
	n := d.Node
	if n == nil {
		return
	}
	if n.Kind == "" {
		n.Kind = "managed"
	}
	if n.Kind != "managed" {
		return
	}
	if n.Dir == "" {
		n.Dir = "redis"
	}
	if !filepath.IsAbs(n.Dir) {
		n.Dir = filepath.Join(dir, n.Dir)
	}
	if n.Persistence == "" {
		n.Persistence = "aof"
	}
}

// RingSpec is how keys find their shard.
func (d Deployment) RingSpec() ring.Spec {
	s := ring.Spec{Distribution: ring.Distribution(d.Ring.Distribution), Hash: ring.Hash(d.Ring.Hash), HashTag: d.Ring.HashTag}
	for _, sh := range d.Shards {
		s.Nodes = append(s.Nodes, ring.Node{Name: sh.RingName, Weight: uint32(max(sh.Weight, 0))})
	}
	return s
}

// size is the number of nodes of the smallest shard.
func (d Deployment) size() int {
	n := len(d.Nodes)
	for i, s := range d.Shards {
		if i == 0 || len(s.Nodes) < n {
			n = len(s.Nodes)
		}
	}
	return n
}

// Unit is one shard of a deployment, as if it were alone.
type Unit struct {
	Deployment        // with the nodes of this shard, and the node of it that is on this member
	Shard      string // its name in a ring or cluster; empty in mode single
}

// Sharded reports whether the deployment has a list of shards.
func (d Deployment) Sharded() bool { return d.Mode == "ring" || d.Mode == "cluster" }

// Units are the shards of the deployment, in the order of the file.
func (d Deployment) Units() []Unit {
	if !d.Sharded() {
		return []Unit{{Deployment: d}}
	}
	var us []Unit
	for _, s := range d.Shards {
		us = append(us, d.UnitOf(s))
	}
	return us
}

// UnitOf is a shard of the deployment, which need not be among those of the file.
func (d Deployment) UnitOf(s Shard) Unit {
	u := Unit{Deployment: d, Shard: s.Name}
	u.Nodes, u.Node, u.Shards = s.Nodes, nil, nil
	if d.Node != nil && slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.ID == d.Node.ID }) {
		local := *d.Node
		if local.Dir != "" {
			local.Dir = filepath.Join(local.Dir, s.Name)
		}
		u.Node = &local
	}
	return u
}

// ID names the shard among all that the store knows.
func (u Unit) ID() string {
	if u.Shard == "" {
		return u.Name + "-0"
	}
	return u.Name + "-" + u.Shard
}

// LocalAddr is where the server of the node on this member is reached; empty without one.
func (d Deployment) LocalAddr() string {
	for _, n := range d.Nodes {
		if d.Node != nil && n.ID == d.Node.ID {
			return n.Addr
		}
	}
	return ""
}

// Spec is what the deployment asks of its shard.
func (d Deployment) Spec() topo.Spec {
	s := topo.Spec{
		Deployment: d.Name, Durability: d.Durability, AckReplicas: d.AckReplicas, MinCopies: d.MinCopies, Timing: d.Timing.resolve(), MaxLoss: d.MaxLoss.spec(),
	}
	for _, n := range d.Nodes {
		node := topo.Node{ID: topo.NodeID(n.ID), Host: n.Host, Zone: n.Zone, Addr: n.Addr, Priority: n.Priority, ServerID: n.ServerID}
		if d.Mode == "cluster" && n.BusPort != node.Bus() {
			node.BusPort = n.BusPort
		}
		s.Nodes = append(s.Nodes, node)
	}
	sort.Slice(s.Nodes, func(i, j int) bool { return s.Nodes[i].ID < s.Nodes[j].ID })
	return s
}

// resolve applies the overrides to the profile.
func (t Timing) resolve() topo.Timing {
	r := topo.LANTiming()
	if t.Profile == "wan" {
		r = topo.WANTiming()
	}
	for _, f := range []struct {
		to   *topo.Duration
		from *topo.Duration
	}{
		{&r.Beat, t.Beat}, {&r.Lease, t.Lease}, {&r.Margin, t.Margin}, {&r.Silence, t.Silence}, {&r.Hang, t.Hang},
		{&r.Loading, t.Loading}, {&r.Busy, t.Busy}, {&r.Gather, t.Gather}, {&r.Promote, t.Promote}, {&r.Park, t.Park},
		{&r.Recovery, t.Recovery},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if t.Burst != nil {
		r.Burst = *t.Burst
	}
	return r
}
