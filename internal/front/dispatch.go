// SPDX-License-Identifier: Apache-2.0

package front

import (
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/slots"
)

const (
	crossSlot  = "CROSSSLOT Keys in request don't hash to the same slot"
	noAuth     = "NOAUTH Authentication required."
	inSubMode  = "': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
	execAbort  = "EXECABORT Transaction discarded because of previous errors."
	noShard    = "ERR no shard is responsible for this key"
	noMonitor  = "ERR MONITOR is refused: no connection sees all shards; connect to a shard directly"
	argsNumber = "ERR wrong number of arguments for '"
)

// handle deals with one command; args is not empty. Its reply is in the queue when it returns.
func (c *client) handle(v route.Verdict, args [][]byte, raw []byte) {
	c.vis.show(v.Row, args)
	c.verdict, c.words = v, len(args)
	c.mute, c.skip = c.quiet || c.skip, false
	name := v.Row.Name
	if c.aim = aimNone; !c.onLoop && c.authed {
		c.await(v, args)
		c.awaitRing()
	}
	switch {
	case !c.authed && name != "AUTH" && name != "HELLO" && name != "QUIT" && name != "RESET":
		c.refuse(noAuth)
	case c.proto == 2 && c.subscriptions() > 0 && v.Class != route.Pubsub && name != "PING" && name != "QUIT" && name != "RESET":
		c.refuse("ERR Can't execute '" + strings.ToLower(string(args[0])) + inSubMode)
	case c.txn.on:
		c.inTransaction(v, args, raw)
	case v.Class == route.Forbidden:
		c.refuse(v.Why)
	default:
		if !c.special(v, args, raw) {
			c.byKeys(v, args, raw)
		}
	}
}

// special handles the commands that do not simply go where their keys are; it reports false for all others.
func (c *client) special(v route.Verdict, args [][]byte, raw []byte) bool {
	switch v.Row.Name {
	case "GET", "SET", "INCR", "EXPIRE", "HGET", "HSET", "LPUSH", "RPUSH", "SADD", "ZADD":
		return false // the most frequent ones
	case "PING":
		c.ping(args, raw)
	case "ECHO":
		if len(args) != 2 {
			return false
		}
		c.say(resp.AppendBulk(nil, args[1]))
	case "QUIT":
		c.say([]byte("+OK\r\n"))
		c.leaving = true
	case "POST", "HOST:": // HTTP: servers end the connection
		c.leaving = true
	case "RESET":
		if len(args) > 1 {
			return false
		}
		c.reset()
	case "AUTH":
		c.auth(args, raw)
	case "HELLO":
		c.hello(args, raw)
	case "SELECT":
		if c.f.o.Cluster != nil {
			return c.selectInCluster(args)
		}
		c.selectDB(args, raw)
	case "READONLY", "READWRITE", "ASKING":
		if !c.f.speaksCluster() || len(args) > 1 {
			return false // the server's error
		}
		c.say(ok())
	case "MONITOR":
		c.refuse(noMonitor)
	case "MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH":
		return c.transact(v, args, raw)
	case "WAIT", "WAITAOF":
		c.wait(args, raw)
	case "CLIENT":
		return c.clientCommand(args, raw)
	case "CLUSTER":
		return c.cluster(args, raw)
	case "PROXY":
		c.proxy(args, raw)
	case "PUBLISH", "SPUBLISH":
		if len(args) != 3 {
			return false
		}
		c.pass(c.place(args[1]), raw, true)
	case "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE":
		return c.pubsub(v.Row.Name, args)
	case "MGET", "MSET", "DEL", "UNLINK", "EXISTS", "TOUCH":
		return c.split(v, args)
	case "SCAN":
		return c.scan(args)
	case "RANDOMKEY":
		if len(args) != 1 || len(c.f.shards()) == 1 {
			return false
		}
		c.randomKey(raw)
	case "EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO":
		return c.script(v, args, raw)
	default:
		if j, ok := everywhere(v.Row.Name, args); ok && !c.f.single() {
			c.learn(v.Row.Name, args)
			if v.Row.Name == "FLUSHALL" || v.Row.Name == "FLUSHDB" {
				c.aim = aimAllKeys
			}
			if j.kind == joinInfo {
				raw = infoCommand(args, raw)
			}
			c.onAll(j, raw, v.Class != route.Read)
			return true
		}
		c.learn(v.Row.Name, args)
		return false
	}
	return true
}

