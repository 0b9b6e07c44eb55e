// SPDX-License-Identifier: Apache-2.0

package slots

import "testing"

func TestEverySlotHasAShortTag(t *testing.T) {
	for _, slot := range []int{0, 1, 5460, 5461, 9999, Count - 1} {
		tag := Tag(slot)
		if got := Of([]byte("any:{" + tag + "}:key")); got != slot || len(tag) > 4 {
			t.Errorf("%q for slot %d is of slot %d", tag, slot, got)
		}
	}
}
