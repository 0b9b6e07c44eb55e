// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"syscall"
	"time"
)

// hangup watches a client's socket while its session waits for replies and does not read: a client that leaves must
// not keep its blocked command, and the connection that it holds, for ever.
type hangup struct {
	conn *net.TCPConn
	left chan struct{}
	done chan struct{}
}

func (s *session) watchHangup() *hangup {
	tcp, ok := s.conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	h := &hangup{conn: tcp, left: make(chan struct{}), done: make(chan struct{})}
	go func() { // owned by await, which calls end
		defer close(h.done)
		gone := false
		var peek [1]byte
		err := raw.Read(func(fd uintptr) bool {
			n, _, err := syscall.Recvfrom(int(fd), peek[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			if err == syscall.EAGAIN || err == syscall.EINTR {
				return false
			}
			gone = n == 0 || err != nil
			return true // more input: nothing can be seen behind it
		})
		if err == nil && gone {
			close(h.left)
		}
	}()
	return h
}

// gone is closed when the client has left; nil (never) when that is not watched.
func (h *hangup) gone() <-chan struct{} {
	if h == nil {
		return nil
	}
	return h.left
}

func (h *hangup) end() {
	if h == nil {
		return
	}
	_ = h.conn.SetReadDeadline(time.Now())
	<-h.done
	_ = h.conn.SetReadDeadline(time.Time{})
}
