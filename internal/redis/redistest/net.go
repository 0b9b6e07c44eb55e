// SPDX-License-Identifier: Apache-2.0

// Package redistest holds the conformance suite of redis.Node and an in-memory fake that passes it.
//
// It is for tests only, and no model of a server's speed or memory. The invariant of the fake: its histories, offsets
// and resyncs follow the rules of Redis 7 (PSYNC2), so that a loop that loses a write on the fake has a bug. No
// goroutines: fakes replicate inside the calls that change them, so that they work in a testing/synctest bubble.
package redistest

import (
	"fmt"
	"slices"
	"sync"

	"redoubt/internal/clock"
	"redoubt/internal/topo"
)

// bytesPerWrite is how far one write moves the offset.
const bytesPerWrite = 10

// Net is a set of fake servers that can replicate from each other. Safe for concurrent use.
type Net struct {
	clk clock.Clock

	mu    sync.Mutex // guards everything below, and all fields of all fakes
	fakes []*Fake    // in order of creation
	ids   int
	cuts  map[[2]string]bool
}

// NewNet returns an empty set. nil means the machine's clock.
func NewNet(clk clock.Clock) *Net {
	if clk == nil {
		clk = clock.Real{}
	}
	return &Net{clk: clk, cuts: map[[2]string]bool{}}
}

// Add starts a server at addr: empty, frozen, with memory only.
func (w *Net) Add(addr string) *Fake {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := &Fake{net: w, addr: addr, wake: make(chan struct{}, 1), changed: make(chan struct{}), faults: map[string]error{}}
	w.fakes = append(w.fakes, f)
	f.boot()
	return f
}

// Cut stops (or restores) replication and PrimaryPosition between two addresses. A cut is silent: links stay up.
func (w *Net) Cut(a, b string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts[[2]string{min(a, b), max(a, b)}] = cut
	w.settle()
}

func (w *Net) at(addr string) *Fake {
	i := slices.IndexFunc(w.fakes, func(f *Fake) bool { return f.addr == addr })
	if i < 0 {
		return nil
	}
	return w.fakes[i]
}

// reaches tells whether bytes pass between f and the server at addr.
func (w *Net) reaches(f *Fake, addr string) (*Fake, bool) {
	p := w.at(addr)
	if p == nil || w.cuts[[2]string{min(f.addr, addr), max(f.addr, addr)}] {
		return p, false
	}
	return p, f.answers() && p.answers()
}

func (w *Net) newID(kind string) string {
	w.ids++
	return fmt.Sprintf("%s%0*d", kind, 40-len(kind), w.ids)
}

// settle lets replication run until nothing moves. Chains are as long as there are fakes at most.
func (w *Net) settle() {
	for range w.fakes {
		for _, f := range w.fakes {
			f.replicate()
		}
	}
}

// replicate brings a replica to where its primary stands, if bytes pass.
func (f *Fake) replicate() {
	if f.health == topo.HealthExited || f.following == "" {
		return
	}
	p, reach := f.net.reaches(f, f.following)
	if p == nil || p.health == topo.HealthExited || p.runID != f.linkTo && f.linkUp {
		f.linkUp = false
	}
	if !reach {
		return
	}
	serves := p.role == topo.RolePrimary || p.linkUp
	if !f.linkUp && p.admits != f.presents { // NOAUTH, WRONGPASS or NOPERM
		return
	}
	if !serves && !(f.linkUp && p.pos.ReplID == f.pos.ReplID) { // a frozen server refuses new links (NOMASTERLINK)
		f.linkUp = false
		return
	}
	f.resync(p)
	f.linkUp, f.linkTo = true, p.runID
}

// resync continues from the replica's own position where PSYNC2 allows it, and copies everything otherwise.
func (f *Fake) resync(p *Fake) {
	same := f.pos.ReplID == p.pos.ReplID && f.pos.Offset <= p.pos.Offset
	former := p.pos.ReplID2 != "" && f.pos.ReplID == p.pos.ReplID2 && f.pos.Offset < p.pos.Offset2
	if !p.backlog || !same && !former {
		f.data = slices.Clone(p.data)
		f.pos, f.backlog, f.cached = p.pos, true, true
		f.pos.ReplID2, f.pos.Offset2 = "", -1
		f.FullSyncs++
		return
	}
	for _, e := range p.data {
		if e.end > f.pos.Offset {
			f.data = append(f.data, e)
		}
	}
	if former {
		f.pos.ReplID2, f.pos.Offset2 = f.pos.ReplID, f.pos.Offset+1
	}
	f.pos.ReplID, f.pos.Offset, f.backlog, f.cached = p.pos.ReplID, p.pos.Offset, true, true
}

// entry is one write and the offset at its end.
type entry struct {
	end   int64
	value string
}

// Attached counts the replicas whose link to f is up and which have everything up to offset: what WAIT would answer.
func (w *Net) Attached(f *Fake, offset int64) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attached(f, offset)
}

// cutReplicas ends the links of all that follow f. They come back if they are admitted.
func (w *Net) cutReplicas(f *Fake) {
	for _, r := range w.fakes {
		if r.following == f.addr {
			r.linkUp = false
		}
	}
}

// replicas names those whose link to f is up.
func (w *Net) replicas(f *Fake) []string {
	var out []string
	for _, r := range w.fakes {
		if r.following == f.addr && r.linkUp {
			out = append(out, r.addr)
		}
	}
	return out
}

func (w *Net) attached(f *Fake, offset int64) int {
	count := 0
	for _, r := range w.fakes {
		if _, reach := w.reaches(r, f.addr); reach && r.following == f.addr && r.linkUp && r.pos.Offset >= offset {
			count++
		}
	}
	return count
}
