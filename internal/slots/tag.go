// SPDX-License-Identifier: Apache-2.0

package slots

import "strconv"

// Tag returns a short text of that slot: a key with {text} in it belongs there. It tries some 16384 of them.
func Tag(slot int) string {
	var text []byte
	for i := int64(0); ; i++ { // every slot has one of at most four letters
		if text = strconv.AppendInt(text[:0], i, 36); Of(text) == slot {
			return string(text)
		}
	}
}
