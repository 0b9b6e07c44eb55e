// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"sync"
	"syscall"
)

// output is what one client has not taken yet. Whoever has replies appends them; flush writes without waiting, and
// only what the socket does not take at once is left to a goroutine of its own, so that a slow client holds up nobody.
type output struct {
	s *session

	mu      sync.Mutex // guards what follows; held across writes that cannot block
	buf     []byte
	busy    bool // a goroutine is writing
	raw     syscall.RawConn
	attempt func(fd uintptr) bool
	wrote   int
	err     error
}

const outputKept = 64 << 10

func (o *output) init(s *session) {
	o.s = s
	if tcp, ok := s.conn.(*net.TCPConn); ok {
		o.raw, _ = tcp.SyscallConn()
	}
	o.attempt = func(fd uintptr) bool {
		o.wrote, o.err = syscall.Write(int(fd), o.buf)
		return true // never wait for the socket to become writable
	}
}

// add appends bytes and reports false when the client has to be disconnected because it does not take its replies.
func (o *output) add(b []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.buf)+len(b) > o.s.p.o.Limits.Output {
		return false
	}
	o.buf = append(o.buf, b...)
	return true
}

// flush writes what can be written at once.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || len(o.buf) == 0 {
		return
	}
	if o.raw != nil {
		o.wrote, o.err = 0, nil
		if err := o.raw.Write(o.attempt); err != nil || o.err != nil && o.err != syscall.EAGAIN && o.err != syscall.EINTR {
			o.buf = nil
			o.s.kill()
			return
		}
		if o.wrote == len(o.buf) {
			o.empty()
			return
		}
		o.buf = o.buf[:copy(o.buf, o.buf[max(o.wrote, 0):])]
	}
	o.busy = true
	o.s.p.spawn(o.drain)
}

func (o *output) empty() {
	if cap(o.buf) > outputKept {
		o.buf = nil
		return
	}
	o.buf = o.buf[:0]
}

// drain writes until nothing is left; it ends when the connection is closed.
func (o *output) drain() {
	var spare []byte
	for {
		o.mu.Lock()
		if len(o.buf) == 0 {
			o.busy = false
			o.mu.Unlock()
			return
		}
		out := o.buf
		o.buf = spare[:0]
		o.mu.Unlock()
		if _, err := o.s.conn.Write(out); err != nil {
			o.s.kill()
			o.mu.Lock()
			o.buf, o.busy = nil, false
			o.mu.Unlock()
			return
		}
		if spare = out; cap(spare) > outputKept {
			spare = nil
		}
	}
}

// pending reports whether something waits to be written.
func (o *output) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.buf)
}
