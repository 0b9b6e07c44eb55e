// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"slices"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// run collects neighbouring replies to one session, so that they are handed over at once: from and to are places in
// the read buffer.
type run struct {
	s        *session
	from, to int
	count    int64
}

func (k *link) endRun() {
	if s := k.run.s; s != nil {
		if b := k.buf[k.run.from:k.run.to]; k.sock == nil || !s.answer(b, k.run.count) {
			s.deliver(b, k.run.count)
		}
		k.run = run{}
	}
}

// next returns the batch whose reply comes next; nil: there is none.
func (k *link) next() *batch {
	for {
		if k.cur != nil {
			return k.cur
		}
		k.l.mu.Lock()
		if len(k.l.sent) == 0 {
			k.idle.Store(true)
			k.l.mu.Unlock()
			return nil
		}
		k.cur = k.l.sent[0]
		k.l.sent = slices.Delete(k.l.sent, 0, 1) // few, and the memory is used again
		k.l.mu.Unlock()
		k.skipCanned()
	}
}

// reply handles one frame that answers a command.
func (k *link) reply(f []byte) error {
	b := k.next()
	if b == nil {
		return errSpoke
	}
	if b.stage != stageNone {
		if mine, err := k.grouped(b, f); mine || err != nil {
			return err
		}
	}
	if b.head == len(b.ents) {
		return k.acknowledge(b, f)
	}
	e := &b.ents[b.head]
	if e.op == opSubscribe || e.op == opUnsubscribe {
		if !k.confirmed(b, e, f) {
			return nil
		}
	} else if k.refusedForNow(e, f) {
		return errTxnRefused
	} else {
		k.answer(b, e, f)
	}
	b.head++
	k.skipCanned()
	return nil
}

// refusedForNow reports whether a command of a transaction was refused for want of replicas, as happens for some
// milliseconds after a promotion: its EXEC can only fail, so nothing of it has run or will. The connection is given up, and
// the transaction is said again on the next one.
func (k *link) refusedForNow(e *entry, f []byte) bool {
	_, down := k.redirection(f)
	queued := e.op == opQueued && f[0] == '-' && (down || route.ClassifyReply(f) == route.NotYet)
	if !queued && !(e.op == opExec && (down || bytes.HasPrefix(f, []byte("-EXECABORT Transaction discarded because of: NOREPLICAS")))) {
		return false
	}
	k.l.mu.Lock()
	defer k.l.mu.Unlock()
	t := k.l.st.txn // also of what is said again in front of the client's next command
	if e.x != nil && e.x.txn != nil {
		t = e.x.txn
	}
	if t == nil {
		return false
	}
	t.sent = false
	return true
}

// skipCanned hands out replies that were decided without the server, and finishes the batch when it is complete.
func (k *link) skipCanned() {
	b := k.cur
	for b.head < len(b.ents) {
		e := &b.ents[b.head]
		if e.n > 0 {
			return
		}
		if e.flags&moved == 0 && e.x != nil {
			k.emit(b, e, e.x.canned, 1)
		}
		b.head++
	}
	switch {
	case !b.withheld():
		k.cur = nil
		k.finish(b)
	case b.aside:
		k.cur = nil
		k.endRun()
		k.l.mu.Lock()
		b.at = k.l.p.stamp()
		k.l.unacked = append(k.l.unacked, b)
		if len(k.l.sent) == 0 {
			k.idle.Store(true)
		}
		k.l.mu.Unlock()
		k.l.p.spawn(func() { k.commitAside(b) })
		k.l.nudge()
	}
}

// finish lets a batch go whose replies are delivered.
func (k *link) finish(b *batch) {
	if b.primary {
		k.endRun()
		k.l.p.landed()
	}
	k.l.p.release(b)
	k.l.mu.Lock()
	if len(k.l.sent) == 0 {
		k.idle.Store(true)
	}
	wake := (len(k.l.redo) > 0 || k.l.doubts()) && len(k.l.sent) == 0 || k.l.p.order.Load().draining || k.demoted.Load() || k.to.t == nil
	k.l.mu.Unlock()
	if wake {
		k.l.nudge()
	}
}

