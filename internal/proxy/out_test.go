// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// outputOf returns an output whose client takes everything, and that client's end.
func outputOf(t *testing.T, p *Proxy) (o *output, far int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	s := newSession(p, &sock{fd: fds[0]}, 1, false)
	return &s.out, fds[1]
}

// bareProxy is a proxy of which nothing runs.
func bareProxy() *Proxy {
	p := &Proxy{ctx: context.Background()}
	p.o.Limits.fill()
	p.batches.New = func() any { return new(batch) }
	p.order.Store(&order{})
	return p
}

// A buffer that goes from one client to the next is never the buffer of two clients: replies of one would reach the other.
func TestABufferBelongsToOneClient(t *testing.T) {
	p := bareProxy()
	a, _ := outputOf(t, p)
	spares := []int{1500, 2000, 3000}
	for _, size := range spares {
		p.outputs.Put(&spareOutput{make([]byte, 0, size)})
	}
	for range 20 {
		for range len(spares) {
			if !a.add([]byte(strings.Repeat("a", 1200))) {
				t.Fatal("refused")
			}
		}
		a.flush()
		a.add([]byte(strings.Repeat("a", 600)))
		a.flush()
	}
	mine := unsafe.SliceData(a.buf[:cap(a.buf)])
	for {
		spare, _ := p.outputs.Get().(*spareOutput)
		if spare == nil {
			return
		}
		if cap(spare.b) > 0 && unsafe.SliceData(spare.b[:cap(spare.b)]) == mine {
			t.Fatal("a buffer that is free for the next client is still this one's")
		}
	}
}
