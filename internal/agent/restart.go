// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"redoubt/internal/topo"
)

// The pauses before an exited server is started again.
const (
	restartPause  = 150 * time.Millisecond // the first; doubled with each start that led to nothing
	restartPauses = 5 * time.Second        // the longest
	restartWell   = time.Second            // a server that was up for this long starts from the first pause again
)

// pacing spaces the restarts of a server that ends again and again, whether a start fails at once or the server exits
// right afterwards.
type pacing struct {
	starts int           // that led to nothing yet
	at     time.Duration // uptime before which an exited server is left alone
}

func (p *pacing) pause() time.Duration { return min(restartPause<<min(p.starts, 6), restartPauses) }

// ended notes that the server was seen to have exited just now.
func (p *pacing) ended(now time.Duration) { p.at = max(p.at, now+p.pause()) }

// tried notes a start, whether it worked or not.
func (p *pacing) tried(now time.Duration) {
	p.starts = min(p.starts+1, 6)
	p.at = now + p.pause()
}

// look notes how the server is.
func (p *pacing) look(s topo.Sighting) {
	if s.Health == topo.HealthUp && s.HealthFor.D() >= restartWell {
		p.starts = 0
	}
}
