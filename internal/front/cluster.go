// SPDX-License-Identifier: Apache-2.0

package front

import (
	"errors"
	"fmt"
	"strconv"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/slots"
)

// Cluster makes a Front one of a cluster's shards. Its functions are safe for concurrent use.
type Cluster struct {
	Map  func() *slots.Map // the present slot map, whose shards are named as Options.Shards are; nil: not known yet
	Face func() *Topology  // what cluster-aware clients are told; a nil function: CLUSTER is refused, as by a server outside of a cluster
}

func (cl *Cluster) validate() []error {
	if cl.Map == nil {
		return []error{errors.New("front: a cluster needs a slot map")}
	}
	return nil
}

const (
	noCluster = "ERR This instance has cluster support disabled"
	noSelect  = "ERR SELECT is not allowed in cluster mode"
)

// speaksCluster reports whether cluster-aware clients are answered.
func (f *Front) speaksCluster() bool { return f.o.Cluster != nil && f.o.Cluster.Face != nil }

// single reports whether there is nothing to tell apart: one shard, and no slots.
func (f *Front) single() bool { return len(f.shards()) == 1 && f.o.Cluster == nil && f.o.Ring == nil }

// paths is a slot map with the numbers of this front's shards.
type paths struct {
	m  *slots.Map
	of int // shards that were known
	to []int
}

// shardOfSlot returns the number of a slot's shard, or -1.
func (f *Front) shardOfSlot(slot int) int {
	m := f.o.Cluster.Map()
	if m == nil {
		return slots.None
	}
	p := f.paths.Load()
	if known := len(f.shards()); p == nil || p.m != m || p.of != known {
		p = &paths{m: m, of: known}
		for _, name := range m.Shards() {
			n := slots.None
			for i, s := range f.shards() {
				if s.Name == name {
					n = i
				}
			}
			p.to = append(p.to, n)
		}
		f.paths.Store(p)
	}
	if i := m.Shard(slot); i >= 0 {
		return p.to[i]
	}
	return slots.None
}

// splitBySlot carries out a command on keys of several slots as one command for each, because a server refuses more than one
// slot in a command even if it has both. It reports false when all keys have one slot.
func (c *client) splitBySlot(v route.Verdict, args [][]byte, step int, j join) bool {
	if c.bySlot == nil {
		c.bySlot = map[int]int{}
	}
	clear(c.bySlot)
	c.where = c.where[:0] // for each key its part
	var at []int          // for each part its slot
	for i := 1; i < len(args); i += step {
		slot := slots.Of(args[i])
		part, known := c.bySlot[slot]
		if !known {
			part = len(at)
			c.bySlot[slot] = part
			at = append(at, slot)
		}
		c.where = append(c.where, part)
	}
	if len(at) == 1 {
		return false
	}
	to := make([]*conn, len(at))
	for i, slot := range at {
		if to[i] = c.connTo(c.f.shardOfSlot(slot)); to[i] == nil {
			return true // nothing was sent to anybody
		}
	}
	c.f.stats.split.Add(1)
	x := &extra{join: j, frames: make([][]byte, len(at)), order: c.where}
	if j.kind == joinInOrder {
		x.order = append([]int(nil), c.where...)
	}
	keys := byPart(c.where, len(at))
	caching := c.caching
	for i, k := range to {
		c.caching = caching
		c.words = 1 + len(keys[i])*step
		b := resp.AppendArray(c.scratch[:0], c.words)
		b = resp.AppendBulk(b, v.Row.Name)
		for _, n := range keys[i] {
			for s := range step {
				b = resp.AppendBulk(b, args[1+n*step+s])
			}
		}
		c.scratch = b
		c.aim = at[i] + 1
		c.send(expect{op: opPart, from: k, x: x, part: int32(i)}, b, v.Class != route.Read)
	}
	c.push(expect{op: opJoin, x: x, silent: c.mute}, nil)
	return true
}

// byPart returns for each part the numbers of its keys, in their order.
func byPart(where []int, parts int) [][]int {
	sizes := make([]int, parts)
	for _, p := range where {
		sizes[p]++
	}
	all, out := make([]int, len(where)), make([][]int, parts)
	for p, n := range sizes {
		out[p], all = all[:0:n], all[n:]
	}
	for i, p := range where {
		out[p] = append(out[p], i)
	}
	return out
}

// selectInCluster answers SELECT: there is one database. It reports false for what is the server's to refuse.
func (c *client) selectInCluster(args [][]byte) bool {
	if len(args) != 2 {
		return false
	}
	switch n, err := strconv.Atoi(string(args[1])); {
	case err != nil:
		c.refuse("ERR value is not an integer or out of range")
	case n == 0:
		c.say(ok())
	default:
		c.refuse(noSelect)
	}
	return true
}

func selectsZero(args [][]byte) bool { return len(args) != 2 || string(args[1]) == "0" }

// cluster answers CLUSTER. Without a cluster that is KEYSLOT; it reports false for what is the server's refusal then.
func (c *client) cluster(args [][]byte, raw []byte) bool {
	keySlot := len(args) == 3 && route.Is(args[1], "KEYSLOT")
	switch {
	case keySlot && c.f.o.Cluster == nil, keySlot && c.f.speaksCluster():
		c.say(resp.AppendInt(nil, int64(slots.Of(args[2]))))
	case c.f.o.Cluster == nil:
		return false
	case !c.f.speaksCluster():
		c.refuse(noCluster)
	default:
		c.clusterFace(args, raw)
	}
	return true
}

// ofSlot passes a question about a slot to its shard.
func (c *client) ofSlot(args [][]byte, raw []byte) {
	slot, err := strconv.Atoi(string(args[2]))
	if err != nil || slot < 0 || slot >= slots.Count {
		c.refuse("ERR Invalid slot")
		return
	}
	c.pass(c.f.shardOfSlot(slot), raw, false)
}

// refuseCluster answers what would change the cluster behind Redoubt's back.
func (c *client) refuseCluster(sub string) {
	c.refuse(fmt.Sprintf("ERR CLUSTER %s is refused: Redoubt decides which server is primary and who has which slots; use 'redoubt switchover' to move a primary", sub))
}
