// SPDX-License-Identifier: Apache-2.0

package proxy

import "golang.org/x/sys/unix"

// Connections of shared lanes, as their loop drives them.

// begin is the first thing that the loop does with a connection.
func (k *link) begin() {
	if err := k.sock.loop.watch(k.sock, endpoint{k: k}); err != nil {
		k.l.p.log.Error("watch an upstream connection", "node", k.to.node, "err", err)
		k.over()
		return
	}
	k.readable()
}

// event handles what epoll reported, on the loop.
func (k *link) event(events uint32) {
	if events&unix.EPOLLOUT != 0 && k.choked.Load() {
		k.l.loop.touched(k.l)
	}
	k.hungUp = k.hungUp || events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	if events&^uint32(unix.EPOLLOUT) != 0 {
		k.readable()
	}
}

const readsInARow = 4 // of one connection, before others have their turn

// readable reads what there is, gives the replies to their sessions, and lets the connection go when it has ended.
func (k *link) readable() {
	for range readsInARow {
		if k.pauseOnLoop() {
			return
		}
		if err := k.makeRoom(); err != nil {
			k.broke(err)
			return
		}
		room := len(k.buf) - k.w
		n, err := k.sock.read(k.buf[k.w:])
		if err == errAgain {
			return
		}
		if err == nil {
			k.w += n
			err = k.frames()
			k.settle()
		}
		if err != nil {
			k.broke(err)
			return
		}
		if n < room && !k.hungUp {
			return // the socket is empty: the next byte is a new event; an end that came with these bytes is not
		}
	}
	k.l.loop.later(k.sock)
}

func (k *link) broke(err error) {
	k.l.p.log.Debug("upstream connection ends", "node", k.to.node, "err", err)
	k.over()
}

// over ends the loop's part: the lane's goroutine settles what was not answered.
func (k *link) over() {
	k.cutShort()
	k.settle()
	k.l.loop.forget(k.sock)
	close(k.done)
	k.l.nudge()
}

// transmit writes a batch and reports whether all of it was taken. The caller holds the lane's send.
func (k *link) transmit(b *batch) bool {
	n, err := k.sock.write(b.buf)
	if err == nil {
		k.l.p.release(b)
		return true
	}
	k.l.mu.Lock()
	b.wrote = n
	k.l.mu.Unlock()
	if err == errAgain {
		k.rest, k.restOf = b.buf[n:], b
		k.choked.Store(true)
		return k.finishRest() // room may have come before anybody knew that it is waited for
	}
	k.sock.shut()
	return false
}

// finishRest goes on with a batch that the kernel took only a part of, and reports whether nothing of it is left. The
// caller holds the lane's send.
func (k *link) finishRest() bool {
	if k.restOf == nil {
		return true
	}
	n, err := k.sock.write(k.rest)
	k.rest = k.rest[n:]
	k.l.mu.Lock()
	k.restOf.wrote += n
	k.l.mu.Unlock()
	switch err {
	case nil:
		b := k.restOf
		k.rest, k.restOf = nil, nil
		k.choked.Store(false)
		k.l.p.release(b)
		return true
	case errAgain:
	default:
		k.sock.shut()
	}
	return false
}
