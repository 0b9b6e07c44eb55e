// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/route"
)

// session is one client. Whoever drives it owns the fields without another note: its loop, or, while it needs waiting or
// is in a state of its own, a goroutine (serve). Commands in flight are all on one lane, so that replies come in order;
// whatever needs another lane waits until nothing is in flight.
type session struct {
	// What a plain command touches comes first: of many clients it is cold, and so it is in few lines of the processor's cache.
	p        *Proxy
	sock     *sock
	pipe     *pipe // of sock; nil: it is none
	lane     *lane
	inflight atomic.Int64
	limit    atomic.Int64 // serve waits until inflight is not above; -1: it does not wait
	redo     atomic.Int64 // its commands on the lane's redo list
	r, w     int
	seq      uint32      // guarded by the lane's mutex
	driven   atomic.Bool // by a goroutine
	closed   atomic.Bool
	ro       bool
	heavy    bool // the run holds a write
	main     bool // the run holds a command that replicas must not answer
	exact    bool // the run holds only commands for a lane with exact retry
	authed   bool
	multi    bool // between MULTI and EXEC
	quiet    bool // CLIENT REPLY OFF
	skip     bool // CLIENT REPLY SKIP: the next reply is dropped
	lax      bool // PROXY DURABILITY ASYNC
	eof      bool // the client sends no more
	over     bool
	leaving  bool             // owned by the loop: it is about to go on in another process, and is not read from
	watched  bool             // owned by the loop: it is told of events
	home     [laneKinds]*lane // shared lanes; nil: not known yet
	user     string           // not the deployment's: a user of the backend
	preface  HeaderPolicy     // owned by the loop: a PROXY header is still to come
	one      [1]item
	wrote    atomic.Uint64 // epoch of the latest write that was answered
	wroteAt  atomic.Int64  // clock.Uptime, when reads are split
	vis      visible
	out      output

	id     uint64
	born   time.Time
	buf    []byte
	parser resp.Parser
	from   int // of the run: commands at buf[from:to] that go to the lane at once
	to     int
	items  []item
	near   *lane // to the replica that answered last

	proto  int
	protoA atomic.Int32 // proto and db for other goroutines
	dbA    atomic.Int32
	db     int
	pass   string
	stash  []byte // holds the start of a command while the loop reads the rest
	bad    error  // protocol error: the session ends with it
	poison bool   // a command of the transaction was refused here
	dirty  bool   // has replies of its own making to flush

	maint  atomic.Bool // wants to be told of a change of the primary
	infoMu sync.Mutex  // guards what other clients may see
	told   int64       // the latest notification
	mid    bool        // a part of a reply is delivered, the rest will be
	after  []byte      // a notification that waits for it

	begun  bool // a part of a PROXY header is there
	huge   bool // what is known about it is too large to be handed over
	name   string
	lib    string
	libVer string
	ready  chan struct{}
	alone  atomic.Pointer[leaving] // a client of Join: its own hand-over; nil: none
}

const (
	queryBuffer     = 16 << 10
	queryBufferKept = 256 << 10
	stashKept       = 2 << 10
	runMax          = 512 // commands handed to a lane at once
)

func newSession(p *Proxy, c *sock, id uint64, readonly bool) *session {
	s := &session{p: p, id: id, sock: c, pipe: c.pipe, ro: readonly, born: time.Now(), proto: 2, ready: make(chan struct{}, 1)}
	s.limit.Store(-1)
	s.protoA.Store(2)
	s.authed = p.o.Password == ""
	s.out.s = s
	s.vis.seen.Store(p.tick.Load())
	s.preface = p.greeting()
	s.introduce()
	return s
}

func (s *session) protoNow() int { return int(s.protoA.Load()) }

// kill disconnects the client; safe for concurrent use.
func (s *session) kill() {
	s.closed.Store(true)
	s.sock.shut()
}

// deliver appends replies to count commands; flush writes them. Safe for concurrent use.
func (s *session) deliver(b []byte, count int64) {
	if s.p.o.HangUp && bytes.HasPrefix(b, []byte("-OUTCOMEUNKNOWN ")) {
		s.out.flush() // what is owed from before
		s.kill()
	}
	if len(b) > 0 && !s.closed.Load() && !s.out.add(b) {
		s.p.log.Warn("client disconnected: it does not take its replies", "client", s.id, "bytes", s.p.o.Limits.Output)
		s.kill()
	}
	if count > 0 {
		s.answered(count)
	}
}

// answered notes that so many commands are not in flight any more.
func (s *session) answered(count int64) {
	if left, limit := s.inflight.Add(-count), s.limit.Load(); limit >= 0 && left <= limit {
		poke(s.ready)
	}
}

