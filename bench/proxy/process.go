// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is something that this program started: a server or a proxy.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and is reaped
}

// start runs a program whose output goes to a file in dir. It dies with this program.
func start(dir, name, path string, args ...string) (*process, error) {
	log := filepath.Join(dir, name+".log")
	f, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("make the log of %s: %w", name, err)
	}
	defer f.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in its log
	}()
	return p, nil
}

// ended says whether it is gone.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends it, politely for two seconds, and waits until it is gone.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(2 * time.Second):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// lastWords is the end of its log, for an error.
func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr) // all addresses here come from freeAddress
	return port
}

// find is the first of these programs that there is.
func find(names ...string) (string, error) {
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s; install it", strings.Join(names, " or "))
}

// ticksPerSecond is the unit of /proc/PID/stat. The kernel shows 100 to programs whatever it uses itself.
const ticksPerSecond = 100

// cpuOf is the CPU time that a process has used, in user space and in the kernel, its ended threads included.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read the CPU time: %w", err)
	}
	return parseStat(string(b))
}

// parseStat reads fields 14 and 15 of a stat line. The name, field 2, may contain anything, so it counts from its end.
func parseStat(line string) (time.Duration, error) {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("read the CPU time: the stat line is too short")
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// othersBusy is the share of the machine's CPU time that is in use while this program only waits. Figures that were
// taken beside other work are worth less.
func othersBusy(ctx context.Context) (float64, error) {
	before, err := machineTimes()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, time.Second); err != nil {
		return 0, err
	}
	after, err := machineTimes()
	if err != nil {
		return 0, err
	}
	all := after.busy + after.idle - before.busy - before.idle
	return float64(after.busy-before.busy) / float64(max(1, all)), nil
}

// times is what all CPUs have done since the machine started, in ticks.
type times struct{ busy, idle int64 }

func machineTimes() (times, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return times{}, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return parseTimes(line)
}

// parseTimes reads "cpu user nice system idle iowait irq softirq steal guest guest_nice"; guest time is in user time.
func parseTimes(line string) (times, error) {
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return times{}, errors.New("read the machine's CPU time: the line is too short")
	}
	var t times
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return times{}, fmt.Errorf("read the machine's CPU time: %w", err)
		}
		if i == 3 || i == 4 {
			t.idle += n
		} else {
			t.busy += n
		}
	}
	return t, nil
}
