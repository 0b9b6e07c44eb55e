// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"slices"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// Kinds of channels.
const (
	classic = iota
	pattern
	sharded
	kinds
)

// state is what an own connection's server side knows about its client, and what has to be restored on the next one. It
// is guarded by the lane's mutex.
type state struct {
	txn      *txn // open transaction, until its EXEC or DISCARD is answered
	watch    bool
	lost     bool // watched keys may have changed unseen: EXEC must answer null
	subs     [kinds]map[string]struct{}
	asked    int // SUBSCRIBEs on their way, or queued
	told     int // (UN)SUBSCRIBEs that the server has and did not confirm
	monitor  bool
	tracking [][]byte // the arguments of CLIENT TRACKING ON
	caching  flags    // what a CLIENT CACHING says of the command that comes next
	db       int      // selected inside a transaction; -1: that of the lane's key
	foul     bool     // MULTI was refused: nobody knows whether the server has another one open
}

// txn is one transaction: what has to be said again on another server before its EXEC.
type txn struct {
	log      [][]byte // MULTI and what was queued
	answered int      // how many of them the client has replies to
	sent     bool     // its EXEC or DISCARD is on its way
	caching  flags    // of its MULTI
	broken   bool     // a part was refused because it was parked too long: EXEC must fail
	db       int      // SELECT inside
}

// clean reports whether the connection can serve another session.
func (st *state) clean() bool {
	return st.txn == nil && !st.watch && !st.lost && !st.subscribed() && !st.monitor && st.tracking == nil && st.caching == 0 && st.db < 0 && !st.foul
}

func (st *state) subscribed() bool { return st.asked > 0 || st.listens() }

// listens reports whether a subscription is confirmed: what comes may be a message.
func (st *state) listens() bool {
	return len(st.subs[classic])+len(st.subs[pattern])+len(st.subs[sharded]) > 0
}

// unsure reports whether nobody knows yet if a server that speaks RESP2 takes anything but subscriptions on the connection: a
// write has to wait until that is known, because a marker that is refused vouches for nothing.
func (st *state) unsure(b *batch) bool { return st.told > 0 && b.wants }

// pushed notes what a session queues, and returns the command that is really to be sent.
func (st *state) pushed(it *item, command []byte) []byte {
	st.cache(it)
	switch it.op {
	case opSubscribe:
		st.asked++
		return command
	case opMulti:
		st.txn = &txn{db: -1, caching: it.flags & caches}
	case opQueued, opExec, opDiscard, opExecAbort:
	default:
		return command
	}
	t := st.txn
	if t == nil {
		return command
	}
	if it.x == nil {
		it.x = &extra{}
	}
	it.x.txn = t
	switch it.op {
	case opMulti, opQueued:
		t.log = append(t.log, slices.Clone(command))
		if it.x.db > 0 {
			t.db = it.x.db - 1
		}
	case opExec:
		if st.lost {
			it.op = opExecNull
			return []byte(discard)
		}
	}
	return command
}

// sending notes what can no longer be taken back.
func (st *state) sending(b *batch) {
	for i := range b.ents {
		e := &b.ents[i]
		if e.x != nil && e.x.txn != nil && e.op.ends() {
			e.x.txn.sent = true
		}
		if e.s != nil && (e.op == opSubscribe || e.op == opUnsubscribe) && e.n > 0 {
			st.told++
		}
	}
}

// ends reports whether o is the end of a transaction.
func (o op) ends() bool { return o == opExec || o == opDiscard || o == opExecNull || o == opExecAbort }

func (st *state) over(t *txn) {
	if st.txn == t {
		st.txn = nil
	}
	st.watch, st.lost = false, false
}

