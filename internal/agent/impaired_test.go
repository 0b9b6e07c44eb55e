// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	"redoubt/internal/topo"
)

func TestImpairmentIsTimedForOneProcess(t *testing.T) {
	full := []string{"aof-rewrite: …", "disk-full: the last background save did not work"}
	up := func(run string, problems []string) topo.Sighting {
		return topo.Sighting{Health: topo.HealthUp, RunID: run, Problems: problems}
	}
	var m impairment
	for _, step := range []struct {
		at      time.Duration
		seen    topo.Sighting
		name    string
		lasting time.Duration
	}{
		{1 * time.Second, up("a", nil), "", 0},
		{2 * time.Second, up("a", full), "disk-full", 0},
		{5 * time.Second, up("a", full), "disk-full", 3 * time.Second},
		{6 * time.Second, topo.Sighting{Health: topo.HealthBusy, RunID: "a"}, "disk-full", 4 * time.Second},
		{7 * time.Second, up("a", full), "disk-full", 5 * time.Second},
		{8 * time.Second, up("b", full), "disk-full", 0},
		{9 * time.Second, up("b", []string{"oom: …"}), "", 0},
		{10 * time.Second, up("b", full), "disk-full", 0},
	} {
		name, lasting := m.note(step.seen, step.at)
		if name != step.name || lasting.D() != step.lasting {
			t.Errorf("at %s: %q for %s, want %q for %s", step.at, name, lasting, step.name, step.lasting)
		}
	}
}
