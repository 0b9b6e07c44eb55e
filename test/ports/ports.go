// SPDX-License-Identifier: Apache-2.0

// Package ports gives tests ports of 127.0.0.1 that nobody else takes before their server does. It is for tests alone.
//
// Its invariant: of all tests of this machine's network namespace, copies of themselves included, one has a port until it
// ends. Deployments of test/e2e and the stories of cmd/redoubt keep other ranges; the kernel gives clients ports above 32768.
// No goroutines; safe for concurrent use.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"syscall"
	"testing"
)

// Ports are from here on, and so many.
const first, many = 10000, 6000

// Free reserves a port until the end of the test.
func Free(t testing.TB) int {
	t.Helper()
	return Block(t, first, many, 1, 0)
}

// Block reserves one of so many blocks of size ports, of which the first begins at from, until the end of the test, and returns its
// first port; nobody listens at the ports base+used now. The reservation is an abstract socket, which the kernel gives to one process.
func Block(t testing.TB, from, blocks, size int, used ...int) int {
	t.Helper()
	for range 1000 {
		base := from + size*rand.IntN(blocks)
		lock, err := net.Listen("unix", fmt.Sprintf("@redoubt-test-ports-%d", base))
		if err != nil {
			continue
		}
		if slices.ContainsFunc(used, func(p int) bool { return !bindable(base + p) }) {
			_ = lock.Close()
			continue
		}
		t.Cleanup(func() { _ = lock.Close() })
		return base
	}
	t.Fatalf("no free ports from %d to %d", from, from+blocks*size)
	return 0
}

// Addr is "127.0.0.1:" and a port that Free reserves.
func Addr(t testing.TB) string {
	t.Helper()
	return "127.0.0.1:" + strconv.Itoa(Free(t))
}

// bindable reports whether nobody listens at the port. It does not listen itself: programs that other tests start at this
// moment have this socket, too, until they run.
func bindable(port int) bool {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = syscall.Close(fd) }()
	return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) == nil &&
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}) == nil
}
