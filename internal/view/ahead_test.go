// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/topo"
)

// TestReadsOfADrainAreAheadOfThePromotion: without them, the promotion waits for a read that begins after it is known.
func TestReadsOfADrainAreAheadOfThePromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil)
		draining := serving(1, "run1")
		draining.Phase, draining.Elected = topo.PhaseDraining, &topo.Elected{Node: "n2"}
		w.write(draining)
		count := func(d time.Duration) int {
			w.gate.set(func(g *gate) { g.asked = nil })
			<-time.After(d)
			synctest.Wait()
			n := 0
			w.gate.set(func(g *gate) { n = len(g.asked) })
			return n
		}
		usual := count(100 * time.Millisecond)
		w.view.ReadAhead()
		w.view.ReadAhead() // once is enough
		if n := count(100 * time.Millisecond); n < usual+18 || n > usual+24 {
			t.Errorf("%d reads within 100 ms of a drain, %d before", n, usual)
		}
		<-time.After(100 * time.Millisecond)
		if n := count(100 * time.Millisecond); n > usual+1 {
			t.Errorf("%d reads within 100 ms of a drain that does not end, %d are usual", n, usual)
		}
		w.view.ReadAhead()
		w.write(serving(2, "run2"))
		<-time.After(10 * time.Millisecond)
		if n := count(100 * time.Millisecond); n > usual+1 {
			t.Errorf("%d reads within 100 ms after a drain, %d are usual", n, usual)
		}
	})
}
