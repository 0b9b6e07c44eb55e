// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"errors"
	"testing"
	"time"

	"redoubt/internal/reshard"
)

func slotsFrom(first, n int) (out []int) {
	for i := range n {
		out = append(out, first+i)
	}
	return out
}

func half(slot int) string {
	if slot < reshard.SlotCount/2 {
		return "a"
	}
	return "b"
}

func mustRun(t *testing.T, m *Mover, mv reshard.Move) {
	t.Helper()
	got, err := m.Run(within(t, time.Minute), mv)
	if err != nil || got.Stage != reshard.Done {
		t.Fatalf("%s: %v", got, err)
	}
}

func TestSlotsMoveUnderWritersOfEveryType(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots := append(slotsFrom(100, 6), slotsFrom(9000, 2)...)
	w := newClients(t, c, g, slots)
	w.fill(t, 4, 1500)
	w.run(t, 4)
	o := c.options(g, s)
	var reports []Report
	o.Done = func(r Report) { reports = append(reports, r) }
	m := c.mover(o)
	for range 2 { // there, and back
		mustRun(t, m, reshard.Move{Slots: slotsFrom(100, 1), From: "a", To: "b"})
		mustRun(t, m, reshard.Move{Slots: slotsFrom(101, 5), From: "a", To: "b"})
		mustRun(t, m, reshard.Move{Slots: slotsFrom(100, 3), From: "b", To: "a"})
		mustRun(t, m, reshard.Move{Slots: slotsFrom(103, 3), From: "b", To: "a"})
	}
	mustRun(t, m, reshard.Move{Slots: slotsFrom(100, 6), From: "a", To: "b"})
	w.compare(t)
	for _, r := range reports {
		t.Logf("%s: %d keys, %d rounds, %s, clients waited %s %v", r.Move, r.Keys, r.Rounds, r.Took.Round(time.Microsecond), r.Parked.Round(time.Microsecond), r.Steps)
	}
	t.Logf("%d commands", w.count.Load())
}

func TestACrashAtEveryStepIsGoneOnFrom(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots := slotsFrom(200, 2)
	w := newClients(t, c, g, slots)
	w.pause = time.Millisecond
	w.fill(t, 2, 300)
	w.run(t, 2)
	died := errors.New("died")
	from, to := "a", "b"
	for _, rule := range []string{"begin", "look", "mark", "track", "copy", "let-go", "confirm", "park", "drain", "flip", "flipped", "clean", "count", "finish"} { // not "tell": gossip may have been faster
		s.stored = reshard.Move{Slots: slots, From: from, To: to}
		crashed := false
		for s.stored.Stage != reshard.Done {
			o := c.options(g, s)
			o.Before = func(step reshard.Step) error {
				if step.Rule == rule && !crashed {
					crashed = true
					return died
				}
				return nil
			}
			m := c.mover(o)
			got, err := m.Run(within(t, time.Minute), s.stored)
			m.Close()
			if err != nil && !errors.Is(err, died) {
				t.Fatalf("it died before %q: %s: %v", rule, got, err)
			}
		}
		from, to = to, from
		if !crashed {
			t.Errorf("it never died before %q", rule)
		}
	}
	w.compare(t)
}