// await waits until at most limit commands are unanswered, and reports false when the client is gone.
func (s *session) await(limit int64) bool {
	if s.inflight.Load() <= limit {
		return !s.closed.Load()
	}
	s.limit.Store(limit)
	defer s.limit.Store(-1)
	s.out.flush()
	var gone <-chan struct{}
	patience := time.NewTimer(100 * time.Millisecond)
	defer patience.Stop()
	for s.inflight.Load() > limit {
		select {
		case <-s.ready:
		case <-patience.C:
			// A client that leaves must not keep its blocked command, and the connection that it holds, for ever. One that
			// only has no more to say gets the replies that come without its doing.
			switch {
			case !s.eof:
				gone = s.sock.waiter().gone
			case s.lane.key.own && s.lane.blocking.Load() > 0:
				return false
			default:
				patience.Reset(100 * time.Millisecond)
			}
		case <-gone:
			s.kill()
			return false
		case <-s.p.ctx.Done():
			return false
		}
	}
	return !s.closed.Load()
}

// serve drives the session from a goroutine, until the client leaves or the loop can go on with it.
func (s *session) serve() {
	s.sock.waiter() // before anything is read, so that no event is missed
	for {
		if s.bad != nil {
			s.refuseProtocol(s.bad)
			break
		}
		again, err := s.commands()
		if err != nil {
			s.bad = err
			continue
		}
		if !again || !s.flushRun() {
			break
		}
		if s.dirty {
			s.dirty = false
			s.out.flush()
		}
		if s.inflight.Load() >= int64(s.p.o.Limits.Pipeline) && !s.await(int64(s.p.o.Limits.Pipeline)/2) {
			break
		}
		if s.longInput() {
			if !s.intake() {
				break
			}
			continue
		}
		more, back := s.fill()
		if back {
			return
		}
		if !more {
			s.lastReplies()
			break
		}
	}
	s.end()
}

// lastReplies waits for what a client that sends no more is still owed: it may have closed only its own side.
func (s *session) lastReplies() {
	s.eof = true
	if s.await(0) {
		s.letOut()
	}
}

// partingPatience is how long a client whose connection ends may take nothing of what it is owed.
const partingPatience = time.Minute

// letOut waits until the client has taken all replies.
func (s *session) letOut() {
	s.out.flush() // whoever delivered the last one may not have done so yet
	left, since := s.out.pending(), time.Now()
	for left > 0 && time.Since(since) < partingPatience && !s.closed.Load() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-s.p.ctx.Done():
			return
		}
		if now := s.out.pending(); now != left {
			left, since = now, time.Now()
		}
	}
}

func (s *session) refuseProtocol(err error) {
	if s.flushRun() && s.await(0) {
		if !s.quiet && !s.skip {
			s.deliver(resp.AppendError(nil, "ERR "+err.Error()), 0)
		}
		s.linger()
	}
}

// linger lets the last reply out before the connection is closed.
func (s *session) linger() {
	s.letOut()
	s.sock.shutWrite()
}

// end lets go of everything that the session had.
func (s *session) end() {
	s.over = true
	s.kill()
	s.dropOwn()
	s.p.mu.Lock()
	delete(s.p.sessions, s.id)
	s.p.mu.Unlock()
	lp := s.sock.loop
	lp.post(func() { lp.forget(s.sock) })
	s.p.wg.Done()
}

// fill reads more of the client's input. back: there is none, and the loop drives the session from now on.
func (s *session) fill() (more, back bool) {
	if !s.makeRoom() {
		return false, false
	}
	w := s.sock.waiter()
	for {
		if s.hander() != nil && w.gone != nil {
			switch s.depart() {
			case hasLeft:
				return false, true
			case tookBack:
				return true, false
			case waitsToLeave:
				select { // asked again every millisecond
				case <-w.in:
					continue
				case <-w.gone: // it is read from, to see what became of it
				}
			}
		}
		n, err := s.sock.read(s.buf[s.w:])
		if err != errAgain {
			s.touch()
			s.w += n
			return n > 0, false
		}
		if s.calm() {
			s.giveBack()
			return false, true
		}
		if s.inflight.Load() > 0 && s.loopable() { // it may be calm once that is answered
			s.limit.Store(0)
			if s.inflight.Load() == 0 {
				poke(s.ready)
			}
		}
		select {
		case <-s.ready:
			s.limit.Store(-1)
		case <-w.in:
		case <-w.gone:
			if s.closed.Load() {
				return false, false
			}
			w = &waiting{in: w.in} // what is still to be read comes with its own events
		}
	}
}

// makeRoom sees to free space behind the input that is not handled yet, and reports false when there is too much of it.
func (s *session) makeRoom() bool {
	have := s.w - s.r
	switch {
	case len(s.buf) == 0:
		s.buf = make([]byte, queryBuffer)
	case have == 0:
		s.r, s.w = 0, 0
		if len(s.buf) > queryBufferKept {
			s.buf = make([]byte, queryBuffer)
		}
	case s.w == len(s.buf) && s.r > 0:
		copy(s.buf, s.buf[s.r:s.w])
		s.r, s.w = 0, have
	}
	if s.w == len(s.buf) {
		if have >= s.p.o.Limits.Query {
			s.p.log.Warn("client disconnected: its input exceeds the limit", "client", s.id, "bytes", have)
			return false
		}
		grown := make([]byte, min(max(2*len(s.buf), have+s.parser.Missing(have)), s.p.o.Limits.Query+1))
		copy(grown, s.buf[s.r:s.w])
		s.buf, s.r, s.w = grown, 0, have
	}
	s.from, s.to = s.r, s.r
	return true
}

