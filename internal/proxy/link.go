// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// target is where a lane connects to: the primary of a tenure, or (t nil) a replica that answers reads.
type target struct {
	t    *tenure
	node topo.NodeID
	addr string
}

// serverInfo is what the last backend said about itself.
type serverInfo struct {
	name      string // redis or valkey
	version   string
	databases int // 0: not known
}

// link is one upstream connection. Its reader goroutine owns everything without another note; the lane waits for done.
type link struct {
	l        *lane
	to       target
	conn     net.Conn // of an own lane; of every lane while it greets the server
	sock     *sock    // of a shared lane: read and written without waiting
	clientID string   // of this connection, in the server
	runID    string
	mark     uint64 // in cursors of this server process
	rule     uint64 // that everything from here on is acknowledged by; the name says it to the server; guarded by l.mu once l.link is set
	done     chan struct{}
	hungUp   bool // the server has ended its side; owned by the loop

	idle      atomic.Bool // the reader has no batch that is not answered
	demoted   atomic.Bool // the server said that it is not (or not yet) a primary: nothing more is sent
	demotedMS atomic.Int64
	unblocked atomic.Bool // CLIENT UNBLOCK of our own client's wish: its reply is delivered

	buf  []byte
	r, w int
	scan resp.Scanner
	cur  *batch
	run  run
	kept []*batch // acknowledged, about to be handed out

	left    int  // bytes of a long reply that are still to come
	hurry   bool // its client is not waited for any more
	patient bool // it is looked at now and then whether others wait

	rest   []byte // of the batch that the kernel took only a part of; guarded by the lane's send, as is restOf
	restOf *batch
	choked atomic.Bool // rest is not empty
	wet    []*session  // got replies that were not flushed
}

const (
	dialTimeout      = time.Second // connecting and greeting
	handshakeTimeout = time.Second
	replicasPatience = 50 * time.Millisecond
	readBuffer       = 64 << 10
	replyBufferKept  = 1 << 20
	replyMax         = 1 << 30 // bytes of one reply; more ends the connection
)

// Errors that end a connection.
var (
	errLease      = errors.New("the lease ended before the reply could be released")
	errSpoke      = errors.New("the server sent a reply that nobody asked for")
	errReplyBig   = errors.New("the server sent a reply of more than 1 GiB")
	errTxnRefused = errors.New("a transaction is said again, because replicas were missing for a moment")
	errNotIt      = errors.New("the server is not the process that was promoted, or not a primary")
)

func (k *link) ended() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// cut ends the connection; its reader notices. Safe for concurrent use.
func (k *link) cut() {
	if k.sock != nil {
		k.sock.shut()
		return
	}
	_ = k.conn.Close()
}

// drop closes a connection that nobody reads yet.
func (k *link) drop() {
	if k.sock != nil {
		k.sock.close()
		return
	}
	_ = k.conn.Close()
}

func (k *link) epoch() topo.Epoch {
	if k.to.t == nil {
		return 0
	}
	return k.to.t.epoch
}

func (k *link) demote() {
	if !k.demoted.Swap(true) {
		k.demotedMS.Store(time.Now().UnixMilli())
		k.l.nudge()
	}
}

func (k *link) demotedAt() time.Time { return time.UnixMilli(k.demotedMS.Load()) }

// connect makes the lane's connection and restores its state. nil: it did not work; the next attempt is paced.
func (l *lane) connect(to target, o *order) *link {
	l.last = to
	k, err := l.dial(to)
	if err != nil {
		l.p.log.Debug("connect upstream", "node", to.node, "addr", to.addr, "err", err)
		if errors.Is(err, errUser) { // deleted, or with another password: the server would have closed the connection
			l.mu.Lock()
			if l.own != nil {
				l.own.kill()
			}
			l.mu.Unlock()
		}
		if errors.Is(err, errNoGroup) && !l.p.barred.Swap(true) {
			l.p.log.Error("retry: exact needs MULTI, EXEC, GET and SET for the proxy's user; plain writes wait and are refused until it may", "node", to.node, "err", err)
		}
		if errors.Is(err, errNoDisk) {
			l.p.noteDisk(to, err)
		}
		if to.t != nil && !l.key.own && !errors.Is(err, errNotIt) && !errors.Is(err, errNoMarker) && !errors.Is(err, errNoDisk) {
			l.p.herald.reached(to.t, false)
		}
		l.delay()
		return nil
	}
	tracking := l.trackingNow()
	l.mu.Lock()
	if l.closed || to.t != nil && l.p.order.Load().t != to.t || l.key.own && (l.own == nil || l.moved) {
		l.mu.Unlock()
		k.drop()
		l.delay()
		return nil
	}
	l.link = k
	if l.key.own {
		l.prefix = l.st.restore(l, tracking)
		l.voidWaits(k.epoch())
	}
	l.mu.Unlock()
	l.backoff, l.retryAt = 0, time.Time{}
	if to.t != nil && !l.key.own {
		l.p.herald.reached(to.t, true)
	}
	k.idle.Store(true)
	if k.sock == nil {
		go k.read()
	} else if !l.loop.post(k.begin) {
		close(k.done)
		k.drop()
	}
	return k
}

