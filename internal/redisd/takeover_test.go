// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"fmt"
	"strings"
	"testing"

	"redoubt/internal/slots"
)

// TestMarksOfAFormerPrimaryAreRemoved: replicas of Valkey 8.0 and later have the marks of their primary. One that names who has the slot is somebody
// else's move, which goes on.
func TestMarksOfAFormerPrimaryAreRemoved(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 40) }
	line := func(c, flags, of, rest string) string {
		return fmt.Sprintf("%s 127.0.0.1:7000@17000 %s %s 0 0 1 connected%s\n", id(c), flags, of, rest)
	}
	view, _, err := slots.Parse(line("a", "myself,slave", id("b"), fmt.Sprintf(" [7-<-%s] [3-<-%s] [9-<-%s] [12-<-%s]", id("b"), id("b"), id("c"), id("d"))) +
		line("b", "master", "-", " 100-200") + line("c", "master", "-", " 0-99"))
	if err != nil {
		t.Fatal(err)
	}
	self, _ := view.Self()
	if got, want := fmt.Sprint(unmark(view, self)), "[[CLUSTER SETSLOT 3 STABLE] [CLUSTER SETSLOT 7 STABLE] [CLUSTER SETSLOT 12 STABLE]]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