// byKeys passes a command to the shard of its keys, or to the home shard if it has none.
func (c *client) byKeys(v route.Verdict, args [][]byte, raw []byte) {
	shard, text := c.shardOf(v, args)
	if text != "" {
		c.refuse(text)
		return
	}
	if v.Class == route.Block && c.f.o.Ring != nil {
		c.blockInRing(v, args, raw)
		return
	}
	if v.Class == route.Block {
		c.block(shard, raw)
		return
	}
	c.pass(shard, raw, v.Class != route.Read)
}

// shardOf returns the shard of a command's keys, home if it has none; text is the error of one that cannot be carried out by one
// shard.
func (c *client) shardOf(v route.Verdict, args [][]byte) (shard int, text string) {
	at, text := c.keysOf(v, args)
	return at.shard, text
}

// place is where a command's keys are.
type place struct {
	shard int
	group int  // what keys of one command have to share: their slot in a cluster, their shard otherwise
	keyed bool // there are keys; otherwise it is the home shard
}

// keysOf returns where a command's keys are; text is the error of one that cannot be carried out by one shard.
func (c *client) keysOf(v route.Verdict, args [][]byte) (at place, text string) {
	c.idx = v.Row.Keys(args, c.idx[:0])
	if len(c.idx) == 0 {
		return place{shard: c.f.home()}, ""
	}
	if at = c.at(args[c.idx[0]]); c.f.o.Cluster != nil {
		c.aim = at.group + 1
	}
	for _, i := range c.idx[1:] {
		if c.group(args[i]) != at.group {
			return place{keyed: true}, crossSlot
		}
	}
	if !c.f.single() && (v.Row.Name == "SORT" || v.Row.Name == "SORT_RO") {
		return at, sortsByOthers(args)
	}
	return at, ""
}

// sortsByOthers returns an error if a SORT looks at keys that its arguments do not name.
func sortsByOthers(args [][]byte) string {
	for i := 2; i+1 < len(args); i++ {
		switch {
		case route.Is(args[i], "LIMIT"):
			i += 2
		case route.Is(args[i], "BY"):
			if strings.Contains(string(args[i+1]), "*") {
				return "ERR BY option of SORT denied in cluster mode."
			}
			i++
		case route.Is(args[i], "GET"):
			if string(args[i+1]) != "#" {
				return "ERR GET option of SORT denied in cluster mode."
			}
			i++
		case route.Is(args[i], "STORE"):
			i++
		}
	}
	return ""
}

// place returns the shard of a key; one out of range is refused where it is used.
func (c *client) place(key []byte) int { return c.at(key).shard }

// at returns where a key is.
func (c *client) at(key []byte) place {
	g := c.group(key)
	if c.f.o.Cluster != nil {
		return place{c.f.shardOfSlot(g), g, true}
	}
	return place{g, g, true}
}

// group returns what the keys of one command have to share.
func (c *client) group(key []byte) int {
	switch {
	case c.f.o.Cluster != nil:
		return slots.Of(key)
	case len(c.f.shards()) == 1 && c.f.o.Ring == nil:
		return 0
	}
	if r := c.f.ringOf(); r != nil {
		return r.Place(key)
	}
	return c.f.o.Place(key)
}

// connTo returns the connection to a shard; what keeps the command from being carried out has been said when it is nil.
func (c *client) connTo(shard int) *conn {
	if shard < 0 || shard >= len(c.f.shards()) {
		if c.f.o.Cluster != nil { // it may have come a moment ago
			c.refuse("TRYAGAIN the command was not executed: no shard that is known here has the slot of its keys")
			return nil
		}
		c.refuse(noShard)
		return nil
	}
	k, err := c.to(shard)
	if err != nil {
		c.refuse(unreachable(err))
		return nil
	}
	return k
}

// pass sends a command to a shard, whose reply goes to the client as it is.
func (c *client) pass(shard int, raw []byte, writes bool) {
	if k := c.connTo(shard); k != nil {
		c.send(expect{from: k, silent: c.mute}, raw, writes)
	}
}

