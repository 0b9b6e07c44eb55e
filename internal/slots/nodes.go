// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// total is the number of slots of a cluster.
const total = 16384

// Set is a set of slots. It is a value: two sets are equal when == says so.
type Set [total / 64]uint64

// SetOf makes a set of ranges, both ends of each included. What is no slot is left out.
func SetOf(ranges ...[2]int) Set {
	var s Set
	for _, r := range ranges {
		for n := max(0, r[0]); n <= min(r[1], total-1); n++ {
			s.Add(n)
		}
	}
	return s
}

// Add puts a slot into the set.
func (s *Set) Add(slot int) { s[slot/64] |= 1 << (slot % 64) }

// Has tells whether the set holds a slot.
func (s Set) Has(slot int) bool { return slot >= 0 && slot < total && s[slot/64]&(1<<(slot%64)) != 0 }

// Len counts the slots.
func (s Set) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Minus is what s has and o has not.
func (s Set) Minus(o Set) Set {
	for i := range s {
		s[i] &^= o[i]
	}
	return s
}

// And is what both have.
func (s Set) And(o Set) Set {
	for i := range s {
		s[i] &= o[i]
	}
	return s
}

// Or is what one of them has.
func (s Set) Or(o Set) Set {
	for i := range s {
		s[i] |= o[i]
	}
	return s
}

// Ranges are the slots in order, in as few ranges as possible.
func (s Set) Ranges() [][2]int {
	var out [][2]int
	for n := 0; n < total; n++ {
		if !s.Has(n) {
			continue
		}
		if last := len(out) - 1; last >= 0 && out[last][1] == n-1 {
			out[last][1] = n
		} else {
			out = append(out, [2]int{n, n})
		}
	}
	return out
}

// String prints the ranges as people write them: "0-5460,5500".
func (s Set) String() string {
	var words []string
	for _, r := range s.Ranges() {
		words = append(words, word(r))
	}
	return strings.Join(words, ",")
}

func word(r [2]int) string {
	if r[0] == r[1] {
		return strconv.Itoa(r[0])
	}
	return strconv.Itoa(r[0]) + "-" + strconv.Itoa(r[1])
}

// Derived is the id, 40 hexadecimal digits, that belongs to these names: of a node (deployment, shard, node) or of a shard
// (deployment, shard). It is derived, so that a server that lost everything comes back as itself.
func Derived(names ...string) string {
	sum := sha1.Sum([]byte(strings.Join(names, "\x00")))
	return hex.EncodeToString(sum[:])
}

// IsID tells whether s has the form of a node's or shard's id.
func IsID(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

// Node is one line of CLUSTER NODES or of a nodes.conf: what one server believes of one node.
type Node struct {
	ID       string
	Host     string // as announced; empty when it is not known
	Port     int
	BusPort  int
	Hostname string
	ShardID  string // from a nodes.conf of Redis 7.2 and later, and Valkey

	Myself    bool
	Primary   bool
	Replica   bool
	NoAddr    bool // a ghost: nobody knows where it is
	Handshake bool // not a member yet
	Fail      bool // failed, by the word of a majority of primaries
	Suspected bool // failed, by this server's own word ("fail?")
	Of        string

	PingSent, PongReceived int64 // in milliseconds since 1970; 0: none is under way, or none came
	Epoch                  uint64
	Linked                 bool

	Slots     Set
	Importing map[int]string // slot → id of the node that it comes from; on the server that answers only
	Migrating map[int]string // slot → id of the node that it goes to
}

// Addr is host:port as the node announces it.
func (n Node) Addr() string {
	if strings.Contains(n.Host, ":") {
		return "[" + n.Host + "]:" + strconv.Itoa(n.Port)
	}
	return n.Host + ":" + strconv.Itoa(n.Port)
}

// Nodes is one server's view of its cluster.
type Nodes []Node

// Self is the node whose view this is.
func (ns Nodes) Self() (Node, bool) {
	for _, n := range ns {
		if n.Myself {
			return n, true
		}
	}
	return Node{}, false
}

// ByID finds a node.
func (ns Nodes) ByID(id string) (Node, bool) {
	for _, n := range ns {
		if n.ID == id {
			return n, true
		}
	}
	return Node{}, false
}

// Assigned are the slots that somebody has.
func (ns Nodes) Assigned() Set {
	var s Set
	for _, n := range ns {
		s = s.Or(n.Slots)
	}
	return s
}

// Parse reads the reply to CLUSTER NODES, or a nodes.conf, whose line of variables gives the current epoch.
func Parse(text string) (nodes Nodes, epoch uint64, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
			continue
		case f[0] == "vars":
			for i := 1; i+1 < len(f); i += 2 {
				if f[i] == "currentEpoch" {
					if epoch, err = strconv.ParseUint(f[i+1], 10, 64); err != nil {
						return nil, 0, fmt.Errorf("cluster nodes: current epoch %.40q is not a number", f[i+1])
					}
				}
			}
			continue
		}
		n, err := parseNode(f)
		if err != nil {
			return nil, 0, fmt.Errorf("cluster nodes: line %.200q: %w", strings.TrimSpace(line), err)
		}
		nodes = append(nodes, n)
	}
	return nodes, epoch, nil
}

