// SPDX-License-Identifier: Apache-2.0

package agent

import "redoubt/internal/topo"

// anticipate has the document read again and again while a switchover to this node is under way. Its promotion has to be
// confirmed by a read, and one that is under way when that order is written may be answered with it.
func (a *Agent) anticipate() {
	s := a.o.View.Load()
	if s == nil || s.Rev == a.expected {
		return
	}
	as := s.Shard.Assigned
	if as.Phase == topo.PhaseDraining && as.Elected != nil && as.Elected.Node == a.o.ID {
		a.expected = s.Rev
		a.o.View.ReadAhead()
	}
}
