// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/topo"
)

// sharedLane returns the lane of the session's loop, protocol and database, of one kind.
func (p *Proxy) sharedLane(s *session, kind int) *lane {
	lp := s.sock.loop
	key := poolKey{loop: lp.index, proto: s.proto, db: s.db, readonly: s.ro}
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.pools[key]
	if q == nil {
		q = &pool{}
		for i := range p.o.Limits.Upstreams {
			l := p.newLane(key, i)
			l.loop = lp
			q.lanes = append(q.lanes, l)
			p.startLane(l)
		}
		p.pools[key] = q
	}
	if kind == exactLane {
		for i := len(q.exact); i < p.o.Limits.Upstreams; i++ {
			l := p.newLane(key, i)
			l.loop = lp
			l.beExact()
			q.exact = append(q.exact, l)
			p.startLane(l)
		}
		return q.exact[int(s.id)%len(q.exact)]
	}
	if kind == readLane {
		if q.reads == nil {
			q.reads = p.newLane(key, 0)
			q.reads.loop = lp
			q.reads.readsOnly = true
			p.startLane(q.reads)
		}
		return q.reads
	}
	return q.lanes[int(s.id)%len(q.lanes)]
}

// newOwnLane returns a lane that only s uses.
func (p *Proxy) newOwnLane(s *session) *lane {
	key := poolKey{proto: s.proto, db: s.db, readonly: s.ro, own: true, user: s.user, password: s.pass}
	p.mu.Lock()
	defer p.mu.Unlock()
	if spares := p.spare[key]; len(spares) > 0 {
		l := spares[len(spares)-1]
		p.spare[key] = spares[:len(spares)-1]
		l.mu.Lock()
		l.own = s
		l.mu.Unlock()
		l.nudge()
		return l
	}
	l := p.newLane(key, int(s.id))
	l.own = s
	p.startLane(l)
	return l
}

// dropOwn ends the session's use of its own lane: a clean one is kept for another session.
func (s *session) dropOwn() {
	l := s.lane
	s.lane = nil
	if l == nil || !l.key.own {
		return
	}
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	l.mu.Lock()
	clean := l.st.clean() && !l.moved && s.inflight.Load() == 0 && !l.closed && l.link != nil && l.key.user == "" && p.ctx.Err() == nil
	l.own = nil
	l.mu.Unlock()
	total := 0
	for _, spares := range p.spare {
		total += len(spares)
	}
	if !clean || total >= p.o.Limits.Spare {
		l.shut()
		return
	}
	p.spare[l.key] = append(p.spare[l.key], l)
}

func (l *lane) isClean() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.clean()
}

func (l *lane) database() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.st.db >= 0 {
		return l.st.db
	}
	return l.key.db
}

// destination says where the lane should be connected, and whether it should be now.
func (l *lane) destination(o *order) (target, bool) {
	if l.key.own && (!l.owned() || l.isMoved()) {
		return target{}, false
	}
	if l.key.node != "" {
		if to, ok := l.p.covered(l.key.node); ok {
			return to, true
		}
	} else if l.key.readonly {
		if fit := *l.p.fit.Load(); len(fit) > 0 {
			return fit[l.slot%len(fit)], true
		}
	}
	if o.t == nil {
		return target{}, false
	}
	return target{t: o.t, node: o.t.node, addr: o.t.addr}, o.sending
}

// stillFit reports whether a connection for reads is where it should be.
func (l *lane) stillFit(to target) bool {
	if l.key.node != "" {
		_, ok := l.p.covered(l.key.node)
		return ok == (to.t == nil)
	}
	fit := *l.p.fit.Load()
	if to.t != nil {
		return len(fit) == 0
	}
	return slices.Contains(fit, to)
}

const sightInterval = 300 * time.Millisecond

// sight keeps the list of replicas that may answer reads.
func (p *Proxy) sight() {
	for p.pause(sightInterval) {
		beats, err := p.o.Beats.All(p.ctx)
		if err != nil {
			p.log.Debug("ask for sightings", "err", err)
		}
		snap := p.o.View.Load()
		if snap == nil {
			continue
		}
		var seen []topo.Sighting
		for name, b := range beats {
			var s topo.Sighting
			if strings.HasPrefix(name, topo.BeatNode) && b.Age < snap.Shard.Spec.Timing.Silence.D() && json.Unmarshal(b.Body, &s) == nil {
				seen = append(seen, s)
			}
		}
		fit := fitReplicas(snap.Shard, seen, p.o.Limits.LagMax, p.o.Zone)
		if old := *p.fit.Load(); !slices.Equal(old, fit) {
			p.fit.Store(&fit)
			p.rouse()
		}
	}
}

