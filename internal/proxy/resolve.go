// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"redoubt/internal/invariant"
	"redoubt/internal/resp"
)

// What becomes of groups whose connection ended.

var errNoMarker = errors.New("the marker could not be read, or is not on enough replicas")

// broke puts the groups of a connection that ended in doubt. A number that nobody can tell about stays so.
func (x *exactness) broke(l *lane, k *link, gone []*batch) {
	x.ghostRun, x.ghostID, x.trial = k.runID, k.clientID, false
	var pins []*pin
	for _, b := range gone {
		if b.pin == nil && (b.stage == stageNone || b.stage == stageAborted) {
			continue
		}
		if b.doubtful(l.p.stamp()); len(b.pin.ents) > 0 {
			pins = append(pins, b.pin)
		}
	}
	x.pins = append(pins, x.pins...)
	for _, p := range x.pins {
		if p.verdict != lost {
			p.verdict = open
		}
	}
}

// doubtful sets b.pin to what is still to be answered of a group.
func (b *batch) doubtful(now uint32) {
	from := pin{number: b.number, buf: b.buf, ents: b.ents, at: now}
	if b.pin != nil {
		from = *b.pin
	}
	p := &pin{number: from.number, buf: []byte(openGroup), at: from.at, verdict: from.verdict}
	for i, e := range from.ents {
		if b.ents[i].flags&moved == 0 {
			command := from.buf[e.off : e.off+e.n]
			if x := b.ents[i].x; x != nil && x.more > 0 {
				e.x = x // it answers earlier commands as well
			}
			e.off = uint32(len(p.buf))
			p.buf = append(p.buf, command...)
			p.ents = append(p.ents, e)
		}
	}
	b.pin = p
}

// resolve reads the marker over a new connection, before anything else is sent on it. On the server of the connection that
// ended, that one is ended by its number first: what it had sent and the server had not read would run later otherwise.
func (k *link) resolve() error {
	l, x := k.l, k.l.ex
	l.mu.Lock()
	ghost, certain := "", k.runID != ""
	if x.ghostRun != "" && x.ghostRun == k.runID && !invariant.Planted("replay-without-kill") {
		ghost = x.ghostID
	}
	l.mu.Unlock()
	var out []byte
	if ghost != "" {
		out = resp.AppendCommand(out, "CLIENT", "KILL", "ID", ghost)
	}
	out = resp.AppendCommand(out, "MULTI") // so that it is known that transactions are taken
	out = resp.AppendCommand(out, "GET", x.key)
	out = resp.AppendCommand(out, "EXEC")
	out = resp.AppendCommand(out, "CONFIG", "GET", "maxmemory-policy")
	if _, err := k.conn.Write(out); err != nil {
		return err
	}
	if ghost != "" {
		f, err := k.frameNow()
		if err != nil {
			return err
		}
		certain = certain && f[0] == ':'
	}
	for _, want := range "++" {
		if f, err := k.frameNow(); err != nil {
			return err
		} else if rune(f[0]) != want {
			return fmt.Errorf("%w: %s", errNoGroup, resp.Text(f))
		}
	}
	f, err := k.frameNow()
	if err != nil {
		return err
	}
	value := resp.Elements(f, nil)
	if len(value) != 1 || value[0][0] == '-' && !bytes.HasPrefix(value[0], []byte("-WRONGTYPE")) {
		return fmt.Errorf("%w: %s", errNoMarker, resp.Text(f))
	}
	n, err := strconv.ParseUint(string(resp.Text(value[0])), 10, 64)
	known := x.judge(l, n, err == nil && certain && value[0][0] == '$')
	if f, err = k.frameNow(); err != nil {
		return err
	}
	if pair := resp.Elements(f, nil); len(pair) == 2 {
		l.p.evicts(k.to.node, string(resp.Text(pair[1])))
	}
	if known {
		return nil
	}
	return k.writeMarker()
}

// judge gives every group in doubt its verdict, and reports whether the marker is as it should be. One that is missing, or
// that says what it cannot say, says nothing: somebody deleted or changed it, and perhaps the data, too.
func (x *exactness) judge(l *lane, marker uint64, ok bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.ghostRun = "" // it has ended
	ok = ok && x.sure && marker >= x.acked && marker <= x.number
	x.sure = ok
	if !ok && (x.acked > 0 || len(x.pins) > 0) {
		l.p.log.Warn("the marker of exact retry was removed or changed; writes in doubt get an unknown outcome", "key", x.key, "says", marker, "acknowledged", x.acked, "sent", x.number, "doubts", len(x.pins))
	}
	for _, p := range x.pins {
		switch {
		case !ok && invariant.Planted("absent-marker-not-applied"):
			p.verdict = absent
		case !ok:
			p.verdict = lost
		case p.verdict == lost:
		case p.number <= marker:
			p.verdict = applied
		default:
			p.verdict = absent
		}
	}
	return ok
}

