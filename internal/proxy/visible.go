// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// visible is what others see of a session: CLIENT LIST and the sweep.
type visible struct {
	row     atomic.Pointer[route.Row] // of the latest command
	sub     atomic.Pointer[string]    // its subcommand, if it has some
	seen    atomic.Uint32             // tick at which it sent or took something
	due     atomic.Uint32             // tick by which it must have introduced itself; 0: it has
	held    atomic.Bool               // by CLIENT PAUSE
	noEvict atomic.Bool
	noTouch atomic.Bool
	fat     uint32 // tick since which more than the soft limit waits for it; owned by the sweep

	// guarded by session.infoMu:
	user string         // empty: the deployment's
	far  netip.AddrPort // as a PROXY header says; invalid: the socket's
	near netip.AddrPort
}

// containers are commands whose subcommands are commands of their own.
const containers = " ACL CLIENT CLUSTER COMMAND CONFIG FUNCTION LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT SLOWLOG XGROUP XINFO "

// show notes the latest command; args may be missing.
func (s *session) show(row *route.Row, args [][]byte) {
	v := &s.vis
	if v.row.Load() == row && v.sub.Load() == nil {
		return
	}
	v.row.Store(row)
	if len(args) < 2 || len(args[1]) > 20 || !strings.Contains(containers, " "+row.Name+" ") {
		v.sub.Store(nil)
		return
	}
	if old := v.sub.Load(); old == nil || *old != string(args[1]) {
		sub := string(args[1])
		v.sub.Store(&sub)
	}
}

// touch notes that the client sent or took something.
func (s *session) touch() {
	if now := s.p.tick.Load(); s.vis.seen.Load() != now {
		s.vis.seen.Store(now)
	}
}

func (v *visible) command() string {
	row := v.row.Load()
	if row == nil {
		return "NULL"
	}
	name := strings.ToLower(row.Name)
	if sub := v.sub.Load(); sub != nil {
		name += "|" + strings.ToLower(*sub)
	}
	return name
}

// addresses returns the client's and its counterpart here, as servers show them; the caller holds s.infoMu.
func (s *session) addresses() (far, near string) {
	if s.sock.door != "" {
		return s.sock.door + ":0", s.sock.door + ":0"
	}
	f, n := s.vis.far, s.vis.near
	if !f.IsValid() {
		f, n = s.sock.far, s.sock.near()
	}
	return f.String(), n.String()
}

func (s *session) farText() string {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	far, _ := s.addresses()
	return far
}

func (s *session) nearText() string {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	_, near := s.addresses()
	return near
}

func (s *session) userText() string {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	if s.vis.user == "" {
		return "default"
	}
	return s.vis.user
}

// pinned is what an own lane knows about its client.
type pinned struct {
	subs    [kinds]int
	multi   int // queued commands; -1: no transaction
	monitor bool
	blocked bool
	redir   int64 // -1: no tracking
	bcast   bool
}

func (l *lane) pinned() pinned {
	p := pinned{multi: -1, redir: -1}
	if l == nil {
		return p
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for kind := range p.subs {
		p.subs[kind] = len(l.st.subs[kind])
	}
	if t := l.st.txn; t != nil {
		p.multi = max(len(t.log)-1, 0)
	}
	p.monitor, p.blocked = l.st.monitor, l.blocking.Load() > 0
	if words := l.st.tracking; words != nil {
		p.redir = 0
		for i, w := range words {
			p.bcast = p.bcast || route.Is(w, "BCAST")
			if route.Is(w, "REDIRECT") && i+1 < len(words) {
				p.redir, _ = strconv.ParseInt(string(words[i+1]), 10, 64)
			}
		}
	}
	return p
}

func (p pinned) subscribed() bool { return p.subs[classic]+p.subs[pattern]+p.subs[sharded] > 0 }

// ownLanes returns the lanes that belong to one session.
func (p *Proxy) ownLanes() map[*session]*lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := map[*session]*lane{}
	for l := range p.lanes {
		if !l.key.own {
			continue
		}
		l.mu.Lock()
		if l.own != nil {
			own[l.own] = l
		}
		l.mu.Unlock()
	}
	return own
}

