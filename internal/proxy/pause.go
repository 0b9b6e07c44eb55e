// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// CLIENT PAUSE holds the clients of this proxy in front of their next command. The primary itself is never paused: it
// would look hung to its agent.

// pause is what holds clients. It is immutable; another one takes its place.
type pause struct {
	end  time.Time
	all  bool          // not only what may write
	over chan struct{} // closed when another one, or none, has taken its place

	refuse string        // the error for a command that was held for park; empty: it is held until the end
	park   time.Duration // with refuse
}

const pauseMax = 10 * time.Minute

// clientPause answers CLIENT PAUSE ms [WRITE|ALL].
func (p *Proxy) clientPause(args [][]byte) []byte {
	ms, err := strconv.ParseInt(string(args[2]), 10, 64)
	all := true
	switch {
	case len(args) == 4 && route.Is(args[3], "WRITE"):
		all = false
	case len(args) == 4 && !route.Is(args[3], "ALL"):
		return resp.AppendError(nil, "ERR CLIENT PAUSE mode must be WRITE or ALL")
	}
	switch {
	case err != nil:
		return resp.AppendError(nil, "ERR timeout is not an integer or out of range")
	case ms < 0:
		return resp.AppendError(nil, "ERR timeout is negative")
	case ms > pauseMax.Milliseconds():
		return resp.AppendError(nil, fmt.Sprintf("ERR through the proxy clients are paused for at most %d milliseconds", pauseMax.Milliseconds()))
	}
	next := &pause{end: time.Now().Add(time.Duration(ms) * time.Millisecond), all: all, over: make(chan struct{})}
	for {
		old := p.paused.Load()
		if old != nil && time.Now().Before(old.end) { // as the server: the later end and the stricter kind
			next.all = all || old.all
			if old.end.After(next.end) {
				next.end = old.end
			}
		}
		if p.paused.CompareAndSwap(old, next) {
			old.replaced()
			return []byte("+OK\r\n")
		}
	}
}

// unpause answers CLIENT UNPAUSE.
func (p *Proxy) unpause() []byte {
	p.paused.Swap(nil).replaced()
	return []byte("+OK\r\n")
}

func (h *pause) replaced() {
	if h != nil {
		close(h.over)
	}
}

// holding returns the pause that the session's next command has to wait for; nil: none.
func (s *session) holding(table *route.Table, args [][]byte) *pause {
	h := s.p.paused.Load()
	if h != nil && !time.Now().Before(h.end) {
		if s.p.paused.CompareAndSwap(h, nil) {
			h.replaced()
		}
		h = nil
	}
	if h == nil {
		if h = s.p.loss.shut.Load(); h == nil || s.multi && s.poison {
			return nil
		}
	}
	v := table.Classify(args)
	switch {
	case !s.authed, v.Row.Name == "CLIENT" && len(args) > 1 && (route.Is(args[1], "UNPAUSE") || route.Is(args[1], "PAUSE")):
		return nil
	case h.all, v.Class == route.Exec, !s.multi && (v.Class == route.Write || v.Class == route.Block && v.Row.Flags&route.Readonly == 0):
		return h
	}
	return nil
}

// held waits until the next command is not held any more, and reports ok false when the session is over. The command was
// answered with an error if it was refused; a transaction that is refused fails at its EXEC.
func (s *session) held(table *route.Table, args [][]byte) (refused, ok bool) {
	if !s.flushRun() {
		return false, false
	}
	s.out.flush()
	s.vis.held.Store(true)
	defer s.vis.held.Store(false)
	begun := time.Now()
	for {
		h := s.holding(table, args)
		if h == nil {
			s.touch()
			return false, !s.closed.Load()
		}
		end := h.end
		if h.refuse != "" {
			if end = begun.Add(h.park); !time.Now().Before(end) {
				return s.refuseHeld(h)
			}
		}
		rest := time.NewTimer(time.Until(end))
		select {
		case <-h.over:
		case <-rest.C:
		case <-s.sock.waiter().gone: // as a server, which forgets what it holds for a client that leaves
			s.kill()
		case <-s.p.ctx.Done():
			s.kill()
		}
		rest.Stop()
		if s.closed.Load() {
			return false, false
		}
	}
}

func (s *session) refuseHeld(h *pause) (refused, ok bool) {
	s.p.stats.refused.Add(1)
	if s.multi {
		s.poison = true
		return false, true
	}
	var f flags
	if s.quiet || s.skip {
		f = muted
	}
	s.from, s.to, s.skip = s.r, s.r, false
	return true, s.refuse(h.refuse, f)
}