// fitReplicas returns the replicas that may answer reads: healthy, whole, following with a link that is up, in sync once
// in this tenure, and at most lagMax bytes behind; only those of the zone if there are any. Sorted by id, so that lanes spread over
// them and stay.
func fitReplicas(shard topo.Shard, seen []topo.Sighting, lagMax int64, zone string) []target {
	a := shard.Assigned
	head := int64(-1)
	for _, s := range seen {
		if s.Node == a.Primary && s.Role == topo.RolePrimary {
			head = s.Pos.Offset
		}
	}
	if head < 0 || a.Phase != topo.PhaseServing && a.Phase != topo.PhaseDraining {
		return nil
	}
	var fit, here []target
	for _, s := range seen {
		n, known := shard.Spec.Node(s.Node)
		if known && s.Node != a.Primary && s.Role == topo.RoleReplica && s.Health == topo.HealthUp && s.LinkUp && s.Whole && !s.Frozen &&
			s.InSync != 0 && head-s.Pos.Offset <= lagMax {
			fit = append(fit, target{node: n.ID, addr: n.Addr})
			if zone != "" && n.Zone == zone {
				here = append(here, target{node: n.ID, addr: n.Addr})
			}
		}
	}
	if len(here) > 0 {
		fit = here
	}
	slices.SortFunc(fit, func(x, y target) int { return strings.Compare(string(x.node), string(y.node)) })
	return fit
}

// learn reads the command table of each new primary, so that its modules and new commands travel as they should.
func (p *Proxy) learn() {
	known := ""
	for p.pause(200 * time.Millisecond) {
		o := p.order.Load()
		if o.t == nil || !o.sending || o.t.runID == known && known != "" || !o.t.good(p.now()) {
			continue
		}
		replies, err := p.ask(o.t.addr, []string{"COMMAND"})
		if err != nil {
			p.log.Debug("read the command table", "node", o.t.node, "err", err)
			continue
		}
		if t, ok := route.FromCommand(replies[0]); ok {
			p.table.Store(t)
		}
		if known = o.t.runID; known == "" {
			known = o.t.addr
		}
	}
}

// errand greets a server on a connection of its own, for administrative commands. The caller closes it.
func (p *Proxy) errand(addr string) (*link, error) { return p.errandTo(target{addr: addr}) }

func (p *Proxy) errandTo(to target) (*link, error) { return p.errandAs(redis.ErrandClientName, to) }

// errandAs is errandTo under another name.
func (p *Proxy) errandAs(name string, to target) (*link, error) {
	l := &lane{p: p, key: poolKey{proto: 2, own: true}, errand: name, st: state{db: -1}}
	k := &link{l: l, to: to, buf: make([]byte, readBuffer), done: make(chan struct{})}
	var err error
	if k.conn, err = net.DialTimeout("tcp", to.addr, dialTimeout); err != nil {
		return nil, err
	}
	if err = k.handshake(); err == nil {
		err = k.conn.SetDeadline(time.Now().Add(handshakeTimeout))
	}
	if err != nil {
		_ = k.conn.Close()
		return nil, err
	}
	return k, nil
}

// ask runs a few administrative commands on a connection of their own.
func (p *Proxy) ask(addr string, commands ...[]string) ([][]byte, error) {
	k, err := p.errand(addr)
	if err != nil {
		return nil, err
	}
	defer k.conn.Close()
	var out []byte
	for _, c := range commands {
		out = resp.AppendCommand(out, c...)
	}
	if _, err := k.conn.Write(out); err != nil {
		return nil, err
	}
	var replies [][]byte
	for range commands {
		f, err := k.frameNow()
		if err != nil {
			return nil, err
		}
		replies = append(replies, slices.Clone(f))
	}
	return replies, nil
}

// unblockAll ends blocking commands on a primary that is drained, so that they wait on the next one instead: an
// answered UNBLOCKED is the only certain sign that nothing was popped. It repeats, because a command may still be on
// its way into the wait. It does the same for those that were sent under an older rule, as long as there are any; behind
// unruledMost the primary's agent has ended their connections.
func (p *Proxy) unblockAll() {
	const unruledMost = 2 * time.Second
	for begun := time.Now(); ; {
		o := p.order.Load()
		var commands [][]string
		p.mu.Lock()
		for l := range p.lanes {
			if id := l.blockedID(o); id != "" {
				commands = append(commands, []string{"CLIENT", "UNBLOCK", id, "ERROR"})
			}
		}
		p.mu.Unlock()
		if len(commands) > 0 && o.t != nil {
			if _, err := p.ask(o.t.addr, commands...); err != nil {
				p.log.Warn("unblock waiting commands for a switchover", "node", o.t.node, "err", err)
			}
		}
		drains := (o.draining || p.shut.Load()) && p.inflight.Load() > 0
		if !drains && (len(commands) == 0 || time.Since(begun) > unruledMost) || !p.pause(2*time.Millisecond) {
			return
		}
	}
}

// blockedID returns the server's id of the lane's connection while a blocking command is on it.
func (l *lane) blockedID(o *order) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link == nil || l.blocking.Load() == 0 || !o.draining && !l.p.shut.Load() && (l.link.to.t == nil || l.waitRule == o.rule) {
		return ""
	}
	return l.link.clientID
}
