// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/topo"
)

// poolKey names connections that are interchangeable.
type poolKey struct {
	proto    int
	db       int
	readonly bool        // of the read-only port, or to one replica
	node     topo.NodeID // which
	loop     int         // which reads and writes the connection
	own      bool        // for one session at a time, by goroutines
	user     string
	password string
}

// pool holds the shared lanes of one key.
type pool struct {
	lanes []*lane
	exact []*lane // as many, with exact retry
	reads *lane   // quorum mode: reads that need not wait behind a WAIT
}

// Kinds of shared lanes, as a session remembers them.
const (
	writeLane = iota
	readLane
	exactLane
	laneKinds
)

// lane is a queue of commands towards one connection. It outlives connections: what was not answered when a connection
// ends is sent again, kept, or answered, by recover. A lane of a pool is shared; an own lane belongs to one session.
type lane struct {
	p    *Proxy
	key  poolKey
	slot int // within its pool: spreads replicas
	// readsOnly marks the lane of a pool on which nothing waits behind a WAIT; constant.
	readsOnly bool
	loop      *loop      // nil: an own lane
	errand    string     // what the name of its connection begins with, which carries nothing of clients; empty: it does; constant
	ex        *exactness // exact retry; nil: without
	dirty     bool       // owned by the loop: got commands in this round
	wake      chan struct{}
	over      chan struct{} // closed by shut

	send     sync.Mutex // held from taking a batch until it is written; before mu
	mu       sync.Mutex // guards what follows
	own      *session   // own lanes: whose; nil: spare
	pend     *batch
	queue    []*batch // sealed, not sent (own lanes)
	sent     []*batch // sent; the connection's reader takes them from the front
	unacked  []*batch // answered, but not acknowledged by enough replicas
	redo     []entry  // to be sent again, in the order of each session; bytes in x.data
	redoAt   time.Time
	strayed  atomic.Uint64 // the latest epoch in which a cluster's primary said that a slot is not its own
	refusals int           // in a row, for want of replicas
	unmarked bool          // the latest marker on the connection was refused: nothing behind it counts
	full     bool          // … because the server has no memory left
	prefix   *batch        // restores an own connection's state, before anything else
	blocking atomic.Int32  // blocking commands on their way
	waitRule uint64        // the rule under which the latest of them was sent; what comes behind it may have another
	commit   int           // batches that wait for an acknowledgement
	waiting  int           // WAITs on their way
	up       bool
	room     *sync.Cond // pend was taken
	held     int64      // commands counted as parked, and their bytes
	heldMem  int64
	link     *link
	dialing  context.CancelFunc // gives up the attempt to connect to dialTo
	dialTo   target
	closed   bool
	moved    bool // its session is about to go on in another process: no connection is made any more
	st       state

	// owned by run:
	backoff time.Duration
	retryAt time.Time
	last    target // that connect tried
	swept   time.Time
}

const (
	backoffMin    = 5 * time.Millisecond
	backoffMax    = 200 * time.Millisecond
	commitsMax    = 2 // batches of a lane whose WAIT is open; the next ones grow meanwhile
	sweepInterval = 50 * time.Millisecond
	waitSlice     = "1000"                 // ms of one WAIT
	redoWaitMin   = 400 * time.Microsecond // replicas attach to a new primary within a few of these
	redoWaitMax   = 20 * time.Millisecond
	redoSteps     = 30 // refusals before the wait grows
)

var (
	errParkFull = errors.New("too much is parked")
	errClosed   = errors.New("lane is closed")
	errBroken   = errors.New("a part of the transaction was given up")
	errFull     = errors.New("the lane's batch is full")
	errGone     = errors.New("the client is gone")
)

func (p *Proxy) newLane(key poolKey, slot int) *lane {
	l := &lane{p: p, key: key, slot: slot, wake: make(chan struct{}, 1), over: make(chan struct{}), pend: p.newBatch(), st: state{db: -1}}
	l.room = sync.NewCond(&l.mu)
	return l
}

// startLane makes a lane known and runs it; the caller holds p.mu.
func (p *Proxy) startLane(l *lane) {
	p.lanes[l] = struct{}{}
	if p.ctx.Err() != nil {
		l.shut()
	}
	p.spawn(l.run)
}

func (l *lane) nudge() { poke(l.wake) }

func (l *lane) owned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own != nil
}

// shut ends the lane. Its queue is dropped: only lanes without living sessions are shut.
func (l *lane) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.over)
	l.room.Broadcast()
	l.cut()
}

// cut closes the connection, or the one that is being made; the caller holds l.mu.
func (l *lane) cut() {
	if l.link != nil {
		l.link.cut()
	}
	if l.dialing != nil {
		l.dialing()
	}
}

func (l *lane) cutIfStale(o *order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link != nil && l.link.to.t != nil && l.link.to.t != o.t {
		l.link.cut()
	}
	if l.dialing != nil && l.dialTo.t != nil && l.dialTo.t != o.t {
		l.dialing()
	}
}

