// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// session is what the server side of one connection would know. It is told to each connection to a shard when that opens.
type session struct {
	proto      int
	authed     bool
	quiet      bool                     // CLIENT REPLY OFF
	skip       bool                     // CLIENT REPLY SKIP, for the next command
	mute       bool                     // the present command is not answered
	leaving    bool                     // QUIT
	subs       [subKinds]map[string]int // by name: the shard that has it, or allShards; nil: none yet
	caching    []byte                   // CLIENT CACHING, for the next command
	txn        transaction
	user       []byte // nil: none was named
	password   []byte // nil: none was given
	db         int
	name       string
	settings   []setting // CLIENT NO-EVICT, TRACKING and the like, in their order
	tracking   string    // its words, in upper case, between spaces; empty: off
	watch      *conn     // that holds keys for WATCH
	watchGen   uint64    // of the ring in which its shard was found
	watchGroup int       // of the first of them
}

// setting is a command that each connection has to be told.
type setting struct {
	key string // one with the same key takes its place
	raw []byte
}

func (s *session) clear(authed bool) {
	*s = session{proto: 2, authed: authed}
}

// home is the shard that answers what concerns no key: the first one that there is.
func (f *Front) home() int {
	return max(0, slices.IndexFunc(f.shards(), func(s Shard) bool { return !s.gone }))
}

// introduce tells a fresh connection what it has to know of the client. Nothing is waited for.
func (c *client) introduce(k *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	say := func(o op, words ...string) { c.pushLocked(expect{op: o, from: k}, resp.AppendCommand(nil, words...)) }
	if c.password != nil && c.user != nil {
		say(opMust, "AUTH", string(c.user), string(c.password))
	} else if c.password != nil {
		say(opMust, "AUTH", string(c.password))
	}
	if !c.authed {
		return
	}
	if c.proto == 3 {
		say(opMust, "HELLO", "3")
	}
	if c.name != "" {
		say(opDrop, "CLIENT", "SETNAME", c.name)
	}
	if c.db != 0 {
		say(opMust, "SELECT", strconv.Itoa(c.db))
	}
	for _, s := range c.settings {
		c.pushLocked(expect{op: opDrop, from: k}, s.raw)
		k.keeps = k.keeps || s.key == "TRACKING"
	}
	if k.id = k.sock.ID(); k.id == nil {
		say(opID, "CLIENT", "ID") // which the shard's proxy handles in a goroutine, as everything that is no plain read or write
	}
}

// open returns the connections that there are, that of the home shard first, which is opened if need be.
func (c *client) open() ([]*conn, error) {
	h, err := c.to(c.f.home())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	conns := []*conn{h}
	for _, k := range c.conns {
		if k != nil && k != h {
			conns = append(conns, k)
		}
	}
	return conns, nil
}

// every returns connections to all shards.
func (c *client) every() ([]*conn, error) {
	live := c.f.live()
	conns := make([]*conn, len(live))
	for n, i := range live {
		k, err := c.to(i)
		if err != nil {
			return nil, err
		}
		conns[n] = k
	}
	return conns, nil
}

// tell has the open connections carry out a command that changes their state, and returns the home shard's answer; nil when
// there is none, which has been said. An error of any of them is the answer.
func (c *client) tell(raw []byte) []byte {
	conns, err := c.open()
	if err != nil {
		c.refuse(unreachable(err))
		return nil
	}
	replies := c.ask(raw, conns...)
	if replies == nil {
		return nil
	}
	if i := slices.IndexFunc(replies, func(f []byte) bool { return f[0] == '-' }); i >= 0 {
		return replies[i]
	}
	return replies[0]
}

func unreachable(err error) string { return "TRYAGAIN the command was not executed: " + err.Error() }

func (c *client) auth(args [][]byte, raw []byte) {
	words := clone(args)
	reply := c.tell(raw)
	if reply == nil {
		return
	}
	if reply[0] == '+' {
		c.enter(words[1:])
	}
	c.say(reply)
}

// enter notes accepted credentials: [user] password.
func (c *client) enter(words [][]byte) {
	c.user = nil
	if c.password = words[len(words)-1]; len(words) > 1 {
		c.user = words[0]
	}
	c.authed = true
	c.vis.setUser(string(c.user))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.conns {
		if k != nil && k.id == nil {
			c.pushLocked(expect{op: opID, from: k}, resp.AppendCommand(nil, "CLIENT", "ID"))
		}
	}
}