func (s *session) flagText(p pinned) string {
	var b []byte
	for _, f := range []struct {
		on bool
		c  byte
	}{
		{p.monitor, 'O'}, {p.subscribed(), 'P'}, {p.multi >= 0, 'x'}, {p.blocked || s.vis.held.Load(), 'b'}, {p.redir >= 0, 't'}, {p.bcast, 'B'},
		{s.closed.Load(), 'A'}, {s.sock.door != "", 'U'}, {s.ro, 'r'}, {s.vis.noEvict.Load(), 'e'}, {s.vis.noTouch.Load(), 'T'},
	} {
		if f.on {
			b = append(b, f.c)
		}
	}
	if len(b) == 0 {
		return "N"
	}
	return string(b)
}

// describe returns the session's line of CLIENT LIST; l is its own lane or nil. Safe for concurrent use.
func (s *session) describe(l *lane) string {
	p, user, out := l.pinned(), s.userText(), s.out.pending()
	events, list := "r", 0
	if out > 0 {
		events, list = "rw", 1
	}
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	far, near := s.addresses()
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=%d name=%s age=%d idle=%d flags=%s db=%d sub=%d psub=%d ssub=%d multi=%d qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=%d omem=%d tot-mem=%d events=%s cmd=%s user=%s redir=%d resp=%d lib-name=%s lib-ver=%s",
		s.id, far, near, s.sock.fd, s.name, int(time.Since(s.born).Seconds()), s.p.tick.Load()-s.vis.seen.Load(), s.flagText(p), s.dbA.Load(),
		p.subs[classic], p.subs[pattern], p.subs[sharded], p.multi, list, out, out, events, s.vis.command(), user, p.redir, s.protoNow(), s.lib, s.libVer)
}

// list answers CLIENT LIST.
func (s *session) list(args [][]byte) []byte {
	want, text := s.p.filters(args, false)
	if text != "" {
		return resp.AppendError(nil, text)
	}
	var b strings.Builder
	own := s.p.ownLanes()
	for _, o := range s.p.snapshot() {
		if want.fits(s, o, own[o]) {
			b.WriteString(o.describe(own[o]))
			b.WriteByte('\n')
		}
	}
	return appendText(nil, s.proto, b.String())
}

// filter says which clients are meant.
type filter struct {
	tests  []func(*session, *lane) bool
	skipMe bool
}

func (f filter) fits(me, o *session, l *lane) bool {
	return !(f.skipMe && o == me) && !slices.ContainsFunc(f.tests, func(test func(*session, *lane) bool) bool { return !test(o, l) })
}

var filterWords = [...]string{"ID", "TYPE", "USER", "ADDR", "LADDR", "MAXAGE", "NAME", "SKIPME"}

func isFilter(arg []byte) bool {
	return slices.ContainsFunc(filterWords[:], func(w string) bool { return route.Is(arg, w) })
}

