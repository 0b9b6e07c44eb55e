// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"time"

	"redoubt/internal/converge"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// sighting turns what the driver saw into the server's part of a report.
func sighting(o redis.Observation) topo.Sighting {
	s := topo.Sighting{
		Health: o.Health, HealthFor: topo.Duration(o.HealthFor), Role: o.Role, Frozen: o.Frozen, Whole: o.Whole, RunID: o.RunID, Pos: o.Pos,
		Backlog: o.Backlog, Following: o.Following, LinkUp: o.LinkUp, Keys: o.Keys, Kept: o.Kept, Mark: o.Mark, Settings: o.Settings, Problems: slices.Clone(o.Problems), Open: o.Open,
		PID: o.PID, Version: o.Version, Disk: o.Disk, NoDisk: o.NoDisk,
	}
	if o.AOFBusy && !slices.Contains(s.Problems, "aof-rewrite") {
		s.Problems = append(slices.Clone(s.Problems), "aof-rewrite")
	}
	// An exit was seen by pidfd or parenthood, and the server boots frozen: nobody writes there (SAFETY B3).
	s.Fenced = o.Health == topo.HealthUp && o.Frozen || o.Health == topo.HealthExited
	return s
}

// beatTTL is how long a report counts as known; its age decides long before.
const beatTTL = 10 * time.Second

// report sends a sighting when something changed, and at every beat.
func (a *Agent) report(in converge.Input) {
	s := in.Seen
	s.Node, s.AgentStart, s.AgentPID, s.Promised, s.InSync = a.o.ID, a.start, os.Getpid(), a.promise.epoch, in.Memory.InSync
	beat := topo.LANTiming().Beat.D()
	if in.Shard != nil {
		s.Epoch, s.Phase = in.Shard.Assigned.Epoch, in.Shard.Assigned.Phase
		s.Addr, s.BusPort, s.ServerID = a.o.Addr, a.o.Bus, a.o.Server
		if n, ok := in.Shard.Spec.Node(a.o.ID); ok {
			s.Addr = n.Addr
		}
		beat = in.Shard.Spec.Timing.Beat.D()
	}
	noteGrowth(&s, in)
	noteDisk(&s, in)
	s.Impaired, s.ImpairedFor = a.impaired.note(s, in.Now)
	if a.refusedAt == s.Epoch && s.Epoch != 0 {
		s.Refused = a.refused
	}
	s.Starting = a.starting == s.Epoch && s.Epoch != 0
	a.shown.Store(&shown{s, in.Now})
	if same(a.lastSent, s) && in.Now-a.sentAt < beat*9/10 {
		return
	}
	a.seq++
	s.Seq = a.seq
	a.lastSent, a.sentAt = s, in.Now
	b, err := json.Marshal(s)
	if err != nil {
		a.o.Log.Error("encode a report", "err", err)
		return
	}
	select { // an older report that was not sent yet is replaced
	case <-a.outbox:
	default:
	}
	a.outbox <- b
}

// same reports whether nothing changed that somebody may be waiting for. While serving, offsets move all the time.
func same(x, y topo.Sighting) bool {
	return x.Epoch == y.Epoch && x.Phase == y.Phase && x.Health == y.Health && x.Role == y.Role && x.Frozen == y.Frozen &&
		x.Fenced == y.Fenced && x.Whole == y.Whole && x.RunID == y.RunID && x.Promised == y.Promised && x.InSync == y.InSync &&
		x.Disk == y.Disk && x.Change == y.Change && x.Barrier == y.Barrier && x.Waits == y.Waits && x.Refused == y.Refused && x.Starting == y.Starting && x.Impaired == y.Impaired && x.LinkUp == y.LinkUp && x.Backlog == y.Backlog && x.Pos.ReplID == y.Pos.ReplID &&
		(x.Pos.Offset == y.Pos.Offset || y.Phase == topo.PhaseServing)
}

// send delivers the latest report. A report that does not arrive is replaced by the next one.
func (a *Agent) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-a.outbox:
			sendCtx, cancel := context.WithTimeout(ctx, orderTimeout)
			if err := a.o.Beats.Send(sendCtx, topo.BeatNode+string(a.o.ID), b, beatTTL); err != nil {
				a.o.Log.Debug("report was not delivered", "node", a.o.ID, "err", err)
			}
			cancel()
		}
	}
}
