// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// transaction is what is known of an open MULTI. Its commands are held until the first key says which shard it is of.
type transaction struct {
	on    bool
	to    *conn // nil: not known yet
	group int   // of its keys, once keyed
	keyed bool
	held  [][]byte // commands that are answered with QUEUED and not sent yet
	bytes int
	bad   bool     // EXEC is refused
	n     int      // commands so far
	gen   uint64   // of the ring in which its shard was found
	keys  [][]byte // a ring's: all keys, bounded as sent is
	moved bool     // its slot is another shard's than to
	sent  [][]byte // a cluster's: the commands behind MULTI, to be said again elsewhere; nil: none, or too many

	sentBytes int
	dbs       []selected
}

// selected is a SELECT in a transaction: which of its commands it is, and the database.
type selected struct {
	at int
	db string
}

func ok() []byte     { return []byte("+OK\r\n") }
func queued() []byte { return []byte("+QUEUED\r\n") }

// transact handles MULTI, WATCH and what belongs to them outside of a transaction. It reports false for what is the server's to
// refuse.
func (c *client) transact(v route.Verdict, args [][]byte, raw []byte) bool {
	if v.Class != route.Watch && len(args) != 1 {
		return false
	}
	switch v.Class {
	case route.Multi:
		c.txn = transaction{on: true, to: c.watch, gen: c.f.gen()}
		c.vis.txn.Store(true)
		if c.watch == nil {
			c.say(ok())
			return true
		}
		c.send(expect{from: c.watch, silent: c.mute}, raw, false)
	case route.Exec:
		c.refuse("ERR EXEC without MULTI")
	case route.Discard:
		c.refuse("ERR DISCARD without MULTI")
	case route.Watch:
		return c.watchKeys(v, args, raw)
	case route.Unwatch:
		if c.watch == nil {
			c.say(ok())
			return true
		}
		c.send(expect{from: c.watch, silent: c.mute}, raw, false)
		c.unpin(c.watch)
		c.watch = nil
	default:
		return false
	}
	return true
}

func (c *client) watchKeys(v route.Verdict, args [][]byte, raw []byte) bool {
	at, text := c.keysOf(v, args)
	switch {
	case text == "" && at.keyed && c.watchedElsewhere():
		c.say(ok()) // EXEC will be null
		return true
	case text != "" || at.keyed && c.watch != nil && c.watch.i != at.shard:
		c.refuse(crossSlot)
		return true
	case !at.keyed:
		return false
	}
	if k := c.connTo(at.shard); k != nil {
		if c.watch == nil {
			c.watchGroup, c.watchGen = at.group, c.f.gen()
		}
		c.watch = k
		c.pin(k)
		c.send(expect{from: k, silent: c.mute}, raw, false)
	}
	return true
}

// pin notes that a connection holds what another one would not have.
func (c *client) pin(k *conn) {
	c.mu.Lock()
	k.keeps = true
	c.mu.Unlock()
}

func (c *client) unpin(k *conn) {
	c.mu.Lock()
	k.keeps = c.tracking != ""
	c.mu.Unlock()
}

// inTransaction handles a command behind MULTI.
func (c *client) inTransaction(v route.Verdict, args [][]byte, raw []byte) {
	t := &c.txn
	alone := len(args) == 1
	switch name := v.Row.Name; {
	case v.Class == route.Exec && alone:
		c.exec(raw)
	case v.Class == route.Discard && alone:
		if t.to == nil {
			c.say(ok())
		} else {
			c.send(expect{from: t.to, silent: c.mute}, raw, false)
		}
		c.endTransaction()
	case v.Class == route.Multi && alone:
		c.refuse("ERR MULTI calls can not be nested")
	case v.Class == route.Watch && !alone:
		c.refuse("ERR WATCH inside MULTI is not allowed")
	case name == "QUIT" || name == "RESET" && alone:
		c.special(v, args, raw)
	case v.Class == route.Forbidden:
		c.spoil(v.Why)
	case !c.f.single() && c.allShards(v, args):
		c.spoil("ERR " + strings.ToUpper(string(args[0])) + " is refused inside MULTI: it concerns all shards, and a transaction is of one")
	case v.Class == route.Pubsub || v.Class == route.Tracking || v.Class == route.Monitor || name == "CLIENT" || name == "AUTH" || name == "HELLO" || name == "PROXY",
		c.f.o.Cluster != nil && (name == "CLUSTER" || name == "READONLY" || name == "READWRITE" || name == "ASKING"):
		c.spoil("ERR " + strings.ToUpper(string(args[0])) + " is not allowed inside a transaction through the front")
	case name == "SELECT" && c.f.o.Cluster != nil && !selectsZero(args):
		c.spoil(noSelect)
	default:
		c.enqueue(v, args, raw)
	}
}

// allShards reports whether a command is one that several shards carry out together.
func (c *client) allShards(v route.Verdict, args [][]byte) bool {
	if v.Row.Name == "SCAN" || v.Row.Name == "RANDOMKEY" {
		return true
	}
	_, every := everywhere(v.Row.Name, args)
	return every && v.Row.Name != "INFO" && v.Row.Name != "PUBSUB"
}

// spoil refuses a command, and with it the transaction.
func (c *client) spoil(text string) {
	c.txn.bad = true
	c.refuse(text)
}

