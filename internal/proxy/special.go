// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"strconv"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
	"redoubt/internal/topo"
)

// slow handles commands of sessions that are in a state of their own: not authenticated, replies off, in a transaction,
// or written as an inline command. It reports false when the session is over.
func (s *session) slow(table *route.Table, args [][]byte, raw []byte) bool {
	if !s.flushRun() {
		return false
	}
	if s.parser.Inline {
		raw = resp.AppendCommand(nil, args...)
	}
	v := s.p.guarded(table.Classify(args), args)
	if speaksHTTP(v) {
		return s.local(v, args, raw, 0)
	}
	s.show(v.Row, args)
	if !s.authed && !(v.Class == route.Local && (v.Row.Name == "AUTH" || v.Row.Name == "HELLO" || v.Row.Name == "QUIT" || v.Row.Name == "RESET")) {
		return s.say(resp.AppendError(nil, "NOAUTH Authentication required."))
	}
	var f flags
	if s.quiet || s.skip {
		if isReply := v.Row.Name == "CLIENT" && len(args) > 1 && route.Is(args[1], "REPLY"); !isReply {
			f, s.skip = muted, false
		}
	}
	if s.multi && s.ownLane().inNoTxn() {
		s.multi, s.poison = false, false
	}
	if s.multi {
		return s.inMulti(v, args, raw, f)
	}
	return s.special(v, args, raw, f)
}

// say answers a command without the backend, behind the replies to all earlier ones.
func (s *session) say(reply []byte) bool {
	if !s.flushRun() || !s.await(0) {
		return false
	}
	s.deliver(reply, 0)
	s.dirty = true
	return true
}

func (s *session) refuse(text string, f flags) bool {
	if f&muted != 0 {
		return true
	}
	return s.say(resp.AppendError(nil, text))
}

// send hands one command over, outside a run.
func (s *session) send(raw []byte, it item) bool {
	if !s.flushRun() {
		return false
	}
	it.n = uint32(len(raw))
	s.one[0] = it
	s.main, s.exact = true, it.flags&exact != 0
	ok := s.hand(raw, s.one[:], it.flags&writes != 0)
	s.one[0] = item{}
	s.main = false
	return ok
}

// own gives the session a lane of its own.
func (s *session) own() bool {
	if s.ownLane() != nil {
		return true
	}
	if !s.flushRun() || !s.await(0) {
		return false
	}
	s.lane = s.p.newOwnLane(s)
	return true
}

// sendOwn hands one command to the session's own lane, whatever its state.
func (s *session) sendOwn(raw []byte, it item) bool {
	if !s.flushRun() || !s.own() { // in this order: flushing a run may let go of the own lane
		return false
	}
	it.n = uint32(len(raw))
	return s.handTo([]item{it}, raw)
}

const errReadonly = "READONLY You can't write against a read only replica."

// special handles every command that does not simply travel with the run.
func (s *session) special(v route.Verdict, args [][]byte, raw []byte, f flags) bool {
	if s.ro && (v.Class == route.Write || v.Class == route.Block && v.Row.Flags&route.Readonly == 0) {
		return s.refuse(errReadonly, f)
	}
	if s.user != "" && !s.own() {
		return false
	}
	if v.Class == route.Local && s.proto < 3 && v.Row.Name != "QUIT" && v.Row.Name != "RESET" && !speaksHTTP(v) && s.subscribed() {
		if !s.flushRun() || !s.await(0) {
			return false
		}
		if s.subscribed() { // still so, now that everything is answered
			if s.quiet || s.skip { // CLIENT REPLY itself is refused as well
				f, s.skip = f|muted, false
			}
			return s.sendOwn(raw, item{flags: f | resendable}) // the server refuses it, in its own words
		}
	}
	switch v.Class {
	case route.Read, route.Write, route.Exec, route.Discard:
		if v.Row.Name == "PING" && len(args) == 1 && s.idlePing(f) {
			return true
		}
		it := item{flags: f}
		s.classed(&it, v, len(args))
		s.careful(&it, v.Row, args, raw)
		return s.send(raw, it)
	case route.Multi:
		if len(args) != 1 {
			return s.send(raw, item{flags: f | resendable})
		}
		if !s.own() || !s.await(0) { // what is sent again on this connection must not be sent into the transaction
			return false
		}
		s.multi, s.poison = true, false
		return s.sendOwn(raw, item{flags: f | fence | resendable, op: opMulti})
	case route.Watch:
		return s.sendOwn(raw, item{flags: f | resendable, op: opWatch})
	case route.Unwatch:
		if s.lane == nil || !s.lane.key.own {
			return s.send(raw, item{flags: f | resendable})
		}
		return s.sendOwn(raw, item{flags: f | resendable, op: opUnwatch})
	case route.Block:
		return s.block(v, args, raw, f)
	case route.Wait:
		return s.wait(args, raw, f)
	case route.Pubsub:
		return s.pubsub(args, raw, f)
	case route.Monitor:
		return s.sendOwn(raw, item{flags: f | resendable, op: opMonitor})
	case route.Tracking:
		return s.track(args, raw, f)
	case route.Forbidden:
		return s.refuse(v.Why, f)
	}
	return s.local(v, args, raw, f)
}

