// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sock is a stream socket that never blocks, watched by one loop. Reading belongs to whoever drives the socket at the
// moment: the loop, or one goroutine. Writing and shut are safe for concurrent use. Only the loop closes the descriptor,
// when nobody drives the socket any more, so that a number is never used for two sockets at once.
type sock struct {
	fd   int
	loop *loop
	far  netip.AddrPort // of the peer; invalid for a Unix socket
	door string         // path of the Unix socket that a client came in by
	pipe *pipe          // in place of fd: a connection within the process

	owner   endpoint                // who is told of events; owned by the loop, but for a Stream, where it is constant until that is closed
	stirred atomic.Uint32           // events that the loop is about to tell the owner of
	wait    atomic.Pointer[waiting] // what a goroutine that drives the socket sleeps on; nil: none ever did

	mu     sync.Mutex // guards what follows, and use of fd against close
	closed bool
	down   bool
	hungUp bool
}

// waiting is what a goroutine that drives a socket sleeps on.
type waiting struct {
	in, out chan struct{} // capacity 1: there may be something to read; room to write
	gone    chan struct{} // closed when the peer has left, or shut was called
	left    bool          // gone is closed; guarded by sock.mu
}

// errAgain: nothing can be read or written now.
var errAgain = errors.New("not now")

// The two calls of the hot path never block, so the runtime need not know of them: that saves its bookkeeping.

func (c *sock) read(b []byte) (int, error) {
	if c.pipe != nil {
		return c.pipe.read(b)
	}
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, errAgain
		default:
			return 0, os.NewSyscallError("read", errno)
		}
	}
}

// write writes what the kernel takes at once; errAgain: not all of it.
func (c *sock) write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for done < len(b) {
		if c.closed {
			return done, net.ErrClosed
		}
		if c.pipe != nil {
			return c.pipe.write(b)
		}
		rest := b[done:]
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(rest))), uintptr(len(rest)), syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			done += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return done, errAgain
		default:
			return done, os.NewSyscallError("write", errno)
		}
	}
	return done, nil
}

// waiter returns what a goroutine that drives the socket sleeps on. The loop signals it from its next event on.
func (c *sock) waiter() *waiting {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wait.Load()
	if w == nil {
		w = &waiting{in: make(chan struct{}, 1), out: make(chan struct{}, 1), gone: make(chan struct{})}
		if c.hungUp || c.down {
			w.leave()
		}
		c.wait.Store(w)
	}
	return w
}

func (w *waiting) leave() {
	if !w.left {
		w.left = true
		close(w.gone)
	}
}

// signal tells a waiting goroutine about an event.
func (c *sock) signal(events uint32) {
	const end = unix.EPOLLHUP | unix.EPOLLERR
	w := c.wait.Load()
	if events&(unix.EPOLLRDHUP|end) != 0 {
		c.mu.Lock()
		c.hungUp = true
		if w = c.wait.Load(); w != nil {
			w.leave()
		}
		c.mu.Unlock()
	}
	if w == nil {
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|end) != 0 {
		poke(w.in)
	}
	if events&(unix.EPOLLOUT|end) != 0 {
		poke(w.out)
	}
}

func poke(ch chan struct{}) {
	if len(ch) > 0 {
		return // whoever comes next finds it: most of the time nobody waits, and this costs no lock
	}
	select {
	case ch <- struct{}{}:
	default:
	}
}

// writeAll waits for room; it is for goroutines. It ends with an error once shut was called.
func (c *sock) writeAll(b []byte) error {
	w := c.waiter()
	for {
		n, err := c.write(b)
		if b = b[n:]; err != errAgain {
			return err
		}
		select {
		case <-w.out:
		case <-w.gone:
			if c.isDown() {
				return net.ErrClosed
			}
			<-w.out // the peer only ended its side
		}
	}
}

func (c *sock) isDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *sock) hasHungUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hungUp
}

// shut ends both directions; whoever drives the socket sees its end. Safe for concurrent use, any number of times.
func (c *sock) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.down {
		return
	}
	c.down = true
	if c.pipe != nil {
		c.pipe.shut()
	} else {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
	if w := c.wait.Load(); w != nil {
		w.leave()
		poke(w.out)
	}
}

// shutWrite tells the peer that no more comes.
func (c *sock) shutWrite() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case c.pipe != nil:
		c.pipe.shutWrite()
	default:
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	}
}

// near returns the local address; invalid once the socket is closed, and for a Unix socket.
func (c *sock) near() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.pipe != nil {
		return netip.AddrPort{}
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrOf(sa)
}

// close gives the descriptor back; only the loop calls it.
func (c *sock) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed, c.down = true, true
		if c.pipe != nil {
			c.pipe.shut()
		} else {
			_ = unix.Close(c.fd)
		}
		if w := c.wait.Load(); w != nil {
			w.leave()
			poke(w.out)
		}
	}
}

func addrOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// takeOver makes a sock of a connection that was made with the net package, which lets go of it.
func takeOver(conn net.Conn, lp *loop) (*sock, error) {
	defer conn.Close()
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("take over %T: it has no descriptor", conn)
	}
	return duplicate(sc, lp)
}

// duplicate makes a sock of the same socket.
func duplicate(sc syscall.Conn, lp *loop) (*sock, error) {
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	c := &sock{loop: lp, fd: -1}
	var dupErr error
	if err := raw.Control(func(fd uintptr) { c.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", dupErr)
	}
	return c, nil
}
