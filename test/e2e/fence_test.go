// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
)

// directWriter writes to one server, beside every proxy, from its own host, and notes when a write was accepted last.
type directWriter struct {
	done     chan struct{}
	accepted time.Time // start of the last write that was answered OK
	writes   int
	end      string // why it stopped: the refusal, or how the connection ended
}

// writeDirect writes once a millisecond until a write fails or ctx ends.
func (h *hosts) writeDirect(ctx context.Context, i int) *directWriter {
	h.t.Helper()
	c, err := h.Dial(ctx, i, "tcp", h.Addr(i)+":6479")
	if err != nil {
		h.t.Fatal(err)
	}
	w := &directWriter{done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	go func() {
		defer close(w.done)
		defer c.Close()
		defer stop()
		in := bufio.NewReader(c)
		for {
			at := time.Now()
			if _, err := c.Write([]byte("*3\r\n$3\r\nSET\r\n$6\r\ndirect\r\n$1\r\n1\r\n")); err != nil {
				w.end = err.Error()
				return
			}
			line, err := in.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "+OK") {
				if w.end = strings.TrimSpace(line); err != nil {
					w.end = err.Error()
				}
				return
			}
			w.accepted = at
			w.writes++
			wait(time.Millisecond)
		}
	}()
	return w
}

// TestAPartitionedPrimaryRefusesDirectWritesWithinItsLease cuts the primary's host off from everybody and writes to its
// server from the host itself: nobody but its own agent can stop that.
func TestAPartitionedPrimaryRefusesDirectWritesWithinItsLease(t *testing.T) {
	h := upHosts(t)
	lease := topo.LANTiming().Lease.D()
	bound := lease + topo.LANTiming().Margin.D() // the fence itself takes some time on a loaded machine; nobody is elected before
	var took []time.Duration
	for range roundsOr(2) {
		s := h.d.waitHealthy(30 * time.Second)
		i := int(s.primary()[1] - '0')
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		w := h.writeDirect(ctx, i)
		wait(200 * time.Millisecond)
		h.cut = i
		at := time.Now()
		if err := h.Isolate(i); err != nil {
			t.Fatal(err)
		}
		<-w.done
		cancel()
		last := w.accepted.Sub(at)
		took = append(took, last)
		if w.writes < 50 || last < 0 {
			t.Errorf("the writer wrote %d times, last %s after the cut: it says nothing (%s)", w.writes, last, w.end)
		}
		if last > bound {
			t.Errorf("a direct write was accepted %s after the cut, the lease with its margin is %s (then: %s)", last, bound, w.end)
		}
		h.heal()
		h.d.until(30*time.Second, "another primary is known everywhere", func() (bool, string) { // the host that was cut off may answer with what it knew
			now, err := h.d.status()
			return err == nil && now.epoch() > s.epoch(), fmt.Sprint(now, err)
		})
	}
	slices.Sort(took)
	t.Logf("a partitioned primary accepted direct writes for %s (median) and %s (longest) of %d partitions; the lease is %s",
		took[len(took)/2].Round(100*time.Microsecond), took[len(took)-1].Round(100*time.Microsecond), len(took), lease)
}
