// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"slices"
	"strconv"

	"redoubt/internal/invariant"
	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// Exact retry (ADR 0019). A lane with it carries plain commands only, and each of its batches is one transaction that ends by
// setting the lane's marker to the batch's number: [MULTI] commands [SET marker n EX][EXEC]. Data and marker are
// replicated, kept and lost together, so the marker on whatever server is primary later says which batches its data hold.
// resolve.go reads it.

// exactness is what a lane with exact retry knows. It is guarded by the lane's mutex, except for what is constant.
type exactness struct {
	key      string // of the marker; constant
	set      []byte // SET marker, without its value; constant
	number   uint64 // of the latest group
	acked    uint64 // of the latest group that enough replicas hold
	pins     []*pin // groups in doubt, in the order of their numbers
	sure     bool   // the marker has been on enough replicas since it was last seen missing
	trial    bool   // one of them is on its way: nothing may follow until it is known to have run
	ghostRun string // the connection that ended last, by the server's run id …
	ghostID  string // … and its number of the connection
	written  uint32 // stamp of the latest marker
	stale    bool   // the marker should be written again, before it expires
}

// pin is a group whose outcome is in doubt. Number and commands stay together until the outcome is known: the group may
// have run on a server that is elected only later (SAFETY A8, 7).
type pin struct {
	number  uint64
	buf     []byte // MULTI and the commands
	ents    []entry
	at      uint32 // stamp of when it came into doubt
	verdict verdict
}

// verdict is what the marker said about a pin, on the present connection.
type verdict uint8

const (
	open    verdict = iota // not asked yet
	applied                // the primary's data hold it
	absent                 // they do not
	lost                   // nobody can tell any more; for good
)

// stage is how far the replies to a group have come.
type stage uint8

const (
	stageNone  stage = iota
	stageOpen        // MULTI's comes next
	stageQueue       // one for each command and the marker, as it is queued
	stageExec        // EXEC's head, or its refusal
	stageRun         // those of the commands, then the marker's
	stageRan
	stageAborted
)

const (
	openGroup    = "*1\r\n$5\r\nMULTI\r\n"
	closeGroup   = "*1\r\n$4\r\nEXEC\r\n"
	markerPrefix = "__redoubt:exact:"
	markerTTL    = "3600" // seconds; a proxy that is gone leaves its markers behind for so long
	markerFresh  = 1_200_000
	groupMax     = 1024 // commands of one transaction: a server does nothing else meanwhile
	groupsQueued = 32   // of a lane; then sessions wait
)

var errNoGroup = errors.New("the server does not take transactions from the proxy")

// beExact makes l a lane with exact retry; before it is started. The caller holds p.mu.
func (l *lane) beExact() {
	l.p.lastMarker++
	key := markerPrefix + l.p.o.ID + ":" + l.p.incarnation + ":" + strconv.FormatUint(l.p.lastMarker, 10)
	set := resp.AppendBulk(resp.AppendBulk(resp.AppendArray(nil, 5), "SET"), key)
	l.ex = &exactness{key: key, set: set}
	l.pend = l.newBatch()
}

// newBatch returns an empty batch for what sessions send.
func (l *lane) newBatch() *batch {
	b := l.p.newBatch()
	if l.ex != nil {
		b.stage, b.wants = stageOpen, true
		b.buf = append(b.buf, openGroup...)
	}
	return b
}

// groups reports whether the command is to be sent as a part of a group.
func (e *entry) groups(l *lane) bool { return l.ex != nil && e.flags&exact != 0 && e.n > 0 }

// doubts reports whether something is to be settled before anything else is sent; the caller holds l.mu.
func (l *lane) doubts() bool { return l.ex != nil && (len(l.ex.pins) > 0 || l.ex.trial) }

// sealGroup ends a group with its marker; the caller holds l.mu.
func (l *lane) sealGroup(b *batch) {
	x := l.ex
	if b.pin == nil || invariant.Planted("replay-with-new-number") {
		x.number++
		b.number = x.number
		if b.pin != nil {
			b.pin.number = b.number
		}
	}
	b.asked = len(b.ents) + 1
	b.buf = x.appendSet(b.buf, b.number)
	b.buf = append(b.buf, closeGroup...)
	x.written, x.stale = l.p.stamp(), false
}

