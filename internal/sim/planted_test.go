// SPDX-License-Identifier: Apache-2.0

//go:build planted

package sim

import (
	"cmp"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"redoubt/internal/invariant"
)

var bugFlag = flag.String("bug", "", "plant only this bug")

// What a bug shows: the words of the violation that is its own. A shard that merely comes to a halt shows nothing, except
// where that is the bug.
const (
	lost       = ") is not on "            // an acknowledged write
	two        = "two writable primaries"  // two of them
	unrecorded = ", which nobody recorded" // a write acknowledged in a history that no election knows
	unplaced   = "that nobody recorded"    // an election that cannot compare positions
	outdated   = "obeys an order of epoch" // below the promise
	unelected  = " was elected (SAFETY A6" // somebody else, or elsewhere
	stranger   = "nobody registered"       // a replica that may acknowledge
	back       = "epoch went back"         // a swap by somebody deposed
)

// TestPlantedBugsAreFound: a simulator that cannot find a known bug is not testing. Each bug is one rule of SAFETY.md
// broken; within is the number of seeds in which it must show.
func TestPlantedBugsAreFound(t *testing.T) {
	for _, bug := range []struct {
		name   string
		within uint64
		shows  string // only a violation that says this counts
	}{
		{"vote-without-enrolment", 5000, lost},
		{"literal-history-before-offset", 5000, lost},
		{"serving-before-history", 5000, unrecorded},
		{"branch-unrecorded", 5000, unplaced},
		{"unknown-history-ranked-last", 5000, lost},
		{"wait-without-marker", 5000, lost},
		{"wait-across-tenures", 5000, lost},
		{"order-delayed-past-epoch", 5000, outdated},
		{"unconditional-promote", 5000, unelected},
		{"stale-beat-counted", 5000, two},
		{"ghost-replica-in-k", 5000, lost},
		{"secret-outlives-epoch", 5000, stranger},
		{"switchover-fenced-by-pause", 5000, two},
		{"cold-start-with-n-k", 5000, lost},
		{"cold-start-ignores-marker", 5000, lost},
		{"no-freeze-before-measuring", 5000, lost},
		{"offset-before-history", 5000, lost},
		{"too-few-witnesses", 5000, lost},
		{"no-self-fence", 5000, two},
		{"deposed-controller-writes", 5000, back},
		{"boot-writable", 5000, two},
		{"lease-clock-stops", 5000, two},
		{"promotion-before-fence", 5000, two},
		{"agree-without-promise", 5000, two},
		{"some-pledges-suffice", 5000, two},
		{"pledge-not-on-disk", 5000, two},
		{"promise-ahead-of-pledge", 5000, two},
		{"grow-before-proxies-confirmed", 5000, lost},
		{"remove-without-barrier", 5000, lost},
		{"shrink-after-ack", 10000, lost},
	} {
		if *bugFlag != "" && *bugFlag != bug.name {
			continue
		}
		t.Run(bug.name, func(t *testing.T) {
			defer invariant.Plant("")
			other := ""
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
					other = fmt.Sprintf("; others show something else, seed %d the last: %s", first.Seed, first.Violation)
				default:
					t.Logf("found at seed %d: %s%s", first.Seed, first.Violation, other)
					return
				}
				from = first.Seed + 1
			}
			t.Fatalf("not found in %d seeds%s", bug.within, other)
		})
	}
}