// subscribed reports whether the session's connection is one for messages.
func (s *session) subscribed() bool {
	if s.lane == nil || !s.lane.key.own {
		return false
	}
	s.lane.mu.Lock()
	defer s.lane.mu.Unlock()
	return s.lane.st.subscribed()
}

// idlePing answers PING while there is no primary and nothing to keep the order of.
func (s *session) idlePing(f flags) bool {
	if s.inflight.Load() > 0 || len(s.items) > 0 || s.ownLane() != nil || s.p.maySend(s.p.order.Load()) || f&muted != 0 {
		return false
	}
	s.deliver([]byte("+PONG\r\n"), 0)
	s.dirty = true
	return true
}

func (s *session) block(v route.Verdict, args [][]byte, raw []byte, f flags) bool {
	it := item{flags: f | blocks, x: &extra{index: route.BlockIndex(v.Row.Name, args), milli: route.BlocksInMilliseconds(v.Row.Name)}}
	if v.Row.Flags&route.Readonly == 0 {
		it.flags |= s.commit() | writes
	}
	if i := it.x.index; i > 0 && i < len(args) {
		unit := time.Second
		if it.x.milli {
			unit = time.Millisecond
		}
		if n, err := strconv.ParseFloat(string(args[i]), 64); err == nil && n > 0 && n < 1e9 {
			it.x.until = int64(s.p.now() + time.Duration(n*float64(unit)))
		}
	}
	return s.sendOwn(raw, it)
}

// wait sends WAIT or WAITAOF behind a marker on an own connection: the marker's offset covers everything that this
// client was ever answered in this tenure, on whatever connection (SAFETY A4). Writes of an earlier tenure are vouched
// for by nobody, so the answer is zero.
func (s *session) wait(args [][]byte, raw []byte, f flags) bool {
	if !s.flushRun() || !s.await(0) {
		return false
	}
	zero := []byte(":0\r\n")
	if route.Is(args[0], "WAITAOF") {
		zero = []byte("*2\r\n:0\r\n:0\r\n")
	}
	o := s.p.order.Load()
	wrote := s.wrote.Load()
	if wrote != 0 && (!o.sending || o.t == nil || uint64(o.t.epoch) != wrote) {
		return s.say(zero)
	}
	if !s.own() {
		return false
	}
	chunk := raw
	items := []item{{n: uint32(len(raw)), flags: f | blocks, op: opWait, x: &extra{zero: zero, epoch: topo.Epoch(wrote)}}}
	if wrote != 0 {
		usual := s.p.marker.usual
		chunk = append(slices.Clone(usual), raw...)
		items = append([]item{{n: uint32(len(usual)), flags: muted | resendable}}, items...)
	}
	return s.handTo(items, chunk)
}

func (s *session) pubsub(args [][]byte, raw []byte, f flags) bool {
	verb := args[0]
	it := item{flags: f | fence | resendable, op: opSubscribe, x: &extra{rest: len(args) - 1}}
	first := verb[0] | 0x20
	switch {
	case first == 'p':
		it.x.kind = pattern
	case len(verb) == len("SSUBSCRIBE") && verb[1]|0x20 == 's', len(verb) == len("SUNSUBSCRIBE") && first == 's':
		it.x.kind = sharded
	}
	if route.Is(verb, "UNSUBSCRIBE") || route.Is(verb, "PUNSUBSCRIBE") || route.Is(verb, "SUNSUBSCRIBE") {
		it.op = opUnsubscribe
	}
	if it.op == opUnsubscribe || len(args) > 1 {
		it.flags &^= muted // confirmations count as pushes: CLIENT REPLY OFF does not concern them
	}
	if !s.flushRun() || !s.subscribed() && !s.await(0) { // nor behind a subscription, where RESP2 has no other commands
		return false
	}
	return s.sendOwn(raw, it)
}

func (s *session) track(args [][]byte, raw []byte, f flags) bool {
	words := make([][]byte, len(args))
	for i, a := range args {
		words[i] = slices.Clone(a)
	}
	if !route.Is(args[1], "TRACKING") && (s.lane == nil || !s.lane.key.own) {
		return s.send(raw, item{flags: f | resendable})
	}
	sent, ok := s.p.redirected(words)
	if !ok {
		return s.refuse("ERR The client ID you want redirect to does not exist", f)
	}
	return s.sendOwn(resp.AppendCommand(nil, sent...), item{flags: f | resendable, op: opTracking, x: &extra{words: words}})
}

