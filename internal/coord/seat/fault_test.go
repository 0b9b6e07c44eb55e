// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
)

// chairNow is the seat as the store has it.
func (p *party) chairNow() chair {
	p.t.Helper()
	p.memory.mu.Lock()
	defer p.memory.mu.Unlock()
	var c chair
	if err := json.Unmarshal(p.memory.docs[keyChair].Value, &c); err != nil {
		p.t.Fatal(err)
	}
	c.rev = p.memory.docs[keyChair].Rev
	return c
}

// TestNobodyIsInOfficeBeforeTheOneBeforeKnowsThatItIsNot: the controller is cut off from the store, again and again.
func TestNobodyIsInOfficeBeforeTheOneBeforeKnowsThatItIsNot(t *testing.T) {
	p := newParty(t, 3)
	last := uint64(0)
	for round := range 4 {
		i := p.controller()
		old := p.stores[i].office.Load()
		if old.term <= last {
			t.Fatalf("term %d after %d", old.term, last)
		}
		last = old.term
		cut := time.Now()
		p.views[i].set(func(o *outlook) { o.cut = true })
		var next *office
		coordtest.Until(t, "another member is in office", func() bool {
			for j, s := range p.stores {
				if g := s.office.Load(); j != i && g != nil {
					next = g
				}
			}
			return next != nil
		})
		select {
		case <-old.lost:
		default:
			t.Fatalf("round %d: two members count themselves as the controller", round)
		}
		t.Logf("round %d: the next one is in office %s after the cut", round, time.Since(cut).Round(time.Millisecond))
		p.views[i].set(func(o *outlook) { o.cut = false })
	}
}

// TestWhoCannotReachTheControllerDoesNotDeposeIt: it doubts, the controller answers, and the document is not written without end.
func TestWhoCannotReachTheControllerDoesNotDeposeIt(t *testing.T) {
	p := newParty(t, 0)
	for i, advertise := range []string{"127.0.0.1:1", ""} { // nobody is there
		v := &outlook{m: p.memory}
		s, err := Open(v, Options{ID: fmt.Sprint("m", i+1), ListenAddr: "127.0.0.1:0", AdvertiseAddr: advertise, Log: testLog()})
		if err != nil {
			t.Fatal(err)
		}
		p.views, p.stores = append(p.views, v), append(p.stores, s)
		if i == 0 {
			coordtest.Until(t, "the first one is in office", func() bool { return s.office.Load() != nil })
		}
	}
	first := p.stores[0].office.Load()
	doubted := func() bool { return p.views[1].count() > 1 } // it enrolled, and it doubted
	coordtest.Until(t, "the second one doubts", doubted)
	coordtest.Until(t, "the first one answers", func() bool { c := p.chairNow(); return c.Doubt == "" && c.Term == first.term })
	before := p.views[1].count()
	<-time.After(3 * DefaultTiming().Lease)
	if n := p.views[1].count() - before; n > 1 {
		t.Errorf("%d doubts within three leases", n)
	}
	select {
	case <-first.lost:
		t.Fatal("a controller that lives was deposed")
	default:
	}
	if _, err := p.stores[1].Get(within(t, 50*time.Millisecond), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("who cannot reach the controller reads: %v", err)
	}
}

func (o *outlook) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.swaps
}

