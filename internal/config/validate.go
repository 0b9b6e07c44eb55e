// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/redisd"
	"redoubt/internal/ring"
	slotmap "redoubt/internal/slots"
	"redoubt/internal/topo"
)

// Finding is one thing that is wrong with a decoded configuration.
type Finding struct {
	Path string
	Text string
}

type findings []Finding

func (f *findings) add(path, format string, args ...any) {
	*f = append(*f, Finding{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (f *findings) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.add(path, "%q: use %s", value, strings.Join(allowed, " or "))
	}
}

// idPattern is what ids and names may look like: they become parts of file names and of documents' keys.
const idPattern = `^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`

func isID(value string) bool { return regexp.MustCompile(idPattern).MatchString(value) }

// ValidID reports whether a name may be that of a node, a member or a shard.
func ValidID(name string) bool { return name != "" && isID(name) }

func (f *findings) id(path, value string) {
	if value == "" {
		f.add(path, "is missing: give it a short, stable name")
		return
	}
	if !isID(value) {
		f.add(path, "%q: use up to 63 letters, digits, dots, dashes and underscores, starting with a letter or digit", value)
	}
}

// address checks host:port. An empty host is right only for something to listen on.
func (f *findings) address(path, value string, listen bool) {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		f.add(path, "%q is not host:port: write for example 10.0.0.1:6379", value)
		return
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		f.add(path, "%q: the port must be a number from 1 to 65535", value)
	}
	if host == "" && !listen {
		f.add(path, "%q needs a host that the other members can reach", value)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() && !listen {
		f.add(path, "%q: nobody can connect to %s; write the address at which the others reach this machine", value, host)
	}
}

// Validate returns everything that is wrong; nil when the configuration is sound.
func (c Config) Validate() []Finding {
	var f findings
	f.id("member.id", c.Member.ID)
	if c.Member.Host == "" {
		f.add("member.host", "is empty: write the name or address at which the other members reach this machine")
	}
	c.validateStore(&f)
	c.validateDeployments(&f)
	c.validateFaces(&f)
	c.validateDiscovery(&f)
	c.validatePorts(&f)
	return f
}

func (c Config) validateStore(f *findings) {
	s := c.Store
	f.oneOf("store.kind", s.Kind, StoreRaft, StoreEtcd, StoreConsul, StoreKubernetes)
	c.validateKubernetes(f)
	if s.Outside() {
		s.validateOutside(f)
		f.address("store.listen", s.Listen, true)
		return
	}
	if len(s.Endpoints) > 0 {
		f.add("store.endpoints", "are for a store outside: write kind: etcd or consul, too")
	}
	switch {
	case len(s.Members) == 0 && s.Join == "":
		f.add("store", "needs either members (the first members, the same list on each) or join (the address of any present member)")
	case len(s.Members) > 0 && s.Join != "":
		f.add("store.join", "members and join exclude each other: keep members on the first members, join on those that come later")
	}
	if s.Join != "" {
		f.address("store.join", s.Join, false)
	}
	if n := len(s.Members); n > 0 && n%2 == 0 {
		f.add("store.members", "%d members survive no more failures than %d: use 1, 3 or 5", n, n-1)
	}
	if len(s.Members) > 7 {
		f.add("store.members", "%d members: every write waits for a majority of them; use 1, 3 or 5", len(s.Members))
	}
	seen := map[string]string{}
	self := false
	for i, m := range s.Members {
		path := fmt.Sprintf("store.members[%d]", i)
		f.id(path+".id", m.ID)
		f.address(path+".addr", m.Addr, false)
		f.unique(seen, path+".id", "id "+m.ID)
		f.unique(seen, path+".addr", "address "+m.Addr)
		self = self || m.ID == c.Member.ID
	}
	if len(s.Members) > 0 && !self && c.Member.ID != "" {
		f.add("store.members", "this member, %q, is not in the list: add it, or use join", c.Member.ID)
	}
	switch {
	case s.Listen != "":
		f.address("store.listen", s.Listen, true)
	case s.Join != "":
		f.add("store.listen", "is missing: a member that joins needs its own store address")
	}
}

// unique notes what was used where, and reports the second use.
func (f *findings) unique(seen map[string]string, path, what string) {
	if first, dup := seen[what]; dup {
		f.add(path, "%s is already used by %s", what, first)
		return
	}
	seen[what] = path
}

func (c Config) validateDeployments(f *findings) {
	if len(c.Deployments) != 1 {
		f.add("deployments", "%d deployments: this version runs exactly one", len(c.Deployments))
	}
	for i, d := range c.Deployments {
		d.validate(f, fmt.Sprintf("deployments[%d]", i))
		// The controller asks the store when "the member of that name" read last, to know when that node's lease ends.
		if d.Node != nil && d.Node.ID != c.Member.ID && c.Member.ID != "" {
			f.add(fmt.Sprintf("deployments[%d].node.id", i), "%q: the data node on a member has the member's id, %q, in nodes as well", d.Node.ID, c.Member.ID)
		}
	}
}

func (d Deployment) validate(f *findings, path string) {
	f.id(path+".name", d.Name)
	f.oneOf(path+".mode", d.Mode, "single", "ring", "cluster")
	d.validateNodes(f, path)
	f.oneOf(path+".durability", string(d.Durability), string(topo.Quorum), string(topo.QuorumDisk), string(topo.Async))
	if n := d.size(); d.Durability.Waits() && n > 0 {
		switch {
		case n == 1:
			f.add(path+".durability", "%s needs at least two data nodes: use async, or add nodes", d.Durability)
		case d.AckReplicas < 1 || d.AckReplicas >= n:
			f.add(path+".ack-replicas", "%d of %d nodes: use 1 to %d (default %d)", d.AckReplicas, n, n-1, n/2)
		}
	}
	if d.Durability == topo.Async && d.AckReplicas != 0 {
		f.add(path+".ack-replicas", "has no meaning with durability async: remove it, or use durability quorum")
	}
	if d.MinCopies < 1 || d.MinCopies > 2 {
		f.add(path+".min-copies", "%d: use 1 (of two nodes the primary may go on alone) or 2 (it may not)", d.MinCopies)
	}
	if err := d.MaxLoss.spec().Validate(d.Durability); err != nil {
		key, text, _ := strings.Cut(err.Error(), " ")
		f.add(path+"."+key, "%s", text)
	}
	d.validateRetry(f, path)
	d.validateBegin(f, path)
	d.validateDisk(f, path)
	if strings.ContainsAny(d.Password, "\x00\r\n") {
		f.add(path+".password", "must be one line")
	}
	f.oneOf(path+".timing.profile", d.Timing.Profile, "lan", "wan")
	for _, err := range d.Timing.resolve().Validate() {
		key, _, _ := strings.Cut(err.Error(), " ")
		f.add(path+"."+key, "%s", strings.TrimPrefix(err.Error(), key+" "))
	}
}

// validateRetry refuses exact retry where its markers could be lost although the writes beside them are not, or with them.
func (d Deployment) validateRetry(f *findings, path string) {
	f.oneOf(path+".retry", d.Retry, "none", "exact")
	if d.Retry != "exact" {
		return
	}
	if !d.Durability.Waits() {
		f.add(path+".retry", "exact needs durability quorum or quorum+disk: with async an acknowledged write can be lost, so that nothing about it is exact")
	}
	if d.Mode != "single" {
		f.add(path+".retry", "exact needs mode single: a marker would have to be in the slot of each command")
	}
	if d.Node == nil {
		return
	}
	for name, value := range d.Node.Directives {
		if strings.EqualFold(name, "maxmemory-policy") && strings.HasPrefix(strings.ToLower(strings.Trim(value, ` "'`)), "allkeys-") {
			f.add(path+".node.directives."+name, "%s evicts the markers of retry exact, which makes outcomes unknown: use noeviction or volatile-*, or retry none", value)
		}
	}
}

// validateDisk refuses what would make a promise about disks impossible, or the servers' word about them worthless.
func (d Deployment) validateDisk(f *findings, path string) {
	n := d.Node
	if !d.Durability.OnDisk() || n == nil || n.Kind != "managed" {
		return
	}
	if n.Persistence != "aof" {
		f.add(path+".node.persistence", "durability quorum+disk needs an append-only file on every node: use aof, or durability quorum")
	}
	for name, value := range n.Directives {
		value = strings.ToLower(strings.Trim(value, ` "'`))
		switch strings.ToLower(name) {
		case "appendfsync":
			if value != "always" {
				f.add(path+".node.directives."+name, "durability quorum+disk needs always, because servers that sync once a second may say too early that they have: remove it")
			}
		case "no-appendfsync-on-rewrite":
			if value != "no" {
				f.add(path+".node.directives."+name, "durability quorum+disk needs no: otherwise no write is acknowledged while a file is rewritten: remove it")
			}
		}
	}
}

func (d Deployment) validateNodes(f *findings, path string) {
	addrs := map[string]string{}
	switch d.Mode {
	case "ring":
		d.validateShards(f, path, addrs)
		d.validateRing(f, path)
	case "cluster":
		d.validateShards(f, path, addrs)
		d.validateCluster(f, path, addrs)
	default:
		if len(d.Shards) > 0 || d.Ring != (Ring{}) || d.Cluster != (Cluster{}) {
			f.add(path+".shards", "shards belong to modes ring and cluster, and so do ring and cluster")
		}
		validateRoster(f, path, d.Nodes, addrs)
		validateNoBus(f, path, d.Nodes)
	}
	if d.Node == nil {
		return
	}
	l, at := *d.Node, path+".node"
	f.id(at+".id", l.ID)
	if l.ID != "" && d.size() > 0 && !slices.ContainsFunc(d.Units(), func(u Unit) bool {
		return slices.ContainsFunc(u.Nodes, func(n Node) bool { return n.ID == l.ID })
	}) {
		f.add(at+".id", "%q is not in nodes: add it to the roster on every member", l.ID)
	}
	f.oneOf(at+".kind", l.Kind, "managed", "attached")
	if l.Kind == "attached" {
		for _, s := range []struct {
			name string
			set  bool
		}{{"binary", l.Binary != ""}, {"persistence", l.Persistence != ""}, {"directives", len(l.Directives) > 0}, {"dir", l.Dir != ""}} {
			if s.set {
				f.add(at+"."+s.name, "has no meaning for an attached server, which somebody else starts: remove it")
			}
		}
		return
	}
	if l.Kind == "managed" {
		f.oneOf(at+".persistence", l.Persistence, "aof", "rdb", "none")
	}
	l.validateManaged(f, at, d)
}

// validateRoster checks the nodes of one shard. addrs are those of the other shards.
func validateRoster(f *findings, path string, nodes []Node, addrs map[string]string) {
	if len(nodes) == 0 {
		f.add(path+".nodes", "is empty: name every data node of the shard, the same list on all members")
	}
	ids := map[string]string{}
	for i, n := range nodes {
		at := fmt.Sprintf("%s.nodes[%d]", path, i)
		f.id(at+".id", n.ID)
		f.address(at+".addr", n.Addr, false)
		f.unique(ids, at+".id", "id "+n.ID)
		f.unique(addrs, at+".addr", "address "+n.Addr)
		if n.Priority < 0 {
			f.add(at+".priority", "%d: use 0 or more; smaller is preferred among equals", n.Priority)
		}
	}
}

// shardsMax bounds a ring or cluster: each shard has a server and its agent on every member that holds a part of it.
const shardsMax = 128

// ejectLeast leaves a shard the time for a failover before it is left out of a ring.
const ejectLeast = 2 * time.Second

func (d Deployment) validateShards(f *findings, path string, addrs map[string]string) {
	if len(d.Nodes) > 0 {
		f.add(path+".nodes", "belongs to mode single: in mode %s each of the shards has its nodes", d.Mode)
	}
	if len(d.Shards) < 1 || len(d.Shards) > shardsMax {
		f.add(path+".shards", "%d shards: use 1 to %d", len(d.Shards), shardsMax)
	}
	names := map[string]string{}
	for i, s := range d.Shards {
		at := fmt.Sprintf("%s.shards[%d]", path, i)
		f.id(at+".name", s.Name)
		f.unique(names, at+".name", "name "+s.Name)
		validateRoster(f, at, s.Nodes, addrs)
	}
}

func (d Deployment) validateRing(f *findings, path string) {
	places := map[string]string{}
	for i, s := range d.Shards {
		at := fmt.Sprintf("%s.shards[%d]", path, i)
		f.unique(places, at+".ring-name", "ring-name "+s.RingName)
		if s.Weight < 1 {
			f.add(at+".weight", "%d: use 1 or more", s.Weight)
		}
		if s.Slots != "" {
			f.add(at+".slots", "belongs to mode cluster: in a ring the shards' names and weights decide")
		}
		validateNoBus(f, at, s.Nodes)
	}
	if d.Cluster != (Cluster{}) {
		f.add(path+".cluster", "belongs to mode cluster")
	}
	if _, err := ring.New(d.RingSpec()); err != nil && len(d.Shards) > 0 {
		f.add(path+".ring", "%s", strings.TrimPrefix(err.Error(), "ring: "))
	}
	if d.Ring.EjectAfter != 0 && d.Ring.EjectAfter.D() < ejectLeast {
		f.add(path+".ring.eject-after", "%s: use %s or more, which a failover needs, or 0s: never", d.Ring.EjectAfter.D(), ejectLeast)
	}
	if d.Node != nil && d.Node.PIDFile != "" {
		f.add(path+".node.pid-file", "there are several servers here in mode ring, which are asked for their process: remove it")
	}
}

// validateManaged leaves the judgement about directives to the driver that uses them.
func (l LocalNode) validateManaged(f *findings, at string, d Deployment) {
	if l.Username != "" || l.PIDFile != "" {
		f.add(at, "username and pid-file belong to an attached server: remove them, or use kind: attached")
	}
	o := redisd.Options{Addr: "127.0.0.1:1", Dir: "/", Directives: l.Directives}
	if d.Mode == "cluster" {
		id := slotmap.Derived(d.Name)
		o.Cluster = &redisd.ClusterSeat{ID: id, ShardID: id, BusPort: 2, Layout: func() redisd.ClusterLayout { return redisd.ClusterLayout{} }}
	}
	for _, err := range o.Validate() {
		text := strings.TrimPrefix(err.Error(), "directive ")
		name, why, ok := strings.Cut(text, ": ")
		if !ok {
			f.add(at+".directives", "%s", text)
			continue
		}
		name, _, _ = strings.Cut(name, " ")
		f.add(at+".directives."+name, "%s", why)
	}
	for name := range l.Directives {
		switch strings.ToLower(name) {
		case "min-replicas-to-write", "min-slaves-to-write", "min-replicas-max-lag", "min-slaves-max-lag":
			f.add(at+".directives."+name, "follows from durability: remove it")
		}
	}
}

func (c Config) validateFaces(f *findings) {
	f.socketOrAddress("proxy.listen", c.Proxy.Listen)
	f.socketOrAddress("proxy.readonly-listen", c.Proxy.ReadonlyListen)
	for _, a := range []struct {
		path, addr string
		needed     bool
	}{
		{"sentinel.listen", c.Sentinel.Listen, false}, {"api.listen", c.API.Listen, true}, {"api.checks-listen", c.API.ChecksListen, false},
	} {
		if a.addr != "" || a.needed {
			f.address(a.path, a.addr, true)
		}
	}
	f.oneOf("proxy.cluster-face", c.Proxy.ClusterFace, "proxy", "nodes", "off")
	if len(c.Deployments) > 0 && c.Deployments[0].Sharded() {
		c.validateShardedFaces(f, c.Deployments[0].Mode)
	}
	if c.Proxy.ReadonlyListen != "" && c.Proxy.Listen == "" {
		f.add("proxy.readonly-listen", "needs proxy.listen too")
	}
	for _, n := range []struct {
		path  string
		value int64
	}{{"proxy.clients", int64(c.Proxy.Clients)}, {"proxy.park-commands", int64(c.Proxy.ParkCommands)}, {"proxy.park-bytes", int64(c.Proxy.ParkBytes)}, {"proxy.readonly-lag", int64(c.Proxy.ReadonlyLag)},
		{"proxy.query-bytes", int64(c.Proxy.QueryBytes)}, {"proxy.output-bytes", int64(c.Proxy.OutputBytes)}} {
		if n.value <= 0 {
			f.add(n.path, "must be more than 0")
		}
	}
	if c.Proxy.MaxStaleness.D() < 200*time.Millisecond {
		f.add("proxy.max-staleness", "must be 200ms or more: what replicas have is measured every 100ms")
	}
	f.oneOf("proxy.unknown-outcome", c.Proxy.UnknownOutcome, "error", "disconnect")
	f.oneOf("proxy.reads", c.Proxy.Reads, "local", "lease", "linearizable")
	c.Proxy.validateClients(f)
	f.oneOf("sentinel.addresses", c.Sentinel.Addresses, "proxy", "direct")
	if c.Sentinel.Listen != "" && c.Sentinel.Addresses == "proxy" && c.Proxy.Listen == "" {
		f.add("sentinel.addresses", "proxy needs a proxy on this member: set proxy.listen, or use direct")
	}
	if c.Sentinel.Listen != "" && c.Sentinel.Addresses == "proxy" && isSocket(c.Proxy.Listen) {
		f.add("sentinel.addresses", "proxy cannot be a Unix socket, which Sentinel's protocol has no word for: set proxy.listen to host:port, or use direct")
	}
	c.Sentinel.validate(f)
	if c.Salvage.Bytes <= 0 {
		f.add("salvage.bytes", "must be more than 0; to keep nothing use keep: 0")
	}
	if c.Salvage.Keep < 0 || c.Salvage.Keep > 1000 {
		f.add("salvage.keep", "%d: use 0 (nothing is kept) to 1000", c.Salvage.Keep)
	}
	f.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	f.oneOf("log.format", c.Log.Format, "text", "json")
}

// validateShardedFaces refuses what the front of several shards does not do in this version.
func (c Config) validateShardedFaces(f *findings, mode string) {
	for _, x := range []struct {
		path string
		set  bool
		text string
	}{
		{"proxy.readonly-listen", c.Proxy.ReadonlyListen != "", "is not in this version of mode %s: remove it"},
		{"proxy.listen", isSocket(c.Proxy.Listen), "a Unix socket is not in this version of mode %s: use host:port"},
		{"proxy.proxy-protocol", c.Proxy.ProxyProtocol != "off", "is not in this version of mode %s: use off"},
		{"proxy.split-reads", mode == "cluster" && c.Proxy.SplitReads, "is not in this version of mode %s: use false"},
		{"sentinel.addresses", mode == "cluster" && c.Sentinel.Listen != "" && c.Sentinel.Addresses == "direct", "direct is not for mode %s, whose clients ask the servers themselves: use proxy"},
	} {
		if x.set {
			f.add(x.path, x.text, mode)
		}
	}
}

// validateClients checks what bounds the proxy's clients.
func (p Proxy) validateClients(f *findings) {
	f.oneOf("proxy.proxy-protocol", p.ProxyProtocol, "off", "optional", "required")
	if mode, err := p.Mode(); err != nil || mode == 0 {
		f.add("proxy.socket-mode", "%q: write permissions in octal, for example 0770", p.SocketMode)
	}
	for _, d := range []struct {
		path  string
		value topo.Duration
	}{{"proxy.idle", p.Idle}, {"proxy.handshake", p.Handshake}, {"proxy.output-soft-time", p.OutputSoftTime}, {"proxy.upgrade-drain", p.UpgradeDrain}} {
		if d.value < 0 {
			f.add(d.path, "must not be negative")
		}
	}
	if p.OutputSoftBytes > p.OutputBytes {
		f.add("proxy.output-soft-bytes", "is more than output-bytes, so it has no effect")
	}
}

// Mode returns the permissions of the proxy's Unix sockets.
func (p Proxy) Mode() (fs.FileMode, error) {
	n, err := strconv.ParseUint(p.SocketMode, 8, 16)
	if err == nil && n > 0o777 {
		err = fmt.Errorf("%s: more than 0777", p.SocketMode)
	}
	return fs.FileMode(n), err
}

// socketPrefix marks the path of a Unix socket among addresses.
const socketPrefix = "unix:"

func isSocket(addr string) bool { return strings.HasPrefix(addr, socketPrefix) }

// socketOrAddress checks what the proxy listens at; empty: nothing.
func (f *findings) socketOrAddress(path, value string) {
	const longest = 107 // of a name that the kernel takes
	socket, ok := strings.CutPrefix(value, socketPrefix)
	switch {
	case !ok && value != "":
		f.address(path, value, true)
	case ok && (!filepath.IsAbs(socket) || len(socket) > longest):
		f.add(path, "%q: write unix: and an absolute path of at most %d bytes", value, longest)
	}
}

// validatePorts refuses two listeners of this member on one port.
func (c Config) validatePorts(f *findings) {
	seen := map[string]string{}
	use := func(path, addr string) {
		if isSocket(addr) {
			f.unique(seen, path, "socket "+addr)
			return
		}
		if _, port, err := net.SplitHostPort(addr); err == nil {
			f.unique(seen, path, "port "+port)
		}
	}
	use("store.listen", c.Store.Listen)
	use("proxy.listen", c.Proxy.Listen)
	use("proxy.readonly-listen", c.Proxy.ReadonlyListen)
	use("sentinel.listen", c.Sentinel.Listen)
	use("api.listen", c.API.Listen)
	use("api.checks-listen", c.API.ChecksListen)
	use("dns.listen", c.DNS.Listen)
	for i, d := range c.Deployments {
		for k, u := range d.Units() {
			at := fmt.Sprintf("deployments[%d]", i)
			if u.Shard != "" {
				at += fmt.Sprintf(".shards[%d]", k)
			}
			for j, n := range u.Nodes {
				if u.Node != nil && n.ID == u.Node.ID {
					use(fmt.Sprintf("%s.nodes[%d].addr", at, j), n.Addr)
					if n.BusPort > 0 {
						use(fmt.Sprintf("%s.nodes[%d].bus-port", at, j), net.JoinHostPort("", strconv.Itoa(n.BusPort)))
					}
				}
			}
		}
	}
}