// parseNode reads "id host:port@bus[,hostname[,key=value…]] flags primary ping pong epoch link-state slots…".
func parseNode(f []string) (Node, error) {
	if len(f) < 8 {
		return Node{}, fmt.Errorf("%d fields, at least 8 are needed", len(f))
	}
	n := Node{ID: f[0], Linked: f[7] == "connected"}
	if !IsID(n.ID) {
		return n, fmt.Errorf("%.60q is not a node's id", n.ID)
	}
	if err := n.parseAddress(f[1]); err != nil {
		return n, err
	}
	for flag := range strings.SplitSeq(f[2], ",") {
		switch flag {
		case "myself":
			n.Myself = true
		case "master":
			n.Primary = true
		case "slave", "replica":
			n.Replica = true
		case "noaddr":
			n.NoAddr = true
		case "handshake":
			n.Handshake = true
		case "fail":
			n.Fail = true
		case "fail?":
			n.Suspected = true
		}
	}
	if f[3] != "-" {
		n.Of = f[3]
	}
	var err1, err2, err3 error
	n.PingSent, err1 = strconv.ParseInt(f[4], 10, 64)
	n.PongReceived, err2 = strconv.ParseInt(f[5], 10, 64)
	n.Epoch, err3 = strconv.ParseUint(f[6], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return n, fmt.Errorf("%.80q are not times and an epoch", f[4:7])
	}
	for _, w := range f[8:] {
		if err := n.parseSlots(w); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *Node) parseAddress(word string) error {
	parts := strings.Split(word, ",")
	addr, bus, withBus := strings.Cut(parts[0], "@")
	colon := strings.LastIndexByte(addr, ':')
	if colon < 0 {
		return fmt.Errorf("%.80q is not an address", word)
	}
	var err1, err2 error
	n.Host = strings.Trim(addr[:colon], "[]")
	n.Port, err1 = strconv.Atoi(addr[colon+1:])
	if withBus {
		n.BusPort, err2 = strconv.Atoi(bus)
	}
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%.80q is not an address", word)
	}
	for i, p := range parts[1:] {
		key, value, pair := strings.Cut(p, "=")
		switch {
		case !pair && i == 0:
			n.Hostname = p
		case key == "shard-id":
			n.ShardID = value
		}
	}
	return nil
}

// parseSlots reads "5", "0-5460", "[93-<-ID]" (it comes from there) or "[77->-ID]" (it goes there).
func (n *Node) parseSlots(w string) error {
	if inner, ok := strings.CutPrefix(w, "["); ok {
		inner = strings.TrimSuffix(inner, "]")
		for arrow, marks := range map[string]*map[int]string{"-<-": &n.Importing, "->-": &n.Migrating} {
			if slot, id, is := strings.Cut(inner, arrow); is {
				number, err := strconv.Atoi(slot)
				if err != nil || number < 0 || number >= total {
					return fmt.Errorf("%.80q is not the mark of a slot", w)
				}
				if *marks == nil {
					*marks = map[int]string{}
				}
				(*marks)[number] = id
				return nil
			}
		}
		return fmt.Errorf("%.80q is not the mark of a slot", w)
	}
	first, last, isRange := strings.Cut(w, "-")
	a, err1 := strconv.Atoi(first)
	b, err2 := a, error(nil)
	if isRange {
		b, err2 = strconv.Atoi(last)
	}
	if err1 != nil || err2 != nil || a < 0 || b < a || b >= total {
		return fmt.Errorf("%.80q is not a range of slots", w)
	}
	n.Slots = n.Slots.Or(SetOf([2]int{a, b}))
	return nil
}

// Conf writes a nodes.conf with which a server starts as the member that is marked as Myself, without having met anybody.
// withShards adds the shards' ids, which Redis 7.2 and later, and Valkey, keep there, and older ones cannot read.
func (ns Nodes) Conf(epoch uint64, withShards bool) string {
	var b strings.Builder
	for _, n := range ns {
		fmt.Fprintf(&b, "%s %s:%d@%d", n.ID, n.Host, n.Port, n.BusPort)
		if n.Hostname != "" || withShards && n.ShardID != "" {
			b.WriteString("," + n.Hostname)
		}
		if withShards && n.ShardID != "" {
			b.WriteString(",shard-id=" + n.ShardID)
		}
		of, role := "-", "master"
		if n.Replica {
			of, role = n.Of, "slave"
		}
		if n.Myself {
			role = "myself," + role
		}
		fmt.Fprintf(&b, " %s %s 0 0 %d connected", role, of, n.Epoch)
		for _, r := range n.Slots.Ranges() {
			b.WriteString(" " + word(r))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "vars currentEpoch %d lastVoteEpoch 0\n", epoch)
	return b.String()
}
