// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/subtle"
	"math"
	"strconv"
	"strings"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// local answers what the proxy knows itself.
func (s *session) local(v route.Verdict, args [][]byte, raw []byte, f flags) bool {
	switch name := v.Row.Name; {
	case speaksHTTP(v):
		s.p.log.Warn("client disconnected: it speaks HTTP", "client", s.id, "from", s.sock.far)
		return false
	case name == "CLIENT":
		return s.client(args, raw, f)
	case name == "CLUSTER", (name == "READONLY" || name == "READWRITE" || name == "ASKING" || name == "RESET") && len(args) > 1:
		return s.send(raw, item{flags: f | resendable}) // the server's error
	}
	if !s.flushRun() || !s.await(0) {
		return false
	}
	var reply []byte
	switch v.Row.Name {
	case "HELLO":
		reply = s.hello(args)
	case "AUTH":
		reply = s.auth(args)
	case "SELECT":
		return s.selectDB(args, raw, f)
	case "QUIT":
		if f&muted == 0 {
			s.deliver([]byte("+OK\r\n"), 0)
		}
		s.linger()
		return false
	case "RESET":
		if s.quiet {
			f &^= muted // it ends CLIENT REPLY OFF, while SKIP holds for it as for any other
		}
		s.reset()
		reply = []byte("+RESET\r\n")
	case "INFO":
		return s.info(args, raw, f)
	case "PROXY":
		reply = s.proxyCommand(args)
	default: // READONLY, READWRITE, ASKING
		reply = []byte("-ERR This instance has cluster support disabled\r\n")
	}
	s.infoMu.Lock()
	s.vis.user = s.user
	s.infoMu.Unlock()
	if f&muted == 0 {
		s.deliver(reply, 0)
		s.dirty = true
	}
	return true
}

// speaksHTTP reports whether the client is none of Redis: a browser that a web page abuses, a health check. The server
// ends such a connection at the first of these words.
func speaksHTTP(v route.Verdict) bool { return v.Row.Name == "POST" || v.Row.Name == "HOST:" }

func (s *session) reset() {
	if s.ownLane() != nil {
		s.lane.shut() // its server side ends with the connection
	}
	s.hush()
	s.vis.noEvict.Store(false)
	s.vis.noTouch.Store(false)
	s.home, s.lax = [laneKinds]*lane{}, false
	s.lane, s.multi, s.poison, s.quiet, s.skip, s.db, s.proto = nil, false, false, false, false, 0, 2
	s.protoA.Store(2)
	s.dbA.Store(0)
	s.user, s.pass = "", ""
	s.authed = s.p.o.Password == ""
	s.infoMu.Lock()
	s.name = ""
	s.infoMu.Unlock()
}

// proxyCommand answers PROXY DURABILITY [QUORUM+DISK|QUORUM|ASYNC]: what an acknowledged write of this session means. A session may
// give up what its deployment promises, and go back. There is nothing between: its writes travel with those of others.
func (s *session) proxyCommand(args [][]byte) []byte {
	o := s.p.order.Load()
	promise := o.need.promise()
	waits := promise != "async"
	switch {
	case o.members == 0:
		return notSent(o.why) // nobody knows yet what is promised
	case len(args) < 2 || !route.Is(args[1], "DURABILITY") || len(args) > 3:
		return resp.AppendError(nil, "ERR use PROXY DURABILITY [QUORUM+DISK|QUORUM|ASYNC]")
	case len(args) == 2 && waits && s.lax:
		return []byte("$5\r\nasync\r\n")
	case len(args) == 2:
		return resp.AppendBulk(nil, promise)
	case route.Is(args[2], "ASYNC"):
		s.lax = waits
	case !route.Is(args[2], "QUORUM") && !route.Is(args[2], "QUORUM+DISK"):
		return resp.AppendError(nil, "ERR durability is QUORUM+DISK, QUORUM or ASYNC")
	case !waits:
		return resp.AppendError(nil, "ERR this deployment is asynchronous: a session cannot ask for more than that")
	case !route.Is(args[2], strings.ToUpper(promise)):
		return resp.AppendError(nil, "ERR this deployment promises "+promise+": a session has that, or asks for ASYNC")
	default:
		s.lax = false
	}
	s.home = [laneKinds]*lane{}
	return []byte("+OK\r\n")
}

// commit is the flag of a write whose reply waits for the replicas.
func (s *session) commit() flags {
	if s.lax {
		return 0
	}
	return commits
}

