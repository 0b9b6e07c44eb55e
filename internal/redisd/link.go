// SPDX-License-Identifier: Apache-2.0

package redisd

import "time"

// A replication link can be dead for long and be called up: after a cut TCP tries again after pauses that double, and the
// servers themselves give up after repl-timeout (SAFETY C2). A primary that sends at least a PING every second shows it earlier.

const (
	pingPeriod  = "repl-ping-replica-period"
	linkSilence = 3               // seconds of silence, in the server's whole seconds, on a link that carries a PING every second
	renewPause  = 2 * time.Second // between two new starts of a silent link
)

// notePings remembers whether the primary at addr sends a PING every second. One that does not, or does not tell, may be
// silent for longer and be well.
func (n *Node) notePings(addr string, config reply) {
	if config.err() == nil && config.pairs()[pingPeriod] == "1" {
		n.pinged = addr
	} else if n.pinged == addr {
		n.pinged = ""
	}
}

// linkSilent tells whether a link that is up brings nothing although its primary sends every second. A sync has no such link.
func (n *Node) linkSilent(m info) bool {
	return m.linkUp() && !m.syncing() && !m.loading() && n.pinged != "" && m.following() == n.pinged && m.num("master_last_io_seconds_ago") >= linkSilence
}

// mustRenew tells whether a silent link is to be started anew now.
func (n *Node) mustRenew(m info) bool {
	now := n.clk.Uptime()
	if !n.linkSilent(m) || n.renewed != 0 && now-n.renewed < renewPause {
		return false
	}
	n.renewed = now
	return true
}
