// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
)

// TestNobodyIsPromotedBeforeItsSlotsAreKnown: a promotion without slots would be taken for a complete one.
func TestNobodyIsPromotedBeforeItsSlotsAreKnown(t *testing.T) {
	f := plan(t, 1, 1)
	f.layout.Nodes[0].Primary = false
	agreed := f.layout.Slots
	f.layout.Slots = map[string][][2]int{}
	n := f.start(t, f.layout.Nodes[0])
	e := electedOf(see(t, n, "a frozen server", func(o redis.Observation) bool { return isUp(o) && o.Frozen }))
	if _, err := n.Promote(within(t, 10*time.Second), e, tenure()); err == nil || !strings.Contains(err.Error(), "not known yet which slots") {
		t.Fatalf("promoted without slots, or refused for another reason: %v", err)
	}
	f.mu.Lock()
	f.layout.Slots = agreed
	f.mu.Unlock()
	crown(t, n)
}
