// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// instanceFile is in a member's directory while, and after, the member runs.
const instanceFile = "redoubt-member.json"

// Instance names one process beyond doubt: a pid alone may have been given to somebody else.
type Instance struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`   // field 22 of /proc/PID/stat, in ticks after boot
	BootID string `json:"boot_id"` // of the machine's present run
	Config string `json:"config,omitempty"`
}

// Alive reports whether exactly that process still runs. One that ended and was not reaped does not.
func (i Instance) Alive() bool {
	if i.PID <= 0 || i.BootID != "" && i.BootID != bootID() {
		return false
	}
	start, state, err := processStat(i.PID)
	return err == nil && start == i.Start && state != 'Z' && state != 'X'
}

// Signal sends sig to exactly that process. A process that is gone is no error.
func (i Instance) Signal(sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(i.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", i.PID, err)
	}
	defer unix.Close(fd)
	if !i.Alive() { // looked at after the handle was taken: it cannot become somebody else's any more
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", i.PID, err)
	}
	return nil
}

// ReadInstance reads the record of the member that runs, or ran last, in that directory.
func ReadInstance(dir string) (Instance, error) {
	return readInstance(filepath.Join(dir, instanceFile))
}

// ReadServer reads the record of the managed server that runs, or ran last, in that directory of its data.
func ReadServer(dir string) (Instance, error) {
	return readInstance(filepath.Join(dir, "redoubt-server.json"))
}

func readInstance(path string) (Instance, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Instance{}, err
	}
	var i Instance
	if err := json.Unmarshal(b, &i); err != nil {
		return Instance{}, fmt.Errorf("read %s: %w", path, err)
	}
	return i, nil
}

// NewInstance describes a running process.
func NewInstance(pid int) (Instance, error) {
	start, _, err := processStat(pid)
	return Instance{PID: pid, Start: start, BootID: bootID()}, err
}

// claim makes this process the only one that runs a member in dir, until it is released or the process ends.
func claim(dir, config string) (*claimed, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the member's directory: %w", err)
	}
	path := filepath.Join(dir, instanceFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim the member's directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		other, _ := readInstance(path)
		return nil, fmt.Errorf("the member in %s runs already, as process %d: stop it first, or use another directory (%w)", dir, other.PID, err)
	}
	return claimWith(f, config)
}

// claimWith writes this process's record into a file that it, or the process before it, has locked.
func claimWith(f *os.File, config string) (*claimed, error) {
	c := &claimed{f}
	if err := c.write(config); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// claimed is the record of the member that runs in a directory. It is locked while one of its processes has it open.
type claimed struct{ f *os.File }

// write names this process.
func (c *claimed) write(config string) error {
	self, err := NewInstance(os.Getpid())
	if err == nil {
		self.Config = config
		var b []byte
		if b, err = json.Marshal(self); err == nil {
			if err = c.f.Truncate(0); err == nil {
				_, err = c.f.WriteAt(append(b, '\n'), 0)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("claim the member's directory: %w", err)
	}
	return nil
}

func (c *claimed) release() { c.f.Close() }

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func processStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("unexpected form of /proc/%d/stat", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0][0], err
}
