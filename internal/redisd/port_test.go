// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/test/ports"
)

// Whoever starts a program in between passes on what this process has open, until the program runs: a probe must not be
// taken for a server by the next one.
func TestAPortIsFreeWhileProgramsStart(t *testing.T) {
	addr := ports.Addr(t)
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = exec.Command("true").Run()
			}
		})
	}
	defer wg.Wait()
	for ctx.Err() == nil {
		if err := portFree(addr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPortOfAnotherIsNotFree(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Skipf("%s: %v", at, err)
		}
		if err := portFree(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "another process listens there") {
			t.Errorf("%s, where somebody listens: %v", l.Addr(), err)
		}
		l.Close()
		if err := portFree(l.Addr().String()); err != nil {
			t.Errorf("%s, where nobody listens any more: %v", l.Addr(), err)
		}
	}
}
