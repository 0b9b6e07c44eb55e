// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"fmt"
	"time"

	"redoubt/internal/topo"
)

// The rule of a primary that answers and yet cannot do its work: a full disk is a state, not "up".

// moveBudget is how long a polite move of an impaired primary may take. Writes are refused there in any case.
const moveBudget = topo.Duration(2 * time.Second)

// primaryImpaired: the server is well enough for a switchover, which loses nothing, but refuses writes for longer than
// a load may take, and a replica without that trouble is there.
func primaryImpaired(f *facts) (bool, string) {
	if f.a.Phase != topo.PhaseServing {
		return false, "phase is " + string(f.a.Phase)
	}
	p, ok := f.fresh(f.a.Primary)
	if !ok || p.Health != topo.HealthUp || p.Impaired == "" {
		return false, "the primary is not impaired"
	}
	lasting, limit := p.ImpairedFor.D()+p.Age.D(), f.spec.Timing.Loading.D()
	if lasting <= limit {
		return false, f.say("%s has been impaired (%s) for %s (limit %s)", p.Node, p.Impaired, lasting.Round(time.Millisecond), limit)
	}
	switch recent, left := f.spacing(); {
	case f.a.Paused != nil:
		return false, f.say("%s is impaired (%s), and %s paused automation", p.Node, p.Impaired, orSomebody(f.a.Paused.By))
	case f.a.Intent != nil:
		return false, "an order is pending already"
	case left > 0:
		return false, f.say("%s is impaired (%s), but %d automatic failovers happened within a minute; the next one in %s", p.Node, p.Impaired, recent, left.Round(time.Millisecond))
	}
	c, why := f.candidate()
	switch {
	case why != "":
		return false, f.say("%s is impaired (%s), but nobody better is there: %s", p.Node, p.Impaired, why)
	case c.Impaired != "":
		return false, f.say("%s is impaired (%s), but nobody better is there: so is %s (%s)", p.Node, p.Impaired, c.Node, c.Impaired)
	}
	return true, f.say("%s has been impaired (%s) for %s (limit %s); %s is to take over", p.Node, p.Impaired, lasting.Round(time.Millisecond), limit, c.Node)
}

// moveAway asks for an ordinary switchover, as an operator would.
func moveAway(f *facts, _ string) *topo.Assigned {
	c, _ := f.candidate()
	next := f.a.Clone()
	next.Intent = &topo.Intent{
		ID: fmt.Sprintf("impaired-%d", f.a.Epoch), Kind: topo.IntentSwitchover, To: c.Node, Budget: moveBudget,
		By: fmt.Sprintf("redoubt: %s on %s", f.primary.Impaired, f.a.Primary),
	}
	f.noteAutomatic(&next)
	return &next
}

// impaired reports whether a node's latest word was that it cannot do its work.
func (f *facts) impaired(id topo.NodeID) bool { return f.Sightings[id].Impaired != "" }
