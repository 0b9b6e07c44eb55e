// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"strconv"

	"redoubt/internal/slots"
)

// movingPrefix begins the names under which large values are assembled.
const movingPrefix = "__redoubt:moving:{"

// temporary is the name under which a large value is assembled at the target: a key of the same slot.
func temporary(slot func([]byte) int, want int) string {
	for i := 0; ; i++ { // about 16384 steps: every slot has a short tag
		name := movingPrefix + strconv.FormatInt(int64(i), 36) + "}"
		if slot([]byte(name)) == want {
			return name
		}
	}
}

func slotOfKey(key []byte) int { return slots.Of(key) }