// trackingNow returns the CLIENT TRACKING command that restores the client's; nil when there is none, or when the client
// that it redirects to has no connection yet (it is told to forget what it cached, and no more comes).
func (l *lane) trackingNow() [][]byte {
	l.mu.Lock()
	words := l.st.tracking
	l.mu.Unlock()
	if words == nil {
		return nil
	}
	out, _ := l.p.redirected(words)
	return out
}

func (l *lane) dial(to target) (*link, error) {
	ctx, cancel := context.WithTimeout(l.p.ctx, dialTimeout)
	defer cancel()
	l.mu.Lock()
	l.dialing, l.dialTo = cancel, to
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.dialing = nil
		l.mu.Unlock()
	}()
	if to.t != nil && l.p.order.Load().t != to.t {
		return nil, errNotIt // a newer order came before it could interrupt us
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", to.addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	k := &link{l: l, to: to, conn: conn, done: make(chan struct{}), buf: make([]byte, readBuffer)}
	if err := k.handshake(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("greet %s at %s: %w", to.node, to.addr, err)
	}
	if !stop() {
		return nil, errNotIt // given up meanwhile
	}
	if l.loop != nil {
		if k.sock, err = takeOver(conn, l.loop); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// handshake authenticates, names the connection (agents count these names while draining) and makes sure that this is
// the very process that was promoted, and a primary (SAFETY A5).
func (k *link) handshake() error {
	p, key := k.l.p, k.l.key
	if err := k.conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	k.rule = p.order.Load().rule
	var out []byte
	must := 0
	ask := func(args ...string) { out = resp.AppendCommand(out, args...); must++ }
	user, password := p.o.Username, p.o.Password
	switch {
	case password != "" && user != "":
		ask("AUTH", user, password)
	case password != "":
		ask("AUTH", password)
	}
	if key.proto == 3 {
		ask("HELLO", "3")
	}
	ask("CLIENT", "SETNAME", k.l.clientName(k.rule))
	if db := k.l.database(); db != 0 {
		ask("SELECT", strconv.Itoa(db))
	}
	out = resp.AppendCommand(out, "CLIENT", "ID")
	out = resp.AppendCommand(out, "CONFIG", "GET", "databases")
	out = resp.AppendCommand(out, "INFO", "server")
	out = resp.AppendCommand(out, "INFO", "replication")
	out = resp.AppendCommand(out, "ROLE")
	asked := k.l.asksDisk(k.to)
	if asked {
		out = diskQuestion(out)
	}
	if _, err := k.conn.Write(out); err != nil {
		return err
	}
	for range must {
		f, err := k.frameNow()
		if err != nil {
			return err
		}
		if f[0] == '-' {
			return fmt.Errorf("the server refused the proxy: %s", resp.Text(f))
		}
	}
	if err := k.identify(asked); err != nil {
		return err
	}
	if err := k.logIn(); err != nil {
		return err
	}
	if k.l.ex != nil {
		if err := k.resolve(); err != nil {
			return err
		}
	}
	return k.conn.SetDeadline(time.Time{})
}

func (k *link) identify(asked bool) error {
	var replies [5][]byte
	for i := range replies {
		f, err := k.frameNow()
		if err != nil {
			return err
		}
		replies[i] = bytes.Clone(f)
	}
	k.clientID = string(resp.Text(replies[0]))
	info := resp.Text(replies[2])
	s := &serverInfo{name: "redis", version: infoField(info, "redis_version"), databases: k.l.p.server.Load().databases}
	if v := infoField(info, "valkey_version"); v != "" {
		s.name, s.version = "valkey", v
	}
	if pair := resp.Elements(replies[1], nil); len(pair) == 2 {
		if n, err := strconv.Atoi(string(resp.Text(pair[1]))); err == nil {
			s.databases = n
		}
	}
	role := ""
	if e := resp.Elements(replies[4], nil); len(e) > 0 {
		role = string(resp.Text(e[0]))
	}
	runID := infoField(info, "run_id")
	k.runID, k.mark = runID, markOf(runID)
	replication := resp.Text(replies[3])
	history := infoField(replication, "master_replid")
	if t := k.to.t; t != nil && (t.runID != "" && runID != t.runID || role != "master" || t.history != "" && history != t.history) {
		return fmt.Errorf("%w: run id %s (want %s), role %s, history %s (want %s)", errNotIt, runID, t.runID, role, history, t.history)
	}
	if s.version != "" {
		k.l.p.server.Store(s)
	}
	if asked {
		f, err := k.frameNow()
		if err == nil {
			err = judgeDisk(s, f)
		}
		if err != nil {
			return err
		}
		k.l.p.noteDisk(k.to, nil)
	}
	return k.awaitReplicas(replication)
}

func infoField(info []byte, name string) string {
	for line := range bytes.Lines(info) {
		if v, ok := bytes.CutPrefix(line, []byte(name)); ok && len(v) > 0 && v[0] == ':' {
			return string(bytes.TrimSpace(v[1:]))
		}
	}
	return ""
}

// frameNow reads one reply; used before the reader runs.
func (k *link) frameNow() ([]byte, error) {
	for {
		n, err := k.scan.Next(k.buf[k.r:k.w])
		if err != nil {
			return nil, err
		}
		if n > 0 {
			f := k.buf[k.r : k.r+n]
			k.r += n
			return f, nil
		}
		if err := k.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more into the buffer.
func (k *link) fill() error {
	if err := k.makeRoom(); err != nil {
		return err
	}
	n, err := k.conn.Read(k.buf[k.w:])
	k.w += n
	if n > 0 {
		return nil
	}
	return err
}

// makeRoom sees to free space behind what was read; the buffer grows up to one whole reply.
func (k *link) makeRoom() error {
	have := k.w - k.r
	switch {
	case have == 0:
		k.r, k.w = 0, 0
		if len(k.buf) > replyBufferKept {
			k.buf = make([]byte, readBuffer)
		}
	case k.w == len(k.buf) && k.r > 0:
		copy(k.buf, k.buf[k.r:k.w])
		k.r, k.w = 0, have
	}
	if k.w == len(k.buf) {
		if have >= replyMax {
			return errReplyBig
		}
		grown := make([]byte, max(2*len(k.buf), have+k.scan.Missing(have)))
		copy(grown, k.buf[k.r:k.w])
		k.buf, k.r, k.w = grown, 0, have
	}
	return nil
}

// read is the reader goroutine: it gives every reply to its session until the connection ends.
func (k *link) read() {
	defer k.l.nudge() // last: a lane that looked before done was closed would sleep on
	defer close(k.done)
	defer k.settle()
	defer k.cutShort()
	for {
		if err := k.frames(); err != nil {
			k.l.p.log.Debug("upstream connection ends", "node", k.to.node, "err", err)
			k.cut()
			return
		}
		k.settle()
		room := make(chan struct{})
		if k.left > 0 && k.tooFast(func() { close(room) }) {
			<-room
		}
		if err := k.fill(); err != nil {
			k.cut()
			return
		}
	}
}

// frames handles all complete replies in the buffer.
func (k *link) frames() error {
	leased := k.to.t == nil
	for k.r < k.w {
		if k.left > 0 {
			k.streamed()
			continue
		}
		if k.cur != nil && k.cur.stage == stageExec && k.buf[k.r] == '*' {
			if whole, err := k.opened(k.cur); err != nil || !whole {
				return err
			}
			continue
		}
		n, err := k.scan.Next(k.buf[k.r:k.w])
		if err != nil {
			return err
		}
		if n == 0 {
			if (leased || k.to.t.good(k.l.p.now())) && k.beginStream() {
				continue
			}
			return nil
		}
		f := k.buf[k.r : k.r+n : k.r+n]
		k.r += n
		if k.l.key.own && k.outOfBand(f) {
			continue
		}
		if !leased {
			leased = k.to.t.good(k.l.p.now())
			if !leased && !k.acknowledged() {
				return errLease
			}
		}
		if err := k.reply(f); err != nil {
			return err
		}
	}
	return nil
}

// acknowledged reports whether the reply that comes next is released by a WAIT, whatever the clock says. Otherwise it
// counts only under a good lease: a primary whose lease has ended may be deposed (SAFETY B3).
func (k *link) acknowledged() bool {
	b := k.next()
	return b != nil && b.withheld()
}

// settle ends a run of replies and writes to the clients that got some.
func (k *link) settle() {
	k.endRun()
	for i, s := range k.wet {
		s.out.flush()
		k.wet[i] = nil
	}
	k.wet = k.wet[:0]
}
