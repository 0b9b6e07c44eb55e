// SPDX-License-Identifier: Apache-2.0

// Package clock is the port for time. It exists for one reason: leases must be counted on a clock that goes on during
// suspend, which the standard library does not offer. Everything that needs no lease uses package time directly.
// It has no goroutines.
package clock

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Clock tells the time. Implementations are safe for concurrent use.
type Clock interface {
	// Now is the wall clock, for people and for file names; never for arithmetic.
	Now() time.Time
	// Uptime never goes back and counts the time that the machine was suspended.
	Uptime() time.Duration
	// Nap waits for a time of at most a millisecond. Timers of package time are rounded up to a whole one when the process
	// is idle otherwise, because epoll counts in milliseconds (Go 1.26, Linux). It cannot be interrupted.
	Nap(d time.Duration)
}

// Real is the machine's clock.
type Real struct{}

// Now returns the wall clock.
func (Real) Now() time.Time { return time.Now() }

// Uptime returns CLOCK_BOOTTIME (Linux), which counts suspend.
func (Real) Uptime() time.Duration {
	var ts unix.Timespec
	// Called for every batch of the data path. It never blocks, so the runtime need not know of it.
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		panic("read CLOCK_BOOTTIME: " + errno.Error()) // every supported kernel has it
	}
	return time.Duration(ts.Nano())
}

// Nap implements Clock.
func (Real) Nap(d time.Duration) {
	ts := unix.NsecToTimespec(min(d, time.Millisecond).Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // a signal ends it early: every caller looks again
}