// writeMarker makes a new beginning: the marker is on enough replicas before the first group is sent, so that it is
// missing later only if somebody removed it.
func (k *link) writeMarker() error {
	l, x := k.l, k.l.ex
	acks := l.p.order.Load().need.acks
	l.mu.Lock()
	out := x.appendSet(nil, x.number)
	x.written = l.p.stamp()
	l.mu.Unlock()
	out = resp.AppendCommand(out, "WAIT", strconv.Itoa(acks), "500")
	if _, err := k.conn.Write(out); err != nil {
		return err
	}
	f, err := k.frameNow()
	if err != nil {
		return err
	}
	if f[0] != '+' {
		return fmt.Errorf("%w: %s", errNoMarker, resp.Text(f))
	}
	if f, err = k.frameNow(); err != nil {
		return err
	}
	if n, ok := resp.Int(f); !ok || int(n) < acks {
		return fmt.Errorf("%w: %d of %d", errNoMarker, n, acks)
	}
	l.mu.Lock()
	x.sure = true
	l.mu.Unlock()
	return nil
}

// takePin makes the batch that settles the first group in doubt; the caller holds l.mu. What is known to have run is
// answered when enough replicas hold it, which is why that is a batch, too.
func (l *lane) takePin() *batch {
	x := l.ex
	p := x.pins[0]
	x.pins = x.pins[1:]
	b := l.p.newBatch()
	b.pin, b.number, b.wants = p, p.number, true
	if p.verdict == absent {
		b.stage, x.trial = stageOpen, true
		b.buf = append(b.buf, p.buf...)
		b.ents = append(b.ents, p.ents...)
		return b
	}
	for _, e := range p.ents {
		command := p.buf[e.off : e.off+e.n]
		e.off = uint32(len(b.buf))
		if e.flags&resendable != 0 {
			b.buf = append(b.buf, command...)
		} else {
			extra := extra{}
			if e.x != nil {
				extra = *e.x
			}
			extra.canned = diedUnanswered()
			if p.verdict == applied {
				extra.canned = appliedReply(command)
			}
			if e.s.redo.Load() > 0 {
				l.overtaken(&e, &extra)
			}
			e.x, e.n = &extra, 0
		}
		b.ents = append(b.ents, e)
	}
	return b
}

// appliedReply is what the client gets for a write that ran, and whose reply is lost. SET of a key to a value has only
// one reply; what others would have said nobody knows.
func appliedReply(command []byte) []byte {
	var parser resp.Parser
	if n, err := parser.Next(command, resp.Limits{}); err == nil && n > 0 && len(parser.Args) == 3 && bytes.EqualFold(parser.Args[0], []byte("SET")) {
		return []byte("+OK\r\n")
	}
	return resp.AppendError(nil, "APPLIED the command ran exactly once and is not lost; its reply, which may have been an error, was lost with the connection to the primary")
}

// settled notes what enough replicas hold, and counts what became of groups that were in doubt.
func (x *exactness) settled(p *Proxy, done []*batch) {
	for _, b := range done {
		x.acked = max(x.acked, b.number)
		if b.pin == nil {
			continue
		}
		n := b.pin.writes()
		switch {
		case b.stage == stageRan:
			p.stats.replayed.Add(n)
		case b.stage == stageNone && b.pin.verdict == applied:
			p.stats.applied.Add(n)
		default:
			p.stats.unknown.Add(n)
		}
	}
}

// writes counts the commands that may have changed something.
func (p *pin) writes() uint64 {
	n := uint64(0)
	for i := range p.ents {
		if p.ents[i].flags&resendable == 0 {
			n++
		}
	}
	return n
}

// inFront adds the sessions that have a command in doubt: nothing behind it is answered before.
func (x *exactness) inFront(of map[*session]bool) {
	for _, p := range x.pins {
		for i := range p.ents {
			of[p.ents[i].s] = true
		}
	}
}

// expirePins answers what could not be settled in time; the caller holds l.mu.
func (l *lane) expirePins(now, limit uint32, o *order) []answer {
	if l.ex == nil {
		return nil
	}
	var out []answer
	for len(l.ex.pins) > 0 && now-l.ex.pins[0].at > limit {
		p := l.ex.pins[0]
		l.ex.pins = l.ex.pins[1:]
		l.p.stats.unknown.Add(p.writes())
		for i := range p.ents {
			e := &p.ents[i]
			reply := gaveUp(e, fmt.Sprintf("the write was sent to a primary that failed before it answered, and it was held for %s, but %s", o.parkFor(), o.why))
			out = append(out, e.verdict(reply, true)...)
		}
	}
	return out
}

// evicts notes whether a server may delete markers by itself. That is safe, and makes exact retry of little use.
func (p *Proxy) evicts(node any, policy string) {
	bad := len(policy) > 7 && policy[:7] == "allkeys"
	if p.evicting.Swap(bad) != bad && bad {
		p.log.Error("retry: exact needs another maxmemory-policy: this server may evict the markers, and then outcomes are unknown", "node", node, "policy", policy)
	}
}

// refreshMarkers has lanes write their markers again that have been silent for long.
func (p *Proxy) refreshMarkers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.stamp()
	for l := range p.lanes {
		if l.ex == nil {
			continue
		}
		l.mu.Lock()
		if l.up && l.ex.written != 0 && now-l.ex.written > markerFresh {
			l.ex.stale = true
			l.nudge()
		}
		l.mu.Unlock()
	}
}
