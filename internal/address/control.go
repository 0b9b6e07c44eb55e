// SPDX-License-Identifier: Apache-2.0

package address

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"redoubt/internal/coord"
)

// decideLoop decides while this member is the controller.
func (f *Face) decideLoop(ctx context.Context) {
	for ctx.Err() == nil {
		lease, err := f.o.Store.Campaign(ctx)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(readEvery):
			}
			continue
		}
		f.lead(ctx, lease)
	}
}

// office is one time as the controller. It forgets everything of earlier ones.
type office struct {
	*Face
	term    uint64
	since   time.Duration
	doc     Doc
	rev     coord.Rev
	stale   bool // the document has to be read again
	knownAt time.Duration
}

func (f *Face) lead(ctx context.Context, lease coord.Lease) {
	now := f.o.Clock.Uptime()
	o := &office{Face: f, term: lease.Term(), since: now, knownAt: now, stale: true}
	tick := time.NewTicker(decideEvery)
	defer tick.Stop()
	for {
		o.step(ctx)
		select {
		case <-ctx.Done():
			return
		case <-lease.Lost():
			return
		case <-tick.C:
		}
	}
}

// step makes one decision, if there is one to make.
func (o *office) step(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if o.stale && !o.read(ctx) {
		return
	}
	beats, err := o.o.Store.All(ctx)
	if err != nil {
		return
	}
	next, ok := decide(o.facts(beats))
	if !ok {
		return
	}
	b, err := json.Marshal(next)
	if err != nil {
		o.o.Log.Error("encode the document of the address", "err", err)
		return
	}
	rev, err := o.o.Store.Swap(ctx, keyAddress+o.o.Name, b, o.rev)
	if err != nil {
		o.stale = true // somebody else wrote, or it is not known
		return
	}
	if next.Epoch != o.doc.Epoch {
		o.o.Log.Info("the floating address", "phase", next.Phase, "member", next.Holder, "epoch", next.Epoch, "why", next.Why)
		o.knownAt = o.o.Clock.Uptime()
	}
	o.doc, o.rev = next, rev
}

func (o *office) read(ctx context.Context) bool {
	d, err := o.o.Store.Get(ctx, keyAddress+o.o.Name)
	var doc Doc
	switch {
	case errors.Is(err, coord.ErrNotFound):
	case err != nil:
		return false
	case json.Unmarshal(d.Value, &doc) != nil || doc.Format != docFormat:
		o.o.Log.Error("the document of the floating address is not usable", "rev", d.Rev)
		return false
	}
	if doc.Epoch != o.doc.Epoch {
		o.knownAt = o.o.Clock.Uptime()
	}
	o.doc, o.rev, o.stale = doc, d.Rev, false
	return true
}

func (o *office) facts(beats map[string]coord.Beat) facts {
	now := o.o.Clock.Uptime()
	f := facts{
		doc: o.doc, term: o.term, reports: map[string]seen{}, silence: o.o.Silence, lease: o.o.Lease, margin: o.o.Margin,
		phaseFor: now - o.knownAt, ledFor: now - o.since,
	}
	for name, b := range beats {
		member, ok := strings.CutPrefix(name, beatAddress+o.o.Name+"/")
		s := seen{age: b.Age}
		if ok && json.Unmarshal(b.Body, &s.Report) == nil {
			f.reports[member] = s
		}
	}
	if ages, ok := o.o.Store.(coord.ReadAges); ok {
		if age, known := ages.ReadAge(o.doc.Holder); known {
			f.readAge, f.readKnown = age, true
		}
		if age, known := ages.VacantFor(); known {
			f.vacantFor = age
		}
	}
	return f
}