// block passes a command that may block. What the client says behind it waits until it is answered, as at one server.
func (c *client) block(shard int, raw []byte) {
	if k := c.connTo(shard); k != nil {
		c.vis.blocked.Store(k)
		c.send(expect{from: k, silent: c.mute, blocks: true}, raw, true)
		c.settle()
		c.vis.blocked.Store(nil)
	}
}

// send puts a command on its way to e.from, behind a CLIENT CACHING that is meant for it.
func (c *client) send(e expect, raw []byte, writes bool) {
	k := e.from
	k.wrote = k.wrote || writes
	if c.caching != nil {
		c.push(expect{op: opDrop, from: k}, c.caching)
		c.caching = nil
	}
	c.mu.Lock()
	c.awaitDetour()
	if c.offer(k, raw) {
		c.owe(e, raw)
	} else {
		c.pushLocked(e, raw)
	}
	have := k.out.size()
	c.mu.Unlock()
	if have >= batchMax {
		c.relieve(k)
	}
}

// relieve writes what has come together, and waits for a shard that does not take it; the loop only handles no further command.
func (c *client) relieve(k *conn) {
	c.flush()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.onLoop && k.out.size() > behindMax && !k.out.broken && !c.over {
		c.sleep()
	}
}

// onAll sends a command to all shards, whose replies become one.
func (c *client) onAll(j join, raw []byte, writes bool) {
	conns, err := c.every()
	if err != nil {
		c.refuse(unreachable(err))
		return
	}
	c.together(conns, j, raw, writes)
}

// together sends a command to some connections, whose replies become one.
func (c *client) together(conns []*conn, j join, raw []byte, writes bool) {
	c.f.stats.split.Add(1)
	for _, k := range conns {
		k.wrote = k.wrote || writes
		c.part(k, raw)
	}
	c.push(expect{op: opJoin, x: &extra{parts: conns, join: j}, silent: c.mute}, nil)
}

// part sends what a shard has to do for a joined reply; the entry for that follows.
func (c *client) part(k *conn, raw []byte) {
	c.mu.Lock()
	c.awaitDetour()
	if !c.offer(k, raw) {
		c.give(k, raw)
	}
	k.owed++
	big := k.out.size() >= batchMax
	c.mu.Unlock()
	if big {
		c.flush()
	}
}

func (c *client) ping(args [][]byte, raw []byte) {
	switch {
	case len(args) > 2:
		c.pass(c.f.home(), raw, false) // the server's error
	case c.proto == 2 && c.subscriptions() > 0:
		b := resp.AppendBulk(resp.AppendArray(nil, 2), "pong")
		if len(args) == 2 {
			c.say(resp.AppendBulk(b, args[1]))
		} else {
			c.say(resp.AppendBulk(b, ""))
		}
	case len(args) == 2:
		c.say(resp.AppendBulk(nil, args[1]))
	default:
		c.say(pong())
	}
}

func pong() []byte { return []byte("+PONG\r\n") }

// proxy answers PROXY SHARDOF and PROXY INFO. Every other one is a matter of the proxies behind each shard, which keep it for the
// connection.
func (c *client) proxy(args [][]byte, raw []byte) {
	switch {
	case len(args) == 3 && route.Is(args[1], "SHARDOF"):
		if i := c.place(args[2]); i >= 0 && i < len(c.f.shards()) {
			c.say(resp.AppendBulk(nil, c.f.shards()[i].Name))
		} else {
			c.refuse(noShard)
		}
	case len(args) >= 3 && route.Is(args[1], "INFO"):
		for i, s := range c.f.shards() {
			if s.Name == string(args[2]) && !s.gone {
				c.pass(i, resp.AppendCommand(nil, append([][]byte{[]byte("INFO")}, args[3:]...)...), false)
				return
			}
		}
		c.refuse("ERR there is no shard of this name")
	case len(args) == 3 && route.Is(args[1], "DURABILITY"):
		c.keep("PROXY DURABILITY", raw)
	case len(args) == 2 && route.Is(args[1], "DURABILITY"):
		c.pass(c.f.home(), raw, false)
	default:
		c.refuse("ERR use PROXY SHARDOF key, PROXY INFO shard [section ...] or PROXY DURABILITY [QUORUM|ASYNC]")
	}
}