// answer decides what becomes of one command whose reply arrived.
func (k *link) answer(b *batch, e *entry, f []byte) {
	fate := route.Deliver
	if e.flags&blocks != 0 {
		k.l.blocking.Add(-1)
	}
	if f[0] == '-' {
		fate = route.ClassifyReply(f)
		switch moved, down := k.redirection(f); {
		case down:
			fate = route.NotYet
		case moved && k.strayed():
			fate = route.NotExecuted
		case fate == route.NotExecuted && e.flags&blocks != 0 && k.unblocked.Swap(false):
			fate = route.Deliver // the wish of a client
		case e.op == opExec && k.demoted.Load() && bytes.HasPrefix(f, []byte("-EXECABORT ")):
			fate = route.NotExecuted
		}
	}
	if e.op == opWait && fate != route.Deliver {
		f, fate = e.x.zero, route.Deliver // asked again, it would not cover what went before
	}
	if e.op == opEvalSHA && e.s != nil && bytes.HasPrefix(f, []byte("-NOSCRIPT")) && k.heal(b, e, f) {
		return
	}
	if e.op != opNone {
		f = k.transition(e, f, fate)
	}
	if e.s == nil {
		return // restored state
	}
	if t := k.l.p.crowd.Load(); t != nil {
		t.see(e.s, b.bytes(e), len(f))
	}
	if e.flags&long != 0 && fate != route.Deliver {
		f, fate = notSent("the primary refused it for a moment, and it is too long to be kept"), route.Deliver
	}
	if e.op == opInfo {
		f = k.l.p.withSection(f, k.l.key.proto)
	}
	if k.to.t == nil {
		fate = k.replicaFate(e, fate)
	}
	if fate == route.Deliver && e.flags&leased != 0 && !b.withheld() && k.to.t != nil && !k.l.p.sure(k.to.t) {
		k.readAgain(b, e)
		return
	}
	if fate == route.Deliver && (e.s.redo.Load() == 0 || !k.l.waitsBefore(e)) && !(k.demoted.Load() && e.flags&resendable != 0) {
		k.emit(b, e, f, 1)
		return
	}
	k.divert(b, e, f, fate)
}

// redirection reports what a cluster's server says of a slot that is not its own.
func (k *link) redirection(f []byte) (moved, down bool) {
	if !k.l.p.o.Cluster || f[0] != '-' {
		return false, false
	}
	return route.ClassifyRedirect(f)
}

// strayed reports whether a redirection is that of a primary which is none any more: the connection is given up, and the command
// sent again. If the next connection of the same tenure, which has shown a primary, says so, too, the slot is elsewhere, and whoever
// knows the slots has to deal with it.
func (k *link) strayed() bool {
	if k.demoted.Load() {
		return true
	}
	return k.l.strayed.Swap(uint64(k.epoch())) != uint64(k.epoch())
}

// waitsBefore reports whether an earlier command of the session is still to be sent again.
func (l *lane) waitsBefore(e *entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.redo, func(r entry) bool { return r.s == e.s && int32(r.seq-e.seq) < 0 })
}

// refuse paces commands that the primary refuses for want of replicas; the caller holds l.mu.
func (l *lane) refuse() {
	l.refusals++
	l.redoAt = time.Now().Add(redoPause(l.refusals))
}

// redoPause is how long a command waits that the primary refused for want of replicas.
func redoPause(refusals int) time.Duration {
	return min(redoWaitMin<<min(max(refusals-redoSteps, 0), 10), redoWaitMax)
}

// replicaFate: on a replica, only its own troubles are a reason to ask another one.
func (k *link) replicaFate(e *entry, fate route.Fate) route.Fate {
	if fate == route.NotExecuted && e.flags&resendable == 0 {
		return route.Deliver
	}
	return fate
}

// divert treats commands that did not run, and the replies that follow one of the same session: those that may run
// again do so in order, behind it. A later write that did run pins the order: what is in front of it cannot follow any
// more, and gets the server's refusal.
func (k *link) divert(b *batch, e *entry, f []byte, fate route.Fate) {
	if fate == route.NotExecuted {
		k.demote()
	}
	l := k.l
	l.mu.Lock()
	if fate != route.Deliver || e.flags&resendable != 0 {
		if fate == route.Deliver && k.demoted.Load() {
			f = nil // who says so is not a primary
		}
		l.moveToRedo(b, e, f)
		if fate == route.NotYet {
			l.refuse()
		}
		l.mu.Unlock()
		l.nudge()
		return
	}
	l.overtaken(e, e.need())
	l.mu.Unlock()
	k.emit(b, e, f, 1)
}

// overtaken gives up what was to be sent again in front of e, which has run: x answers it first. The caller holds l.mu.
func (l *lane) overtaken(e *entry, x *extra) {
	l.redo = slices.DeleteFunc(l.redo, func(r entry) bool {
		if r.s != e.s || int32(r.seq-e.seq) > 0 {
			return false
		}
		reply := r.x.canned
		if reply == nil {
			reply = r.x.ran
		}
		if reply == nil {
			reply = notSent("the primary refused it for a moment")
		}
		if r.flags&muted == 0 {
			x.piece = append(x.piece, reply...)
		}
		x.more++
		e.s.redo.Add(-1)
		return true
	})
	l.recount()
}