// TestASeatThatWasTakenWithoutKnowingItIsTakenAgain: the swap happened, and its answer was lost.
func TestASeatThatWasTakenWithoutKnowingItIsTakenAgain(t *testing.T) {
	p := newParty(t, 0)
	v := &outlook{m: p.memory, unsure: true}
	s, err := Open(v, Options{ID: "m1", ListenAddr: "127.0.0.1:0", Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	coordtest.Until(t, "the seat was taken in the store", func() bool { return v.count() > 2 })
	if s.office.Load() != nil {
		t.Fatal("in office by a swap whose outcome it does not know")
	}
	v.set(func(o *outlook) { o.unsure = false })
	coordtest.Until(t, "it is in office", func() bool { return s.office.Load() != nil })
	if c := p.chairNow(); c.Term != s.office.Load().term || c.Term < 2 {
		t.Fatalf("the store has term %d, the office %d", c.Term, s.office.Load().term)
	}
}

// TestNothingIsAnsweredUnderADoubt: who takes the seat counts from its doubt that the one before answers no read that came later.
func TestNothingIsAnsweredUnderADoubt(t *testing.T) {
	p := newParty(t, 1)
	s := p.stores[p.controller()]
	coordtest.Put(t, s, "k", "v")
	g := s.office.Load()
	p.views[0].set(func(o *outlook) { o.readonly = true }) // so it cannot answer a doubt
	c := p.chairNow()
	c.Doubt = "somebody"
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&outlook{m: p.memory}).Swap(t.Context(), keyChair, b, c.rev); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Get(within(t, DefaultTiming().Lease/2), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("answered %v, %v although the doubt stands", d, err)
	}
	select {
	case <-g.lost:
	case <-within(t, 5*time.Second).Done():
		t.Fatal("a controller that cannot answer a doubt stays in office")
	}
	p.views[0].set(func(o *outlook) { o.readonly = false })
	coordtest.Until(t, "it takes the seat again", func() bool { return s.office.Load() != nil })
}

// TestANewControllerKnowsSinceWhenNobodyDecided: the time of the election counts.
func TestANewControllerKnowsSinceWhenNobodyDecided(t *testing.T) {
	p := newParty(t, 2)
	i := p.controller()
	coordtest.Put(t, p.stores[1-i], "k", "v")
	p.views[i].set(func(o *outlook) { o.cut = true })
	next := p.stores[1-i]
	coordtest.Until(t, "the other one is in office", func() bool { return next.office.Load() != nil })
	vacant, ok := next.VacantFor()
	if timing := DefaultTiming(); !ok || vacant < timing.Lease || vacant > timing.Lease+timing.Margin+2*time.Second {
		t.Errorf("vacant for %s (%t)", vacant, ok)
	}
	if age, ok := next.ReadAge("m1"); !ok || age > vacant+time.Second || age < DefaultTiming().Lease {
		t.Errorf("age of a read by m1 %s (%t), vacant for %s", age, ok, vacant)
	}
}

// TestAStoreThatWentBackIsNotBelieved: it was restored from a backup, or emptied, under running members.
func TestAStoreThatWentBackIsNotBelieved(t *testing.T) {
	p := newParty(t, 1)
	s := p.stores[p.controller()]
	coordtest.Put(t, s, "k", "old")
	rev := coordtest.Put(t, s, "k", "new")
	p.memory.mu.Lock()
	d := p.memory.docs["k"]
	d.Rev = rev - 1
	p.memory.docs["k"] = d
	p.memory.mu.Unlock()
	if _, err := s.Get(within(t, time.Second), "k"); err == nil || !strings.Contains(err.Error(), "gone back") {
		t.Errorf("an older revision: %v", err)
	}
	p.memory.mu.Lock()
	delete(p.memory.docs, "k")
	p.memory.mu.Unlock()
	if _, err := s.Get(within(t, time.Second), "k"); err == nil || !strings.Contains(err.Error(), "gone back") {
		t.Errorf("no document: %v", err)
	}
}

// TestASecondProcessOfOneNameLeaves, and a member that is removed does.
func TestASecondProcessOfOneNameLeaves(t *testing.T) {
	p := newParty(t, 2)
	p.cluster() // all are on the list
	second, err := Open(&outlook{m: p.memory, list: 300 * time.Millisecond}, Options{ID: "m1", ListenAddr: "127.0.0.1:0", Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	left, late := false, within(t, 5*time.Second)
	for tick := time.NewTicker(time.Millisecond); !left; <-tick.C { // what it says of itself would be taken for the first one's word
		if err := second.Send(within(t, time.Second), "m1", []byte("second"), time.Minute); err == nil {
			t.Fatal("a process that is not the member reports")
		}
		select {
		case <-second.Removed():
			left = true
		case <-late.Done():
			t.Fatal("two processes are one member")
		default:
		}
	}
	if !strings.Contains(second.Why(), p.stores[0].Addr()) {
		t.Errorf("it says %q", second.Why())
	}
	if err := p.stores[0].RemoveMember(within(t, 5*time.Second), "m2"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.stores[1].Removed():
	case <-within(t, 5*time.Second).Done():
		t.Fatal("a removed member goes on")
	}
	if _, err := p.stores[1].Get(within(t, time.Second), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Errorf("a removed member reads: %v", err)
	}
	coordtest.Until(t, "the other one decides", func() bool { return p.stores[0].office.Load() != nil })
}

// TestAClosedControllerGivesItsSeatBack: nobody has to wait for the end of its right.
func TestAClosedControllerGivesItsSeatBack(t *testing.T) {
	p := newParty(t, 2)
	i := p.controller()
	if err := p.stores[i].Close(); err != nil {
		t.Fatal(err)
	}
	if c := p.chairNow(); c.Holder == fmt.Sprint("m", i+1) {
		t.Fatalf("the seat is still its own: %+v", c)
	}
	coordtest.Until(t, "the other one is in office", func() bool { return p.stores[1-i].office.Load() != nil })
}

// suspended is a clock that a test can set forward, as waking up from suspend does.
type suspended struct {
	clock.Real
	by atomic.Int64
}

func (s *suspended) Uptime() time.Duration { return s.Real.Uptime() + time.Duration(s.by.Load()) }

// TestASuspendedControllerWakesUpWithoutItsRight.
func TestASuspendedControllerWakesUpWithoutItsRight(t *testing.T) {
	p, c := newParty(t, 0), &suspended{}
	s, err := Open(&outlook{m: p.memory}, Options{ID: "m1", ListenAddr: "127.0.0.1:0", Log: testLog(), Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	coordtest.Until(t, "it is in office", func() bool { return s.office.Load() != nil })
	g := s.office.Load()
	c.by.Store(int64(time.Hour))
	select {
	case <-g.lost:
	case <-within(t, 5*time.Second).Done():
		t.Fatal("its right goes on")
	}
	coordtest.Until(t, "it takes the seat again, by a higher term", func() bool { h := s.office.Load(); return h != nil && h.term > g.term })
}
