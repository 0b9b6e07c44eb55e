// SPDX-License-Identifier: Apache-2.0

package proxy

import "time"

// sweepEvery is how often the proxy looks at all clients; idle times and deadlines of clients are whole seconds.
const sweepEvery = time.Second

// tidy disconnects clients that are idle, have not introduced themselves, or take too little of their replies. One look
// at all of them each second takes the place of a timer for each.
func (p *Proxy) tidy() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
			p.sweep(p.tick.Add(1))
			if p.o.Exact {
				p.refreshMarkers()
			}
		}
	}
}

func (p *Proxy) sweep(now uint32) {
	var idle []*session
	for _, s := range p.everybody() {
		switch {
		case s.closed.Load():
		case s.late(now):
			p.log.Info("client disconnected: it did not introduce itself in time", "client", s.id, "addr", s.farText())
			s.kill()
		case s.bloated(now):
			p.log.Warn("client disconnected: it takes its replies too slowly", "client", s.id, "soft", p.o.Limits.OutputSoft, "time", p.o.Limits.OutputTime)
			s.kill()
		case p.o.Limits.Idle > 0 && s.inflight.Load() == 0 && !s.vis.held.Load() && now-s.vis.seen.Load() > seconds(p.o.Limits.Idle):
			idle = append(idle, s)
		}
	}
	if len(idle) == 0 {
		return
	}
	own := p.ownLanes()
	for _, s := range idle {
		if x := own[s].pinned(); !x.subscribed() && !x.monitor && !x.blocked { // they have reason to be silent, as for a server
			p.log.Info("client disconnected: it is idle", "client", s.id, "addr", s.farText())
			s.kill()
		}
	}
}

// seconds rounds up.
func seconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// late reports whether the client should have introduced itself by now.
func (s *session) late(now uint32) bool {
	due := s.vis.due.Load()
	return due != 0 && now > due
}

// bloated reports whether more than the soft limit has waited for the client for too long.
func (s *session) bloated(now uint32) bool {
	soft := s.p.o.Limits.OutputSoft
	if soft <= 0 || s.out.pending() <= soft {
		s.vis.fat = 0
		return false
	}
	if s.vis.fat == 0 {
		s.vis.fat = now
	}
	return now-s.vis.fat > seconds(s.p.o.Limits.OutputTime)
}

func (p *Proxy) everybody() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		all = append(all, s)
	}
	return all
}
