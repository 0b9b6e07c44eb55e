// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

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
	reply, known := s.clientAnswer(args)
	if !known {
		return s.send(raw, item{flags: f | commits | writes}) // the server's error
	}
	if f&muted == 0 {
		s.deliver(reply, 0)
		s.dirty = true
	}
	return true
}

func (s *session) clientReply(args [][]byte, f flags) bool {
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
		if !route.Is(args[2], "ON") && !route.Is(args[2], "OFF") {
			return resp.AppendError(nil, "ERR syntax error"), true
		}
		return ok, true // a property of server connections, which are shared
	case sub == "INFO" && n == 2:
		return resp.AppendBulk(nil, s.describe()+"\n"), true
	case sub == "LIST":
		return resp.AppendBulk(nil, s.p.list(args[2:])), true
	case sub == "KILL" && n >= 3:
		return s.clientKill(args[2:]), true
	case sub == "UNBLOCK" && (n == 3 || n == 4):
		return s.clientUnblock(args), true
	case sub == "GETREDIR" && n == 2:
		return resp.AppendInt(nil, -1), true
	}
	return nil, false
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

// describe returns the session's line of CLIENT LIST; safe for concurrent use.
func (s *session) describe() string {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	flag := "N"
	if s.ro {
		flag = "r"
	}
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=0 name=%s age=%d idle=%d flags=%s db=%d sub=0 psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 obl=0 oll=%d omem=%d tot-mem=0 events=r cmd=%s user=default redir=-1 resp=%d lib-name=%s lib-ver=%s",
		s.id, s.sock.far, s.sock.near(), s.name, int(time.Since(s.born).Seconds()), 0, flag, s.dbA.Load(), s.inflight.Load(), s.out.pending(),
		"NULL", s.protoNow(), s.lib, s.libVer)
}

// list answers CLIENT LIST [ID id …]; other filters show everything.
func (p *Proxy) list(filter [][]byte) string {
	var b strings.Builder
	for _, s := range p.snapshot() {
		if len(filter) > 1 && route.Is(filter[0], "ID") && !slices.ContainsFunc(filter[1:], func(id []byte) bool {
			return string(id) == strconv.FormatUint(s.id, 10)
		}) {
			continue
		}
		b.WriteString(s.describe())
		b.WriteByte('\n')
	}
	return b.String()
}

// snapshot returns the sessions in the order of their ids.
func (p *Proxy) snapshot() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *session) int { return int(int64(a.id) - int64(b.id)) })
	return all
}

// clientKill answers CLIENT KILL addr, and CLIENT KILL [ID n] [ADDR a] [LADDR a] [SKIPME yes|no] …
func (s *session) clientKill(args [][]byte) []byte {
	skipMe := true
	var want []func(*session) bool
	if len(args) == 1 {
		skipMe = false
		addr := string(args[0])
		want = append(want, func(o *session) bool { return o.sock.far.String() == addr })
	}
	for i := 0; i+1 < len(args); i += 2 {
		v := string(args[i+1])
		switch {
		case route.Is(args[i], "ID"):
			want = append(want, func(o *session) bool { return strconv.FormatUint(o.id, 10) == v })
		case route.Is(args[i], "ADDR"):
			want = append(want, func(o *session) bool { return o.sock.far.String() == v })
		case route.Is(args[i], "LADDR"):
			want = append(want, func(o *session) bool { return o.sock.near().String() == v })
		case route.Is(args[i], "SKIPME"):
			skipMe = !strings.EqualFold(v, "no")
		default:
			return resp.AppendError(nil, "ERR syntax error: through the proxy CLIENT KILL takes ID, ADDR, LADDR and SKIPME")
		}
	}
	killed := int64(0)
	for _, o := range s.p.snapshot() {
		if (o == s && skipMe) || slices.ContainsFunc(want, func(f func(*session) bool) bool { return !f(o) }) {
			continue
		}
		o.kill()
		killed++
	}
	if len(args) != 1 {
		return resp.AppendInt(nil, killed)
	}
	if killed == 0 {
		return resp.AppendError(nil, "ERR No such client")
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
