// SPDX-License-Identifier: Apache-2.0

package front

import (
	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// split carries out a command on keys of several shards as one command for each of them. It reports false when one shard has
// all keys, or the arguments make no sense.
func (c *client) split(v route.Verdict, args [][]byte) bool {
	if c.f.single() {
		return false
	}
	step := 1
	j := join{kind: joinSum, writes: v.Class == route.Write}
	switch v.Row.Name {
	case "MGET":
		j.kind = joinInOrder
	case "MSET":
		j.kind, step = joinFirst, 2
	}
	if len(args) < 1+step || (len(args)-1)%step != 0 {
		c.pass(c.f.home(), resp.AppendCommand(nil, args...), false) // the server's error
		return true
	}
	if c.f.o.Cluster != nil {
		return c.splitBySlot(v, args, step, j)
	}
	c.where = c.where[:0]
	for len(c.counts) < len(c.f.shards()) { // one that came later
		c.counts = append(c.counts, 0)
	}
	clear(c.counts)
	parts := 0
	for i := 1; i < len(args); i += step {
		shard := c.place(args[i])
		if shard < 0 || shard >= len(c.counts) {
			c.refuse(noShard)
			return true
		}
		if c.counts[shard]++; c.counts[shard] == 1 {
			parts++
		}
		c.where = append(c.where, shard)
	}
	if parts == 1 {
		return false
	}
	c.f.stats.split.Add(1)
	c.splitOver(v, args, step, j, parts)
	return true
}

// splitOver sends the parts of a command; c.where says which shard has which key.
func (c *client) splitOver(v route.Verdict, args [][]byte, step int, j join, parts int) {
	x := &extra{join: j, parts: make([]*conn, 0, parts)}
	caching := c.caching
	for _, shard := range c.where {
		if c.counts[shard] > 0 {
			k := c.connTo(shard)
			if k == nil {
				return // nothing was sent to anybody
			}
			x.parts = append(x.parts, k)
			c.counts[shard] = -c.counts[shard]
		}
	}
	c.caching = nil
	for _, k := range x.parts {
		if caching != nil {
			c.push(expect{op: opDrop, from: k}, caching)
		}
		c.words = 1 - c.counts[k.i]*step
		b := resp.AppendArray(c.scratch[:0], c.words)
		b = resp.AppendBulk(b, v.Row.Name)
		for i, shard := range c.where {
			if shard == k.i {
				for s := range step {
					b = resp.AppendBulk(b, args[1+i*step+s])
				}
			}
		}
		c.scratch = b
		k.wrote = k.wrote || v.Class != route.Read
		c.part(k, b)
		c.counts[k.i] = -c.counts[k.i]
	}
	if j.kind == joinInOrder {
		x.order = c.order(x.parts)
	}
	c.push(expect{op: opJoin, x: x, silent: c.mute}, nil)
}

// order returns for each key of the split command the index of its part.
func (c *client) order(parts []*conn) []int {
	for i, k := range parts {
		c.counts[k.i] = i
	}
	order := make([]int, len(c.where))
	for i, shard := range c.where {
		order[i] = c.counts[shard]
	}
	return order
}