// appendSet appends the command that sets the marker.
func (x *exactness) appendSet(b []byte, number uint64) []byte {
	var text [20]byte
	b = append(b, x.set...)
	b = resp.AppendBulk(b, strconv.AppendUint(text[:0], number, 10))
	return append(b, "$2\r\nEX\r\n$4\r\n"+markerTTL+"\r\n"...)
}

// grouped handles a reply of a group, and reports false for those that a command of a client gets.
func (k *link) grouped(b *batch, f []byte) (mine bool, err error) {
	switch b.stage {
	case stageOpen:
		if f[0] != '+' {
			return true, errNoGroup
		}
		b.stage = stageQueue
	case stageQueue:
		if fate := route.ClassifyReply(f); fate != route.Deliver && b.fate != route.NotExecuted {
			b.fate, b.why = fate, bytes.Clone(f)
		}
		if b.queued++; b.queued == b.asked {
			b.stage = stageExec
		}
	case stageExec:
		return true, k.aborted(b, f)
	case stageRun:
		if b.head < len(b.ents) {
			return false, nil
		}
		b.stage = stageRan
		if f[0] != '+' { // never seen; the marker does not speak of this group, so it is resolved as without one
			k.l.p.log.Error("the marker of a transaction was refused", "node", k.to.node, "reply", string(resp.Text(f)))
			b.stage, b.pin = stageAborted, nil
		}
	default:
		return false, nil
	}
	return true, nil
}

// opened takes the head of EXEC's reply off the buffer, so that the replies in it are handled one by one. It reports
// false when the head has not arrived as a whole.
func (k *link) opened(b *batch) (whole bool, err error) {
	have := k.buf[k.r:k.w]
	end := bytes.IndexByte(have, '\n')
	if end < 0 && len(have) < 16 {
		return false, nil
	}
	n := 0
	for _, c := range have[1:max(end-1, 1)] {
		if c < '0' || c > '9' || n > groupMax {
			return false, errSpoke
		}
		n = 10*n + int(c-'0')
	}
	if n != b.asked {
		return false, errSpoke
	}
	k.r += end + 1
	b.stage = stageRun
	if b.pin != nil {
		k.l.mu.Lock()
		k.l.ex.trial = false
		k.l.mu.Unlock()
		k.l.nudge()
	}
	return true, nil
}

const abortedFor = "-EXECABORT Transaction discarded because of: "

// aborted handles a group that the server refused as a whole: nothing of it ran. Its commands are sent again, outside of
// a group when the reason is in one of them. A group that was in doubt before keeps its number, because it may have run
// elsewhere; when it was refused for good, nobody can tell what became of it.
func (k *link) aborted(b *batch, f []byte) error {
	if !bytes.HasPrefix(f, []byte("-EXECABORT ")) {
		return errSpoke
	}
	if cause, ok := bytes.CutPrefix(f, []byte(abortedFor)); ok && b.fate == route.Deliver {
		b.why = append([]byte("-"), cause...)
		b.fate = route.ClassifyReply(b.why)
	}
	b.stage = stageAborted
	if b.fate == route.NotExecuted {
		k.demote()
	}
	l := k.l
	l.mu.Lock()
	if b.fate == route.NotYet {
		l.refuse()
	}
	switch {
	case b.pin == nil:
		for ; b.head < len(b.ents); b.head++ {
			e := &b.ents[b.head]
			if b.fate == route.Deliver {
				e.flags &^= exact
			}
			l.addRedo(b, e, b.why)
		}
		slices.SortStableFunc(l.redo, bySeq)
	case b.fate != route.Deliver:
		for ; b.head < len(b.ents); b.head++ {
			b.ents[b.head].flags |= moved
		}
		l.ex.pins = append([]*pin{b.pin}, l.ex.pins...)
		b.pin = nil
	}
	l.ex.trial = false
	l.mu.Unlock()
	for ; b.head < len(b.ents); b.head++ {
		e := &b.ents[b.head]
		k.emit(b, e, gaveUp(e, "the write was sent to a primary that failed before it answered, and the present one refuses it"), 1)
	}
	l.nudge()
	return nil
}

// gaveUp is the reply to a command of a group of which nobody can tell whether it ran.
func gaveUp(e *entry, why string) []byte {
	if e.flags&resendable != 0 {
		return notSent(why)
	}
	return unknownOutcome(why)
}
