// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/topo"
)

// setClock is a clock whose wall time somebody sets.
type setClock struct {
	clock.Real
	wall time.Time
}

func (c setClock) Now() time.Time { return c.wall }

// A clock that was set back between two starts must not make an agent's reports late news for as long as it had been ahead.
func TestReportsOfALaterStartAreNewerWhateverTheWallClockSays(t *testing.T) {
	dir, noon := t.TempDir(), time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	var before topo.Sighting
	for n, at := range []time.Time{noon, noon.Add(-time.Hour), noon.Add(-time.Hour), noon.Add(time.Hour), noon} {
		if n == 4 { // a damaged file counts as none
			if err := os.WriteFile(filepath.Join(dir, "started"), []byte("99999999999999999999"), 0o600); err != nil {
				t.Fatal(err)
			}
			before = topo.Sighting{}
		}
		a, err := New(Options{ID: "n1", Dir: dir, Clock: setClock{wall: at}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.promise.close() })
		now := topo.Sighting{AgentStart: a.start, Seq: 1}
		if !before.OlderThan(now) {
			t.Fatalf("start %d, at %s: its report counts as older than that of the start before (%d, %d)", n, at, now.AgentStart, before.AgentStart)
		}
		now.Seq = 1000
		before = now
	}
}
