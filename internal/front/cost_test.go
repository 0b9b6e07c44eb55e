// SPDX-License-Identifier: Apache-2.0

package front

import (
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"redoubt/internal/proxy"
	"redoubt/internal/resp"
)

// raced: the race detector empties pools at random, so allocations mean nothing.
var raced bool

// TestACommandOnTheHotPathAllocatesNothing counts in the whole process, so it does not run beside others.
func TestACommandOnTheHotPathAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	m := startMember(t, 4, func(o *Options, _ *proxy.Options) {
		o.Place = func(key []byte) int { return int(key[len(key)-1]) % 4 }
	})
	c, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var request []byte
	for i := range 16 {
		request = resp.AppendCommand(request, "SET", "key:"+strconv.Itoa(i), strings.Repeat("v", 64))
		request = resp.AppendCommand(request, "GET", "key:"+strconv.Itoa(i))
	}
	reply := make([]byte, 16*len("+OK\r\n"+"$64\r\n\r\n")+16*64)
	rounds := func(n int) {
		for range n {
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, reply); err != nil {
				t.Fatal(err)
			}
		}
	}
	rounds(500)
	const n = 1000
	best := 100.0
	for range 5 { // the rest of the process allocates a little, now and then
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
}
