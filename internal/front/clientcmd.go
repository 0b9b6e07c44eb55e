// SPDX-License-Identifier: Apache-2.0

package front

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// clientCommand answers CLIENT: ids, names and lists are the front's, because shards know only its connections. It reports false
// for what is the server's to answer.
func (c *client) clientCommand(args [][]byte, raw []byte) bool {
	if len(args) < 2 {
		return false
	}
	n := len(args)
	switch sub := strings.ToUpper(string(args[1])); {
	case sub == "REPLY":
		c.reply(args)
	case sub == "ID" && n == 2:
		c.say(resp.AppendInt(nil, int64(c.id)))
	case sub == "GETNAME" && n == 2 && c.name == "":
		c.say(resp.AppendNull(nil, c.proto))
	case sub == "GETNAME" && n == 2:
		c.say(resp.AppendBulk(nil, c.name))
	case sub == "SETNAME" && n == 3:
		c.setName(string(args[2]), raw)
	case sub == "SETINFO" && n == 4:
		c.setInfo(strings.ToUpper(string(args[2])), string(args[3]))
	case sub == "INFO" && n == 2:
		c.say(appendText(nil, c.proto, c.describe()+"\n"))
	case sub == "LIST":
		c.list(args)
	case sub == "KILL" && n > 2:
		c.killClients(args)
	case sub == "UNBLOCK" && (n == 3 || n == 4):
		c.unblock(args)
	case sub == "PAUSE" || sub == "UNPAUSE":
		c.onAll(join{kind: joinFirst}, raw, false)
	case sub == "NO-EVICT" || sub == "NO-TOUCH" || sub == "MAINT_NOTIFICATIONS" || sub == "CAPA":
		c.keep(sub, raw)
	case sub == "TRACKING" && n > 2:
		c.track(args, raw)
	case sub == "CACHING":
		c.cache(args, raw)
	default: // TRACKINGINFO, GETREDIR, HELP, errors
		return false
	}
	return true
}

func (c *client) reply(args [][]byte) {
	switch {
	case len(args) != 3:
		c.refuse(argsNumber + "client|reply' command")
	case route.Is(args[2], "OFF"):
		c.quiet = true
	case route.Is(args[2], "SKIP"):
		c.skip = !c.quiet
	case route.Is(args[2], "ON"):
		c.quiet, c.skip, c.mute = false, false, false
		c.say(ok())
	default:
		c.refuse("ERR syntax error")
	}
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < '!' || r > '~' })
}

func (c *client) setName(name string, raw []byte) {
	if !printable(name) {
		c.refuse("ERR Client names cannot contain spaces, newlines or special characters.")
		return
	}
	c.rename(name)
	c.mu.Lock()
	for _, k := range c.conns { // so that those who look at a shard see who is there
		if k != nil {
			c.pushLocked(expect{op: opDrop, from: k}, raw)
		}
	}
	c.mu.Unlock()
	c.say(ok())
}

func (c *client) setInfo(field, value string) {
	if !printable(value) {
		c.refuse("ERR " + strings.ToLower(field) + " cannot contain spaces, newlines or special characters.")
		return
	}
	c.vis.mu.Lock()
	known := true
	switch field {
	case "LIB-NAME":
		c.vis.lib = value
	case "LIB-VER":
		c.vis.ver = value
	default:
		known = false
	}
	c.vis.mu.Unlock()
	if known {
		c.say(ok())
	} else {
		c.refuse("ERR Unrecognized option '" + field + "'")
	}
}

// may asks the home shard whether the client's user may do this: it knows the rights. The question does nothing there.
func (c *client) may(question ...string) bool {
	conns, err := c.open()
	if err != nil {
		c.refuse(unreachable(err))
		return false
	}
	replies := c.ask(resp.AppendCommand(nil, question...), conns[0])
	if replies == nil {
		return false
	}
	if bytes.HasPrefix(replies[0], []byte("-NOPERM")) || bytes.HasPrefix(replies[0], []byte("-NOAUTH")) {
		c.say(replies[0])
		return false
	}
	return true
}

func (c *client) list(args [][]byte) {
	if !c.may("CLIENT", "LIST", "ID", "1") {
		return
	}
	want, text := filters(args[2:], false)
	if text != "" {
		c.refuse(text)
		return
	}
	var b strings.Builder
	for _, o := range c.f.sorted() {
		if want.fits(c, o) {
			b.WriteString(o.describe())
			b.WriteByte('\n')
		}
	}
	c.say(appendText(nil, c.proto, b.String()))
}

// sorted returns the present clients by id.
func (f *Front) sorted() []*client {
	all := f.all()
	slices.SortFunc(all, func(a, b *client) int { return cmp.Compare(a.id, b.id) })
	return all
}

func (c *client) killClients(args [][]byte) {
	if !c.may("CLIENT", "KILL", "ID", "0") {
		return
	}
	old := len(args) == 3
	want, text := filter{}, ""
	if old {
		addr := string(args[2])
		want.tests = append(want.tests, func(o *client) bool { return o.vis.far == addr })
	} else {
		want, text = filters(args[2:], true)
	}
	if text != "" {
		c.refuse(text)
		return
	}
	n, me := 0, false
	for _, o := range c.f.sorted() {
		if !want.fits(c, o) {
			continue
		}
		if n++; o == c {
			me = true
		} else {
			o.kill()
		}
	}
	switch {
	case old && n == 0:
		c.refuse("ERR No such client")
	case old:
		c.say(ok())
	default:
		c.say(resp.AppendInt(nil, int64(n)))
	}
	c.leaving = c.leaving || me
}

// unblock answers CLIENT UNBLOCK: the wish is passed to the shard where that client waits, for its connection there.
func (c *client) unblock(args [][]byte) {
	id, err := strconv.ParseUint(string(args[2]), 10, 64)
	if err != nil {
		c.refuse("ERR value is not an integer or out of range")
		return
	}
	c.f.mu.Lock()
	o := c.f.clients[id]
	c.f.mu.Unlock()
	var k *conn
	if o != nil {
		k = o.vis.blocked.Load()
	}
	if k == nil {
		c.say(resp.AppendInt(nil, 0))
		return
	}
	o.mu.Lock()
	there := k.id
	o.mu.Unlock()
	if there == nil {
		c.say(resp.AppendInt(nil, 0))
		return
	}
	words := slices.Clone(args)
	words[2] = there
	c.pass(k.i, resp.AppendCommand(nil, words...), false)
}
