// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"context"
	"slices"
	"time"

	"redoubt/internal/resp"
)

// Shards that are removed, and subscriptions that lose their shard. What a client has at a shard that is removed is nothing but subscriptions and
// settings, because the shard has no keys any more: the first go to another one, the second are known there. A sharded channel whose slot has
// moved is subscribed at the shard that has the slot; what is published in between is not heard, as with any cluster.

const (
	allShards   = -1                    // in place of a shard's number
	rehomePause = 10 * time.Millisecond // before a subscription is tried (again)
	vacateLook  = 5 * time.Millisecond
)

// drifting is a subscription that has no shard.
type drifting struct {
	kind  int
	name  string
	since time.Time
}

func (f *Front) gone(i int) bool { return i >= 0 && i < len(f.shards()) && f.shards()[i].gone }

// after returns the number of the next shard that clients have to do with; negative: there is none.
func (f *Front) after(i int) int {
	next := -1
	for _, n := range f.live() {
		if n > i && (next < 0 || n < next) {
			next = n
		}
	}
	return next
}

// RemoveShard has nothing concern a shard any more, which has to have no keys, and leads clients away from it. It returns when none has a
// connection to it, or ctx ends: left is how many do.
func (f *Front) RemoveShard(ctx context.Context, name string) (left int) {
	f.mu.Lock()
	next := slices.Clone(f.shards())
	gone := slices.IndexFunc(next, func(s Shard) bool { return s.Name == name })
	if gone < 0 {
		f.mu.Unlock()
		return 0
	}
	next[gone].gone = true
	f.known.Store(&next)
	f.paths.Store(nil)
	f.mu.Unlock()
	tick := time.NewTicker(vacateLook)
	defer tick.Stop()
	for {
		left = 0
		for _, c := range f.all() {
			left += c.leave(gone)
		}
		if left == 0 {
			return 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return left
		}
	}
}

// leave has the client's loop lead it away from a shard, and returns 1 while it has a connection to it.
func (c *client) leave(shard int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || shard >= len(c.conns) || c.conns[shard] == nil {
		return 0
	}
	c.rehomes = true
	c.sock.Again()
	return 1
}

// followChannel takes note that a shard has ended the subscription that f is about. The caller holds c.mu.
func (c *client) followChannel(f []byte) {
	if e := resp.Elements(f, nil); len(e) == 3 {
		c.setAdrift(drifting{subSharded, string(resp.Text(e[1])), time.Now()}) // the slot is about to have its next owner
	}
}

// setAdrift has the loop subscribe something somewhere else, after a pause. The caller holds c.mu.
func (c *client) setAdrift(d drifting) {
	c.adrift = append(c.adrift, d)
	time.AfterFunc(rehomePause, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.over {
			c.rehomes = true
			c.sock.Again()
		}
	})
}

// rehome subscribes what has lost its shard where it belongs now, and ends connections to shards that were removed. It runs on the loop, in
// front of the client's next command.
func (c *client) rehome() {
	c.mu.Lock()
	if c.turned {
		c.mu.Unlock()
		return // stir has the loop come again
	}
	if c.txn.on { // EXEC, or the end of the client, comes first
		c.mu.Unlock()
		return
	}
	lost := c.adrift
	c.adrift, c.rehomes = nil, false
	c.mu.Unlock()
	c.onLoop = true
	for kind, names := range c.subs {
		for name, at := range names {
			if c.f.gone(at) && !slices.ContainsFunc(lost, func(d drifting) bool { return d.kind == kind && d.name == name }) {
				lost = append(lost, drifting{kind, name, time.Now()})
			}
		}
	}
	for _, d := range lost {
		c.resubscribe(d)
	}
	c.flush()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range slices.Clone(c.conns) {
		if k != nil && c.f.gone(k.i) && k.owed == 0 && c.watch != k {
			k.subs, k.keeps = 0, false
			c.lost(k)
		}
	}
}

var subWords = [subKinds]string{"subscribe", "psubscribe", "ssubscribe"}

// resubscribe makes a subscription once more; the client hears of it only if that does not work for long.
func (c *client) resubscribe(d drifting) {
	if _, have := c.subs[d.kind][d.name]; !have {
		return // it has ended it meanwhile
	}
	at := c.shardsOf(d.kind, []byte(d.name))
	if time.Since(d.since) > c.f.o.Limits.Redirect {
		delete(c.subs[d.kind], d.name)
		c.confirm(string(bytes.Replace([]byte(subWords[d.kind]), []byte("sub"), []byte("unsub"), 1)), []byte(d.name), c.confirmed(d.kind))
		c.vis.setSubs(&c.subs)
		return
	}
	var k *conn
	if len(at) == 1 && at[0] >= 0 && at[0] < len(c.f.shards()) && !c.f.gone(at[0]) {
		k, _ = c.to(at[0])
	}
	if k == nil { // nobody is known to have its slot
		c.mu.Lock()
		c.setAdrift(d)
		c.mu.Unlock()
		return
	}
	c.subs[d.kind][d.name] = k.i
	s := &subscription{word: subWords[d.kind], name: []byte(d.name), group: &subGroup{}, again: &d}
	c.part(k, resp.AppendCommand(nil, []byte(s.word), s.name))
	c.push(expect{op: opSub, x: &extra{sub: s, parts: []*conn{k}}, silent: true}, nil)
}
