// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"fmt"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
)

// marker is the command that ends a batch in front of its WAIT: see redis.Marker.
type marker struct {
	usual []byte
	took  byte          // what the reply of a server that took it begins with
	tag   func() string // cluster: a hash tag of a slot that the primary serves; empty: not known
}

func newMarker(o Options) marker {
	m := marker{usual: resp.AppendCommand(nil, redis.Marker(o.Cluster)...), took: ':'}
	if o.Cluster {
		m.took, m.tag = '+', o.SlotTag
	}
	return m
}

// of returns the marker; full: the server has no memory left for the usual one.
func (m *marker) of(full bool) []byte {
	if full && m.tag != nil {
		if tag := m.tag(); tag != "" {
			return resp.AppendCommand(nil, redis.FullMarker(tag)...)
		}
	}
	return m.usual
}

// errUnmarked: the server refuses the marker for now, as it refuses writes. errFullServer: for want of memory.
var (
	errUnmarked   = errors.New("the server refuses writes, and the marker")
	errFullServer = fmt.Errorf("%w: it has no memory left", errUnmarked)
)

// refusals are what a server says when it refuses what writes, and a marker that counts as that, for the state it is in: nothing was
// done, and nothing is shown.
var refusals = [...]string{"-NOREPLICAS ", "-OOM ", "-MISCONF ", "-BUSY "}

func refusal(f []byte) bool {
	for _, r := range refusals {
		if bytes.HasPrefix(f, []byte(r)) {
			return true
		}
	}
	return false
}

// markerTaken judges the reply to a batch's marker. If it was refused, the WAIT behind it may be about anything earlier.
func (k *link) markerTaken(b *batch, f []byte) error {
	moved, down := k.redirection(f) // of a full server's marker, which has a key
	switch {
	case f[0] == k.l.p.marker.took:
		return nil
	case refusal(f), b.bare && (moved || down):
		b.refused, b.full = true, bytes.HasPrefix(f, []byte("-OOM "))
		return nil
	}
	k.l.p.log.Error("the marker of a quorum batch was refused; acknowledgements cannot be trusted", "node", k.to.node, "reply", string(resp.Text(f)))
	return errNotIt
}

// standOff deals with a marker that was refused: what waits goes on waiting, for a marker that is sent a moment later, but for the batches
// in front that show nothing. tried: the marker was that of a full server. The caller holds l.mu.
func (k *link) standOff(tried bool) {
	l := k.l
	if !l.full || tried || l.p.marker.tag == nil {
		l.refuse()
	}
	for len(l.unacked) > 0 && l.unacked[0].refused && l.unacked[0].showsNothing(l.p.strict()) {
		k.kept = append(k.kept, l.unacked[0])
		l.unacked = append(l.unacked[:0], l.unacked[1:]...)
		l.commit--
	}
}

// showsNothing reports whether the replies of a batch say nothing of what may be lost: refusals, and reads unless these are promised
// more than what the primary has.
func (b *batch) showsNothing(strict bool) bool {
	for i := range b.ents {
		if !b.plain(i, strict) {
			return false
		}
	}
	return true
}

func (b *batch) plain(i int, strict bool) bool {
	e := &b.ents[i]
	switch {
	case e.s == nil || e.flags&moved != 0:
		return true
	case e.answers() > 1:
		return false
	}
	return e.n == 0 || b.refusedAt(i) || e.flags&resendable != 0 && !strict
}

// refusedAt reports whether the withheld reply of entry i is that of a server which refuses what writes. One that answers earlier commands
// as well is none.
func (b *batch) refusedAt(i int) bool { return b.ents[i].answers() == 1 && refusal(b.reply(i)) }

// calledBack reports whether a question was ended by CLIENT UNBLOCK: the blocking command in front of it, which was to be called back
// for a switchover, a stronger rule, a move of slots or a client, had its reply by then. It is asked again.
func calledBack(f []byte) bool { return bytes.HasPrefix(f, []byte("-UNBLOCKED ")) }

// acknowledge handles the replies behind those of the commands: the marker's, then those to the question (need.appendWait).
func (k *link) acknowledge(b *batch, f []byte) error {
	if b.tail == 0 && b.marked {
		b.tail = 1
		return k.markerTaken(b, f)
	}
	asked := b.tail
	if b.marked {
		asked--
	}
	if asked < b.need.waits()-1 {
		b.tail++
		if f[0] != ':' && !calledBack(f) {
			return errNotIt
		}
		return nil
	}
	got, ok := b.need.read(f)
	if !ok && !calledBack(f) {
		return errNotIt // not a primary any more: the outcome is unknown
	}
	k.cur = nil
	l, bare := k.l, b.bare
	l.mu.Lock()
	l.waiting--
	l.p.prod.closed(1)
	if !bare {
		b.at = l.p.stamp()
		l.unacked = append(l.unacked, b)
	}
	tried := l.full
	if b.marked {
		l.unmarked, l.full = b.refused, b.full
	}
	switch {
	case b.refused:
		k.standOff(tried)
	case b.need.met(got):
		k.kept, l.unacked = append(k.kept, l.unacked...), l.unacked[:0]
		if l.ex != nil {
			l.ex.settled(l.p, k.kept)
		}
		l.refusals = 0
		l.commit = 0
		for _, s := range l.sent {
			if s.withheld() && !s.bare {
				l.commit++
			}
		}
	default:
		for _, u := range l.unacked {
			u.got = got
		}
	}
	if len(l.sent) == 0 {
		k.idle.Store(true)
	}
	l.mu.Unlock()
	for i, u := range k.kept {
		if u.refused && b.refused {
			l.p.visible.settled(u) // none of its writes was done
		} else {
			l.p.visible.acknowledged(u)
		}
		k.hand(u)
		l.p.landed()
		l.p.release(u)
		k.kept[i] = nil
	}
	k.kept = k.kept[:0]
	if bare {
		l.p.landed()
		l.p.release(b)
	}
	if l.loop != nil {
		l.loop.touched(l)
	} else {
		l.nudge()
	}
	return nil
}
