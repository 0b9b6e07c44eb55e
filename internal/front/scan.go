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

// scan passes SCAN to the shard that its cursor names. It reports false when the arguments make no sense.
func (c *client) scan(args [][]byte) bool {
	if len(args) < 2 || len(c.f.o.Shards) == 1 {
		return false
	}
	v, err := strconv.ParseUint(string(args[1]), 10, 64)
	if err != nil {
		return false // the server's error
	}
	shard := int(v & (ShardsMax - 1))
	if shard >= len(c.conns) {
		c.refuse("ERR invalid cursor")
		return true
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
	v, err := strconv.ParseUint(string(resp.Text(e[0])), 10, 64)
	switch {
	case err != nil || v > cursorMax:
		return resp.AppendError(dst, "ERR shard "+c.f.o.Shards[shard].Name+" gave a cursor that is too large")
	case v == 0 && shard+1 == len(c.f.o.Shards):
	case v == 0:
		v = uint64(shard + 1)
	default:
		v = v<<ordinalBits | uint64(shard)
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