// redirected replaces the proxy's client id behind REDIRECT by the server's. ok is false when that client has no
// connection of its own (it must have subscribed to __redis__:invalidate first).
func (p *Proxy) redirected(words [][]byte) (out [][]byte, ok bool) {
	for i := 0; i+1 < len(words); i++ {
		if !route.Is(words[i], "REDIRECT") {
			continue
		}
		id, err := strconv.ParseUint(string(words[i+1]), 10, 64)
		if err != nil {
			return words, true // the server's error
		}
		server := p.serverID(id)
		if server == "" {
			return nil, false
		}
		out = slices.Clone(words)
		out[i+1] = []byte(server)
		return out, true
	}
	return words, true
}

// serverID returns the server's id of a client's own connection; empty when it has none.
func (p *Proxy) serverID(id uint64) string {
	k := p.ownLink(id)
	if k == nil {
		return ""
	}
	return k.clientID
}

// forget tells a client with tracking on that everything it cached may be stale: invalidations were missed.
func (s *session) forget() {
	if s.protoNow() == 3 {
		s.deliver([]byte(">2\r\n$10\r\ninvalidate\r\n_\r\n"), 0)
		s.p.spawn(s.out.flush)
	}
}

// inMulti handles a command between MULTI and EXEC. The server queues and checks them; what the proxy refuses itself
// makes EXEC fail, as the server's own refusals do.
func (s *session) inMulti(v route.Verdict, args [][]byte, raw []byte, f flags) bool {
	if (v.Class == route.Exec || v.Class == route.Discard) && len(args) != 1 {
		return s.sendOwn(raw, item{flags: f | resendable, op: opQueued}) // refused: the transaction stays open, and has failed
	}
	switch v.Class {
	case route.Exec:
		s.multi = false
		if s.poison {
			return s.sendOwn([]byte(discard), item{flags: f, op: opExecAbort})
		}
		return s.sendOwn(raw, item{flags: f | s.commit() | writes, op: opExec})
	case route.Discard:
		s.multi = false
		return s.sendOwn(raw, item{flags: f, op: opDiscard})
	case route.Multi, route.Watch:
		return s.sendOwn(raw, item{flags: f | resendable})
	case route.Forbidden:
		return s.poisoned(v.Why, f)
	case route.Pubsub, route.Monitor, route.Tracking:
		return s.poisoned("ERR "+v.Row.Name+" is not allowed inside a transaction through the proxy", f)
	case route.Write, route.Block:
		if s.ro && v.Row.Flags&route.Readonly == 0 {
			return s.poisoned(errReadonly, f)
		}
	case route.Local:
		switch {
		case v.Row.Name == "QUIT" || v.Row.Name == "RESET":
			return s.local(v, args, raw, f)
		case v.Row.Name == "HELLO" || v.Row.Name == "AUTH" || v.Row.Name == "CLIENT":
			return s.poisoned("ERR "+v.Row.Name+" is not allowed inside a transaction through the proxy", f)
		case v.Row.Name == "SELECT" && len(args) == 2:
			if n, err := strconv.Atoi(string(args[1])); err == nil && n >= 0 && n < s.p.databases() {
				return s.sendOwn(raw, item{flags: f | resendable, op: opQueued, x: &extra{db: n + 1}})
			}
		}
	}
	it := item{flags: f | resendable, op: opQueued}
	switch v.Row.Care {
	case route.Cursor: // the reply comes inside that of EXEC, so what is scanned here begins anew after a failover
		noteCursor(&it, v.Row, raw)
		it.x.scan.unmark(raw, s.p.markNow())
		it.op = opQueued
	case route.Eval:
		s.careful(&it, v.Row, args, raw)
	}
	return s.sendOwn(raw, it)
}

func (s *session) poisoned(text string, f flags) bool {
	s.poison = true
	return s.refuse(text, f)
}

// broken answers the rest of a transaction of which a part was given up.
func (s *session) broken(it item) bool {
	if !it.op.ends() {
		if it.flags&muted == 0 {
			s.deliver(notSent("its transaction was given up"), 0)
			s.dirty = true
		}
		return true
	}
	if !s.await(0) {
		return false
	}
	s.multi, s.poison = false, false
	s.lane.shut()
	s.lane = nil
	switch {
	case it.flags&muted != 0:
		return true
	case it.op == opDiscard:
		return s.say([]byte("+OK\r\n"))
	}
	return s.say([]byte("-EXECABORT Transaction discarded because of previous errors.\r\n"))
}
