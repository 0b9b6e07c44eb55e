// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/reshard"
)

// TestATargetThatKnowsNoOwnerIsTold: behind a failover of the source, the slots that a target has marked belong to nobody by its word, for good.
func TestATargetThatKnowsNoOwnerIsTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots := slotsFrom(2100, 2)
	fillSlots(t, c, c.primary("a").Addr, slots, 100)
	o, target := c.options(g, s), c.primary("b").Addr
	o.Before = func(step reshard.Step) error {
		if step.Do == reshard.Track { // copies of an earlier attempt are there, too
			c.do(target, "CLUSTER", "DELSLOTS", "2100", "2101")
			c.do(target, "CLUSTER", "SETSLOT", "2100", "IMPORTING", c.primary("a").ID)
			return errors.New("stopped")
		}
		return nil
	}
	if _, err := c.mover(o).Run(within(t, time.Minute), reshard.Move{Slots: slots, From: "a", To: "b"}); err == nil {
		t.Fatal("it was not stopped")
	}
	o.Before = nil
	mustRun(t, c.mover(o), s.stored)
	if n := c.count(c.primary("b").Addr, slots); n != 200 {
		t.Fatalf("%d keys at the target", n)
	}
}

// TestWhoDoesNotWaitLosesNothing: a client that speaks to the servers, and knows of no stop, writes all the time. What it was told is there.
func TestWhoDoesNotWaitLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots, tag := slotsFrom(2000, 1), tagOf(2000)
	var stop atomic.Bool
	acked := make(chan map[string]int, 1)
	go func() {
		counts := map[string]int{}
		defer func() { acked <- counts }()
		links := []*link{c.connect(c.primary("a").Addr), c.connect(c.primary("b").Addr)}
		for n, at := 0, 0; !stop.Load(); n++ {
			key := fmt.Sprintf("d%d%s", n%20, tag)
			for !stop.Load() {
				_, err := links[at].ask(context.Background(), "INCR", key)
				var refused serverError
				if err == nil {
					counts[key]++
					break
				}
				if !errors.As(err, &refused) || !refused.is("MOVED") && !refused.is("CLUSTERDOWN") {
					t.Errorf("INCR: %v", err)
					return
				}
				if refused.is("MOVED") {
					at = 1 - at
				}
			}
		}
	}()
	o := c.options(g, s)
	m := c.mover(o)
	for turn := range 6 {
		mv := reshard.Move{Slots: slots, From: "a", To: "b"}
		if turn%2 == 1 {
			mv.From, mv.To = "b", "a"
		}
		mustRun(t, m, mv)
	}
	stop.Store(true)
	for key, want := range <-acked {
		if got := c.do(c.primary("a").Addr, "GET", key); strings.TrimSpace(got) != fmt.Sprint(want) {
			t.Errorf("%s is %s, %d were acknowledged", key, got, want)
		}
	}
}
