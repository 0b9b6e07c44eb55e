// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"time"

	"redoubt/internal/topo"
)

// impairment times how long one server process has refused writes although it answers.
type impairment struct {
	name  string
	runID string
	since time.Duration // uptime
}

// note takes a look at the server. One without an answer says nothing about its problems: what was known stays known.
func (m *impairment) note(s topo.Sighting, now time.Duration) (name string, lasting topo.Duration) {
	if s.Health == topo.HealthUp {
		found := impairs(s.Problems)
		if found == "" || found != m.name || s.RunID != m.runID {
			*m = impairment{name: found, runID: s.RunID, since: now}
		}
	}
	if m.name == "" {
		return "", 0
	}
	return m.name, topo.Duration(now - m.since)
}

// impairs names the problem that keeps a server from its work. A reached memory limit does not count: every replica
// holds the same data under the same limit.
func impairs(problems []string) string {
	for _, p := range problems {
		if name, _, _ := strings.Cut(p, ":"); name == "disk-full" || name == noDisk {
			return name
		}
	}
	return ""
}