// run is the lane's goroutine: it connects, sends, recovers and gives up what was parked too long.
func (l *lane) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer l.finish()
	for {
		again := l.step(l.p.order.Load())
		if again > 0 && again < time.Millisecond {
			l.p.o.Clock.Nap(again)
			select {
			case <-l.over:
				return
			default:
				continue
			}
		}
		if again > 0 {
			timer.Reset(again)
		} else {
			timer.Stop()
		}
		select {
		case <-l.over:
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

func (l *lane) finish() {
	l.mu.Lock()
	k := l.link
	l.mu.Unlock()
	if k != nil {
		k.cut()
		<-k.done
		l.recover(k)
	}
	l.p.mu.Lock()
	delete(l.p.lanes, l)
	l.p.mu.Unlock()
	l.mu.Lock()
	l.hold(-l.held, -l.heldMem)
	l.mu.Unlock()
}

// step brings the lane one step on and returns when to look again; 0: when woken.
func (l *lane) step(o *order) time.Duration {
	k := l.current()
	if k != nil && l.dropLink(k, o) {
		k = nil
	}
	to, wanted := l.destination(o)
	if k == nil && wanted {
		if wait := time.Until(l.retryAt); wait > 0 && l.retryFor(to) {
			l.sweep(o)
			return min(wait, sweepInterval)
		}
		k = l.connect(to, o)
	}
	if k != nil {
		l.send.Lock()
		l.flush(k, o)
		l.send.Unlock()
		if k.demoted.Load() || k.ended() {
			return time.Millisecond
		}
	}
	return l.sweep(o)
}

func (l *lane) current() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.link
}

// dropLink ends a connection that is dead, of another tenure, no longer a primary's, or drained.
func (l *lane) dropLink(k *link, o *order) bool {
	stale := k.to.t != nil && k.to.t != o.t
	if !stale && !k.ended() {
		l.mu.Lock()
		idle := len(l.sent) == 0 && k.idle.Load() && len(l.unacked) == 0
		renamed := k.rule == o.rule || k.to.t == nil || l.key.user == "" // a user need not be allowed to rename a connection
		l.mu.Unlock()
		drained := o.draining && k.to.t != nil && idle && !l.key.own && l.p.inflight.Load() == 0
		if l.key.readonly && !l.stillFit(k.to) {
			k.demote() // its replies may be stale: what is on its way is read again elsewhere
		}
		old := k.demoted.Load() && (idle || time.Since(k.demotedAt()) > 100*time.Millisecond)
		if !drained && !old && (renamed || !idle) {
			return false
		}
		if old {
			l.delay()
		}
	} else if !stale {
		l.retryAt = time.Now().Add(backoffMin)
	}
	k.cut()
	<-k.done
	l.recover(k)
	if stale {
		l.backoff, l.retryAt = 0, time.Time{}
	}
	return true
}

// delay paces attempts to connect.
func (l *lane) delay() {
	l.backoff = min(max(2*l.backoff, backoffMin), backoffMax)
	l.retryAt = time.Now().Add(l.backoff)
}

// retryFor reports whether the pacing still applies: a new destination is tried at once.
func (l *lane) retryFor(to target) bool { return l.last == to }

// flush sends what has accumulated, for as long as that is allowed; the caller holds l.send.
func (l *lane) flush(k *link, o *order) {
	for !k.demoted.Load() && !k.ended() {
		if k.sock == nil {
			runtime.Gosched() // sessions that are ready to run add their commands to this batch
		} else if !k.finishRest() {
			return
		}
		if k.to.t != nil {
			l.p.inflight.Add(1)
			if !l.p.maySend(o) {
				l.setDown()
				l.finishWaits(k, o)
				l.p.landed()
				return
			}
		}
		b := l.take(k, o)
		if b == nil {
			if k.to.t != nil {
				l.p.landed()
			}
			return
		}
		if !l.write(k, b) {
			return
		}
	}
}

// flushOnLoop sends what the clients of the loop have given to the lane in this round. Whatever is not usual is left to
// the lane's goroutine.
func (l *lane) flushOnLoop() {
	k, o := l.current(), l.p.order.Load()
	if k == nil {
		l.nudge()
		return
	}
	l.send.Lock()
	l.flush(k, o)
	l.send.Unlock()
	l.mu.Lock()
	usual := l.up && len(l.redo) == 0 && len(l.unacked) == 0 && !l.doubts()
	l.mu.Unlock()
	if !usual || k.demoted.Load() || k.ended() {
		l.nudge()
	}
}

// finishWaits asks again for acknowledgements that a switchover waits for.
func (l *lane) finishWaits(k *link, o *order) {
	l.mu.Lock()
	if !o.draining || l.key.user != "" || len(l.unacked) == 0 || l.waiting > 0 || o.need.nothing() || l.unmarked && time.Now().Before(l.redoAt) {
		l.mu.Unlock()
		return
	}
	b := l.p.newBatch()
	b.bare, b.primary, b.need, b.epoch = true, true, o.need, k.epoch()
	l.seal(k, b)
	l.mu.Unlock()
	l.p.inflight.Add(1)
	l.write(k, b)
}

// write sends a batch and reports whether the connection is still of use.
func (l *lane) write(k *link, b *batch) bool {
	if k.sock != nil {
		return k.transmit(b)
	}
	n, err := k.conn.Write(b.buf)
	if err == nil {
		l.p.release(b)
		return true
	}
	l.mu.Lock()
	b.wrote = n
	l.mu.Unlock()
	_ = k.conn.Close()
	<-k.done // the reader has let go of the batch: recover finds it unanswered
	return false
}

// first is what was queued first and not taken yet; the caller holds l.mu.
func (l *lane) first() *batch {
	if len(l.queue) > 0 {
		return l.queue[0]
	}
	return l.pend
}

// take moves the next batch to those that are sent; nil: there is none, or it must wait.
func (l *lane) take(k *link, o *order) *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = true
	wanted, void := o.need, false
	if k.to.t == nil {
		wanted = need{}
	}
	var b *batch
	switch {
	case l.prefix != nil:
		b, l.prefix = l.prefix, nil
	case k.rule != o.rule && l.mayRename(k):
		b = l.rename(k, o)
	case len(l.unacked) > 0 && l.waiting == 0 && l.commit > 0 && !wanted.nothing() && l.key.user == "" && (!l.unmarked || time.Now().After(l.redoAt)):
		b = l.p.newBatch()
		b.bare = true
	case l.commit >= commitsMax, l.key.own && l.commit > 0:
		return nil
	case l.doubts():
		if l.ex.trial || len(l.sent) > 0 || !k.idle.Load() || !time.Now().After(l.redoAt) {
			return nil // one at a time, because a later one must not run when an earlier one is refused
		}
		b = l.takePin()
	case len(l.redo) > 0 && time.Now().After(l.redoAt):
		if len(l.sent) > 0 || !k.idle.Load() {
			return nil // a reply that is under way may be of a later command of the same session: it must find this one here
		}
		b = l.takeRedo()
	case len(l.redo) > 0 && l.key.own:
		return nil
	case l.key.own && l.key.proto < 3 && l.st.unsure(l.first()):
		return nil
	case len(l.queue) > 0:
		b, l.queue = l.queue[0], l.queue[1:]
		l.room.Broadcast()
	case len(l.pend.ents) > 0:
		b = l.dropGone(l.pend)
		l.pend = l.newBatch()
		l.room.Broadcast()
		void = len(b.ents) == 0
	case l.ex != nil && l.ex.stale:
		b = l.newBatch() // nothing but the marker, so that it does not expire
	default:
		return nil
	}
	if l.held > 0 {
		l.recount()
	}
	if void {
		return nil // all of it was of clients that have left: no reply would end the batch
	}
	b.primary, b.need, b.epoch = k.to.t != nil, need{}, k.epoch()
	if b.bare || b.wants || l.commit > 0 {
		b.need = wanted
	}
	if b.stage != stageNone || b.pin != nil {
		b.need = need{acks: max(wanted.acks, 1), disk: wanted.disk}
	}
	if !b.bare && l.key.own && l.key.proto < 3 && l.st.listens() {
		b.need = need{} // the server refuses whatever writes there, and it would refuse the marker
	}
	if b.primary && b.wants {
		l.p.lossSending(o, len(b.buf))
	}
	l.seal(k, b)
	return b
}

// seal ends a batch with what it waits for and puts it among those that are sent; the caller holds l.mu.
func (l *lane) seal(k *link, b *batch) {
	if b.stage != stageNone {
		l.sealGroup(b)
	}
	if b.scans {
		for i := range b.ents {
			if e := &b.ents[i]; e.op == opScan && e.n > 0 {
				e.x.scan.unmark(b.bytes(e), k.mark)
			}
		}
	}
	switch {
	case b.withheld() && l.key.user != "":
		b.aside = true
		l.commit++
	case b.withheld():
		if b.marked = !b.bare || l.unmarked; b.marked {
			b.buf = append(b.buf, l.p.marker.of(b.bare && l.full)...)
		}
		if !b.bare {
			l.commit++
		}
		b.buf = b.need.appendWait(b.buf)
		l.waiting++
		l.p.prod.opened()
	}
	l.p.visible.sending(l.p, b)
	b.wrote = len(b.buf)
	b.refs.Store(2)
	if l.key.own {
		l.st.sending(b)
		for i := range b.ents {
			if b.ents[i].flags&blocks != 0 {
				l.blocking.Add(1)
				l.waitRule = k.rule
			}
		}
	}
	l.sent = append(l.sent, b)
	k.idle.Store(false)
}
