// SPDX-License-Identifier: Apache-2.0

package address

import (
	"fmt"
	"slices"
	"time"
)

// Phase says what everybody has to do about the address.
type Phase string

// The phases of an address.
const (
	PhaseNone   Phase = ""       // nobody holds it
	PhaseHeld   Phase = "held"   // Holder does, while its reads of the document are good
	PhaseMoving Phase = "moving" // nobody may take it; Holder has to let go of it
)

// Doc is what is agreed about one floating address.
type Doc struct {
	Format int    `json:"format"`
	Term   uint64 `json:"term"`  // of the controller that wrote last
	Epoch  uint64 `json:"epoch"` // grows with every change of phase
	Phase  Phase  `json:"phase"`
	Holder string `json:"holder,omitempty"` // who may hold it (held), or might still do (moving)
	Why    string `json:"why,omitempty"`
}

const docFormat = 1

// Report is what a member says about itself.
type Report struct {
	Member  string `json:"member"`
	Epoch   uint64 `json:"epoch"` // of the document that it obeyed
	Holding bool   `json:"holding"`
	Healthy bool   `json:"healthy"`
	Why     string `json:"why,omitempty"`  // not healthy
	Anew    bool   `json:"anew,omitempty"` // this process found itself named as the holder when it began: it does not hold under that epoch
	Gone    bool   `json:"gone,omitempty"` // the last word of a process: it holds nothing any more
}

// seen is a report, and how old it was when it was read.
type seen struct {
	Report
	age time.Duration
}

// facts are all inputs of a decision.
type facts struct {
	doc     Doc
	term    uint64
	reports map[string]seen

	silence, lease, margin time.Duration

	phaseFor  time.Duration // since this controller knew of the epoch
	ledFor    time.Duration
	vacantFor time.Duration // since an earlier controller can have answered; zero: not known
	readAge   time.Duration // since the latest read by Holder that may have seen an earlier document
	readKnown bool
}

// heard is how long nothing was heard of a member. What a new controller did not hear itself counts from the last word of the one
// before, but for half of the limit, which members get to find it.
func (f facts) heard(member string) time.Duration {
	if s, ok := f.reports[member]; ok {
		return s.age
	}
	return max(f.ledFor, min(f.vacantFor, f.ledFor+f.silence/2))
}

// candidates are those that may take the address, by name; but is left out if there are others.
func (f facts) candidates(but string) []string {
	var all []string
	for id, s := range f.reports {
		if s.Healthy && s.age <= f.silence {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	if others := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return id == but }); len(others) > 0 {
		return others
	}
	return all
}

// leaseLeft is how long the holder may still hold the address without knowing of the phase moving.
func (f facts) leaseLeft() time.Duration {
	left := f.lease + f.margin - f.phaseFor
	if f.readKnown {
		left = min(left, f.lease+f.margin-f.readAge)
	}
	return left
}

// decide returns the document that is to be agreed next; ok is false when it stays as it is.
func decide(f facts) (next Doc, ok bool) {
	next = f.doc
	next.Format, next.Term = docFormat, f.term
	if f.doc.Term != f.term { // from then on an earlier controller can only meet a conflict
		return next, true
	}
	switch f.doc.Phase {
	case PhaseHeld:
		s, known := f.reports[f.doc.Holder]
		current := known && s.age <= f.silence && s.Epoch == f.doc.Epoch && !s.Holding
		why, others := f.trouble(), f.candidates(f.doc.Holder)
		switch {
		case current && s.Anew: // an earlier process of that member may not be heard of again
			next.Epoch, next.Why = f.doc.Epoch+1, f.doc.Holder+" has started anew"
			return next, true
		case why == "" || len(others) == 0 || others[0] == f.doc.Holder:
			return next, false
		case current && s.Gone: // no process of that member holds it under this epoch any more: a later one would be anew
			next.Epoch, next.Holder, next.Why = f.doc.Epoch+1, others[0], why
			return next, true
		}
		next.Epoch, next.Phase, next.Why = f.doc.Epoch+1, PhaseMoving, why
		return next, true
	case PhaseMoving:
		s, known := f.reports[f.doc.Holder]
		released := known && s.age <= f.silence && s.Epoch == f.doc.Epoch && !s.Holding
		if !released && f.leaseLeft() > 0 {
			return next, false
		}
	}
	all := f.candidates(f.doc.Holder)
	if len(all) == 0 {
		return next, false
	}
	next.Epoch, next.Phase, next.Holder = f.doc.Epoch+1, PhaseHeld, all[0]
	if f.doc.Phase == PhaseNone {
		next.Why = "nobody had it"
	}
	return next, true
}

// trouble is why the holder should not hold the address; empty when it should.
func (f facts) trouble() string {
	s, known := f.reports[f.doc.Holder]
	switch quiet := f.heard(f.doc.Holder); {
	case quiet > f.silence:
		return fmt.Sprintf("%s has not reported for %s", f.doc.Holder, quiet.Round(time.Millisecond))
	case known && !s.Healthy:
		return fmt.Sprintf("%s: %s", f.doc.Holder, s.Why)
	}
	return ""
}
