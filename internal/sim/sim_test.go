// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "play this one seed and print its timeline")
	seedsFlag = flag.Uint64("seeds", 300, "play so many seeds")
	fromFlag  = flag.Uint64("from", 1, "first seed")
)

func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(1000) // many small worlds: memory is cheap, time is not
	os.Exit(m.Run())
}

// TestSeedsAreWithoutViolation is the property: no seed, however unlucky, breaks a promise.
func TestSeedsAreWithoutViolation(t *testing.T) {
	if *seedFlag != 0 {
		r := Run(Options{Seed: *seedFlag, Trace: true})
		fmt.Fprintln(os.Stderr, strings.Join(r.Timeline, "\n"))
		if r.Violation != "" {
			t.Fatalf("seed %d (%s): %s", r.Seed, r.Shape, r.Violation)
		}
		t.Logf("seed %d (%s): %d writes acknowledged, %d rounds of pledges, %d events", r.Seed, r.Shape, r.Acked, r.Pledged, r.Events)
		return
	}
	begun := time.Now()
	bad, rules, acked := play(*fromFlag, *seedsFlag, 3)
	for _, r := range bad {
		t.Errorf("seed %d (%s): %s\nreplay: make sim SEED=%d", r.Seed, r.Shape, r.Violation, r.Seed)
	}
	t.Logf("%d seeds, %d writes acknowledged, %.0f seeds/s; a primary went on without the store in %d, %d ended waiting for an operator", *seedsFlag, acked,
		float64(*seedsFlag)/time.Since(begun).Seconds(), rules["goes on by pledges"], rules["waits for an operator"])
	if *seedsFlag >= 2000 {
		for _, name := range []string{"bootstrap", "record", "promotion-failed", "elect", "cold-start", "primary-gone", "primary-silent", "primary-hung", "drained", "switchover-abandon", "enrol", "switchover", "failover-intent", "intent-refused", "claim-term",
			"goes on by pledges", "change-done", "change-cut", "change-via", "change-void", "go-alone", "rejoin"} {
			if rules[name] == 0 {
				t.Errorf("rule %s never fired", name)
			}
		}
	}
}

// play runs seeds on all processors and stops after most violations.
func play(from, count uint64, most int) (bad []Result, rules map[string]int, acked int) {
	var mu sync.Mutex
	var next atomic.Uint64
	rules = map[string]int{}
	next.Store(from)
	var wg sync.WaitGroup
	for range workers() {
		wg.Go(func() {
			for {
				seed := next.Add(1) - 1
				if seed >= from+count {
					return
				}
				r := Run(Options{Seed: seed})
				mu.Lock()
				acked += r.Acked
				for k, v := range r.Rules {
					rules[k] += v
				}
				if r.Pledged > 0 {
					rules["goes on by pledges"]++
				}
				if r.Asked {
					rules["waits for an operator"]++
				}
				if r.Violation != "" {
					bad = append(bad, r)
				}
				stop := len(bad) >= most
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	return bad, rules, acked
}

func workers() int {
	if n, err := strconv.Atoi(os.Getenv("SIM_WORKERS")); err == nil {
		return n
	}
	return runtime.NumCPU()
}

// TestSameSeedSameWorld: a world is reproducible to the last line.
func TestSameSeedSameWorld(t *testing.T) {
	for seed := uint64(1); seed <= 30; seed++ {
		a, b := Run(Options{Seed: seed, Trace: true}), Run(Options{Seed: seed, Trace: true})
		if strings.Join(a.Timeline, "\n") != strings.Join(b.Timeline, "\n") {
			t.Fatalf("seed %d gives two worlds", seed)
		}
	}
}
