// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"slices"
	"strings"

	"redoubt/internal/resp"
)

// The kinds of subscriptions.
const (
	subChannel = iota
	subPattern
	subSharded
	subKinds
)

// subscription is one channel or pattern of a SUBSCRIBE or UNSUBSCRIBE.
type subscription struct {
	word  string // of the confirmation: subscribe, punsubscribe …
	name  []byte
	count int // of the client's subscriptions, as the confirmation says it
	group *subGroup
	again *drifting // it is followed to another shard; nil: the client has asked for it
}

// subGroup is what the channels of one command share: a server refuses the command as a whole, with one error.
type subGroup struct{ refused bool }

// subscriptions returns how many channels and patterns the client is subscribed to.
func (c *client) subscriptions() int {
	return len(c.subs[subChannel]) + len(c.subs[subPattern]) + len(c.subs[subSharded])
}

// pubsub handles SUBSCRIBE and its relatives. It reports false for what is the server's to refuse.
func (c *client) pubsub(name string, args [][]byte) bool {
	word := strings.ToLower(name)
	kind, ends := subChannel, strings.Contains(word, "unsubscribe")
	switch word[0] {
	case 'p':
		kind = subPattern
	case 's':
		if word[1] != 'u' || word == "sunsubscribe" {
			kind = subSharded
		}
	}
	if len(args) < 2 && !ends {
		return false
	}
	names := clone(args[1:])
	if ends && len(names) == 0 {
		for n := range c.subs[kind] {
			names = append(names, []byte(n))
		}
		if len(names) == 0 {
			c.confirm(word, nil, c.confirmed(kind))
			return true
		}
	}
	if !ends && !c.reach(kind, names) {
		return true
	}
	group := &subGroup{}
	entries := make([]*extra, 0, len(names))
	for _, n := range names {
		if x := c.subscribeOne(kind, ends, &subscription{word: word, name: n, group: group}); x != nil {
			entries = append(entries, x)
		}
	}
	c.settle()
	for _, x := range entries {
		if x.reply != nil && !ends { // refused
			delete(c.subs[kind], string(x.sub.name))
		}
	}
	c.vis.setSubs(&c.subs)
	return true
}

// reach opens the connections that subscriptions need, before any of them is made.
func (c *client) reach(kind int, names [][]byte) bool {
	for _, n := range names {
		for _, i := range c.shardsOf(kind, n) {
			if c.connTo(i) == nil {
				return false
			}
		}
	}
	return true
}

// shardsOf returns where a channel or pattern lives: a channel on the shard that its name would have as a key; a pattern, and
// what servers say about their own keys, everywhere.
func (c *client) shardsOf(kind int, name []byte) []int {
	own := bytes.HasPrefix(name, []byte("__keyspace@")) || bytes.HasPrefix(name, []byte("__keyevent@"))
	if c.f.o.Cluster != nil && kind == subPattern { // what is published reaches all servers of a cluster, but for what they say of keys
		if own = bytes.HasPrefix(name, []byte("__key")); !own {
			return []int{c.f.home()}
		}
	}
	if kind == subPattern || kind == subChannel && own {
		return c.f.live()
	}
	return []int{c.place(name)}
}

func (c *client) confirmed(kind int) int {
	if kind == subSharded {
		return len(c.subs[subSharded])
	}
	return len(c.subs[subChannel]) + len(c.subs[subPattern])
}

