// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	"redoubt/internal/topo"
)

func TestAServerThatEndsAtOnceIsRestartedMoreAndMoreSlowly(t *testing.T) {
	var p pacing
	now := time.Minute
	p.ended(now)
	if got := p.at - now; got != restartPause {
		t.Errorf("the first restart comes after %s, want %s", got, restartPause)
	}
	last := restartPause
	for range 10 {
		now = p.at
		p.tried(now)
		if got := p.at - now; got < last || got > restartPauses {
			t.Errorf("a restart after %s, the one before after %s", got, last)
		}
		last = p.at - now
	}
	if last != restartPauses {
		t.Errorf("the longest pause is %s, want %s", last, restartPauses)
	}
	p.look(topo.Sighting{Health: topo.HealthUp, HealthFor: topo.Duration(restartWell / 2)})
	now = p.at + time.Second
	p.ended(now)
	if got := p.at - now; got != restartPauses {
		t.Errorf("after a moment up the pause is %s, want %s", got, restartPauses)
	}
	p.look(topo.Sighting{Health: topo.HealthUp, HealthFor: topo.Duration(restartWell)})
	now = p.at + time.Second
	p.ended(now)
	if got := p.at - now; got != restartPause {
		t.Errorf("after a good while up the pause is %s, want %s", got, restartPause)
	}
}
