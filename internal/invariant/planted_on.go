// SPDX-License-Identifier: Apache-2.0

//go:build planted

package invariant

import "sync/atomic"

var planted atomic.Value

// Plant breaks the rule of that name until the next call; "" breaks nothing. Only in builds with the tag "planted".
func Plant(name string) { planted.Store(name) }

// Planted reports whether a bug is planted under that name.
func Planted(name string) bool {
	v, _ := planted.Load().(string)
	return v == name
}
