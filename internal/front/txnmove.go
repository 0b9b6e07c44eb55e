// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"

	"redoubt/internal/resp"
)

// A slot may go to another shard while a transaction about it is open. What was said up to then is at the former shard, which would refuse EXEC;
// so it is said again to the present one, and nobody notices. If keys were watched, nobody knows what became of them: EXEC is null then, as
// if they had changed.

// sentMost bounds what is kept of a transaction to be said again.
const sentMost = 1 << 20

// keep keeps a command of the transaction.
func (t *transaction) keep(raw []byte) {
	if t.sentBytes += len(raw); t.sentBytes > sentMost {
		t.sent = nil
		return
	}
	t.sent = append(t.sent, bytes.Clone(raw))
}

// watchedElsewhere reports whether the slot of the watched keys is another shard's now.
func (c *client) watchedElsewhere() bool {
	if c.f.o.Ring != nil {
		return c.watch != nil && c.watchGen != c.f.gen()
	}
	return c.f.o.Cluster != nil && c.watch != nil && c.f.shardOfSlot(c.watchGroup) != c.watch.i
}

// follows reports whether the slot of the open transaction is another shard's now: then at is only kept.
func (c *client) follows(at place) bool {
	t := &c.txn
	if c.f.o.Cluster == nil && c.f.o.Ring == nil || t.to == nil {
		return false
	}
	if c.f.o.Ring != nil {
		t.moved = t.moved || c.watchedElsewhere() || t.gen != c.f.gen()
		return t.moved
	}
	if t.moved || c.watchedElsewhere() {
		t.moved = true
	} else if t.keyed && c.f.shardOfSlot(t.group) != t.to.i {
		t.moved = true
	}
	return t.moved && (!at.keyed || !t.keyed || at.group == t.group)
}

// keepKey keeps a key of the transaction, to place it anew.
func (t *transaction) keepKey(key []byte) {
	if t.sentBytes < sentMost {
		t.keys = append(t.keys, bytes.Clone(key))
	}
}

// presentShard is where the transaction belongs now; one is false if that is not one shard.
func (c *client) presentShard() (shard int, one bool) {
	t := &c.txn
	if c.f.o.Ring == nil {
		return c.f.shardOfSlot(t.group), true
	}
	if len(t.keys) == 0 {
		return c.f.home(), true
	}
	shard = c.place(t.keys[0])
	for _, k := range t.keys[1:] {
		if c.place(k) != shard {
			return 0, false
		}
	}
	return shard, true
}

// execElsewhere carries out EXEC of a transaction whose slot has moved.
func (c *client) execElsewhere(raw []byte) {
	t := &c.txn
	c.send(expect{op: opDrop, from: t.to}, resp.AppendCommand(nil, "DISCARD"), false)
	switch {
	case c.watch != nil:
		if c.proto == 3 {
			c.say([]byte("_\r\n"))
		} else {
			c.say([]byte("*-1\r\n"))
		}
	case t.sent == nil && t.sentBytes > 0:
		c.refuse("TRYAGAIN the transaction was not executed: the slot of its keys has moved to another shard meanwhile")
	default:
		shard, one := c.presentShard()
		if !one {
			c.refuse(execAbort[:len(execAbort)-len("previous errors.")] + "a change of the ring: its keys are on several shards now.")
			return
		}
		k := c.connTo(shard)
		if k == nil {
			return
		}
		c.send(expect{op: opDrop, from: k}, resp.AppendCommand(nil, "MULTI"), false)
		for _, cmd := range t.sent {
			c.send(expect{op: opDrop, from: k}, cmd, true)
		}
		c.send(expect{from: k, silent: c.mute}, raw, true)
	}
}
