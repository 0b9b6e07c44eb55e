// SPDX-License-Identifier: Apache-2.0

package front

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	slotmap "redoubt/internal/slots"
)

// Topology is what cluster-aware clients are told. It never changes; a new one takes its place.
type Topology struct {
	Me    string // id of the node that answers
	Epoch uint64
	Nodes []ClusterNode
}

// ClusterNode is one node that clients are told of.
type ClusterNode struct {
	ID      string // 40 hexadecimal digits
	ShardID string // the same for a primary and its replicas
	Addr    string // host:port
	BusPort int
	Primary string // of a replica: the id of its primary; empty: it is one
	Slots   []slotmap.Range
	Offset  int64
	Epoch   uint64
	Down    bool
}

func (n ClusterNode) host() string { h, _, _ := net.SplitHostPort(n.Addr); return h }
func (n ClusterNode) port() int {
	_, p, _ := net.SplitHostPort(n.Addr)
	v, _ := strconv.Atoi(p)
	return v
}

func (t *Topology) find(id string) *ClusterNode {
	for i := range t.Nodes {
		if t.Nodes[i].ID == id {
			return &t.Nodes[i]
		}
	}
	return nil
}

// replicas returns the nodes that follow a primary.
func (t *Topology) replicas(id string) []ClusterNode {
	return slices.DeleteFunc(slices.Clone(t.Nodes), func(n ClusterNode) bool { return n.Primary != id })
}

// clusterFace answers CLUSTER for cluster-aware clients.
func (c *client) clusterFace(args [][]byte, raw []byte) {
	if len(args) < 2 {
		c.refuse(argsNumber + "cluster' command")
		return
	}
	sub, t := strings.ToUpper(string(args[1])), c.f.o.Cluster.Face()
	arity, known := faceArity[sub]
	switch {
	case !known:
		c.refuse("ERR unknown subcommand '" + string(args[1][:min(len(args[1]), 128)]) + "'. Try CLUSTER HELP.")
		return
	case arity > 0 && len(args) != arity, arity < 0 && len(args) < -arity:
		c.refuse(argsNumber + "cluster|" + strings.ToLower(sub) + "' command")
		return
	case t == nil:
		c.refuse("CLUSTERDOWN it is not known yet which nodes there are")
		return
	}
	switch sub {
	case "SLOTS":
		c.say(t.slots(nil))
	case "SHARDS":
		c.say(t.shards(nil, c.proto))
	case "NODES":
		c.say(appendText(nil, c.proto, t.lines(t.Nodes)))
	case "REPLICAS", "SLAVES":
		c.faceReplicas(t, string(args[2]))
	case "INFO":
		c.say(appendText(nil, c.proto, t.info()))
	case "MYID":
		c.say(resp.AppendBulk(nil, t.Me))
	case "MYSHARDID":
		if me := t.find(t.Me); me != nil {
			c.say(resp.AppendBulk(nil, me.ShardID))
		} else {
			c.say(resp.AppendBulk(nil, t.Me))
		}
	case "COUNTKEYSINSLOT", "GETKEYSINSLOT":
		c.ofSlot(args, raw)
	case "LINKS":
		c.say([]byte("*0\r\n"))
	case "COUNT-FAILURE-REPORTS":
		if t.find(string(args[2])) == nil {
			c.refuse("ERR Unknown node " + string(args[2]))
		} else {
			c.say(resp.AppendInt(nil, 0))
		}
	case "HELP":
		c.say(faceHelp())
	default:
		c.refuseCluster(sub)
	}
}

// faceArity is the number of words of each subcommand, as in the server's table; negative: at least so many. Those that change the
// cluster are here, too: they are refused with a reason.
var faceArity = map[string]int{
	"SLOTS": 2, "SHARDS": 2, "NODES": 2, "INFO": 2, "MYID": 2, "MYSHARDID": 2, "LINKS": 2, "HELP": 2, "KEYSLOT": 3, "COUNTKEYSINSLOT": 3,
	"GETKEYSINSLOT": 4, "COUNT-FAILURE-REPORTS": 3, "REPLICAS": 3, "SLAVES": 3,
	"ADDSLOTS": -3, "ADDSLOTSRANGE": -4, "BUMPEPOCH": 2, "DELSLOTS": -3, "DELSLOTSRANGE": -4, "FAILOVER": -2, "FORGET": 3, "FLUSHSLOTS": 2, "MEET": -4,
	"REPLICATE": 3, "RESET": -2, "SAVECONFIG": 2, "SET-CONFIG-EPOCH": 3, "SETSLOT": -4, "SLOT-STATS": -3, "MIGRATESLOTS": -2, "CANCELSLOTMIGRATIONS": 2,
	"GETSLOTMIGRATIONS": 2, "MIGRATION": -3,
}

func faceHelp() []byte {
	lines := []string{
		"CLUSTER <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"COUNT-FAILURE-REPORTS <node-id>", "    Return number of failure reports for <node-id>: none, because nodes do not vote here.",
		"COUNTKEYSINSLOT <slot>", "    Return the number of keys in <slot>.",
		"GETKEYSINSLOT <slot> <count>", "    Return key names in a slot.",
		"INFO", "    Return information about the cluster.",
		"KEYSLOT <key>", "    Return the hash slot for <key>.",
		"LINKS", "    Return an empty list.",
		"MYID", "    Return the id of the node that answers.",
		"MYSHARDID", "    Return the id of its shard.",
		"NODES", "    Return the nodes and their slots.",
		"REPLICAS <node-id>", "    Return <node-id> replicas.",
		"SHARDS", "    Return the shards with their slots and nodes.",
		"SLOTS", "    Return the ranges of slots with their nodes.",
		"HELP", "    Print this help.",
	}
	b := resp.AppendArray(nil, len(lines))
	for _, l := range lines {
		b = append(append(append(b, '+'), l...), "\r\n"...)
	}
	return b
}