// commands handles all complete commands in the buffer; again is false when the session is over. On the loop, it is also
// false in front of a command that the loop must not handle.
func (s *session) commands() (again bool, err error) {
	onLoop := !s.driven.Load()
	s.from, s.to = s.r, s.r
	table := s.p.table.Load()
	limits := resp.Limits{Bulk: s.p.o.Limits.Bulk, Unauth: !s.authed}
	count := uint64(0)
	var last *route.Row
	defer func() {
		s.p.stats.commands.Add(count)
		if last != nil && s.r == s.w {
			s.show(last, s.parser.Args)
		} else if last != nil {
			s.show(last, nil)
		}
	}()
	for s.r < s.w {
		n, err := s.parser.Next(s.buf[s.r:s.w], limits)
		if err != nil {
			return false, err
		}
		if n == 0 {
			return true, nil
		}
		raw := s.buf[s.r : s.r+n]
		s.r += n
		args := s.parser.Args
		if len(args) == 0 {
			if !s.flushRun() {
				return false, nil
			}
			s.from, s.to, s.skip = s.r, s.r, false // an empty command uses CLIENT REPLY SKIP up
			continue
		}
		if onLoop && (!s.loopable() || s.parser.Inline) {
			s.r -= n
			return false, nil
		}
		if (s.p.paused.Load() != nil || s.p.loss.shut.Load() != nil) && s.holding(table, args) != nil {
			if onLoop {
				s.r -= n
				return false, nil
			}
			refused, ok := s.held(table, args)
			if !ok {
				return false, nil
			}
			if refused {
				continue
			}
		}
		count++
		if !s.authed || s.skip || s.quiet || s.multi || s.parser.Inline {
			if !s.slow(table, args, raw) {
				return false, nil
			}
			if limits.Unauth = !s.authed; s.authed {
				s.vis.due.Store(0)
			}
			continue
		}
		v := table.Classify(args)
		if v.Row.Care == route.Everywhere {
			v = s.p.guarded(v, args)
		}
		if v.Class > route.Write || s.ro && v.Class == route.Write || v.Row.Name == "PING" && !s.p.maySend(s.p.order.Load()) || s.user != "" {
			if onLoop {
				count--
				s.r -= n
				return false, nil
			}
			last = nil
			s.show(v.Row, args)
			if !s.special(v, args, raw, 0) {
				return false, nil
			}
			continue
		}
		last = v.Row
		if !s.ordinary(v, len(raw)) {
			return false, nil
		}
	}
	return true, nil
}

// ordinary adds the command that was just parsed to the run.
func (s *session) ordinary(v route.Verdict, n int) bool {
	it := item{n: uint32(n)}
	s.classed(&it, v, len(s.parser.Args))
	if v.Row.Care != route.NoCare {
		s.careful(&it, v.Row, s.parser.Args, s.buf[s.r-n:s.r])
	}
	if it.flags&exact != 0 != s.exact && len(s.items) > 0 && !s.flushBefore(n) {
		return false
	}
	if len(s.items) == 0 {
		s.from, s.exact = s.r-n, it.flags&exact != 0
	}
	s.heavy = s.heavy || it.flags&writes != 0
	s.main = s.main || v.Row.Flags&route.Readonly == 0
	s.items = append(s.items, it)
	s.to = s.r
	if len(s.items) >= runMax {
		return s.flushRun()
	}
	return true
}

// flushBefore hands over the run in front of the command that was just parsed, which must not be part of it.
func (s *session) flushBefore(n int) bool {
	end := s.r
	s.r -= n
	if !s.flushRun() {
		return false
	}
	s.r = end
	return true
}

// classed sets what the class of a command of so many words says about its way.
func (s *session) classed(it *item, v route.Verdict, words int) {
	if s.p.o.Exact && v.Row.Plain(words) && !s.lax && !s.ro {
		it.flags |= exact
	}
	if v.Class == route.Read {
		it.flags |= resendable
		if s.p.o.ReadConsistency == ReadLinearizable && v.Row.Flags&route.Readonly != 0 && !s.ro {
			it.flags |= commits
		}
		if s.p.o.ReadConsistency == ReadLease && v.Row.Flags&route.Readonly != 0 && !s.ro && !s.lax {
			it.flags |= leased
		}
		return
	}
	it.flags |= s.commit() | writes
}

// flushRun hands the run to the session's lane. It reports false when the session is over.
func (s *session) flushRun() bool {
	if len(s.items) == 0 {
		return true
	}
	var ok bool
	if s.driven.Load() {
		ok = s.hand(s.buf[s.from:s.to], s.items, s.heavy)
	} else if ok = s.handOnLoop(s.buf[s.from:s.to], s.items, s.heavy); !ok {
		s.r = s.from // once more, by a goroutine
		s.parser.Reset()
	}
	clear(s.items)
	s.items, s.heavy, s.main = s.items[:0], false, false
	s.from, s.to = s.r, s.r
	return ok
}
