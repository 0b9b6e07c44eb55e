// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// truants knows which replicas are missing, for the error of a write that waited for them in vain. Reports are read only while
// writes wait. Its methods are safe for concurrent use.
type truants struct {
	wake chan struct{} // writes wait; capacity one
	text atomic.Pointer[string]
}

const (
	absentEvery   = 250 * time.Millisecond
	absentTimeout = time.Second
)

// absentees is a goroutine of the proxy.
func (p *Proxy) absentees() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.absent.wake:
		}
		text := p.whoIsMissing()
		p.absent.text.Store(&text)
		if !p.pause(absentEvery) {
			return
		}
	}
}

func (p *Proxy) whoIsMissing() string {
	s := p.o.View.Load()
	if s == nil || p.o.Beats == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(p.ctx, absentTimeout)
	defer cancel()
	beats, err := p.o.Beats.All(ctx)
	if err != nil {
		return "the controller cannot be asked which replica is missing"
	}
	return missing(s.Shard, view.DecodeReports(beats))
}

// missing names the replicas that cannot acknowledge, and why.
func missing(s topo.Shard, r view.Reports) string {
	var out []string
	for _, n := range s.Spec.Nodes {
		if n.ID == s.Assigned.Primary {
			continue
		}
		g, ok := r.Nodes[n.ID]
		why := ""
		switch {
		case !ok || g.Age > s.Spec.Timing.Silence.D():
			why = "its agent does not report"
		case g.Health != topo.HealthUp:
			why = "its server is " + string(g.Health)
		case g.Frozen:
			why = "it follows nobody"
		case !g.LinkUp:
			why = "it is not connected to the primary"
		case !g.Whole:
			why = "it copies the data"
		case s.OnDisk() && g.Disk == topo.DiskUnable:
			why = g.NoDisk
		case s.OnDisk() && g.Disk != topo.DiskSynced:
			why = "it does not sync every write yet"
		case s.OnDisk() && slices.ContainsFunc(g.Problems, func(p string) bool { return strings.HasPrefix(p, "aof-rewrite") }):
			why = "its append-only file does not hold everything before its rewrite ends"
		default:
			continue
		}
		out = append(out, string(n.ID)+" ("+why+")")
	}
	if len(out) == 0 {
		return ""
	}
	return "missing: " + strings.Join(out, ", ")
}

// withAbsent adds to an error's sentence who is missing, as far as that is known.
func (p *Proxy) withAbsent(sentence string) string {
	if t := p.absent.text.Load(); t != nil && *t != "" {
		return strings.TrimSuffix(sentence, ".") + "; " + *t
	}
	return sentence
}
