// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
)

// ClusterSeat is a server's place in a cluster (cluster-enabled yes). The functions are called by verbs; they must answer at
// once, and may be called from any goroutine.
type ClusterSeat struct {
	ID      string               // the node's own id, for ever: 40 hexadecimal digits, see slots.Derived
	ShardID string               // of its shard, in the same form
	BusPort int                  // where the other nodes reach it
	Layout  func() ClusterLayout // the cluster as it is agreed
	Mover   func() string        // the password of who moves slots (redis.MoverUser); empty, or nil: nobody does
}

// ClusterLayout is what is agreed about a cluster.
type ClusterLayout struct {
	Agreed bool                // it is known what is agreed about the shard of who asks, and who is its primary; else it is what the configuration says
	Nodes  []ClusterNode       // of all shards, this one included
	Slots  map[string][][2]int // shard id → what it serves, both ends of each range included; no entry: not known, and nobody is promoted
	// Either are slots that are between two owners: shard id → what it may have besides, or not. They are not among Slots of anybody.
	Either map[string][][2]int
}

// ClusterNode is one member of a cluster.
type ClusterNode struct {
	ID      string
	ShardID string
	Addr    string // host:port; the host is an IP address
	BusPort int
	// Primary: it is the primary of its shard now, or is to be the first one. Where nobody of a shard is named, its nodes begin
	// without slots, and the first promotion assigns them. It is read when a server starts without a nodes.conf.
	Primary bool
}

// The words of cluster mode that never change.
const (
	nodesConf     = "nodes.conf"
	socketName    = "redoubt.sock"
	nodeTimeout   = "cluster-node-timeout"
	nodeTimeoutMS = "15000" // long: gossip brings news, and decides nothing
	frozenUser    = "redoubt-frozen"
	frozenWord    = "-" // a password that is good nowhere
	shutReplicas  = "1000"
	clusterSince  = 700 // cluster-port
	shardIDSince  = 702 // nodes.conf holds the shard's id
	clusterState  = "cluster_state"
)

// validate returns what is wrong with a seat of a server at host:port.
func (s *ClusterSeat) validate(host string, port int) []error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(net.ParseIP(host) != nil, "addr %q: a member of a cluster needs an IP address, because the nodes tell each other addresses", host)
	need(slots.IsID(s.ID) && slots.IsID(s.ShardID), "cluster: id %q and shard id %q must be 40 hexadecimal digits", s.ID, s.ShardID)
	need(s.BusPort > 0 && s.BusPort < 65536 && s.BusPort != port, "bus-port %d: must be from 1 to 65535, and another one than the port", s.BusPort)
	need(s.Layout != nil, "cluster: no layout")
	return errs
}

// reservedInCluster are the directives that a member of a cluster gets from us.
func reservedInCluster(name string) string {
	switch name {
	case "cluster-config-file", "cluster-port", "cluster-announce-ip", "cluster-announce-port", "cluster-announce-bus-port", "cluster-announce-tls-port":
		return "it comes from the cluster's own options"
	case "cluster-replica-no-failover", "cluster-slave-no-failover", "cluster-allow-replica-migration", "cluster-require-full-coverage", "cluster-migration-barrier",
		"cluster-allow-reads-when-down", "cluster-allow-pubsubshard-when-down", "min-replicas-to-write", "min-slaves-to-write", "lazyfree-lazy-server-del":
		return "nobody elects but Redoubt, and safety needs its own value"
	case "repl-ping-replica-period", "repl-ping-slave-period":
		return "a server that is closed sends nothing to its replicas, so that its offset is final"
	case "unixsocket", "unixsocketperm":
		return "the agent reaches its server there"
	case "tls-port", "tls-cluster", "tls-replication":
		return "a member of a cluster is closed by its port, and that is not built for TLS"
	}
	return ""
}

// renamesInCluster refuses to hide the commands that cluster mode lives on.
func renamesInCluster(value string) []error {
	var errs []error
	for line := range strings.Lines(value) {
		f := strings.Fields(strings.ToLower(line))
		if len(f) > 0 && (f[0] == "cluster" || f[0] == "role" || f[0] == "function" || f[0] == "eval") {
			errs = append(errs, fmt.Errorf("directive rename-command %s: Redoubt needs this command in a cluster", f[0]))
		}
	}
	return errs
}

// clusterRules takes from the other users what would change the cluster behind our back.
func clusterRules() []string {
	words := []string{"failover", "replicate", "reset", "meet", "forget", "addslots", "addslotsrange", "delslots", "delslotsrange", "flushslots", "setslot", "bumpepoch", "set-config-epoch"}
	for i, w := range words {
		words[i] = "-cluster|" + w
	}
	return words
}

// clusterDemands are the settings without which others than we would elect.
func clusterDemands() []demand {
	return []demand{
		{name: "cluster-replica-no-failover", value: "yes", lies: true},
		{name: "cluster-allow-replica-migration", value: "no", lies: true},
		{name: "cluster-require-full-coverage", value: "no"},
	}
}

