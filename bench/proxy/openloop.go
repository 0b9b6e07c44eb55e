// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openLoop is a generator that sends at a fixed rate whether or not the earlier requests have been answered, and counts
// latency from the moment at which a request was to be sent. A closed loop would hide a stall: its clients wait, and
// what they did not send is not counted. It is one thread on one epoll set, paced by a kernel timer.
type openLoop struct {
	epoll, timer int
	conns        []openConn
	interval     time.Duration
	total        int // requests in all
	sent         int
	answered     int
	first        time.Time // when request 0 is to be sent
	request      []byte
	reply        []byte // what each request must be answered with
	buf          []byte
	latencies    []time.Duration // by request
}

// openConn is one connection. Request i goes to connection i modulo their number, so its k-th reply has a known request.
type openConn struct {
	fd       int
	received int // bytes
}

// runOpenLoop sends total requests at rate over so many connections and returns each one's latency.
func runOpenLoop(addr string, connections, rate, total int, request, reply []byte) ([]time.Duration, error) {
	g := &openLoop{epoll: -1, timer: -1, interval: time.Second / time.Duration(rate), total: total, request: request, reply: reply,
		buf: make([]byte, 64<<10), latencies: make([]time.Duration, total)}
	defer g.close()
	// The thread waits inside system calls that the scheduler does not know of: a garbage collection would wait for it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	if err := g.open(addr, connections); err != nil {
		return nil, err
	}
	if err := g.run(); err != nil {
		return nil, fmt.Errorf("after %d of %d requests: %w", g.answered, total, err)
	}
	return g.latencies, nil
}

func (g *openLoop) open(addr string, connections int) (err error) {
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if g.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	to := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(host).To4())}
	if to.Port, err = strconv.Atoi(port); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	for i := range connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		g.conns = append(g.conns, openConn{fd: fd})
		if err := errors.Join(unix.Connect(fd, to), unix.SetNonblock(fd, true),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), g.watch(fd, i)); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	return g.watch(g.timer, -1)
}

// watch adds a descriptor; index is the connection, -1 the timer.
func (g *openLoop) watch(fd, index int) error {
	return unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)})
}

func (g *openLoop) close() {
	for _, c := range g.conns {
		_ = unix.Close(c.fd)
	}
	for _, fd := range []int{g.timer, g.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// patience is how long after the last send the last reply may take.
const patience = 5 * time.Second

func (g *openLoop) run() error {
	every, delay := unix.NsecToTimespec(g.interval.Nanoseconds()), 10*time.Millisecond
	g.first = time.Now().Add(delay)
	if err := unix.TimerfdSettime(g.timer, 0, &unix.ItimerSpec{Interval: every, Value: unix.NsecToTimespec(delay.Nanoseconds())}, nil); err != nil {
		return fmt.Errorf("set the timer: %w", err)
	}
	deadline := g.first.Add(time.Duration(g.total)*g.interval + patience)
	events := make([]unix.EpollEvent, len(g.conns)+1)
	for g.answered < g.total {
		n, err := wait(g.epoll, events)
		if err != nil {
			return err
		}
		due := false
		for _, e := range events[:n] {
			if e.Fd < 0 {
				due = true
			} else if err := g.receive(int(e.Fd)); err != nil {
				return err
			}
		}
		if due {
			if err := g.sendDue(); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return errors.New("replies are missing")
		}
	}
	return nil
}

// wait is epoll_wait without telling Go's scheduler, which would take the processor away and give it back late.
func wait(epoll int, events []unix.EpollEvent) (int, error) {
	const second = 1000
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), second, 0, 0)
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, fmt.Errorf("epoll: %w", errno)
	}
	return int(n), nil
}

// sendDue sends every request whose time has come.
func (g *openLoop) sendDue() error {
	var expirations [8]byte // how many is not needed: the clock tells
	if _, err := unix.Read(g.timer, expirations[:]); err != nil && err != unix.EAGAIN {
		return fmt.Errorf("read the timer: %w", err)
	}
	for g.sent < g.total && time.Since(g.first) >= time.Duration(g.sent)*g.interval {
		c := &g.conns[g.sent%len(g.conns)]
		n, err := unix.Write(c.fd, g.request)
		if err != nil || n < len(g.request) {
			return fmt.Errorf("send: %d bytes, %w", n, err)
		}
		g.sent++
	}
	return nil
}

// receive reads what a connection has, and notes the latency of each reply that is complete.
func (g *openLoop) receive(index int) error {
	c := &g.conns[index]
	n, err := unix.Read(c.fd, g.buf)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if n == 0 {
		return errors.New("receive: the connection was closed")
	}
	now := time.Since(g.first)
	for b := g.buf[:n]; len(b) > 0; {
		at := c.received % len(g.reply)
		part := min(len(b), len(g.reply)-at)
		if !bytes.Equal(b[:part], g.reply[at:at+part]) {
			return fmt.Errorf("receive: not the expected reply: %q", b[:part])
		}
		b, c.received = b[part:], c.received+part
		if c.received%len(g.reply) == 0 {
			i := index + (c.received/len(g.reply)-1)*len(g.conns)
			g.latencies[i] = now - time.Duration(i)*g.interval
			g.answered++
		}
	}
	return nil
}
