// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// loop is one event loop: a goroutine with an epoll set. It reads the clients that are in no special state and the
// shared upstream connections, hands commands over in one go for all clients that were readable at once, and never
// waits for anything but events. A client whose command needs waiting is driven by a goroutine of its own for a while.
//
// Sockets are watched edge-triggered, once and for all, so that no event costs a second system call.
type loop struct {
	index int
	epoll int
	bell  int // eventfd that ends the wait

	asleep atomic.Bool
	mu     sync.Mutex // guards posted, ripe and over
	posted []func()
	ripe   []*sock // that something was said about, see stir
	over   bool

	memory sync.Pool // of *memory: what is on its way in connections within the process

	// owned by run:
	ends      []endpoint // by descriptor
	more      []int32    // descriptors with something left to read
	moreSpare []int32
	dirty     []*lane // lanes that got commands in this round
	input     []byte  // where clients are read into; what is left of a command goes to the session's own buffer
	items     []item
	spare     []func()
	ripeSpare []*sock
	last      []func() // called when everything else of this round is done
	late      []func() // called when everything else of the next round is done, which comes at once
	lateSpare []func()
	keen      int // how sure it is that the next event comes soon
}

// endpoint is what a descriptor belongs to: a client, an upstream connection, a port or a Stream.
type endpoint struct {
	s *session
	k *link
	d *door
	f *Stream
}

const (
	loopInput  = 64 << 10
	loopEvents = 1024
	watched    = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET
)

func newLoop(index int) (*loop, error) {
	lp := &loop{index: index, bell: -1, input: make([]byte, loopInput)}
	lp.memory.New = func() any { return &memory{b: make([]byte, 0, memoryMin)} }
	var err error
	if lp.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create an epoll set: %w", err)
	}
	if lp.bell, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		err = unix.EpollCtl(lp.epoll, unix.EPOLL_CTL_ADD, lp.bell, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(lp.bell)})
	}
	if err != nil {
		lp.closeFDs()
		return nil, fmt.Errorf("create a wake-up descriptor: %w", err)
	}
	return lp, nil
}

func (lp *loop) closeFDs() {
	_ = unix.Close(lp.epoll)
	if lp.bell >= 0 {
		_ = unix.Close(lp.bell)
	}
}

// post runs f on the loop, soon. It reports false when the loop has ended. Safe for concurrent use.
func (lp *loop) post(f func()) bool {
	lp.mu.Lock()
	if lp.over {
		lp.mu.Unlock()
		return false
	}
	lp.posted = append(lp.posted, f)
	lp.mu.Unlock()
	if lp.asleep.Load() {
		lp.ring()
	}
	return true
}

