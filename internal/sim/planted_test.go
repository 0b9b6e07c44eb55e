// SPDX-License-Identifier: Apache-2.0

//go:build planted

package sim

import (
	"cmp"
	"flag"
	"slices"
	"strings"
	"testing"

	"redoubt/internal/invariant"
)

var bugFlag = flag.String("bug", "", "plant only this bug")

// TestPlantedBugsAreFound: a simulator that cannot find a known bug is not testing. Each bug is one rule of SAFETY.md
// broken; within is the number of seeds in which it must show.
func TestPlantedBugsAreFound(t *testing.T) {
	for _, bug := range []struct {
		name   string
		within uint64
		shows  string // only a violation that says this counts; empty: any
	}{
		{"vote-without-enrolment", 5000, ""},
		{"literal-history-before-offset", 5000, ") is not on "},
		{"serving-before-history", 5000, ") is not on "},
		{"unknown-history-ranked-last", 5000, ""},
		{"wait-without-marker", 5000, ""},
		{"wait-across-tenures", 5000, ""},
		{"order-delayed-past-epoch", 5000, ""},
		{"unconditional-promote", 5000, ""},
		{"stale-beat-counted", 5000, ""},
		{"ghost-replica-in-k", 5000, ""},
		{"secret-outlives-epoch", 5000, ""},
		{"switchover-fenced-by-pause", 5000, ""},
		{"cold-start-with-n-k", 5000, ""},
		{"no-freeze-before-measuring", 5000, ") is not on "},
		{"offset-before-history", 5000, ""},
		{"too-few-witnesses", 5000, ""},
		{"no-self-fence", 5000, ""},
		{"deposed-controller-writes", 5000, ""},
		{"boot-writable", 5000, ""},
		{"lease-clock-stops", 5000, ""},
		{"promotion-before-fence", 5000, ""},
	} {
		if *bugFlag != "" && *bugFlag != bug.name {
			continue
		}
		t.Run(bug.name, func(t *testing.T) {
			defer invariant.Plant("")
			for from := uint64(1); from <= bug.within; {
				invariant.Plant(bug.name)
				bad, _, _ := play(from, bug.within+1-from, 1)
				if len(bad) == 0 {
					break
				}
				first := slices.MinFunc(bad, func(a, b Result) int { return cmp.Compare(a.Seed, b.Seed) })
				invariant.Plant("") // what fails without the bug as well does not show the bug
				sound := Run(Options{Seed: first.Seed})
				switch {
				case sound.Violation != "":
					t.Errorf("seed %d fails without the bug as well: %s", first.Seed, sound.Violation)
				case !strings.Contains(first.Violation, bug.shows):
					t.Logf("seed %d shows something else: %s", first.Seed, first.Violation)
				default:
					t.Logf("found at seed %d: %s", first.Seed, first.Violation)
					return
				}
				from = first.Seed + 1
			}
			t.Fatalf("not found in %d seeds", bug.within)
		})
	}
}
