// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// door is a port that clients come in by. The first loop accepts for all of them.
type door struct {
	p        *Proxy
	l        listener
	c        *sock // the same port
	readonly bool
	path     string // of a Unix socket
	fail     func(error)
	left     bool // owned by the loop: nobody is let in here any more
}

const (
	acceptsInARow = 64
	acceptPause   = 50 * time.Millisecond // after an error, such as a lack of descriptors
)

// open begins to take clients. fail is told when that cannot go on.
func (p *Proxy) open(l listener, readonly bool, fail func(error)) *door {
	d := &door{p: p, l: l, readonly: readonly, fail: fail}
	if a, ok := l.Addr().(*net.UnixAddr); ok {
		d.path = a.Name
	}
	lp := p.loops[0]
	c, err := duplicate(l, lp)
	if err != nil {
		fail(fmt.Errorf("accept clients: %w", err))
		return d
	}
	d.c = c
	lp.post(func() {
		if err := lp.watch(c, endpoint{d: d}); err != nil {
			fail(fmt.Errorf("accept clients: %w", err))
		}
	})
	return d
}

// leave takes no more clients. The port stays open: those that come wait in it.
func (d *door) leave() {
	if d.c == nil {
		return
	}
	d.c.loop.post(func() {
		d.left = true
		_ = unix.Close(d.c.loop.unwatch(d.c))
	})
}

// event takes the clients that have come, on the loop.
func (d *door) event() {
	for range acceptsInARow {
		if d.left || d.p.ctx.Err() != nil {
			return
		}
		fd, from, err := unix.Accept4(d.c.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			d.p.admit(&sock{fd: fd, far: addrOf(from), door: d.path}, d.readonly)
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EBADF, unix.EINVAL, unix.ENOTSOCK:
			d.fail(fmt.Errorf("accept clients: %w", err))
			return
		default:
			d.p.log.Warn("accept a client", "err", err)
			time.AfterFunc(acceptPause, func() { d.c.loop.post(d.event) })
			return
		}
	}
	d.c.loop.later(d.c)
}