// filters reads the conditions of CLIENT LIST and CLIENT KILL; text is an error's.
func (p *Proxy) filters(args [][]byte, kill bool) (f filter, text string) {
	f.skipMe = kill
	add := func(test func(*session, *lane) bool) { f.tests = append(f.tests, test) }
	for i := 0; i < len(args); i += 2 {
		if i+1 >= len(args) {
			return f, "ERR syntax error"
		}
		v := string(args[i+1])
		switch {
		case route.Is(args[i], "ID"):
			ids, more, text := idList(args[i+1:], kill)
			if text != "" {
				return f, text
			}
			i += more
			add(func(o *session, _ *lane) bool { return slices.Contains(ids, o.id) })
		case route.Is(args[i], "TYPE"):
			test := byType(v)
			if test == nil {
				return f, "ERR Unknown client type '" + v + "'"
			}
			add(test)
		case route.Is(args[i], "USER"):
			if kill && !p.knownUser(v) {
				return f, "ERR No such user '" + v + "'"
			}
			add(func(o *session, _ *lane) bool { return o.userText() == v })
		case route.Is(args[i], "ADDR"):
			add(func(o *session, _ *lane) bool { return o.farText() == v })
		case route.Is(args[i], "LADDR"):
			add(func(o *session, _ *lane) bool { return o.nearText() == v })
		case route.Is(args[i], "NAME"):
			add(func(o *session, _ *lane) bool { o.infoMu.Lock(); defer o.infoMu.Unlock(); return o.name == v })
		case route.Is(args[i], "MAXAGE"):
			age, err := strconv.ParseInt(v, 10, 64)
			if err != nil || age <= 0 {
				return f, "ERR maxage is not an integer or out of range"
			}
			add(func(o *session, _ *lane) bool { return int64(time.Since(o.born).Seconds()) >= age })
		case route.Is(args[i], "SKIPME") && strings.EqualFold(v, "yes"):
			f.skipMe = true
		case route.Is(args[i], "SKIPME") && strings.EqualFold(v, "no"):
			f.skipMe = false
		default:
			return f, "ERR syntax error"
		}
	}
	return f, ""
}

// idList reads one or several ids; more is how many followed the first.
func idList(args [][]byte, kill bool) (ids []uint64, more int, text string) {
	for i, a := range args {
		if i > 0 && isFilter(a) {
			break
		}
		id, err := strconv.ParseUint(string(a), 10, 64)
		switch {
		case err == nil && (id > 0 || !kill):
			ids = append(ids, id)
		case kill && i == 0:
			return nil, 0, "ERR client-id should be greater than 0"
		case kill:
			return nil, 0, "ERR syntax error"
		default:
			return nil, 0, "ERR Invalid client ID"
		}
	}
	return ids, len(ids) - 1, ""
}

func byType(name string) func(*session, *lane) bool {
	switch strings.ToLower(name) {
	case "normal":
		return func(_ *session, l *lane) bool { return !l.pinned().subscribed() }
	case "pubsub":
		return func(_ *session, l *lane) bool { return l.pinned().subscribed() }
	case "master", "primary", "replica", "slave":
		return func(*session, *lane) bool { return false } // nodes do not come through a proxy
	}
	return nil
}

// knownUser reports whether there is such a user, as far as can be said without waiting for a primary.
func (p *Proxy) knownUser(name string) bool {
	if name == "default" || name == p.o.Username {
		return true
	}
	o := p.order.Load()
	if o.t == nil || !p.maySend(o) {
		return true
	}
	replies, err := p.ask(o.t.addr, []string{"ACL", "GETUSER", name})
	return err != nil || len(resp.Elements(replies[0], nil)) > 0
}

// snapshot returns the sessions in the order of their ids.
func (p *Proxy) snapshot() []*session {
	all := p.everybody()
	slices.SortFunc(all, func(a, b *session) int { return int(int64(a.id) - int64(b.id)) })
	return all
}

// clientKill answers CLIENT KILL addr, and CLIENT KILL with conditions; me: the client itself goes, once it has the answer.
func (s *session) clientKill(args [][]byte) (reply []byte, me bool) {
	var want filter
	if len(args) == 1 {
		addr := string(args[0])
		want.tests = []func(*session, *lane) bool{func(o *session, _ *lane) bool { return o.farText() == addr }}
	} else {
		var text string
		if want, text = s.p.filters(args, true); text != "" {
			return resp.AppendError(nil, text), false
		}
	}
	killed := int64(0)
	own := s.p.ownLanes()
	for _, o := range s.p.snapshot() {
		if o.closed.Load() || !want.fits(s, o, own[o]) {
			continue
		}
		killed++
		if o == s {
			me = true
			continue
		}
		o.kill()
	}
	switch {
	case len(args) != 1:
		return resp.AppendInt(nil, killed), me
	case killed == 0:
		return resp.AppendError(nil, "ERR No such client"), false
	}
	return []byte("+OK\r\n"), me
}
