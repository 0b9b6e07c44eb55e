// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Rough is what the line between a host and the others does to every frame, in both directions. The zero value is a line
// through which frames pass as they come, a little slower.
type Rough struct {
	Delay  time.Duration // each frame arrives so much later
	Jitter time.Duration // and up to so much more; what overtakes what is left to Late alone
	Late   float64       // share of the frames that arrive LateBy later still, behind those that were sent after them
	LateBy time.Duration
	Lose   float64 // share that never arrives
	Twice  float64 // share that arrives twice
	Seed   uint64
}

const (
	frameLimit = 10 + 14 + 1<<16 // a header of offloads, one of Ethernet, the largest packet
	lineLimit  = 4096            // frames on their way in one direction; what comes beyond is lost, as in any queue
)

// Roughen puts a forwarder into the line between host i and the others, until the line is made smooth again: not every
// kernel has a queueing discipline that delays, and this one does the same everywhere. Frames that are on their way when it
// ends are lost. One line takes one forwarder at a time.
func (n *Net) Roughen(i int, how Rough) (smooth func() error, err error) {
	sw, port, tap := n.prefix+"-sw", fmt.Sprintf("p%d", i), fmt.Sprintf("t%d", i)
	back, err := enter(sw)
	if err != nil {
		return nil, err
	}
	near, err1 := rawPort(port)
	far, err2 := tapPort(tap)
	back()
	l := &line{how: how, files: [2]*os.File{near, far}}
	if err := errors.Join(err1, err2); err != nil {
		return nil, errors.Join(fmt.Errorf("forward frames of host %d: %w", i, err), l.end())
	}
	home := func() error { // also takes a half-done one back; the device goes with its file
		return errors.Join(run("ip", "-n", sw, "link", "set", port, "master", "br0"), l.end())
	}
	if err := run("ip", "-n", sw, "link", "set", tap, "master", "br0", "up"); err != nil {
		return nil, errors.Join(err, home())
	}
	if err := run("ip", "-n", sw, "link", "set", port, "nomaster"); err != nil {
		return nil, errors.Join(err, home())
	}
	l.begin()
	return home, nil
}

// rawPort takes every frame that arrives at a device, and sends at it. The thread is in the device's namespace.
func rawPort(name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	}
	// With the header, frames whose checksum or segmentation is left to the device pass as they are.
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	if err == nil {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(ifr.Uint32())})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket at %s: %w", name, err), f.Close())
	}
	return f, nil
}

// tapPort makes a device in the thread's namespace whose frames are read from and written to a file.
func tapPort(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil // only now: it could not be polled before
}

// line forwards frames between two ports: two goroutines in each direction, until end.
type line struct {
	how   Rough
	files [2]*os.File
	wg    sync.WaitGroup
	done  chan struct{}
}

func (l *line) begin() {
	l.done = make(chan struct{})
	for d := range 2 {
		queue := make(chan frame, lineLimit)
		l.wg.Go(func() { l.take(l.files[d], queue, rand.New(rand.NewPCG(l.how.Seed, uint64(d)))) })
		l.wg.Go(func() { l.give(l.files[1-d], queue) })
	}
}

func (l *line) end() error {
	var errs []error
	if l.done != nil {
		close(l.done)
	}
	for _, f := range l.files {
		if f != nil {
			errs = append(errs, f.Close()) // wakes who reads from it
		}
	}
	l.wg.Wait()
	return errors.Join(errs...)
}

// frame is on its way; those that are due at the same time arrive in the order in which they came.
type frame struct {
	due  time.Time
	nr   uint64
	data []byte
}

// take reads frames and decides what becomes of each.
func (l *line) take(from *os.File, queue chan<- frame, rnd *rand.Rand) {
	buf := make([]byte, frameLimit)
	var last time.Time
	for nr := uint64(0); ; nr++ {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || n == 0 {
			select { // a device that is down for a moment
			case <-l.done:
				return
			case <-time.After(time.Millisecond):
				continue
			}
		}
		if rnd.Float64() < l.how.Lose {
			continue
		}
		f := frame{nr: nr, data: append([]byte(nil), buf[:n]...)}
		f.due = time.Now().Add(l.how.Delay + time.Duration(rnd.Float64()*float64(l.how.Jitter)))
		if f.due.Before(last) {
			f.due = last
		}
		last = f.due
		if rnd.Float64() < l.how.Late {
			f.due = f.due.Add(l.how.LateBy)
		}
		copies := 1
		if rnd.Float64() < l.how.Twice {
			copies = 2
		}
		for range copies {
			select {
			case queue <- f:
			default: // the queue is full
			}
		}
	}
}

// give writes every frame when it is due.
func (l *line) give(to *os.File, queue <-chan frame) {
	var way onTheWay
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		for len(way) > 0 && !way[0].due.After(time.Now()) {
			_, _ = to.Write(heap.Pop(&way).(frame).data) // a frame that cannot be sent is lost, as on any line
		}
		next := time.Hour
		if len(way) > 0 {
			next = time.Until(way[0].due)
		}
		timer.Reset(next)
		in := queue
		if len(way) >= lineLimit {
			in = nil
		}
		select {
		case <-l.done:
			return
		case f := <-in:
			heap.Push(&way, f)
		case <-timer.C:
		}
	}
}

// onTheWay are frames in the order in which they are due.
type onTheWay []frame

func (w onTheWay) Len() int { return len(w) }
func (w onTheWay) Less(i, j int) bool {
	return w[i].due.Before(w[j].due) || w[i].due.Equal(w[j].due) && w[i].nr < w[j].nr
}
func (w onTheWay) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *onTheWay) Push(f any)   { *w = append(*w, f.(frame)) }
func (w *onTheWay) Pop() any {
	old := *w
	f := old[len(old)-1]
	old[len(old)-1] = frame{}
	*w = old[:len(old)-1]
	return f
}
