// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	"redoubt/internal/converge"
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

// ending is why the server is not there any more, as the driver tells.
type ending struct {
	why        string
	unreadable string // the data that it cannot read
}

func (e ending) String() string {
	if e.why == "" {
		return ""
	}
	return ": " + e.why
}

// UnreadableEvent is the kind of the event that a node begins anew because its data cannot be read.
const UnreadableEvent = "aof-unreadable"

// restart starts the server again. Data that it cannot read would let it end again and again, so they are set aside, beside
// where they were, when somebody else has what they hold.
func (a *Agent) restart(ctx context.Context, in converge.Input) error {
	if path := a.ending.unreadable; path != "" {
		if why := a.replaceable(ctx, in); why != "" {
			to, err := a.o.Node.SetAside(ctx)
			if err != nil {
				return err
			}
			a.tell(in, UnreadableEvent, fmt.Sprintf("the server of %s cannot read %s; it is kept as %s, and the node begins anew: %s", a.o.ID, path, to, why))
		}
	}
	return a.o.Node.Restart(ctx)
}

// replaceable says why this node's data may be set aside; empty when they may be the best that there is.
//
// The new process is empty and frozen. It has no vote before it is in sync with a primary (SAFETY A1), it never says that it
// kept everything (A9), and it follows nobody but whom the document names (A11): by itself it can neither acknowledge nor
// hide a write. What it could do is take part in a cold start. There, an asynchronous shard may go on with the best of those
// that came back in time, and that may be this one alone, so its data stay where they are until a primary serves, seen now.
// A quorum shard waits for all seats, this one too, and prefers the one that served last: only that one's data stay.
func (a *Agent) replaceable(ctx context.Context, in converge.Input) string {
	if in.Shard == nil || !in.Read || in.Promised > in.Shard.Assigned.Epoch {
		return ""
	}
	as, spec := in.Shard.Assigned, in.Shard.Spec
	last, served := as.Latest()
	if !served {
		return "" // a new shard: whose data it begins with is not decided
	}
	if as.Phase == topo.PhaseServing && as.Primary != a.o.ID {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		n, _ := spec.Node(as.Primary)
		if role, pos, err := a.o.Node.PrimaryPosition(ctx, n.Addr); err == nil && role == topo.RolePrimary && pos.ReplID == last.ReplID {
			return fmt.Sprintf("%s serves, and has the data", as.Primary)
		}
	}
	if spec.Durability.Waits() && last.Node != a.o.ID {
		return fmt.Sprintf("%s served last, and a start of all nodes waits for this one, too", last.Node)
	}
	return ""
}
