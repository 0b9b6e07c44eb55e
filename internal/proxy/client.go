// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// client answers CLIENT: ids, names and lists are the proxy's, because the server knows only our connections.
func (s *session) client(args [][]byte, raw []byte, f flags) bool {
	if route.Is(args[1], "REPLY") {
		return s.clientReply(args, f)
	}
	if route.Is(args[1], "MAINT_NOTIFICATIONS") {
		return s.maintain(args, f)
	}
	if !s.flushRun() || !s.await(0) {
		return false
	}
	if text := s.mayUse(args); text != "" {
		return s.refuse(text, f)
	}
	var reply []byte
	known, me := true, false
	if len(args) > 2 && route.Is(args[1], "KILL") {
		reply, me = s.clientKill(args[2:])
	} else {
		reply, known = s.clientAnswer(args)
	}
	if !known {
		return s.send(raw, item{flags: f | commits | writes}) // the server's error
	}
	if f&muted == 0 {
		s.deliver(reply, 0)
		s.dirty = true
	}
	if me {
		s.linger()
	}
	return !me
}

func (s *session) clientReply(args [][]byte, f flags) bool {
	if s.quiet || s.skip {
		f, s.skip = f|muted, false
	}
	if len(args) != 3 {
		return s.refuse("ERR wrong number of arguments for 'client|reply' command", f)
	}
	switch {
	case route.Is(args[2], "OFF"):
		s.quiet = true
	case route.Is(args[2], "SKIP"):
		s.skip = !s.quiet
	case route.Is(args[2], "ON"):
		s.quiet, s.skip = false, false
		return s.say([]byte("+OK\r\n"))
	default:
		return s.refuse("ERR syntax error", f)
	}
	return true
}

// clientAnswer returns the answer to a subcommand; known is false for those that are the server's business.
func (s *session) clientAnswer(args [][]byte) (reply []byte, known bool) {
	ok := []byte("+OK\r\n")
	sub := strings.ToUpper(string(args[1]))
	switch n := len(args); {
	case sub == "ID" && n == 2:
		return resp.AppendInt(nil, int64(s.id)), true
	case sub == "GETNAME" && n == 2:
		s.infoMu.Lock()
		defer s.infoMu.Unlock()
		if s.name == "" {
			return resp.AppendNull(nil, s.proto), true
		}
		return resp.AppendBulk(nil, s.name), true
	case sub == "SETNAME" && n == 3:
		if !printable(string(args[2])) {
			return resp.AppendError(nil, "ERR Client names cannot contain spaces, newlines or special characters."), true
		}
		s.infoMu.Lock()
		s.name = string(args[2])
		s.infoMu.Unlock()
		return ok, true
	case sub == "SETINFO" && n == 4:
		return s.setInfo(strings.ToUpper(string(args[2])), string(args[3])), true
	case sub == "CAPA" && n >= 3:
		return ok, true // accepted: this proxy redirects nobody
	case (sub == "NO-EVICT" || sub == "NO-TOUCH") && n == 3:
		on := route.Is(args[2], "ON")
		if !on && !route.Is(args[2], "OFF") {
			return resp.AppendError(nil, "ERR syntax error"), true
		}
		// Shown only: the proxy evicts nobody, and touching is a property of server connections, which are shared.
		if sub == "NO-EVICT" {
			s.vis.noEvict.Store(on)
		} else {
			s.vis.noTouch.Store(on)
		}
		return ok, true
	case sub == "INFO" && n == 2:
		return appendText(nil, s.proto, s.describe(s.ownLane())+"\n"), true
	case sub == "LIST":
		return s.list(args[2:]), true
	case sub == "PAUSE" && (n == 3 || n == 4):
		return s.p.clientPause(args), true
	case sub == "UNPAUSE" && n == 2:
		return s.p.unpause(), true
	case sub == "UNBLOCK" && (n == 3 || n == 4):
		return s.clientUnblock(args), true
	case sub == "GETREDIR" && n == 2:
		return resp.AppendInt(nil, s.ownLane().pinned().redir), true
	}
	return nil, false
}

// ownLane returns the session's own lane; nil when it has none.
func (s *session) ownLane() *lane {
	if s.lane != nil && s.lane.key.own {
		return s.lane
	}
	return nil
}

func (s *session) setInfo(field, value string) []byte {
	if !printable(value) {
		return resp.AppendError(nil, "ERR "+strings.ToLower(field)+" cannot contain spaces, newlines or special characters.")
	}
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	switch field {
	case "LIB-NAME":
		s.lib = value
	case "LIB-VER":
		s.libVer = value
	default:
		return resp.AppendError(nil, "ERR Unrecognized option '"+field+"'")
	}
	return []byte("+OK\r\n")
}

// clientUnblock passes the wish on for the connection that the client has of its own.
func (s *session) clientUnblock(args [][]byte) []byte {
	id, err := strconv.ParseUint(string(args[2]), 10, 64)
	if err != nil {
		return resp.AppendError(nil, "ERR value is not an integer or out of range")
	}
	words := []string{"CLIENT", "UNBLOCK", "", "TIMEOUT"}
	if len(args) == 4 {
		words[3] = strings.ToUpper(string(args[3]))
		if words[3] != "ERROR" && words[3] != "TIMEOUT" {
			return resp.AppendError(nil, "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
		}
	}
	k := s.p.ownLink(id)
	if k == nil {
		return resp.AppendInt(nil, 0)
	}
	words[2] = k.clientID
	k.unblocked.Store(words[3] == "ERROR")
	replies, err := s.p.ask(k.to.addr, words)
	if err != nil {
		return notSent("the primary does not answer")
	}
	if n, _ := resp.Int(replies[0]); n == 0 {
		k.unblocked.Store(false)
	}
	return replies[0]
}

// ownLink returns the upstream connection that a client has of its own; nil when it has none.
func (p *Proxy) ownLink(id uint64) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.lanes {
		if !l.key.own {
			continue
		}
		l.mu.Lock()
		k, mine := l.link, l.own != nil && l.own.id == id
		l.mu.Unlock()
		if mine {
			return k
		}
	}
	return nil
}
