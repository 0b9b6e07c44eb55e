// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"crypto/subtle"
	"fmt"
	"strconv"
	"strings"

	"redoubt/internal/resp"
)

// compatible is the server version that the face speaks like; clients derive features from it.
const compatible = "7.0.15"

// command is one row of the table: how many arguments it takes, its own name included, and what it does.
type command struct {
	min int
	run func(*session, context.Context, []string)
}

func commandOf(name string) (command, bool) {
	switch name {
	case "SENTINEL":
		return command{2, (*session).sentinel}, true
	case "PING":
		return command{1, (*session).ping}, true
	case "AUTH":
		return command{2, (*session).auth}, true
	case "HELLO":
		return command{1, (*session).hello}, true
	case "INFO":
		return command{1, (*session).info}, true
	case "ROLE":
		return command{1, (*session).role}, true
	case "CLIENT":
		return command{2, (*session).client}, true
	case "COMMAND":
		return command{1, (*session).commandTable}, true
	case "ACL":
		return command{2, (*session).acl}, true
	case "SUBSCRIBE":
		return command{2, func(se *session, _ context.Context, a []string) { se.subscribe(a[1:], false) }}, true
	case "PSUBSCRIBE":
		return command{2, func(se *session, _ context.Context, a []string) { se.subscribe(a[1:], true) }}, true
	case "UNSUBSCRIBE":
		return command{1, func(se *session, _ context.Context, a []string) { se.unsubscribe(a[1:], false) }}, true
	case "PUNSUBSCRIBE":
		return command{1, func(se *session, _ context.Context, a []string) { se.unsubscribe(a[1:], true) }}, true
	case "PUBLISH":
		return command{3, (*session).publish}, true
	case "QUIT":
		return command{1, func(se *session, _ context.Context, _ []string) { se.simple("OK"); se.ended = true }}, true
	case "RESET":
		return command{1, func(se *session, _ context.Context, _ []string) { se.reset(); se.simple("RESET") }}, true
	case "SHUTDOWN":
		return command{1, func(se *session, _ context.Context, _ []string) {
			se.fail("ERR this face is part of a Redoubt member: stop the member instead")
		}}, true
	}
	return command{}, false
}

func (se *session) run(ctx context.Context, args []string) {
	name := strings.ToUpper(args[0])
	se.mu.Lock()
	se.last = strings.ToLower(name)
	se.mu.Unlock()
	c, ok := commandOf(name)
	switch {
	case !se.authed && name != "AUTH" && name != "HELLO" && name != "QUIT" && name != "RESET":
		se.fail("NOAUTH Authentication required.")
	case !ok:
		se.fail(fmt.Sprintf("ERR unknown command '%.128s', with args beginning with: %s", args[0], quoted(args[1:])))
	case len(args) < c.min:
		se.fail(fmt.Sprintf("ERR wrong number of arguments for '%s' command", strings.ToLower(name)))
	case se.modal() && !allowedSubscribed(name):
		se.fail(fmt.Sprintf("ERR Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context", strings.ToLower(name)))
	default:
		c.run(se, ctx, args)
	}
}

func allowedSubscribed(name string) bool {
	switch name {
	case "SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "PING", "QUIT", "RESET":
		return true
	}
	return false
}

func quoted(args []string) string {
	var b strings.Builder
	for _, a := range args {
		if b.Len() > 128 {
			break
		}
		fmt.Fprintf(&b, "'%.128s' ", a)
	}
	return b.String()
}

func (se *session) ping(_ context.Context, args []string) {
	switch {
	case se.modal():
		se.array(2)
		se.bulk("pong")
		if len(args) > 1 {
			se.bulk(args[1])
			return
		}
		se.bulk("")
	case len(args) > 1:
		se.bulk(args[1])
	default:
		se.simple("PONG")
	}
}

// login checks a user and password as a server with requirepass and only the default user does.
func (se *session) login(user, password string) bool {
	if se.s.o.Password == "" {
		return user == "default" // which needs no password
	}
	ok := (user == "default" || user == se.s.o.Username && user != "") && subtle.ConstantTimeCompare([]byte(password), []byte(se.s.o.Password)) == 1
	if ok {
		se.authed, se.user = true, user
	}
	return ok
}

const wrongPass = "WRONGPASS invalid username-password pair or user is disabled."

func (se *session) auth(_ context.Context, args []string) {
	user, password := "default", args[1]
	if len(args) > 2 {
		user, password = args[1], args[2]
	}
	switch {
	case len(args) > 3:
		se.fail("ERR syntax error")
	case len(args) == 2 && se.s.o.Password == "":
		se.fail("ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?")
	case se.login(user, password):
		se.simple("OK")
	default:
		se.fail(wrongPass)
	}
}