// subscribeOne makes or ends one subscription; it returns what waits for the shards' confirmation, nil if nothing does.
func (c *client) subscribeOne(kind int, ends bool, s *subscription) *extra {
	at, have := c.subs[kind][string(s.name)]
	to := c.shardsOf(kind, s.name)
	if ends {
		delete(c.subs[kind], string(s.name))
		if s.count = c.confirmed(kind); !have {
			c.confirm(s.word, s.name, s.count)
			return nil
		}
		if at != allShards && !c.f.gone(at) { // its slot may be another shard's now
			to = []int{at}
		}
	} else {
		if have && at != allShards && kind == subChannel && !c.f.gone(at) {
			to = []int{at}
		}
		if c.subs[kind] == nil {
			c.subs[kind] = map[string]int{}
		}
		c.subs[kind][string(s.name)] = allShards
		if len(to) == 1 {
			c.subs[kind][string(s.name)] = to[0]
		}
		s.count = c.confirmed(kind)
	}
	x := &extra{sub: s}
	command := resp.AppendCommand(nil, []byte(s.word), s.name)
	for _, i := range to {
		k := c.connTo(i)
		if k == nil {
			return nil
		}
		x.parts = append(x.parts, k)
	}
	for _, k := range x.parts {
		c.part(k, command)
	}
	c.push(expect{op: opSub, x: x, silent: c.mute && c.proto == 2}, nil)
	return x
}

// confirm answers for what no shard needs to be asked.
func (c *client) confirm(word string, name []byte, count int) {
	b := confirmation(nil, c.proto, word, name, count)
	c.push(expect{op: opCanned, canned: b, silent: c.mute && c.proto == 2}, nil)
}

func confirmation(dst []byte, proto int, word string, name []byte, count int) []byte {
	if proto == 3 {
		dst = resp.AppendPush(dst, 3)
	} else {
		dst = resp.AppendArray(dst, 3)
	}
	dst = resp.AppendBulk(dst, word)
	if name == nil {
		dst = resp.AppendNull(dst, proto)
	} else {
		dst = resp.AppendBulk(dst, name)
	}
	return resp.AppendInt(dst, int64(count))
}

// subscribed handles the confirmations that the entry at the head waits for, and reports whether it is done.
func (c *client) subscribed(e *expect) bool {
	frames := make([][]byte, 0, 8)
	for _, k := range e.x.parts {
		frames = append(frames, k.front())
	}
	if slices.ContainsFunc(frames, func(f []byte) bool { return f == nil }) {
		return false
	}
	s := e.x.sub
	bad := slices.IndexFunc(frames, func(f []byte) bool { return f[0] == '-' })
	if bad >= 0 {
		if c.f.o.Cluster != nil && redirects(frames[bad]) {
			frames[bad] = elsewhere(frames[bad])
		}
		e.x.reply = bytes.Clone(frames[bad])
	}
	if s.again != nil && bad >= 0 {
		c.setAdrift(*s.again)
	}
	switch {
	case e.silent:
	case bad < 0:
		c.append(confirmation(nil, c.vis.protoNow(), s.word, s.name, s.count))
	case !s.group.refused:
		c.append(frames[bad])
		s.group.refused = true
	}
	for i, k := range e.x.parts {
		if elements := resp.Elements(frames[i], nil); len(elements) == 3 {
			if strings.HasSuffix(s.word, "unsubscribe") {
				k.subs = max(0, k.subs-1)
			} else {
				k.subs++
			}
		}
		c.take(k)
	}
	return true
}

// isMessage reports whether a frame is no reply to anything: a push, or in RESP2 a message to a subscriber.
func (k *conn) isMessage(f []byte) bool {
	if f[0] != '>' && (f[0] != '*' || k.subs == 0) {
		return false
	}
	switch string(firstWord(f)) {
	case "message", "pmessage", "smessage":
		return true
	case "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe":
		return !k.c.confirms(k)
	}
	return f[0] == '>'
}

// firstWord returns the text of the first element of an aggregate.
func firstWord(f []byte) []byte {
	rest := f[bytes.IndexByte(f, '\n')+1:]
	if len(rest) == 0 || rest[0] != '$' {
		return nil
	}
	return resp.Text(rest)
}

// confirms reports whether a confirmation from k is awaited: then it is a reply.
func (c *client) confirms(k *conn) bool {
	for i := c.head; i < len(c.queue); i++ {
		if e := &c.queue[i]; e.op == opSub && slices.Contains(e.x.parts, k) {
			return true
		}
	}
	return false
}
