// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"

	"redoubt/internal/resp"
)

// A cursor of SCAN over all shards is the cursor of one shard with the shard's number in its low bits. It stays below 2⁶³ for
// cursors of shards below 2⁵³, which is where proxies keep theirs; servers' are no larger than their tables. Shards are
// scanned one after the other. What a cursor means after a failover is the business of the shard, which begins anew then:
// elements may come twice, none is missed.
const (
	ordinalBits = 10
	cursorMax   = 1<<(63-ordinalBits) - 1
)

// turnBy is by how much each change of the ring turns the numbers in cursors. So one of an earlier ring names no shard, and begins anew: elements may come
// twice, none is missed. After 16 changes in the middle of one SCAN a cursor would be misread.
const turnBy = 64

// turned is by how much the numbers are turned.
func turned(gen uint64) int { return int(gen*turnBy) & (ShardsMax - 1) }

// scan passes SCAN to the shard that its cursor names. It reports false when the arguments make no sense.
func (c *client) scan(args [][]byte) bool {
	if len(args) < 2 || len(c.f.shards()) == 1 && c.f.o.Ring == nil {
		return false
	}
	v, err := strconv.ParseUint(string(args[1]), 10, 64)
	if err != nil {
		return false // the server's error
	}
	shard := int(v & (ShardsMax - 1))
	if gen := c.f.gen(); gen > 0 && v > 0 {
		if shard = (shard - turned(gen)) & (ShardsMax - 1); !slices.Contains(c.f.live(), shard) { // of an earlier ring: keys have changed their shards since
			v, shard = 0, 0
		}
	}
	if shard >= len(c.f.shards()) {
		c.refuse("ERR invalid cursor")
		return true
	}
	if !slices.Contains(c.f.live(), shard) { // what it had is at the others
		if shard = c.f.after(shard); shard < 0 {
			c.say([]byte("*2\r\n$1\r\n0\r\n*0\r\n"))
			return true
		}
		v = 0
	}
	k := c.connTo(shard)
	if k == nil {
		return true
	}
	words := slices.Clone(args)
	words[1] = strconv.AppendUint(nil, v>>ordinalBits, 10)
	c.send(expect{op: opScan, from: k, silent: c.mute}, resp.AppendCommand(nil, words...), false)
	return true
}

// scanned appends a shard's reply to SCAN with the cursor that goes on from there.
func (c *client) scanned(dst, f []byte, shard int) []byte {
	head, rest, _ := bytes.Cut(f, []byte("\r\n"))
	if string(head) != "*2" || len(rest) == 0 {
		return append(dst, f...) // an error
	}
	e := resp.Elements(f, nil)
	gen := c.f.gen()
	v, err := strconv.ParseUint(string(resp.Text(e[0])), 10, 64)
	switch {
	case err != nil || v > cursorMax:
		return resp.AppendError(dst, "ERR shard "+c.f.shards()[shard].Name+" gave a cursor that is too large")
	case v == 0 && c.f.after(shard) < 0:
	case v == 0:
		v = uint64(c.f.after(shard)+turned(gen)) & (ShardsMax - 1)
	default:
		v = v<<ordinalBits | uint64(shard+turned(gen))&(ShardsMax-1)
	}
	dst = resp.AppendBulk(resp.AppendArray(dst, 2), strconv.FormatUint(v, 10))
	return append(dst, e[1]...)
}

// randomKey answers RANDOMKEY: a shard by the number of its keys, and one of them.
func (c *client) randomKey(raw []byte) {
	conns, err := c.every()
	if err != nil {
		c.refuse(unreachable(err))
		return
	}
	sizes := make([]int64, len(conns))
	total := int64(0)
	for i, f := range c.ask(resp.AppendCommand(nil, "DBSIZE"), conns...) {
		n, ok := resp.Int(f)
		if !ok {
			c.say(f) // an error
			return
		}
		sizes[i] = n
		total += n
	}
	for total > 0 {
		at, shard := rand.Int64N(total), 0
		for ; at >= sizes[shard]; shard++ {
			at -= sizes[shard]
		}
		reply := c.ask(raw, conns[shard])
		if reply == nil {
			return
		}
		if resp.Text(reply[0]) != nil || reply[0][0] == '-' {
			c.say(reply[0])
			return
		}
		total -= sizes[shard] // its keys have gone meanwhile
		sizes[shard] = 0
	}
	if !c.isOver() {
		c.say(resp.AppendNull(nil, c.proto))
	}
}
