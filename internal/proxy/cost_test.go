// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// The hot path: what it may cost. Both tests count in the whole process, so they do not run beside others.

// raced: the race detector empties pools at random, so allocations mean nothing.
var raced bool

func TestACommandOnTheHotPathAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	for _, mode := range []string{"async", "quorum", "exact"} {
		t.Run(mode, func(t *testing.T) {
			replicas, quorum := 0, mode != "async"
			if quorum {
				replicas = 1
			}
			s := newShard(t, replicas, func(sp *spec, o *Options) {
				if quorum {
					sp.Durability, sp.AckReplicas = topo.Quorum, 1
				}
				o.Exact = mode == "exact"
			})
			c := s.client()
			var request []byte
			for i := range 16 {
				request = resp.AppendCommand(request, "SET", "key:"+strconv.Itoa(i), strings.Repeat("v", 64))
				request = resp.AppendCommand(request, "GET", "key:"+strconv.Itoa(i))
			}
			reply := make([]byte, 16*len("+OK\r\n"+"$64\r\n\r\n")+16*64)
			rounds := func(n int) {
				for range n {
					if _, err := c.c.Write(request); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(c.r, reply); err != nil {
						t.Fatal(err)
					}
				}
			}
			rounds(500)
			const n = 2000
			best := 1.0
			for i := 0; i < 5 || best > 0.01 && i < 25; i++ { // the rest of the process allocates a little, now and then
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				rounds(n)
				runtime.ReadMemStats(&after)
				best = min(best, float64(after.Mallocs-before.Mallocs)/(n*32))
			}
			t.Logf("%.4f allocations for each command", best)
			if best > 0.01 {
				t.Errorf("%.4f allocations for each command", best)
			}
		})
	}
}

func TestAnIdleClientCostsLittleMemory(t *testing.T) {
	const clients, most = 9_000, 10 << 10 // descriptors are scarce: each client has two here
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2*clients+500 {
		t.Skipf("needs %d file descriptors, and may have %d", 2*clients+500, limit.Cur)
	}
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Clients = clients + 1 })
	s.client().want("PONG", "PING")
	before := resident(t)
	for range clients {
		fd := rawClient(t, s)
		if _, err := syscall.Write(fd, []byte("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")); err != nil {
			t.Fatal(err)
		}
		var b [16]byte
		if n, err := syscall.Read(fd, b[:]); err != nil || string(b[:n]) != "$-1\r\n" {
			t.Fatalf("%q %v", b[:max(n, 0)], err)
		}
	}
	if n := s.p.Stats().Clients; n != clients+1 {
		t.Fatalf("%d clients", n)
	}
	each := (resident(t) - before) / clients
	t.Logf("%d bytes resident for each of %d idle clients", each, clients)
	if each > most {
		t.Errorf("an idle client costs %d bytes, at most %d are allowed", each, most)
	}
}

// rawClient connects without the net package, so that the test's own side costs nothing.
func rawClient(t *testing.T, s *shard) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	port := s.p.rw.Addr().String()[strings.LastIndexByte(s.p.rw.Addr().String(), ':')+1:]
	n, _ := strconv.Atoi(port)
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: n, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// resident returns the process's resident memory in bytes.
func resident(t *testing.T) int {
	t.Helper()
	runtime.GC()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// live returns the bytes of the heap that are in use.
func live() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestConnectionsComeAndGoWithoutALeak: make show-churn runs it with 200,000 connections.
func TestConnectionsComeAndGoWithoutALeak(t *testing.T) {
	total := 5_000
	if n, err := strconv.Atoi(os.Getenv("CHURN")); err == nil {
		total = n
	}
	s := newShard(t, 0, nil)
	s.client().want("PONG", "PING")
	turn := func(n int) {
		for i := range n {
			conn, err := net.Dial("tcp", s.p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c := &wire{t: t, c: conn, r: bufio.NewReader(conn)} // without a Cleanup, which would keep it
			switch i % 4 {
			case 0:
				c.want("OK", "SET", "k", "v")
			case 1:
				c.want("OK", "MULTI")
				c.send("SET", "k", "v")
			case 2:
				c.send("BLPOP", "nothing", "0")
			}
			_ = c.c.Close()
		}
	}
	settle := func() (int, int) {
		waitFor(t, "clients have left", func() bool { return s.p.Stats().Clients == 1 })
		goroutines := 0
		until(3*time.Second, func() bool { goroutines = runtime.NumGoroutine(); return goroutines < 60 })
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return goroutines, len(fds)
	}
	turn(500)
	g0, f0 := settle()
	m0, r0 := live(), resident(t)
	turn(total)
	g1, f1 := settle()
	m1, r1 := live(), resident(t)
	t.Logf("after %d connections: %d goroutines (before: %d), %d descriptors (%d), %d KiB live (%d), %d KiB resident (%d)", total, g1, g0, f1, f0, m1>>10, m0>>10, r1>>10, r0>>10)
	if g1 > g0+20 || f1 > f0+70 || m1 > m0+2<<20 {
		t.Error("something leaks")
	}
}