// hello answers HELLO [2|3 [AUTH user password] [SETNAME name]] (Redis 6.0+). The connection is never closed.
func (s *session) hello(args [][]byte) []byte {
	proto := s.proto
	i := 1
	if len(args) > 1 {
		n, err := strconv.Atoi(string(args[1]))
		if err != nil || strconv.Itoa(n) != string(args[1]) {
			return resp.AppendError(nil, "ERR Protocol version is not an integer or out of range")
		}
		if n != 2 && n != 3 {
			return resp.AppendError(nil, "NOPROTO unsupported protocol version")
		}
		proto, i = n, 2
	}
	name, named := "", false
	for ; i < len(args); i++ {
		switch {
		case route.Is(args[i], "AUTH") && i+2 < len(args):
			if text := s.login(string(args[i+1]), args[i+2]); text != "" {
				return resp.AppendError(nil, text)
			}
			i += 2
		case route.Is(args[i], "SETNAME") && i+1 < len(args):
			name, named = string(args[i+1]), true
			if !printable(name) {
				return resp.AppendError(nil, "ERR Client names cannot contain spaces, newlines or special characters.")
			}
			i++
		default:
			return resp.AppendError(nil, "ERR Syntax error in HELLO option '"+string(args[i])+"'")
		}
	}
	if !s.authed {
		return resp.AppendError(nil, "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
	}
	if named {
		s.infoMu.Lock()
		s.name = name
		s.infoMu.Unlock()
	}
	s.speak(proto)
	return s.helloReply()
}

// speak changes the session's protocol, and that of its own lane if that holds something; else a lane of the protocol is taken.
func (s *session) speak(proto int) {
	if proto == s.proto {
		return
	}
	if l := s.lane; l != nil && l.key.own && !l.isClean() {
		l.mu.Lock()
		l.key.proto = proto
		l.mu.Unlock()
		s.sendOwn(resp.AppendCommand(nil, "HELLO", strconv.Itoa(proto)), item{flags: muted | resendable})
		s.await(0)
	} else {
		s.dropOwn()
		s.lane = nil
	}
	s.proto, s.home = proto, [laneKinds]*lane{}
	s.protoA.Store(int32(proto))
	if proto == 2 {
		s.hush()
	}
}

func (s *session) helloReply() []byte {
	server := s.p.server.Load()
	role := "master"
	if s.ro {
		role = "replica"
	}
	b := resp.AppendMap(nil, s.proto, 7)
	text := func(k, v string) { b = resp.AppendBulk(resp.AppendBulk(b, k), v) }
	text("server", server.name)
	text("version", server.version)
	b = resp.AppendInt(resp.AppendBulk(b, "proto"), int64(s.proto))
	b = resp.AppendInt(resp.AppendBulk(b, "id"), int64(s.id))
	text("mode", "standalone")
	text("role", role)
	return resp.AppendArray(resp.AppendBulk(b, "modules"), 0)
}

func (s *session) auth(args [][]byte) []byte {
	var text string
	switch len(args) {
	case 2:
		if s.p.o.Password == "" {
			return resp.AppendError(nil, "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?")
		}
		text = s.login("default", args[1])
	case 3:
		text = s.login(string(args[1]), args[2])
	case 1:
		return resp.AppendError(nil, "ERR wrong number of arguments for 'auth' command")
	default:
		return resp.AppendError(nil, "ERR syntax error")
	}
	if text != "" {
		return resp.AppendError(nil, text)
	}
	return []byte("+OK\r\n")
}

// login checks credentials and returns the error's text: the deployment's here, those of other users by asking the server.
// Without a password every one is accepted for the default user, as the server's nopass does.
func (s *session) login(user string, password []byte) string {
	if user != "default" && (user != s.p.o.Username || user == "") {
		if text := s.checkUser(user, string(password)); text != "" {
			return text
		}
		s.become(user, string(password))
		s.authed = true
		return ""
	}
	if s.p.o.Password != "" && subtle.ConstantTimeCompare(password, []byte(s.p.o.Password)) != 1 {
		return "WRONGPASS invalid username-password pair or user is disabled."
	}
	s.become("", "")
	s.authed = true
	return ""
}

// selectDB answers SELECT. A database is a property of connections: the session changes lanes, unless its own lane holds
// state that has to stay.
func (s *session) selectDB(args [][]byte, raw []byte, f flags) bool {
	if len(args) != 2 {
		return s.refuse("ERR wrong number of arguments for 'select' command", f)
	}
	n, err := strconv.ParseInt(string(args[1]), 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != string(args[1]) { // servers take no leading zeros
		return s.refuse("ERR value is not an integer or out of range", f)
	}
	if n > math.MaxInt32 || n < math.MinInt32 {
		return s.refuse("ERR value is out of range, value must between -2147483648 and 2147483647", f)
	}
	if n < 0 || n >= int64(s.p.databases()) {
		return s.refuse("ERR DB index is out of range", f)
	}
	if s.ownLane() != nil && !s.lane.isClean() {
		s.lane.mu.Lock()
		s.lane.st.db = int(n)
		s.lane.mu.Unlock()
		s.db, s.home = int(n), [laneKinds]*lane{}
		s.dbA.Store(int32(n))
		return s.sendOwn(raw, item{flags: f | resendable})
	}
	s.dropOwn()
	s.db, s.home = int(n), [laneKinds]*lane{}
	s.dbA.Store(int32(n))
	if f&muted != 0 {
		return true
	}
	return s.say([]byte("+OK\r\n"))
}

func printable(name string) bool {
	return bytes.IndexFunc([]byte(name), func(r rune) bool { return r < '!' || r > '~' }) < 0
}

// databases returns how many the server has: 16, its default, before one has answered.
func (p *Proxy) databases() int {
	if n := p.server.Load().databases; n > 0 {
		return n
	}
	return 16
}