// transition applies a reply to the state and returns what the client is told.
func (k *link) transition(e *entry, f []byte, fate route.Fate) []byte {
	if fate != route.Deliver {
		return f
	}
	l := k.l
	l.mu.Lock()
	defer l.mu.Unlock()
	st := &l.st
	ok := f[0] == '+'
	switch e.op {
	case opMulti, opQueued:
		if e.s != nil && e.x != nil && e.x.txn != nil {
			e.x.txn.answered++
			if e.op == opMulti && !ok {
				e.x.txn.sent = true // what follows has run by itself, and is not said again
				st.foul = true
				st.over(e.x.txn)
			}
		}
	case opExec, opDiscard:
		if e.x != nil {
			if t := e.x.txn; t != nil && e.op == opExec && t.db >= 0 && f[0] == '*' && !bytes.HasPrefix(f, []byte("*-1")) {
				st.db = t.db // only now: what is sent before it goes to the database of before
			}
			st.over(e.x.txn)
		}
	case opExecNull, opExecAbort:
		if e.x != nil {
			st.over(e.x.txn)
		}
		return verdictOf(e.op, ok, l.key.proto)
	case opScan:
		return marked(f, k.mark)
	case opEverywhere:
		if f[0] != '-' {
			l.p.lore.told(e.x.words)
		}
	case opWatch:
		st.watch = st.watch || ok
	case opUnwatch:
		if ok {
			st.watch, st.lost = false, false
		}
	case opMonitor:
		st.monitor = ok
	case opTracking:
		if ok && len(e.x.words) > 2 && route.Is(e.x.words[1], "TRACKING") {
			st.tracking = nil
			if route.Is(e.x.words[2], "ON") {
				st.tracking = e.x.words
			}
		}
	}
	return f
}

// verdictOf is the answer to an EXEC in whose place DISCARD was sent.
func verdictOf(o op, ok bool, proto int) []byte {
	switch {
	case !ok:
		return []byte("-ERR EXEC without MULTI\r\n")
	case o == opExecAbort:
		return []byte("-EXECABORT Transaction discarded because of previous errors.\r\n")
	}
	return resp.AppendNullArray(nil, proto)
}

// breakTxn begins a transaction that can only fail.
func (l *lane) breakTxn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.st.txn = &txn{db: -1, broken: true}
}

// inNoTxn reports whether the server has refused the MULTI of a session that believes to be in a transaction.
func (l *lane) inNoTxn() bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.txn == nil
}

// died prepares the state for another connection. The first pass finds transactions whose end never reached the server.
func (st *state) died(lost []*batch) {
	st.told = 0
	for _, b := range lost {
		for i := b.head; i < len(b.ents); i++ {
			if e := &b.ents[i]; e.x != nil && e.x.txn != nil && e.op.ends() && int(e.off+e.n) > b.wrote {
				e.x.txn.sent = false
			}
		}
	}
	if st.watch && (st.txn == nil || !st.txn.sent) {
		st.watch, st.lost = false, true
	}
	if st.txn != nil && st.txn.sent {
		st.over(st.txn)
	}
}

// verdict is the answer to a part of a transaction that was on its way when the connection ended; nil: it is sent again.
func (t *txn) verdict(e *entry, answered bool) []byte {
	if !t.sent {
		return nil
	}
	switch e.op {
	case opMulti:
		return []byte("+OK\r\n")
	case opQueued:
		return []byte("+QUEUED\r\n")
	case opDiscard:
		return []byte("+OK\r\n")
	case opExecNull, opExecAbort:
		return verdictOf(e.op, true, e.s.protoNow())
	}
	e.s.p.stats.unknown.Add(1)
	return diedUnanswered()
}

// rewrite turns the EXEC of a transaction that lost its WATCH into a DISCARD whose answer is null.
func (st *state) rewrite(redo []entry) {
	if !st.lost {
		return
	}
	for i := range redo {
		e := &redo[i]
		if e.op == opExec && e.n > 0 {
			e.op, e.x.data = opExecNull, []byte(discard)
			e.n = uint32(len(discard))
		}
	}
}

const discard = "*1\r\n$7\r\nDISCARD\r\n"

