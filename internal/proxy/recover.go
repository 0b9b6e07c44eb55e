// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/topo"
)

// answer is a reply that was decided without the server.
type answer struct {
	s     *session
	bytes []byte
	count int64
}

// Texts of the two families of errors. Clients retry on TRYAGAIN by themselves, safely: nothing was executed. The other
// prefix is ours alone, so that no client takes it for something it knows.
func notSent(why string) []byte {
	return resp.AppendError(nil, "TRYAGAIN the command was not executed: "+why)
}

func unknownOutcome(why string) []byte {
	return resp.AppendError(nil, "OUTCOMEUNKNOWN "+why+"; it may or may not have been applied")
}

func diedUnanswered() []byte {
	return unknownOutcome("the write was sent to a primary that failed before it answered")
}

// recover settles what was not answered when a connection ended: commands that change nothing, or that certainly never
// ran, are kept to be sent again in order; the others are answered with OUTCOMEUNKNOWN. Its reader has ended.
func (l *lane) recover(k *link) {
	l.mu.Lock()
	l.link = nil
	l.blocking.Store(0)
	l.p.prod.closed(l.waiting)
	l.prefix, l.waiting, l.commit, l.unmarked, l.full = nil, 0, 0, false, false
	lost := l.unacked
	if k.cur != nil {
		lost = append(lost, k.cur)
	}
	lost = append(lost, l.sent...)
	l.unacked, l.sent, k.cur = nil, nil, nil
	if l.ex != nil {
		l.ex.broke(l, k, lost)
	}
	if l.key.own {
		l.st.died(lost)
		l.pendToRedo()
	}
	for _, b := range lost {
		if b.pin != nil {
			continue
		}
		for i := range b.ents {
			if answered := i < b.head; b.withheld() || !answered {
				l.outcome(b, &b.ents[i], answered)
			}
		}
	}
	slices.SortStableFunc(l.redo, bySeq)
	if l.key.own {
		l.st.rewrite(l.redo)
	}
	l.redoAt, l.refusals = time.Time{}, 0
	l.down()
	out := l.settleRedo()
	l.mu.Unlock()
	deliver(out)
	for _, b := range lost {
		l.p.visible.gaveUp(b)
		if b.primary {
			l.p.landed()
		}
	}
}

// outcome decides about one command of a lost connection; the caller holds l.mu.
func (l *lane) outcome(b *batch, e *entry, answered bool) {
	if e.s == nil || e.flags&moved != 0 {
		return
	}
	unsent := !answered && int(e.off+e.n) > b.wrote
	var verdict []byte
	switch {
	case e.n == 0:
		verdict = e.x.canned
	case unsent && e.flags&long != 0:
		verdict = notSent("its primary failed before it had arrived as a whole, and it is too long to be kept")
	case e.x != nil && e.x.txn != nil && !unsent:
		verdict = e.x.txn.verdict(e, answered)
	case e.op == opWait:
		verdict = e.x.zero // nothing is known to hold the earlier writes
	case unsent, e.flags&resendable != 0:
	case e.flags&blocks != 0 && !answered:
	default:
		verdict = diedUnanswered()
		l.p.stats.unknown.Add(1)
	}
	if answered && verdict == nil && (e.op == opMulti || e.op == opQueued) {
		e.x.txn.answered-- // its reply was withheld, and it is said again with the others
	}
	l.moveToRedo(b, e, nil)
	r := &l.redo[slices.IndexFunc(l.redo, func(r entry) bool { return r.s == e.s && r.seq == e.seq })]
	switch {
	case verdict != nil:
		r.n, r.x.canned = 0, verdict
	case e.flags&blocks != 0:
		r.x.data = rearm(r, l.p.now())
		r.n = uint32(len(r.x.data))
	}
}

// rearm rewrites a blocking command so that it waits for the rest of its time.
func rearm(r *entry, now time.Duration) []byte {
	if r.x.until == 0 {
		return r.x.data
	}
	var parser resp.Parser
	if n, err := parser.Next(r.x.data, resp.Limits{}); n == 0 || err != nil || r.x.index >= len(parser.Args) {
		return r.x.data
	}
	left := max(time.Duration(r.x.until)-now, time.Millisecond)
	text := strconv.FormatFloat(left.Seconds(), 'f', 3, 64)
	if r.x.milli {
		text = strconv.FormatInt(left.Milliseconds(), 10)
	}
	parser.Args[r.x.index] = []byte(text)
	return resp.AppendCommand(nil, parser.Args...)
}

