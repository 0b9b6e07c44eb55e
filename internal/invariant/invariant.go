// SPDX-License-Identifier: Apache-2.0

// Package invariant holds the assertion that stays on in production, and the switches by which a test build (tag
// "planted") breaks one rule at a time so that the simulator can prove that it would notice. No goroutines.
package invariant

import "fmt"

// That panics when something that must be true is not: a broken invariant, never bad input.
func That(ok bool, format string, args ...any) {
	if !ok {
		panic("invariant: " + fmt.Sprintf(format, args...))
	}
}
