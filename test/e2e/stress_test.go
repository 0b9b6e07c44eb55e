// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestStressWithStallsCausesNoFailover burns all processors and stalls one process of the deployment after the other for
// 500 ms: a detector must not call that a death.
func TestStressWithStallsCausesNoFailover(t *testing.T) {
	length := 15 * time.Second
	if *minutes > 0 {
		length = time.Duration(*minutes) * time.Minute
	}
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	ws := startWriters(t, "stress", d.proxyAddr(0))
	stop := make(chan struct{})
	var burners sync.WaitGroup
	for range runtime.NumCPU() {
		burners.Go(func() {
			for x := uint64(1); ; x = x*2862933555777941757 + 3037000493 {
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	stalls := 0
	for end := time.Now().Add(length); time.Now().Before(end); {
		n := s.nodes()[rand.IntN(len(s.nodes()))]
		pids := [][]int{{n.PID}, {n.AgentPID}, {n.PID, n.AgentPID}}[rand.IntN(3)]
		for _, pid := range pids {
			signal(t, pid, syscall.SIGSTOP)
		}
		wait(500 * time.Millisecond)
		for _, pid := range pids {
			signal(t, pid, syscall.SIGCONT)
		}
		stalls++
		wait(time.Duration(500+rand.IntN(1500)) * time.Millisecond)
	}
	close(stop)
	burners.Wait()
	for _, w := range ws {
		w.finish()
	}
	now := d.waitHealthy(30 * time.Second)
	v := judge(t, d.proxyAddr(0), ws)
	t.Logf("%s of CPU stress, %d stalls of 500 ms: epoch %d, before %d; %d acknowledged, %d errors, %d lost, %d duplicated", length, stalls, now.epoch(), s.epoch(), v.acked, v.errors, v.lost, v.duplicated)
	if now.epoch() != s.epoch() {
		t.Errorf("stalls of 500 ms cost a failover: epoch %d, was %d", now.epoch(), s.epoch())
	}
	requireNothingLost(t, v)
}