// attachedDemands are further ones of a member that somebody else starts.
func attachedDemands() []demand {
	return []demand{
		{name: nodeTimeout, value: nodeTimeoutMS, holds: func(v string) bool {
			n, _ := strconv.Atoi(v)
			least, _ := strconv.Atoi(nodeTimeoutMS)
			return n >= least || v == hurriedMS
		}},
		{name: "cluster-allow-reads-when-down", value: "yes"},
		{name: "cluster-allow-pubsubshard-when-down", value: "yes"},
		{name: "lazyfree-lazy-server-del", value: "yes"},
	}
}

// arguments boot a member closed: no port, no login for replication, no writes without a crowd of replicas. Whatever its
// nodes.conf says, neither clients nor replicas nor a resync can touch it, and it touches nobody.
func (s *ClusterSeat) arguments(host, port string) []string {
	bus := strconv.Itoa(s.BusPort)
	return []string{
		"--port", "0", "--" + minReplicas, shutReplicas, "--masteruser", frozenUser, "--masterauth", frozenWord,
		"--unixsocket", socketName, "--unixsocketperm", "700",
		"--cluster-enabled", "yes", "--cluster-config-file", nodesConf, "--cluster-port", bus,
		"--cluster-announce-ip", host, "--cluster-announce-port", port, "--cluster-announce-bus-port", bus,
		"--cluster-replica-no-failover", "yes", "--cluster-allow-replica-migration", "no", "--cluster-require-full-coverage", "no",
		"--cluster-allow-reads-when-down", "yes", "--cluster-allow-pubsubshard-when-down", "yes", "--lazyfree-lazy-server-del", "yes",
	}
}

// prepareMembership makes sure, before a start, that the server comes up as itself: a nodes.conf that is missing, empty,
// unreadable or somebody else's is replaced by one with the server's own id. A new id would be a ghost, which replicas would
// follow nevertheless, because they follow addresses.
func (m *managed) prepareMembership(ctx context.Context) error {
	s := m.o.Cluster
	if s == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(m.o.Addr)
	if err != nil {
		return fmt.Errorf("start a member of a cluster: %w", err)
	}
	if err := portFree(net.JoinHostPort(host, strconv.Itoa(s.BusPort))); err != nil {
		return fmt.Errorf("bus-port: %w", err)
	}
	path := filepath.Join(m.o.Dir, nodesConf)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("start a member of a cluster: %w", err)
	}
	if s.knows(string(text)) {
		return m.correct(ctx, string(text))
	}
	if len(text) > 0 {
		aside := path + ".aside"
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("set %s aside: %w", path, err)
		}
		m.node.log.Warn("nodes.conf cannot be read, or is another node's: it is written anew", "aside", aside)
	}
	fresh, epoch, err := s.founding()
	if err != nil {
		return fmt.Errorf("start a member of a cluster: %w", err)
	}
	if err := m.writeConf(fresh, epoch); err != nil {
		return err
	}
	m.node.log.Info("wrote nodes.conf", "id", s.ID, "nodes", len(fresh))
	return nil
}

// correct takes from a nodes.conf, before a server can say it to the others, what this node was and is not any more: the primary of its
// shard, or the owner of slots. A server of Redis 7.0.13 to 7.0.15 or 7.2.0 to 7.2.3 believes a claim of a slot, whatever its epoch, and
// deletes the keys, if it once heard that the slot's owner of before did not claim it, as while slots are handed over: it does not forget that
// when it is promoted, or takes the slot (owner_not_claiming_slot in cluster.c).
func (m *managed) correct(ctx context.Context, text string) error {
	nodes, epoch, err := slots.Parse(text)
	if err != nil {
		return fmt.Errorf("read %s: %w", nodesConf, err)
	}
	if self, _ := nodes.Self(); self.Replica {
		return nil
	}
	m.awaitAgreed(ctx)
	now, what := m.o.Cluster.demoted(nodes)
	if what == "" {
		now, what = m.o.Cluster.trimmed(nodes)
	}
	if what == "" {
		return nil
	}
	if err := m.writeConf(now, epoch); err != nil {
		return err
	}
	m.node.log.Info("corrected nodes.conf before the start: " + what)
	return nil
}

func (m *managed) writeConf(nodes slots.Nodes, epoch uint64) error {
	return replaceFile(m.o.Dir, nodesConf, []byte(nodes.Conf(epoch, m.version >= shardIDSince)))
}

// knows tells whether a nodes.conf is one of this node.
func (s *ClusterSeat) knows(text string) bool {
	nodes, _, err := slots.Parse(text)
	self, ok := nodes.Self()
	return err == nil && ok && self.ID == s.ID && strings.Contains(text, "vars currentEpoch")
}

// agreePatience is how long the start of a primary waits for the word of its shard: a member that has just begun gets it as soon as the store
// answers.
const agreePatience = 1500 * time.Millisecond

