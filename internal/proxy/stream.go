// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"strconv"
	"time"

	"redoubt/internal/resp"
)

// A long string as a reply goes to its client as it arrives, so that it needs no more memory than streamAhead, whatever its
// length. While its client is slow, the connection is not read. Other clients of a shared connection must not suffer from that
// for long: after streamPatience what comes is kept in the client's output buffer, within its limit.
const (
	streamMin      = 1 << 20 // shorter replies are collected first
	streamAhead    = 4 << 20 // not taken by the client yet
	streamPatience = 200 * time.Millisecond
)

// beginStream looks at the incomplete reply at the front of the buffer, and reports whether it goes out piece by piece.
func (k *link) beginStream() bool {
	have := k.buf[k.r:k.w]
	if len(have) < 16 || have[0] != '$' {
		return false
	}
	head := bytes.IndexByte(have, '\n')
	if head < 2 || head > 16 {
		return false
	}
	length, err := strconv.Atoi(string(have[1 : head-1]))
	if err != nil || length < streamMin {
		return false
	}
	b := k.next()
	if b == nil || b.head == len(b.ents) || b.withheld() || k.demoted.Load() {
		return false
	}
	e := &b.ents[b.head]
	if e.s == nil || e.op != opNone || e.flags&(muted|moved|blocks) != 0 || e.flags&leased != 0 && k.to.t != nil && !k.l.p.sure(k.to.t) || e.x != nil && e.x.more > 0 || e.s.redo.Load() > 0 {
		return false
	}
	if e.flags&writes != 0 {
		e.s.noteWrite(b.epoch)
	}
	k.endRun()
	e.s.midReply(true)
	k.left = head + 1 + length + 2
	if t := k.l.p.crowd.Load(); t != nil {
		t.see(e.s, b.bytes(e), k.left)
	}
	k.scan = resp.Scanner{}
	return true
}

// streamed hands on what has arrived of a long reply.
func (k *link) streamed() {
	b := k.cur
	s := b.ents[b.head].s
	n := min(k.left, k.w-k.r)
	s.deliver(k.buf[k.r:k.r+n], 0)
	s.out.flush()
	k.r += n
	if k.left -= n; k.left > 0 {
		return
	}
	s.midReply(false)
	s.deliver(nil, 1)
	b.head++
	k.hurry = false
	k.skipCanned()
}

// tooFast reports whether the client of the long reply should take something before more is read; resume is called then.
func (k *link) tooFast(resume func()) bool {
	if k.left == 0 || k.hurry {
		return false
	}
	s := k.cur.ents[k.cur.head].s
	return s.out.full(resume)
}

// pauseOnLoop stops reading until the client of a long reply has taken some of it, or others have waited long enough.
func (k *link) pauseOnLoop() bool {
	if k.left == 0 || k.sock.isDown() { // nothing is allocated; and an end is not waited with
		return false
	}
	lp := k.l.loop
	if !k.tooFast(func() { lp.post(k.resume) }) {
		return false
	}
	k.watchPatience()
	return true
}

// watchPatience looks again and again whether others wait behind a long reply: they may come at any time.
func (k *link) watchPatience() {
	if k.patient {
		return
	}
	k.patient = true
	time.AfterFunc(streamPatience, func() {
		k.l.loop.post(func() {
			k.patient = false
			switch {
			case k.left == 0 || k.hurry || k.ended():
			case k.othersWait():
				k.hurry = true
				k.resume()
			default:
				k.watchPatience()
			}
		})
	})
}

// othersWait reports whether anything but the long reply is expected on the connection.
func (k *link) othersWait() bool {
	k.l.mu.Lock()
	defer k.l.mu.Unlock()
	return len(k.l.sent) > 0 || k.cur != nil && k.cur.head+1 < len(k.cur.ents)
}

func (k *link) resume() {
	if !k.ended() {
		k.readable()
	}
}

// cutShort ends the session whose long reply cannot be completed.
func (k *link) cutShort() {
	if k.left > 0 {
		k.cur.ents[k.cur.head].s.kill()
	}
}
