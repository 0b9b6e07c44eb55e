// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"errors"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
)

// swapping is a party whose controller is about to replace a document that it has written, and a member that is not the controller.
func swapping(t *testing.T) (p *party, from, ask int, slow *sluice, rev coord.Rev, swapped chan coord.Rev) {
	t.Helper()
	p = newParty(t, 2)
	from = p.controller()
	ask = 1 - from
	rev, err := p.stores[from].Swap(within(t, 5*time.Second), "shard/s", []byte("first"), 0)
	if err != nil {
		t.Fatal(err)
	}
	slow = newSluice("shard/s")
	p.views[from].set(func(o *outlook) { o.slow = slow })
	swapped = make(chan coord.Rev, 1)
	go func() {
		now, _ := p.stores[from].Swap(within(t, 5*time.Second), "shard/s", []byte("second"), rev)
		swapped <- now
	}()
	<-slow.begun
	return p, from, ask, slow, rev, swapped
}

// TestAReadWaitsForTheControllersOwnSwap: it arrived before the swap was carried out, and is answered with what was written.
func TestAReadWaitsForTheControllersOwnSwap(t *testing.T) {
	p, from, ask, slow, _, swapped := swapping(t)
	c, m := p.stores[from], p.stores[ask]
	c.mu.Lock()
	c.hold = 5 * time.Second
	c.mu.Unlock()
	got := make(chan coord.Doc, 1)
	go func() {
		d, err := m.Get(within(t, 5*time.Second), "shard/s")
		if err != nil {
			t.Error(err)
		}
		got <- d
	}()
	g := c.office.Load()
	coordtest.Until(t, "the controller knows of the read", func() bool {
		return g.ages.Latest(m.opts.ID, func(string) coord.Rev { return 1 << 60 }) > g.ages.Since()
	})
	if _, err := m.Get(within(t, 5*time.Second), "shard/other"); !errors.Is(err, coord.ErrNotFound) {
		t.Fatal(err) // what it waited for has shown the first document as it was before the swap
	}
	select {
	case d := <-got:
		t.Fatalf("revision %d was answered while the controller replaces it", d.Rev)
	default:
	}
	close(slow.write)
	close(slow.answer)
	rev := <-swapped
	if d := <-got; rev == 0 || d.Rev != rev || string(d.Value) != "second" {
		t.Errorf("read revision %d (%s), the swap wrote %d", d.Rev, d.Value, rev)
	}
}

// TestAReadDoesNotWaitForASwapThatHangs: leases are renewed by reads.
func TestAReadDoesNotWaitForASwapThatHangs(t *testing.T) {
	p, from, ask, slow, rev, swapped := swapping(t)
	for _, who := range []int{ask, from} {
		begun := time.Now()
		d, err := p.stores[who].Get(within(t, 5*time.Second), "shard/s")
		took := time.Since(begun)
		if err != nil || d.Rev != rev || took < holdMax || took > holdMax+2*time.Second {
			t.Errorf("read revision %d in %s: %v; %d is there, and the hold is %s", d.Rev, took, err, rev, holdMax)
		}
	}
	close(slow.write)
	close(slow.answer)
	if now := <-swapped; now <= rev {
		t.Errorf("the swap returned revision %d", now)
	}
	if n := len(p.stores[from].writing); n != 0 {
		t.Errorf("%d swaps count as under way", n)
	}
}