// awaitAgreed waits until it is known what is agreed about the shard, but not for long: without a store a server starts, too.
func (m *managed) awaitAgreed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, agreePatience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !m.o.Cluster.Layout().Agreed {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// demoted is a view in which this node, a primary by it, is a replica of the one that is the primary of its shard as agreed. Its slots are
// nobody's there: their owners claim them. It says in words what it changed; empty: the view is right, or nothing better is known.
func (s *ClusterSeat) demoted(view slots.Nodes) (now slots.Nodes, what string) {
	of := s.successor()
	if _, known := view.ByID(of); !known {
		return nil, ""
	}
	for _, n := range view {
		switch {
		case nowhere(n):
			continue
		case n.ID == of:
			n.Replica, n.Of = false, ""
		case n.ID == s.ID || n.Of == s.ID:
			n.Replica, n.Of, n.Slots = true, of, slots.Set{}
		}
		now = append(now, n)
	}
	return now, "another node (" + of + ") is the primary of its shard, and this one its replica"
}

// trimmed is a view in which slots that are agreed to be another shard's are that one's, if they are this node's or nobody's in view: a server
// that has keys of slots that are nobody's takes them when it starts. It says in words what it changed; empty: nothing.
func (s *ClusterSeat) trimmed(view slots.Nodes) (now slots.Nodes, what string) {
	l, free := s.Layout(), slots.SetOf([2]int{0, slots.Count - 1}).Minus(view.Assigned())
	self, _ := view.Self()
	var given slots.Set
	now = slices.DeleteFunc(slices.Clone(view), nowhere)
	for _, o := range l.Nodes {
		at := slices.IndexFunc(now, func(n slots.Node) bool { return n.ID == o.ID })
		if !l.Agreed || !o.Primary || o.ShardID == s.ShardID || at < 0 {
			continue
		}
		its := slots.SetOf(l.Slots[o.ShardID]...).And(self.Slots.Or(free))
		if its == (slots.Set{}) {
			continue
		}
		now[at].Replica, now[at].Of, now[at].Slots = false, "", now[at].Slots.Or(its)
		given = given.Or(its)
	}
	if given == (slots.Set{}) {
		return nil, ""
	}
	me := slices.IndexFunc(now, func(n slots.Node) bool { return n.Myself })
	now[me].Slots = now[me].Slots.Minus(given)
	return now, "slots " + given.String() + " are another shard's"
}

// nowhere tells of a node that is not worth remembering: nobody knows where it is, or it is no member yet.
func nowhere(n slots.Node) bool { return !n.Myself && (n.NoAddr || n.Handshake || n.Host == "") }

// successor is the node that is agreed to be the primary of this node's shard; empty: this one, or it is not known.
func (s *ClusterSeat) successor() string {
	for _, n := range s.Layout().Nodes {
		if n.Primary && n.ShardID == s.ShardID && n.ID != s.ID {
			return n.ID
		}
	}
	return ""
}

// founding is the cluster as its layout says: each shard's primary with its slots and an epoch of its own, lower than any that
// a promotion can take, and the others as its replicas. Where the layout names no primary, nobody has slots.
func (s *ClusterSeat) founding() (slots.Nodes, uint64, error) {
	l := s.Layout()
	primaries := map[string]string{}
	for _, n := range l.Nodes {
		if n.Primary {
			primaries[n.ShardID] = n.ID
		}
	}
	var out slots.Nodes
	epoch := uint64(0)
	for _, n := range l.Nodes {
		host, port, err := net.SplitHostPort(n.Addr)
		if err != nil {
			return nil, 0, fmt.Errorf("address of node %s: %w", n.ID, err)
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return nil, 0, fmt.Errorf("address of node %s: %w", n.ID, err)
		}
		node := slots.Node{ID: n.ID, ShardID: n.ShardID, Host: host, Port: number, BusPort: n.BusPort, Myself: n.ID == s.ID}
		switch p := primaries[n.ShardID]; p {
		case n.ID:
			epoch++
			node.Epoch, node.Slots = epoch, slots.SetOf(l.Slots[n.ShardID]...)
		case "":
		default:
			node.Replica, node.Of = true, p
		}
		out = append(out, node)
	}
	if _, ok := out.Self(); !ok {
		return nil, 0, fmt.Errorf("%w: the layout of the cluster does not name this node (%s)", redis.ErrRefused, s.ID)
	}
	return out, epoch, nil
}

// known reports whether it is known which slots this node's shard serves; they may be none.
func (s *ClusterSeat) known() bool { _, ok := s.Layout().Slots[s.ShardID]; return ok }

// expected are the slots that this node's shard serves.
func (s *ClusterSeat) expected() slots.Set { return slots.SetOf(s.Layout().Slots[s.ShardID]...) }

// either are the slots that it may serve or not.
func (s *ClusterSeat) either() slots.Set { return slots.SetOf(s.Layout().Either[s.ShardID]...) }

// idAt finds the node at an address: as the layout has it, else as the server sees it.
func (s *ClusterSeat) idAt(view slots.Nodes, addr string) string {
	nodes := s.Layout().Nodes
	if i := slices.IndexFunc(nodes, func(n ClusterNode) bool { return n.Addr == addr }); i >= 0 {
		return nodes[i].ID
	}
	if i := slices.IndexFunc(view, func(n slots.Node) bool { return n.Addr() == addr && !n.NoAddr && !n.Handshake }); i >= 0 {
		return view[i].ID
	}
	return ""
}