func (lp *loop) ring() { _, _ = unix.Write(lp.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// end lets run return once nothing is left to do.
func (lp *loop) end() {
	lp.post(func() {
		lp.mu.Lock()
		lp.over = true
		lp.mu.Unlock()
	})
}

// run is the loop's goroutine.
func (lp *loop) run() {
	defer lp.closeFDs()
	events := make([]unix.EpollEvent, loopEvents)
	for {
		n, err := lp.wait(events)
		lp.asleep.Store(false)
		if err != nil && err != unix.EINTR {
			panic(os.NewSyscallError("epoll_wait", err)) // the descriptor is ours and valid: nothing can be served without it
		}
		again := lp.more
		lp.more, lp.moreSpare = lp.moreSpare[:0], nil
		for i := range max(n, 0) {
			lp.event(events[i].Fd, events[i].Events)
		}
		for _, fd := range again {
			lp.event(fd, unix.EPOLLIN)
		}
		lp.moreSpare = again
		if !lp.errands() {
			return
		}
		lp.play()
		lp.send()
		lp.finish()
	}
}

// Looking for events instead of sleeping until they come: for whom, and for how long.
const (
	keenFor   = 50 * time.Microsecond // between events
	keenEnds  = 2                     // descriptors with events at once
	keenMin   = 32                    // such waits in a row, before and while it pays
	keenMax   = 64
	keenPrice = 8 // waits that one of another kind takes back
)

// wait returns the next events. Where few come, each soon after the other, as from one client that waits for every reply,
// it looks for them for a moment before it sleeps: to be woken costs more than the request itself.
func (lp *loop) wait(events []unix.EpollEvent) (int, error) {
	patience := lp.patience()
	if patience == 0 {
		return unix.EpollWait(lp.epoll, events, 0)
	}
	begun := time.Now()
	n, err := 0, error(nil)
	if lp.keen >= keenMin {
		for n == 0 && err == nil && time.Since(begun) < keenFor {
			n, err = unix.EpollWait(lp.epoll, events, 0)
		}
	}
	if n == 0 && err == nil {
		n, err = unix.EpollWait(lp.epoll, events, patience)
	}
	if n <= keenEnds && time.Since(begun) < keenFor {
		lp.keen = min(lp.keen+1, keenMax)
	} else {
		lp.keen = max(lp.keen-keenPrice, 0)
	}
	return n, err
}

// patience returns for how long to wait for events, in milliseconds; -1: until there is one.
func (lp *loop) patience() int {
	if len(lp.more)+len(lp.late) > 0 {
		return 0
	}
	lp.asleep.Store(true)
	lp.mu.Lock()
	waiting := len(lp.posted) > 0 || len(lp.ripe) > 0
	lp.mu.Unlock()
	if waiting {
		return 0
	}
	return -1
}

// errands does what other goroutines posted, and reports false when the loop is to end.
func (lp *loop) errands() bool {
	for {
		lp.mu.Lock()
		todo := lp.posted
		lp.posted = lp.spare
		over := lp.over
		lp.mu.Unlock()
		for i, f := range todo {
			f()
			todo[i] = nil
		}
		lp.spare = todo[:0]
		if len(todo) == 0 {
			return !over
		}
	}
}

func (lp *loop) event(fd int32, events uint32) {
	if int(fd) >= len(lp.ends) {
		return // the bell, before anything was watched
	}
	lp.ends[fd].event(events)
}

func (e endpoint) event(events uint32) {
	switch {
	case e.s != nil:
		e.s.event(events)
	case e.k != nil:
		e.k.event(events)
	case e.d != nil:
		e.d.event()
	case e.f != nil:
		e.f.c.signal(events)
		e.f.said()
	}
}

// stir has the owner of c told of events, as if they had been reported. Safe for concurrent use.
func (lp *loop) stir(c *sock, events uint32) {
	if c.stirred.Or(events) != 0 {
		return // it is about to be told
	}
	lp.mu.Lock()
	lp.ripe = append(lp.ripe, c)
	lp.mu.Unlock()
	if lp.asleep.Load() {
		lp.ring()
	}
}

const playsInARow = 8 // before the loop looks for events of descriptors again

// play tells the owners of what was stirred, and of what they stir in turn.
func (lp *loop) play() {
	for range playsInARow {
		lp.mu.Lock()
		ripe := lp.ripe
		lp.ripe = lp.ripeSpare[:0]
		lp.mu.Unlock()
		for i, c := range ripe {
			ripe[i] = nil
			events := c.stirred.Swap(0)
			c.owner.event(events)
		}
		lp.ripeSpare = ripe
		if len(ripe) == 0 {
			return
		}
	}
}

// finish does what was kept for the end of the round.
func (lp *loop) finish() {
	late := lp.late
	lp.late = lp.lateSpare[:0]
	lp.last = append(lp.last, late...)
	clear(late)
	lp.lateSpare = late
	for i := 0; i < len(lp.last); i++ {
		f := lp.last[i]
		lp.last[i] = nil
		f()
	}
	lp.last = lp.last[:0]
}

// watch begins to report events of c to e. On the loop only.
func (lp *loop) watch(c *sock, e endpoint) error {
	c.owner = e
	if c.pipe != nil {
		lp.stir(c, unix.EPOLLIN|unix.EPOLLOUT)
		return nil
	}
	for c.fd >= len(lp.ends) {
		lp.ends = append(lp.ends, make([]endpoint, max(64, len(lp.ends)))...)
	}
	lp.ends[c.fd] = e
	if err := unix.EpollCtl(lp.epoll, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: watched, Fd: int32(c.fd)}); err != nil {
		lp.ends[c.fd] = endpoint{}
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// forget closes c. On the loop only.
func (lp *loop) forget(c *sock) {
	c.owner = endpoint{}
	if c.pipe == nil && c.fd < len(lp.ends) {
		lp.ends[c.fd] = endpoint{}
	}
	c.close()
}

// unwatch ends events of c and returns its descriptor, which is the caller's now. Another process may have the same
// socket, so that closing it would not take it out of the set. On the loop only.
func (lp *loop) unwatch(c *sock) int {
	if c.pipe != nil {
		lp.forget(c) // what was said before still arrives at the other end
		return -1
	}
	if c.fd < len(lp.ends) {
		lp.ends[c.fd] = endpoint{}
	}
	_ = unix.EpollCtl(lp.epoll, unix.EPOLL_CTL_DEL, c.fd, nil) // it may never have been watched
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed, c.down = true, true
	if w := c.wait.Load(); w != nil {
		w.leave()
		poke(w.out)
	}
	return c.fd
}

// later has c read again after everybody else had a turn. On the loop only.
func (lp *loop) later(c *sock) {
	if c.pipe != nil {
		lp.stir(c, unix.EPOLLIN)
		return
	}
	lp.more = append(lp.more, int32(c.fd))
}

// touched notes a lane that got commands. On the loop only.
func (lp *loop) touched(l *lane) {
	if !l.dirty {
		l.dirty = true
		lp.dirty = append(lp.dirty, l)
	}
}

// send writes what lanes have got in this round.
func (lp *loop) send() {
	for i := 0; i < len(lp.dirty); i++ {
		l := lp.dirty[i]
		l.dirty = false
		lp.dirty[i] = nil
		l.flushOnLoop()
	}
	lp.dirty = lp.dirty[:0]
}