// restore builds the batch that brings a new connection to the state of the earlier one, and tells a tracking client to
// forget what it cached. The caller holds the lane's mutex.
func (st *state) restore(l *lane, tracking [][]byte) *batch {
	b := l.p.newBatch()
	add := func(o op, rest, kind int, command []byte) {
		b.ents = append(b.ents, entry{off: uint32(len(b.buf)), n: uint32(len(command)), flags: replayed, op: o, x: &extra{rest: rest, kind: kind}})
		b.buf = append(b.buf, command...)
	}
	if st.tracking != nil {
		if tracking != nil {
			add(opNone, 0, 0, resp.AppendCommand(nil, tracking...))
		}
		l.own.forget()
	}
	if st.monitor {
		add(opMonitor, 0, 0, resp.AppendCommand(nil, "MONITOR"))
	}
	for kind, verb := range [kinds]string{"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"} {
		if len(st.subs[kind]) == 0 {
			continue
		}
		words := []string{verb}
		for name := range st.subs[kind] {
			words = append(words, name)
		}
		slices.Sort(words[1:])
		add(opSubscribe, len(words)-1, kind, resp.AppendCommand(nil, words...))
	}
	if t := st.txn; t != nil && !t.sent {
		for i := 0; i < t.answered && i < len(t.log); i++ {
			o := opQueued
			if i == 0 {
				o = opMulti
				b.cache(t.caching)
			}
			add(o, 0, 0, t.log[i])
		}
	}
	if len(b.ents) == 0 {
		return nil
	}
	return b
}

// outOfBand handles frames that answer no command: pushes, messages, what MONITOR shows. It reports false for replies.
func (k *link) outOfBand(f []byte) bool {
	l := k.l
	l.mu.Lock()
	s, st := l.own, &l.st
	var word []byte
	switch {
	case f[0] == '>' || f[0] == '*' && l.key.proto < 3 && st.listens(): // a subscriber in RESP2 gets no other arrays
		if e := resp.Elements(f, nil); len(e) > 0 {
			word = resp.Text(e[0])
		}
	case f[0] == '+' && st.monitor && len(f) > 1 && f[1] >= '0' && f[1] <= '9':
		word = f
	}
	l.mu.Unlock()
	switch string(word) {
	case "":
		if f[0] != '>' {
			return false
		}
	case "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe":
		if k.awaitsConfirmation() {
			return false
		}
		l.mu.Lock()
		l.st.count(f)
		l.mu.Unlock()
	case "message", "pmessage", "smessage":
		if bytes.Contains(f, []byte("$13\r\n"+redis.AckChannel+"\r\n$1\r\n1\r\n")) {
			return true // a marker, seen through a pattern
		}
	default:
		if f[0] == '*' {
			return false
		}
	}
	if s != nil {
		k.direct(s, f, 0)
	}
	return true
}

func (k *link) awaitsConfirmation() bool {
	b := k.next()
	if b == nil || b.head >= len(b.ents) {
		return false
	}
	o := b.ents[b.head].op
	return o == opSubscribe || o == opUnsubscribe
}

// count notes one (un)subscription; the caller holds the lane's mutex.
func (st *state) count(f []byte) {
	e := resp.Elements(f, nil)
	if len(e) < 2 {
		return
	}
	word, name := resp.Text(e[0]), string(resp.Text(e[1]))
	kind := classic
	switch word[0] {
	case 'p':
		kind = pattern
	case 's':
		if len(word) > 1 && (word[1] == 's' || bytes.HasPrefix(word, []byte("sun"))) {
			kind = sharded
		}
	}
	subs := &st.subs[kind]
	if bytes.Contains(word, []byte("unsub")) {
		delete(*subs, name)
		return
	}
	if *subs == nil {
		*subs = map[string]struct{}{}
	}
	(*subs)[name] = struct{}{}
}

// confirmed handles one of the replies to (UN)SUBSCRIBE and reports whether it was the last one.
func (k *link) confirmed(b *batch, e *entry, f []byte) bool {
	l := k.l
	x := e.need()
	l.mu.Lock()
	if x.rest == 0 {
		x.rest = max(1, len(l.st.subs[x.kind])) // UNSUBSCRIBE from all: one reply for each, or one with null
	}
	x.rest--
	if f[0] == '-' {
		x.rest = 0
	}
	last := x.rest == 0
	if f[0] != '-' {
		l.st.count(f)
	}
	if last && e.s != nil {
		l.st.told--
		if e.op == opSubscribe {
			l.st.asked--
		}
	}
	l.mu.Unlock()
	if last {
		l.nudge() // a write may have waited for it
	}
	if e.s != nil {
		count := int64(0)
		if last {
			count = 1
		}
		k.emit(b, e, f, count)
	}
	return last
}
