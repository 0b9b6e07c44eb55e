// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/topo"
)

func (w *world) plea() topo.Plea {
	return topo.PleaOf(topo.Shard{Spec: w.spec, Assigned: w.agreed()})
}

// following brings n1 to serve at epoch 1 with n2 as its replica, and then takes the store away for n2.
func following(w *world) *seat {
	w.start("n1")
	s := w.start("n2")
	w.promote("n1", 1)
	w.until("n2 follows", time.Second, func() bool { return s.look().LinkUp })
	return s
}

func (s *seat) pledgeOnDisk() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "pledge"))
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// TestANodeThatPledgedDoesNotFreezeBeforeTheEnd: the election that begins meanwhile waits for it, and no longer; nothing is pledged
// while the store answers.
func TestANodeThatPledgedDoesNotFreezeBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := following(w)
		if ok, why := s.agent.Pledge(w.plea()); ok || !strings.Contains(why, "store answers") {
			t.Fatalf("pledged %v (%s) while the store answers", ok, why)
		}
		w.store.Cut("n2")
		w.until("n2 pledges", w.spec.Timing.PledgeAfter()+time.Millisecond, func() bool { ok, _ := s.agent.Pledge(w.plea()); return ok })
		if line := s.pledgeOnDisk(); !strings.HasPrefix(line, "redoubt pledge 1 900000000 ") {
			t.Fatalf("on disk is %q", line)
		}
		given := time.Now()
		w.store.Heal("n2")
		w.fencing(2)
		left := w.leaseAndMargin() - time.Since(given) - 10*time.Millisecond
		w.always("n2 keeps its word", left, func() bool {
			return s.look().LinkUp && promiseOnDisk(s.dir) < 2 && w.told("n2").Promised < 2
		})
		w.until("n2 is a witness", 100*time.Millisecond, func() bool { g := w.told("n2"); return g.Promised == 2 && g.Frozen && g.Phase == topo.PhaseFencing })
		if ok, why := s.agent.Pledge(topo.Plea{Epoch: 1, Primary: "n1"}); ok || why == "" {
			t.Error("pledged to the tenure that was ended")
		}
	})
}

// TestANewAgentKeepsTheWordOfTheOneBefore: a whole pledge from its start on, because it cannot know when the last one was given; once
// that is over and was settled, a further start has nothing to keep.
func TestANewAgentKeepsTheWordOfTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := following(w)
		w.store.Cut("n2")
		w.until("n2 pledges", w.spec.Timing.PledgeAfter()+time.Millisecond, func() bool { ok, _ := s.agent.Pledge(w.plea()); return ok })
		s.stop()
		w.fencing(2)
		w.store.Heal("n2")
		s = w.start("n2")
		began := time.Now()
		w.always("the new agent keeps the word", w.leaseAndMargin()-10*time.Millisecond, func() bool { return promiseOnDisk(s.dir) < 2 })
		w.until("n2 promises", 100*time.Millisecond, func() bool { return promiseOnDisk(s.dir) == 2 })
		if kept := time.Since(began); kept < w.leaseAndMargin() {
			t.Errorf("kept for %s", kept)
		}
		if err := s.agent.Settle(); err != nil {
			t.Fatal(err)
		}
		if line := s.pledgeOnDisk(); !strings.HasPrefix(line, "redoubt pledge 0 0 ") {
			t.Fatalf("on disk is %q", line)
		}
		s.stop()
		w.fencing(3)
		s = w.start("n2")
		w.until("n2 promises at once", 100*time.Millisecond, func() bool { return promiseOnDisk(s.dir) == 3 })
	})
}

// TestATornPledgeBindsToNothing: nobody has heard of it.
func TestATornPledgeBindsToNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := following(w)
		w.store.Cut("n2")
		w.until("n2 pledges", w.spec.Timing.PledgeAfter()+time.Millisecond, func() bool { ok, _ := s.agent.Pledge(w.plea()); return ok })
		s.stop()
		path := filepath.Join(s.dir, "pledge")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len("redoubt pledge 1 9")] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		w.fencing(2)
		w.store.Heal("n2")
		w.start("n2")
		w.until("n2 promises at once", 100*time.Millisecond, func() bool { return promiseOnDisk(s.dir) == 2 })
	})
}
