// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// herald tells the clients that asked for it (CLIENT MAINT_NOTIFICATIONS ON) that there is no primary for a while, and
// that there is one again: they wait longer for replies in between.
type herald struct {
	wake chan struct{}
	lost atomic.Pointer[tenure] // that shared lanes cannot connect to

	mu      sync.Mutex // guards what follows; before session.infoMu
	served  bool       // there was a primary that could be used
	away    bool
	seq     int64
	seconds int64 // for which commands are held
}

// look has the herald compare what clients were told with what holds. Safe for concurrent use.
func (h *herald) look() { poke(h.wake) }

// reached notes how an attempt of a shared lane to connect to a primary ended.
func (h *herald) reached(t *tenure, ok bool) {
	switch {
	case !ok && h.lost.Swap(t) != t, ok && h.lost.CompareAndSwap(t, nil):
		h.look()
	}
}

// frame is what clients are told of the present state; the caller holds h.mu.
func (h *herald) frame() []byte {
	if h.away {
		return resp.AppendInt(resp.AppendInt(resp.AppendBulk(resp.AppendPush(nil, 3), "FAILING_OVER"), h.seq), h.seconds)
	}
	return resp.AppendInt(resp.AppendBulk(resp.AppendPush(nil, 2), "FAILED_OVER"), h.seq)
}

// announce is the herald's goroutine. It delivers itself: nothing of that waits, and the loops go on meanwhile.
func (p *Proxy) announce() {
	h := &p.herald
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-h.wake:
		}
		o := p.order.Load()
		if o.t == nil {
			continue // there never was a primary
		}
		lapsed := o.sending && !o.t.good(p.now())
		if lapsed {
			p.lapsed.Store(true) // so that the next good read wakes the herald
		}
		away := !o.sending || lapsed || h.lost.Load() == o.t
		h.mu.Lock()
		h.served = h.served || !away
		if away == h.away || !h.served {
			h.mu.Unlock()
			continue
		}
		h.away = away
		h.seq++
		h.seconds = int64((o.parkFor() + time.Second - 1) / time.Second)
		frame, seq := h.frame(), h.seq
		h.mu.Unlock()
		for _, s := range p.listeners() {
			s.tell(frame, seq)
		}
	}
}

// listeners returns the sessions that want notifications.
func (p *Proxy) listeners() []*session {
	return slices.DeleteFunc(p.everybody(), func(s *session) bool { return !s.maint.Load() })
}

// tell delivers one notification, unless the client knows it or has changed its mind. Replies are delivered as whole
// frames, so it comes between two of them; but for long ones, whose end it waits for.
func (s *session) tell(frame []byte, seq int64) {
	s.infoMu.Lock()
	wants := s.maint.Load() && s.told < seq
	if wants {
		s.told = seq
		s.push(frame)
	}
	s.infoMu.Unlock()
	if wants {
		s.out.flush()
	}
}

// push delivers a notification between two replies; the caller holds s.infoMu.
func (s *session) push(frame []byte) {
	if s.mid {
		s.after = frame // an earlier one is out of date
		return
	}
	s.deliver(frame, 0)
}

// midReply notes that a reply is delivered piece by piece from now on, or that its last piece was delivered.
func (s *session) midReply(on bool) {
	s.infoMu.Lock()
	s.mid = on
	frame := s.after
	if !on && frame != nil {
		s.after = nil
		if s.maint.Load() {
			s.deliver(frame, 0)
		}
	}
	s.infoMu.Unlock()
	if !on && frame != nil {
		s.out.flush()
	}
}

// hush ends notifications: nothing is pushed to a client from now on that does not speak RESP3.
func (s *session) hush() {
	s.infoMu.Lock()
	s.maint.Store(false)
	s.infoMu.Unlock()
}

var endpointTypes = [...]string{"internal-ip", "internal-fqdn", "external-ip", "external-fqdn", "none"}

// maintain answers CLIENT MAINT_NOTIFICATIONS ON|OFF [moving-endpoint-type T]. Where a connection should move to is never
// said, because the proxy's address stays.
func (s *session) maintain(args [][]byte, f flags) bool {
	text := ""
	on := len(args) > 2 && route.Is(args[2], "ON")
	switch n := len(args); {
	case n < 3:
		text = "ERR wrong number of arguments for 'client|maint_notifications' command"
	case !on && (!route.Is(args[2], "OFF") || n > 3):
		text = "ERR syntax error"
	case n > 3 && (n != 5 || !route.Is(args[3], "MOVING-ENDPOINT-TYPE") || !slices.Contains(endpointTypes[:], string(args[4]))):
		text = "ERR syntax error: after ON comes moving-endpoint-type and one of internal-ip, internal-fqdn, external-ip, external-fqdn, none"
	case on && s.proto != 3:
		text = "ERR CLIENT MAINT_NOTIFICATIONS ON needs RESP3: say HELLO 3 first"
	}
	if text != "" {
		return s.refuse(text, f)
	}
	if f&muted == 0 && !s.say([]byte("+OK\r\n")) {
		return false
	}
	if !on {
		s.hush()
		return true
	}
	h := &s.p.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	s.maint.Store(true)
	if h.away && s.told < h.seq {
		s.push(h.frame())
	}
	s.told = h.seq
	return true
}