// slots is the reply to CLUSTER SLOTS.
func (t *Topology) slots(dst []byte) []byte {
	type one struct {
		r slotmap.Range
		n ClusterNode
	}
	var all []one
	for _, n := range t.Nodes {
		if n.Primary == "" {
			for _, r := range n.Slots {
				all = append(all, one{r, n})
			}
		}
	}
	slices.SortFunc(all, func(a, b one) int { return cmp.Compare(a.r.From, b.r.From) })
	dst = resp.AppendArray(dst, len(all))
	for _, x := range all {
		nodes := append([]ClusterNode{x.n}, t.replicas(x.n.ID)...)
		nodes = slices.DeleteFunc(nodes, func(n ClusterNode) bool { return n.Down && n.Primary != "" })
		dst = resp.AppendArray(dst, 2+len(nodes))
		dst = resp.AppendInt(resp.AppendInt(dst, int64(x.r.From)), int64(x.r.To))
		for _, n := range nodes {
			dst = resp.AppendBulk(resp.AppendArray(dst, 4), n.host())
			dst = resp.AppendBulk(resp.AppendInt(dst, int64(n.port())), n.ID)
			dst = resp.AppendArray(dst, 0)
		}
	}
	return dst
}

// shards is the reply to CLUSTER SHARDS.
func (t *Topology) shards(dst []byte, proto int) []byte {
	primaries := slices.DeleteFunc(slices.Clone(t.Nodes), func(n ClusterNode) bool { return n.Primary != "" })
	dst = resp.AppendArray(dst, len(primaries))
	for _, p := range primaries {
		dst = resp.AppendMap(dst, proto, 2)
		dst = resp.AppendArray(resp.AppendBulk(dst, "slots"), 2*len(p.Slots))
		for _, r := range p.Slots {
			dst = resp.AppendInt(resp.AppendInt(dst, int64(r.From)), int64(r.To))
		}
		nodes := append([]ClusterNode{p}, t.replicas(p.ID)...)
		dst = resp.AppendArray(resp.AppendBulk(dst, "nodes"), len(nodes))
		for _, n := range nodes {
			role, health := "master", "online"
			if n.Primary != "" {
				role = "replica"
			}
			if n.Down {
				health = "fail"
			}
			dst = resp.AppendMap(dst, proto, 7)
			text := func(name, value string) { dst = resp.AppendBulk(resp.AppendBulk(dst, name), value) }
			text("id", n.ID)
			dst = resp.AppendInt(resp.AppendBulk(dst, "port"), int64(n.port()))
			text("ip", n.host())
			text("endpoint", n.host())
			text("role", role)
			dst = resp.AppendInt(resp.AppendBulk(dst, "replication-offset"), n.Offset)
			text("health", health)
		}
	}
	return dst
}

// lines are the lines of CLUSTER NODES.
func (t *Topology) lines(nodes []ClusterNode) string {
	var b strings.Builder
	for _, n := range nodes {
		flags, primary, link := "master", "-", "connected"
		if n.Primary != "" {
			flags, primary = "slave", n.Primary
		}
		if n.ID == t.Me {
			flags = "myself," + flags
		}
		if n.Down {
			flags, link = flags+",fail", "disconnected"
		}
		fmt.Fprintf(&b, "%s %s@%d %s %s 0 0 %d %s", n.ID, n.Addr, n.BusPort, flags, primary, n.Epoch, link)
		if n.Primary == "" {
			for _, r := range n.Slots {
				b.WriteString(" " + r.String())
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (c *client) faceReplicas(t *Topology, id string) {
	n := t.find(id)
	switch {
	case n == nil:
		c.refuse("ERR Unknown node " + id)
		return
	case n.Primary != "":
		c.refuse("ERR The specified node is not a master")
		return
	}
	replicas := t.replicas(id)
	b := resp.AppendArray(nil, len(replicas))
	for _, r := range replicas {
		b = resp.AppendBulk(b, strings.TrimSuffix(t.lines([]ClusterNode{r}), "\n"))
	}
	c.say(b)
}

// info is the text of CLUSTER INFO.
func (t *Topology) info() string {
	assigned, failed, size := 0, 0, 0
	for _, n := range t.Nodes {
		have := 0
		for _, r := range n.Slots {
			have += r.Size()
		}
		if n.Primary != "" || have == 0 {
			continue
		}
		size++
		if assigned += have; n.Down {
			failed += have
		}
	}
	state := "ok"
	if assigned < slotmap.Count {
		state = "fail"
	}
	me := uint64(0)
	if n := t.find(t.Me); n != nil {
		me = n.Epoch
	}
	return fmt.Sprintf("cluster_state:%s\r\ncluster_slots_assigned:%d\r\ncluster_slots_ok:%d\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:%d\r\n"+
		"cluster_known_nodes:%d\r\ncluster_size:%d\r\ncluster_current_epoch:%d\r\ncluster_my_epoch:%d\r\ncluster_stats_messages_sent:0\r\n"+
		"cluster_stats_messages_received:0\r\ntotal_cluster_links_buffer_limit_exceeded:0\r\n",
		state, assigned, assigned-failed, failed, len(t.Nodes), size, t.Epoch, me)
}