func (se *session) hello(_ context.Context, args []string) {
	proto, name, rename := se.proto, "", false
	if len(args) > 1 {
		v, err := strconv.Atoi(args[1])
		if err != nil {
			se.fail("ERR Protocol version is not an integer or out of range")
			return
		}
		if v != 2 && v != 3 {
			se.fail("NOPROTO unsupported protocol version")
			return
		}
		proto = v
	}
	for i := 2; i < len(args); {
		switch {
		case upper(args, i) == "AUTH" && i+2 < len(args):
			if !se.login(args[i+1], args[i+2]) {
				se.fail(wrongPass)
				return
			}
			i += 3
		case upper(args, i) == "SETNAME" && i+1 < len(args):
			name, rename = args[i+1], true
			i += 2
		default:
			se.fail(fmt.Sprintf("ERR Syntax error in HELLO option '%.128s'", args[i]))
			return
		}
	}
	if !se.authed {
		se.fail("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
		return
	}
	se.mu.Lock()
	se.proto = proto
	if rename {
		se.name = name
	}
	se.mu.Unlock()
	// A Sentinel's HELLO has no role (Redis 7.0.15, networking.c).
	se.buf = resp.AppendMap(se.buf, proto, 6)
	for _, kv := range [][2]string{{"server", "redis"}, {"version", compatible}} {
		se.bulk(kv[0])
		se.bulk(kv[1])
	}
	se.bulk("proto")
	se.number(int64(proto))
	se.bulk("id")
	se.number(se.id)
	se.bulk("mode")
	se.bulk("sentinel")
	se.bulk("modules")
	se.array(0)
}

func (se *session) role(context.Context, []string) {
	se.array(2)
	se.bulk("sentinel")
	se.array(len(se.s.masters))
	for _, m := range se.s.masters {
		se.bulk(m.Name)
	}
}

func (se *session) publish(_ context.Context, args []string) {
	if args[1] != "__sentinel__:hello" {
		se.fail("ERR Only HELLO messages are accepted by Sentinel instances.")
		return
	}
	se.number(1) // a Sentinel left running introduces itself: it is not one of us
}

func (se *session) client(_ context.Context, args []string) {
	switch upper(args, 1) {
	case "SETNAME":
		if len(args) != 3 {
			se.fail("ERR wrong number of arguments for 'client|setname' command")
			return
		}
		se.mu.Lock()
		se.name = args[2]
		se.mu.Unlock()
		se.simple("OK")
	case "GETNAME":
		if se.name == "" {
			se.null()
			return
		}
		se.bulk(se.name)
	case "ID":
		se.number(se.id)
	case "INFO":
		se.verbatim(se.describe())
	case "LIST":
		var b strings.Builder
		se.s.hub.each(func(other *session) { b.WriteString(other.describe()) })
		se.verbatim(b.String())
	case "SETINFO", "NO-EVICT", "NO-TOUCH", "TRACKING", "CACHING", "UNPAUSE":
		se.simple("OK") // there are no keys to keep, touch or track, and nobody is paused
	case "PAUSE":
		se.fail("ERR the clients of this face are never paused")
	case "GETREDIR":
		se.number(-1)
	case "UNBLOCK":
		se.number(0) // nobody is blocked
	case "TRACKINGINFO":
		se.mapOf(3)
		se.bulk("flags")
		se.setOf(1)
		se.bulk("off")
		se.bulk("redirect")
		se.number(-1)
		se.bulk("prefixes")
		se.array(0)
	case "REPLY":
		if upper(args, 2) != "ON" {
			se.fail("ERR only CLIENT REPLY ON is supported by this face")
			return
		}
		se.simple("OK")
	case "KILL":
		se.kill(args)
	default:
		se.fail(fmt.Sprintf("ERR unknown subcommand '%.128s'. Try CLIENT HELP.", args[1]))
	}
}

// kill ends one connection, by id; the other filters have no use here.
func (se *session) kill(args []string) {
	if len(args) != 4 || upper(args, 2) != "ID" {
		se.fail("ERR syntax error: this face knows CLIENT KILL ID <id>")
		return
	}
	id, err := strconv.ParseInt(args[3], 10, 64)
	if err != nil {
		se.fail("ERR client-id should be greater than 0")
		return
	}
	n := int64(0)
	se.s.hub.each(func(other *session) {
		if other.id == id && other != se {
			other.conn.Close()
			n++
		}
	})
	if id == se.id {
		n, se.ended = 1, true
	}
	se.number(n)
}

func (se *session) describe() string {
	se.mu.Lock()
	defer se.mu.Unlock()
	age := int64((se.s.o.Clock.Uptime() - se.since).Seconds())
	return fmt.Sprintf("id=%d addr=%s laddr=%s name=%s age=%d db=0 sub=%d psub=%d cmd=%s user=%s resp=%d\n",
		se.id, se.conn.RemoteAddr(), se.conn.LocalAddr(), se.name, age, len(se.channels), len(se.patterns), se.last, se.user, se.proto)
}
