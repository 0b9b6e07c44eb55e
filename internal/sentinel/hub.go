// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"sync"

	"redoubt/internal/resp"
)

// hub knows the connections and hands messages to those that subscribed.
type hub struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	closed   bool
}

// add reports whether there is a place for one more.
func (h *hub) add(se *session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.sessions) >= clientsMax {
		return false
	}
	h.sessions[se] = struct{}{}
	return true
}

// remove must come before the session's queue is closed: nobody else sends to it afterwards.
func (h *hub) remove(se *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, se)
}

func (h *hub) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for se := range h.sessions {
		se.conn.Close()
	}
}

func (h *hub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// each calls f for every connection, in no order.
func (h *hub) each(f func(*session)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for se := range h.sessions {
		f(se)
	}
}

// publish never waits: a subscriber whose queue is full is cut, and learns the present state when it comes back.
func (h *hub) publish(s *Server, events func(tell) []message) {
	made := map[*Announce][]message{}
	h.each(func(se *session) {
		all, ok := made[se.announce]
		if !ok {
			all = events(s.tell(se.announce))
			made[se.announce] = all
		}
		for _, m := range all {
			for _, b := range se.messages(m.channel, m.payload) {
				select {
				case se.out <- b:
				default:
					se.conn.Close()
					return
				}
			}
		}
	})
}

// messages returns the frames that a message means for this session: one for the channel, one for each pattern.
func (se *session) messages(channel, payload string) [][]byte {
	se.mu.Lock()
	defer se.mu.Unlock()
	var out [][]byte
	head := func(n int) []byte {
		if se.proto >= 3 {
			return resp.AppendPush(nil, n)
		}
		return resp.AppendArray(nil, n)
	}
	if se.channels[channel] {
		b := resp.AppendBulk(head(3), "message")
		out = append(out, resp.AppendBulk(resp.AppendBulk(b, channel), payload))
	}
	for p := range se.patterns {
		if match(p, channel) {
			b := resp.AppendBulk(resp.AppendBulk(head(4), "pmessage"), p)
			out = append(out, resp.AppendBulk(resp.AppendBulk(b, channel), payload))
		}
	}
	return out
}

// match is the servers' glob (util.c, stringmatchlen): * ? [a-c] [^a] and backslash. Only the latest star is tried with more
// than it has taken, so that no pattern takes longer than its length times that of s.
func match(pattern, s string) bool {
	var after, tried string // the pattern behind the latest star, and what it was tried with
	star := false
	for {
		switch {
		case pattern == "" && s == "":
			return true
		case pattern != "" && pattern[0] == '*':
			star, after, tried, pattern = true, pattern[1:], s, pattern[1:]
			continue
		case pattern != "" && s != "":
			if ok, rest := one(pattern, s[0]); ok {
				pattern, s = rest, s[1:]
				continue
			}
		}
		if !star || tried == "" {
			return false
		}
		tried = tried[1:]
		pattern, s = after, tried
	}
}

// one matches c against the first place of a pattern, which is no star, and returns what follows it.
func one(p string, c byte) (ok bool, rest string) {
	switch {
	case p[0] == '[':
		return class(p[1:], c)
	case p[0] == '\\' && len(p) > 1:
		return p[1] == c, p[2:]
	}
	return p[0] == '?' || p[0] == c, p[1:]
}

// class matches c against the inside of brackets and returns what follows them.
func class(p string, c byte) (ok bool, rest string) {
	not := len(p) > 0 && p[0] == '^'
	if not {
		p = p[1:]
	}
	for len(p) > 0 && p[0] != ']' {
		switch {
		case p[0] == '\\' && len(p) > 1:
			ok = ok || p[1] == c
			p = p[2:]
		case len(p) > 2 && p[1] == '-':
			lo, hi := min(p[0], p[2]), max(p[0], p[2])
			ok = ok || lo <= c && c <= hi
			p = p[3:]
		default:
			ok = ok || p[0] == c
			p = p[1:]
		}
	}
	if len(p) > 0 {
		p = p[1:]
	}
	return ok != not, p
}