// pendToRedo takes the queue apart, so that single commands can be changed; the caller holds l.mu.
func (l *lane) pendToRedo() {
	for _, b := range append(l.queue, l.pend) {
		for i := range b.ents {
			e := b.ents[i]
			if e.s == nil {
				continue // said again with the command behind it
			}
			x := extra{}
			if e.x != nil {
				x = *e.x
			}
			x.data = slices.Clone(b.bytes(&e))
			if e.at == 0 {
				e.at = l.p.stamp()
				l.hold(1, int64(len(x.data)))
			}
			e.x, e.off = &x, 0
			if e.op == opWait {
				e.n, x.canned = 0, x.zero
			}
			e.s.redo.Add(1)
			l.redo = append(l.redo, e)
		}
	}
	l.queue, l.pend = nil, l.newBatch()
	slices.SortStableFunc(l.redo, bySeq)
	l.room.Broadcast()
}

// voidWaits has a WAIT that is about writes of an earlier tenure than the connection's answer zero; the caller holds l.mu.
func (l *lane) voidWaits(epoch topo.Epoch) {
	for _, b := range append(slices.Clip(l.queue), l.pend) {
		if slices.ContainsFunc(b.ents, func(e entry) bool { return e.op == opWait && e.x.epoch != 0 && e.x.epoch != epoch }) {
			l.pendToRedo()
			return
		}
	}
}

// settleRedo takes out the replies that are decided and that nothing of their session comes before; the caller holds
// l.mu and delivers them.
func (l *lane) settleRedo() []answer {
	var out []answer
	before := map[*session]bool{}
	if l.ex != nil {
		l.ex.inFront(before)
	}
	l.redo = slices.DeleteFunc(l.redo, func(r entry) bool {
		gone := r.s.closed.Load()
		if !gone && (r.n > 0 || before[r.s]) {
			before[r.s] = true
			return false
		}
		r.s.redo.Add(-1)
		out = append(out, r.verdict(r.x.canned, !gone)...)
		return true
	})
	l.recount()
	return out
}

// verdict is the answer to a command that was decided without the server, behind those that wait for it.
func (e *entry) verdict(reply []byte, wanted bool) (out []answer) {
	if e.flags&muted != 0 || !wanted {
		reply = nil
	}
	if e.x != nil && e.x.more > 0 {
		piece := e.x.piece
		if !wanted {
			piece = nil
		}
		out = append(out, answer{e.s, piece, e.x.more})
	}
	return append(out, answer{e.s, reply, 1})
}

func deliver(out []answer) {
	for _, a := range out {
		a.s.deliver(a.bytes, a.count)
	}
	for _, a := range out {
		a.s.out.flush()
	}
}

// takeRedo makes a batch of what has to be sent again; the caller holds l.mu.
func (l *lane) takeRedo() *batch {
	b := l.p.newBatch()
	if l.redo[0].groups(l) {
		b = l.newBatch()
	}
	taken, groups := 0, b.stage != stageNone
	for _, r := range l.redo {
		if r.groups(l) != groups || groups && taken >= groupMax {
			break
		}
		if r.flags&fence != 0 && b.wants || r.flags&commits != 0 && b.told || len(b.buf) > batchBytesMax {
			break
		}
		taken++
		r.s.redo.Add(-1)
		if r.n > 0 {
			b.cache(r.flags)
		}
		r.off, r.x.ran = uint32(len(b.buf)), nil
		if r.n > 0 {
			b.buf = append(b.buf, r.x.data...)
			r.n = uint32(len(r.x.data))
		}
		b.ents = append(b.ents, r)
		b.wants = b.wants || r.flags&commits != 0
		b.scans = b.scans || r.op == opScan
		b.told = b.told || r.op == opSubscribe || r.op == opUnsubscribe
	}
	l.redo = slices.Delete(l.redo, 0, taken)
	return b
}

// dropGone removes parked commands of clients that have left: for them the outcome was open anyway, and a write that
// arrives long after its client gave up would surprise everybody. Commands that were never parked are sent.
func (l *lane) dropGone(b *batch) *batch {
	gone := false
	for i := range b.ents {
		gone = gone || b.ents[i].isGone()
	}
	if !gone {
		return b
	}
	kept := l.newBatch()
	for _, e := range b.ents {
		if e.isGone() {
			e.s.deliver(nil, 1) // whoever drives the client may wait for its last replies
			continue
		}
		from := e.off
		e.off = uint32(len(kept.buf))
		kept.buf = append(kept.buf, b.buf[from:from+e.n]...)
		kept.ents = append(kept.ents, e)
		kept.wants = kept.wants || e.flags&commits != 0
		kept.scans = kept.scans || e.op == opScan
	}
	return kept
}

