// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"redoubt/internal/topo"
)

// shown is the latest look, for faces of this process.
type shown struct {
	seen topo.Sighting
	at   time.Duration // uptime
}

// Seen returns what the latest look saw of the server, and the uptime of that look; ok is false before the first. Faces of this
// process say by it what is here, also while no report reaches the controller. Safe for concurrent use.
func (a *Agent) Seen() (seen topo.Sighting, at time.Duration, ok bool) {
	if s := a.shown.Load(); s != nil {
		return s.seen, s.at, true
	}
	return topo.Sighting{}, 0, false
}
