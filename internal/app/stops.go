// SPDX-License-Identifier: Apache-2.0

package app

import (
	"slices"
	"time"
)

// stopBounds are the lengths by which the stops of clients are counted; longer ones are in none.
func stopBounds() []time.Duration {
	const ms = time.Millisecond
	return []time.Duration{ms, 2 * ms, 3 * ms, 4 * ms, 5 * ms, 6 * ms, 8 * ms, 10 * ms, 15 * ms, 20 * ms, 30 * ms, 50 * ms, 100 * ms, 200 * ms, 500 * ms, 2 * time.Second}
}

// countStop counts a stop of clients.
func (j *job) countStop(d time.Duration) {
	j.Waits = slices.Clone(j.Waits) // jobs are copied, and this is not
	at, _ := slices.BinarySearch(stopBounds(), d)
	for len(j.Waits) <= at {
		j.Waits = append(j.Waits, 0)
	}
	j.Waits[at]++
}

// stopsWithin returns within what time so large a part of the stops ended, rounded up to a bound; zero: nothing is known.
func (j *job) stopsWithin(part float64) time.Duration {
	all, sum := 0, 0
	for _, n := range j.Waits {
		all += n
	}
	bounds := stopBounds()
	for i, n := range j.Waits {
		if sum += n; all > 0 && float64(sum) >= part*float64(all) {
			if i == len(bounds) {
				return j.Longest.D()
			}
			return bounds[i]
		}
	}
	return 0
}