// hello passes HELLO on to the open connections, and notes what it has changed.
func (c *client) hello(args [][]byte, raw []byte) {
	words := clone(args)
	reply := c.tell(raw)
	if reply == nil {
		return
	}
	if reply[0] == '-' {
		c.say(reply)
		return
	}
	if len(words) > 1 {
		c.proto = int(words[1][0] - '0')
		c.vis.proto.Store(int32(c.proto))
	}
	for i := 2; i < len(words); i++ {
		switch {
		case route.Is(words[i], "AUTH") && i+2 < len(words):
			c.enter(words[i+1 : i+3])
			i += 2
		case route.Is(words[i], "SETNAME") && i+1 < len(words):
			c.rename(string(words[i+1]))
			i++
		}
	}
	c.say(c.withOwnID(reply))
}

// withOwnID returns a reply to HELLO in which the id is the client's, and the mode that of the face.
func (c *client) withOwnID(reply []byte) []byte {
	e := resp.Elements(reply, nil)
	if len(e) == 0 {
		return reply
	}
	out := slices.Clone(reply[:bytes.IndexByte(reply, '\n')+1])
	for i := 0; i+1 < len(e); i += 2 {
		out = append(out, e[i]...)
		switch name := string(resp.Text(e[i])); {
		case name == "id":
			out = resp.AppendInt(out, int64(c.id))
		case name == "mode" && c.f.speaksCluster():
			out = resp.AppendBulk(out, "cluster")
		default:
			out = append(out, e[i+1]...)
		}
	}
	return out
}

func (c *client) selectDB(args [][]byte, raw []byte) {
	db := ""
	if len(args) == 2 {
		db = string(args[1])
	}
	reply := c.tell(raw)
	if reply == nil {
		return
	}
	if reply[0] == '+' {
		c.setDB(db)
	}
	c.say(reply)
}

func (c *client) setDB(db string) {
	if n, err := strconv.Atoi(db); err == nil {
		c.db = n
		c.vis.db.Store(int32(n))
	}
}

// reset answers RESET: the connections to shards end, and with them all that they knew.
func (c *client) reset() {
	if !c.settle() {
		return
	}
	mute := c.mute && !c.quiet // it ends CLIENT REPLY OFF, while SKIP holds for it as for any other
	c.drop()
	c.session.clear(c.f.o.Password == "")
	c.vis.reset(c)
	c.mute = mute
	c.say([]byte("+RESET\r\n"))
}

// keep passes a command on that changes the connection's state in a way that later connections have to be told, too.
func (c *client) keep(key string, raw []byte) {
	raw = bytes.Clone(raw)
	reply := c.tell(raw)
	if reply == nil {
		return
	}
	if reply[0] != '-' {
		c.note(key, raw)
	}
	c.say(reply)
}

func (c *client) note(key string, raw []byte) {
	c.settings = append(slices.DeleteFunc(c.settings, func(s setting) bool { return s.key == key }), setting{key, raw})
}

// track passes CLIENT TRACKING on to all shards: what is read from any of them may change.
func (c *client) track(args [][]byte, raw []byte) {
	words := strings.ToUpper(" " + string(bytes.Join(args[2:], []byte(" "))) + " ")
	if strings.Contains(words, " REDIRECT ") && len(c.f.shards()) > 1 {
		c.refuse("ERR CLIENT TRACKING with REDIRECT is refused: a connection has another id on each shard; use RESP3")
		return
	}
	raw = bytes.Clone(raw)
	on := len(args) > 2 && route.Is(args[2], "ON")
	if on {
		if _, err := c.every(); err != nil {
			c.refuse(unreachable(err))
			return
		}
	}
	reply := c.tell(raw)
	if reply == nil {
		return
	}
	if reply[0] == '+' {
		c.settings = slices.DeleteFunc(c.settings, func(s setting) bool { return s.key == "TRACKING" })
		if c.tracking = ""; on {
			c.tracking = words
			c.note("TRACKING", raw)
		}
		c.mu.Lock()
		for _, k := range c.conns {
			if k != nil {
				k.keeps = on
			}
		}
		c.mu.Unlock()
	}
	c.say(reply)
}

// cache keeps CLIENT CACHING for the command that follows: only then it is known which shard it concerns.
func (c *client) cache(args [][]byte, raw []byte) {
	yes := len(args) == 3 && route.Is(args[2], "YES")
	switch {
	case len(args) != 3 || !yes && !route.Is(args[2], "NO"):
		c.pass(c.f.home(), raw, false)
	case !strings.Contains(c.tracking, " OPTIN ") && !strings.Contains(c.tracking, " OPTOUT "):
		c.refuse("ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled")
	case yes && !strings.Contains(c.tracking, " OPTIN "):
		c.refuse("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.")
	case !yes && !strings.Contains(c.tracking, " OPTOUT "):
		c.refuse("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.")
	default:
		c.caching = bytes.Clone(raw)
		c.say([]byte("+OK\r\n"))
	}
}

func clone(args [][]byte) [][]byte {
	out := make([][]byte, len(args))
	for i, a := range args {
		out[i] = bytes.Clone(a)
	}
	return out
}