// isGone reports whether a command was parked and its client has left.
func (e *entry) isGone() bool { return e.at != 0 && e.s != nil && e.s.closed.Load() }

// setDown notes that nothing can be sent now: what is queued counts as parked.
func (l *lane) setDown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down()
}

func (l *lane) down() {
	if l.up {
		l.up = false
		l.room.Broadcast()
	}
	l.stampPend()
}

// stampPend starts the time limit of what waits in the queue.
func (l *lane) stampPend() {
	now := l.p.stamp()
	for _, b := range append(slices.Clip(l.queue), l.pend) {
		for i := len(b.ents) - 1; i >= 0 && b.ents[i].at == 0; i-- {
			b.ents[i].at = now
			l.hold(1, int64(b.ents[i].n))
		}
	}
}

// sweep answers what has been parked for too long, and returns when to look again; 0: when woken.
func (l *lane) sweep(o *order) time.Duration {
	l.mu.Lock()
	if len(l.pend.ents) == 0 && len(l.queue) == 0 && len(l.redo) == 0 && len(l.unacked) == 0 && !l.doubts() {
		l.mu.Unlock()
		return 0
	}
	shut := l.p.shut.Load()
	if time.Since(l.swept) < sweepInterval && !shut {
		defer l.mu.Unlock()
		return l.nextLook()
	}
	l.swept = time.Now()
	if len(l.unacked) > 0 || l.refusals > 0 {
		poke(l.p.absent.wake)
	}
	l.stampPend()
	now, limit := l.p.stamp(), uint32(o.parkFor()/time.Millisecond)
	late := func(e *entry) bool { return e.at != 0 && (shut || now-e.at > limit) }
	oldest := l.pend
	if len(l.queue) > 0 {
		oldest = l.queue[0]
	}
	if len(oldest.ents) > 0 && late(&oldest.ents[0]) {
		l.pendToRedo()
	}
	for i := range l.redo {
		if e := &l.redo[i]; e.n > 0 && late(e) {
			l.giveUp(e, o)
		}
	}
	for i := range l.redo {
		if e := &l.redo[i]; e.n > 0 && e.x.txn != nil && e.x.txn.broken {
			l.giveUp(e, o)
		}
	}
	out := append(l.expirePins(now, limit, o), l.settleRedo()...)
	expired := l.expireUnacked(now, limit, o, &out)
	l.mu.Unlock()
	deliver(out)
	for range expired {
		l.p.landed()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nextLook()
}

func (l *lane) nextLook() time.Duration {
	if (len(l.redo) > 0 || l.doubts() || l.unmarked && len(l.unacked) > 0) && l.up && len(l.sent) == 0 { // otherwise the reader says when it has everything
		return max(100*time.Microsecond, min(sweepInterval, time.Until(l.redoAt)))
	}
	return sweepInterval
}

// giveUp answers a parked command; it certainly was not executed.
func (l *lane) giveUp(e *entry, o *order) {
	if text := resp.Text(e.x.canned); bytes.HasPrefix(text, []byte("NOREPLICAS")) {
		e.x.canned = resp.AppendError(nil, l.p.withAbsent(string(text)))
	}
	if e.x.canned == nil && l.p.shut.Load() {
		e.x.canned = resp.AppendError(nil, route.KeysMove)
	}
	if e.x.canned == nil {
		e.x.canned = notSent(fmt.Sprintf("it was held for %s, but %s", o.parkFor(), l.p.why(o)))
	}
	if e.x.txn != nil {
		e.x.txn.broken = true
	}
	if e.op == opSubscribe {
		l.st.asked--
	}
	e.n = 0
}

// expireUnacked answers batches that did not get their acknowledgements in time; it returns how many.
func (l *lane) expireUnacked(now, limit uint32, o *order, out *[]answer) int {
	n := 0
	for n < len(l.unacked) && now-l.unacked[n].at > limit {
		b := l.unacked[n]
		for i := range b.ents {
			e := &b.ents[i]
			if e.s == nil || e.flags&moved != 0 {
				continue
			}
			if (e.flags&resendable == 0 || l.p.strict()) && !b.refusedAt(i) {
				reply := unknownOutcome(l.p.withAbsent(b.need.short(b.got, o.parkFor())))
				l.p.stats.unknown.Add(1)
				*out = append(*out, e.verdict(reply, true)...)
				continue
			}
			*out = append(*out, answer{e.s, b.reply(i), e.answers()})
		}
		l.commit--
		l.p.visible.gaveUp(b)
		n++
	}
	l.unacked = slices.Delete(l.unacked, 0, n)
	return n
}

func (o *order) parkFor() time.Duration {
	if o.park <= 0 {
		return 10 * time.Second
	}
	return o.park
}
