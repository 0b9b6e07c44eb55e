// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"
	"time"

	"redoubt/internal/topo"
)

func TestStopsAreCounted(t *testing.T) {
	j := &job{}
	if j.stopsWithin(0.5) != 0 {
		t.Error("no stops")
	}
	for i := range 90 {
		j.countStop(time.Duration(1500+i) * time.Microsecond)
	}
	was := *j
	for range 9 {
		j.countStop(7 * time.Millisecond)
	}
	j.countStop(10 * time.Second)
	j.Longest = topo.Duration(10 * time.Second)
	for part, want := range map[float64]time.Duration{0.5: 2 * time.Millisecond, 0.95: 8 * time.Millisecond, 1: 10 * time.Second} {
		if got := j.stopsWithin(part); got != want {
			t.Errorf("%v of them within %s, want %s", part, got, want)
		}
	}
	if was.stopsWithin(1) != 2*time.Millisecond {
		t.Error("a copy was changed")
	}
}
