// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a hold on one process: a pidfd, which never means another process, however pids are reused.
// One goroutine waits for the exit; release ends it and waits for it.
type process struct {
	pid   int
	start uint64 // field 22 of /proc/PID/stat: clock ticks after boot; with the pid it names a process for ever
	file  *os.File
	raw   rawConn
	gone  chan struct{} // closed when the process was seen to exit
	ended chan struct{} // closed when the watching goroutine ended
}

type rawConn interface {
	Control(f func(fd uintptr)) error
	Read(f func(fd uintptr) (done bool)) error
}

// openProcess takes hold of pid. start 0 accepts any process with that pid; otherwise only the one that started then.
// onExit runs once, on the watching goroutine, when the process was seen to exit.
func openProcess(pid int, start uint64, onExit func()) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of process %d: %w", pid, err)
	}
	st, err := readStat(pid)
	if err != nil || start != 0 && st.start != start {
		_ = unix.Close(fd)
		if err == nil {
			err = errors.New("it is another process by now")
		}
		return nil, fmt.Errorf("look at process %d: %w", pid, err)
	}
	p := &process{pid: pid, start: st.start, gone: make(chan struct{}), ended: make(chan struct{})}
	p.file = os.NewFile(uintptr(fd), "pidfd")
	if p.raw, err = p.file.SyscallConn(); err != nil {
		_ = p.file.Close()
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	go p.watch(onExit)
	return p, nil
}

// watch blocks on the runtime's poller: a pidfd becomes readable when its process exits (Linux 5.3 and later).
func (p *process) watch(onExit func()) {
	defer close(p.ended)
	exited := false
	_ = p.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		exited = err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
		return exited
	})
	if exited {
		close(p.gone)
		if onExit != nil {
			onExit()
		}
	}
}

// signal sends sig to exactly this process.
func (p *process) signal(sig unix.Signal) error {
	var err error
	if e := p.raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); e != nil {
		err = e
	}
	if errors.Is(err, unix.ESRCH) {
		return nil // it is gone; the watcher says so
	}
	return err
}

// exited tells whether the process was seen to exit.
func (p *process) exited() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// await waits until the process was seen to exit.
func (p *process) await(ctx context.Context) error {
	select {
	case <-p.gone:
		return nil
	default:
	}
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the exit of process %d: %w", p.pid, ctx.Err())
	}
}

// startedAt is the start of the process on the clock that counts suspend, in which the kernel counts it: ticks of 10 ms
// (USER_HZ is 100 on all Linux architectures that Go supports).
func (p *process) startedAt() time.Duration { return ticks(p.start) }

func ticks(n uint64) time.Duration { return time.Duration(n) * 10 * time.Millisecond }

// release gives the hold up; the process goes on.
func (p *process) release() {
	_ = p.file.Close()
	<-p.ended
}

// stat is what /proc/PID/stat says.
type stat struct {
	comm  string
	state byte
	start uint64
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("unexpected form of /proc/%d/stat", pid)
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return stat{}, fmt.Errorf("unexpected form of /proc/%d/stat", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return stat{comm: string(b[open+1 : end]), state: f[0][0], start: start}, err
}

// activity is one look at how a process lives.
type activity struct {
	state  byte          // R, S, D, T, t, Z, …; 0 when it cannot be seen
	frozen bool          // by its control group
	wanted time.Duration // time its main thread ran or waited for a processor
}

// stopped reports whether the process can do nothing until somebody lets it.
func (a activity) stopped() bool { return a.state == 'T' || a.state == 't' || a.frozen }

// look reads the activity of the main thread, which executes all commands: state and scheduler statistics.
func look(pid int) activity {
	st, err := readStat(pid)
	if err != nil {
		return activity{}
	}
	a := activity{state: st.state, frozen: groupFrozen(pid)}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, pid))
	if err != nil {
		return a
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return a
	}
	ran, _ := strconv.ParseInt(f[0], 10, 64)
	waited, _ := strconv.ParseInt(f[1], 10, 64)
	a.wanted = time.Duration(ran + waited)
	return a
}

// groupFrozen tells whether the process's control group (version 2, or the version 1 freezer) is frozen.
func groupFrozen(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case f[0] == "0":
			ev, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", f[2], "cgroup.events"))
			if err == nil && strings.Contains(string(ev), "frozen 1") {
				return true
			}
		case f[1] == "freezer":
			st, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/freezer", f[2], "freezer.state"))
			if err == nil && strings.HasPrefix(string(st), "FR") {
				return true
			}
		}
	}
	return false
}

// bootID names this run of the kernel; empty when it cannot be read.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