// enqueue passes a command of a transaction to its shard, or holds it while no key has named one.
func (c *client) enqueue(v route.Verdict, args [][]byte, raw []byte) {
	t := &c.txn
	at, text := c.keysOf(v, args)
	if (v.Row.Name == "PUBLISH" && c.f.o.Cluster == nil || v.Row.Name == "SPUBLISH") && len(args) == 3 {
		at = c.at(args[1]) // servers of a cluster tell each other what is published
		if c.f.o.Ring != nil {
			t.keepKey(args[1])
		}
	}
	if c.f.o.Ring != nil {
		for _, i := range c.idx {
			t.keepKey(args[i])
		}
	}
	if v.Row.Name == "SELECT" && len(args) == 2 && len(t.dbs) < selectsMax {
		t.dbs = append(t.dbs, selected{t.n, string(args[1])})
	}
	t.n++
	if text == "" && c.follows(at) {
		t.hold(at)
		t.keep(raw)
		c.say(queued())
		return
	}
	switch {
	case text != "" || at.keyed && t.to != nil && t.to.i != at.shard || at.keyed && t.keyed && at.group != t.group:
		c.spoil(cmp.Or(text, crossSlot))
	case t.to != nil:
		t.hold(at)
		if c.repeats() {
			t.keep(raw)
		}
		c.send(expect{from: t.to, silent: c.mute}, raw, v.Class != route.Read)
	case at.keyed:
		if k := c.connTo(at.shard); k == nil {
			t.bad = true
		} else {
			t.hold(at)
			if v.Row.Care == route.EvalSHA { // inside, it could not be told any more
				c.tellScript(k, args[1])
			}
			c.begin(k)
			if c.repeats() {
				t.keep(raw)
			}
			c.send(expect{from: k, silent: c.mute}, raw, v.Class != route.Read)
		}
	case v.Row.Name == "":
		c.spoil(unknownCommand(args))
	default:
		if t.bytes += len(raw); t.bytes > c.f.o.Limits.Query || len(t.held) >= c.f.o.Limits.Pipeline {
			c.spoil("ERR too many commands before the first one with a key")
			return
		}
		t.held = append(t.held, bytes.Clone(raw))
		c.say(queued())
	}
}

// hold notes what all later keys have to share with a command's.
func (t *transaction) hold(at place) {
	if at.keyed {
		t.group, t.keyed = at.group, true
	}
}

// unknownCommand is the server's error.
func unknownCommand(args [][]byte) string {
	const most = 128
	b := "ERR unknown command '" + string(args[0][:min(len(args[0]), most)]) + "', with args beginning with: "
	tail := ""
	for _, a := range args[1:] {
		if len(tail) >= most {
			break
		}
		tail += "'" + string(a[:min(len(a), most-len(tail))]) + "' "
	}
	return b + tail
}

// repeats reports whether a transaction may have to be said again at another shard.
func (c *client) repeats() bool { return c.f.o.Cluster != nil || c.f.o.Ring != nil }

// begin opens the transaction at its shard, with what was held.
func (c *client) begin(k *conn) {
	c.txn.to, c.txn.gen = k, c.f.gen()
	c.pin(k)
	c.send(expect{op: opDrop, from: k}, resp.AppendCommand(nil, "MULTI"), false)
	for _, raw := range c.txn.held {
		if c.repeats() {
			c.txn.keep(raw)
		}
		c.send(expect{op: opDrop, from: k}, raw, true)
	}
	c.txn.held = nil
}

func (c *client) exec(raw []byte) {
	t := &c.txn
	if t.keyed && c.f.o.Cluster != nil {
		c.aim = t.group + 1
	}
	switch {
	case t.bad && t.to != nil:
		c.send(expect{op: opDrop, from: t.to}, resp.AppendCommand(nil, "DISCARD"), false)
		c.refuse(execAbort)
	case t.bad:
		c.refuse(execAbort)
	case c.follows(place{}):
		c.execElsewhere(raw)
	case t.to == nil && len(t.held) == 0:
		c.say([]byte("*0\r\n"))
	default:
		if t.to == nil {
			k := c.connTo(c.f.home())
			if k == nil {
				break
			}
			c.begin(k)
		}
		c.carryOut(raw)
	}
	c.endTransaction()
}

// selectsMax bounds how many SELECTs of a transaction are looked at.
const selectsMax = 1000

// carryOut sends EXEC. After a SELECT in the transaction, all connections follow it to its database.
func (c *client) carryOut(raw []byte) {
	k, dbs := c.txn.to, c.txn.dbs
	if len(dbs) == 0 {
		c.send(expect{from: k, silent: c.mute}, raw, false)
		return
	}
	x := &extra{}
	c.send(expect{op: opTell, from: k, x: x, silent: c.mute}, raw, false)
	if !c.settle() {
		return
	}
	results, was := resp.Elements(x.reply, nil), c.db
	for _, s := range dbs {
		if s.at < len(results) && results[s.at][0] == '+' {
			c.setDB(s.db)
		}
	}
	if c.db == was {
		return
	}
	if conns, err := c.open(); err == nil {
		c.ask(resp.AppendCommand(nil, "SELECT", strconv.Itoa(c.db)), conns...)
	}
}

func (c *client) endTransaction() {
	for _, k := range []*conn{c.txn.to, c.watch} {
		if k != nil {
			c.unpin(k)
		}
	}
	c.txn, c.watch = transaction{}, nil
	c.vis.txn.Store(false)
}