// moveToRedo puts a command on the list of those that are sent again; the caller holds l.mu. Its reply is kept, in case
// the command cannot be sent again after all.
func (l *lane) moveToRedo(b *batch, e *entry, reply []byte) {
	l.addRedo(b, e, reply)
	slices.SortStableFunc(l.redo, bySeq)
}

// addRedo is moveToRedo without the order.
func (l *lane) addRedo(b *batch, e *entry, reply []byte) {
	r := *e
	x := extra{}
	if e.x != nil {
		x = *e.x
	}
	x.data = slices.Clone(b.bytes(e))
	x.canned, x.ran = nil, nil
	switch fate := route.ClassifyReply(reply); {
	case fate == route.NotYet:
		x.canned = slices.Clone(reply)
	case l.p.o.Cluster && bytes.HasPrefix(reply, []byte("-CLUSTERDOWN ")):
		x.canned = notSent("its primary says: " + string(resp.Text(reply)))
	case fate == route.Deliver && len(reply) > 0 && l.p.budget.room(0, int64(len(reply))):
		x.ran = slices.Clone(reply)
	}
	r.x, r.off = &x, 0
	if r.at == 0 {
		r.at = l.p.stamp()
	}
	r.s.redo.Add(1)
	l.hold(1, int64(len(x.data)+len(x.ran)))
	l.p.stats.resent.Add(1)
	l.redo = append(l.redo, r)
	e.flags |= moved
	if r.op.ends() && x.txn != nil {
		x.txn.sent = false
	}
}

func bySeq(a, b entry) int { return int(int32(a.seq - b.seq)) }

// emit gives a reply to its session, or withholds it until the batch is acknowledged.
func (k *link) emit(b *batch, e *entry, f []byte, count int64) {
	if e.flags&writes != 0 {
		e.s.noteWrite(b.epoch)
	}
	if b.withheld() {
		for len(b.ends) < b.head {
			b.ends = append(b.ends, len(b.held))
		}
		if e.x != nil && e.x.more > 0 {
			b.held = append(b.held, e.x.piece...)
		}
		if e.flags&muted == 0 {
			b.held = append(b.held, f...)
		}
		if count > 0 {
			b.ends = append(b.ends, len(b.held))
		}
		return
	}
	if e.x != nil && e.x.more > 0 {
		k.direct(e.s, e.x.piece, e.x.more)
	}
	if e.flags&muted != 0 {
		k.direct(e.s, nil, count)
		return
	}
	from := k.r - len(f)
	if len(f) == 0 || from < 0 || &k.buf[from] != &f[0] {
		k.direct(e.s, f, count) // not the frame that was just read
		return
	}
	if k.run.s != e.s || k.run.to != from {
		k.endRun()
		k.run = run{s: e.s, from: from}
		k.moisten(e.s)
	}
	k.run.to = k.r
	k.run.count += count
}

// direct hands bytes over that are not part of a run.
func (k *link) direct(s *session, f []byte, count int64) {
	k.endRun()
	s.deliver(f, count)
	k.moisten(s)
}

func (k *link) moisten(s *session) {
	if n := len(k.wet); n == 0 || k.wet[n-1] != s {
		k.wet = append(k.wet, s)
	}
}

// hand delivers the replies of an acknowledged batch, neighbouring ones of a session at once.
func (k *link) hand(b *batch) {
	for i := 0; i < len(b.ents); {
		e := &b.ents[i]
		if e.s == nil || e.flags&moved != 0 {
			i++
			continue
		}
		from, count := b.startOf(i), int64(0)
		j := i
		for ; j < len(b.ents) && b.ents[j].s == e.s && b.ents[j].flags&moved == 0; j++ {
			if b.ents[j].n == 0 && j > i {
				break // decided without the server: its session may have to be disconnected instead
			}
			count += b.ents[j].answers()
		}
		k.direct(e.s, b.held[from:b.startOf(j)], count)
		i = j
	}
}

// reply returns the withheld reply of entry i.
func (b *batch) reply(i int) []byte { return b.held[b.startOf(i):b.startOf(i+1)] }

// startOf returns where the withheld reply of entry i begins: where the one before it ends.
func (b *batch) startOf(i int) int {
	if i = min(i, len(b.ends)); i == 0 {
		return 0
	}
	return b.ends[i-1]
}

// answers returns how many commands the reply to e answers.
func (e *entry) answers() int64 {
	if e.x == nil {
		return 1
	}
	return 1 + e.x.more
}
