// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"time"

	"redoubt/internal/redis"
)

// A verb ends with INFO, to see what it did. That is as good as the next look, which then costs no round trip: during a
// switchover each one is a part of the outage.

// readBackFor is how long what a verb read is a look.
const readBackFor = 5 * time.Millisecond

// readBack is the INFO that a verb ended with: where and when it was asked for, and how many fences there had been.
type readBack struct {
	m      info
	at     time.Duration
	from   *conn
	fences uint64
}

func (n *Node) noteReadBack(b readBack) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.readBack = b
}

// latest makes an observation of what the last verb read back, if that is of this moment: once, on the present connection,
// of a process whose settings are known, and if nothing that changes its role came since (setRole forgets it, and a fence counts).
func (n *Node) latest() (redis.Observation, bool) {
	now, fences := n.clk.Uptime(), n.fences.Load()
	n.mu.Lock()
	b, cfg := n.readBack, n.cfg
	good := b.from != nil && b.from == n.admin && b.fences == fences && now-b.at < readBackFor && cfg != nil && now-n.cfgAt < settingsFor &&
		b.m["run_id"] == n.runID && n.runID == n.knownRun
	n.readBack = readBack{}
	n.mu.Unlock()
	if !good || b.from.ended() {
		return redis.Observation{}, false
	}
	o := redis.Observation{At: b.at}
	n.fill(&o, b.m, cfg)
	return o, true
}
