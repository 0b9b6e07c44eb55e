// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/agent"
	"redoubt/internal/looptest"
	"redoubt/internal/topo"
)

func TestPrimaryIsFencedAtTheEndOfItsLeaseWithoutTheStoreAndDoesNotTakeTheRoleBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.promote("n1", 1)
		w.always("the primary is writable under its lease", 2*time.Second, s.writable)
		w.store.Outage(true)
		took := w.until("the primary is fenced", w.leaseAndMargin(), func() bool { return !s.writable() })
		if least := w.spec.Timing.Lease.D() - w.spec.Timing.Beat.D(); took < least {
			t.Errorf("fenced after %s, the lease had %s left", took, least)
		}
		if o := s.look(); !o.Frozen || o.Health != topo.HealthUp {
			t.Fatalf("a primary that answers is to be frozen, not killed: %+v", o)
		}
		w.store.Outage(false)
		w.lead()
		w.until("the agent reports again", time.Second, func() bool { return w.told("n1").Frozen })
		w.always("a fenced primary stays frozen though the document names it", 5*time.Second, func() bool { return s.look().Frozen })
		w.promote("n1", 2) // a new epoch gives the role back
	})
}

func TestAgentWithoutAnOrderFencesAWritableServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.promote("n1", 1)
		s.stop()
		w.store.Outage(true) // the next agent knows no order
		w.start("n1")
		w.until("the server is fenced", 200*time.Millisecond, func() bool { return !s.writable() })
	})
}

func TestPromiseIsOnDiskBeforeAFrozenPositionIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.start("n1")
		w.start("n2")
		w.promote("n1", 1)
		for e := topo.Epoch(2); e < 6; e++ {
			w.fencing(e)
			for _, id := range []topo.NodeID{"n1", "n2"} {
				w.until("a frozen position of this epoch", 200*time.Millisecond, func() bool {
					s := w.told(id)
					return s.Epoch == e && s.Phase == topo.PhaseFencing && s.Frozen && s.Promised == e
				})
				if at := promiseOnDisk(w.seats[id].dir); at != e {
					t.Fatalf("%s reported a frozen position of epoch %d; on disk is the promise of %d", id, e, at)
				}
			}
		}
		for _, s := range w.seats {
			s.stop()
			if s.beats.count == 0 { // every report was compared with the disk on its way out
				t.Errorf("no report of %s was looked at", s.id)
			}
		}
	})
}

func TestOrderOlderThanThePromiseIsNotObeyedAfterARestartOfTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := w.start("n1")
		w.start("n2")
		w.promote("n2", 1)
		w.until("n1 follows", time.Second, func() bool { return s.look().LinkUp })
		before := w.agreed()
		w.fencing(7)
		w.until("n1 promises", time.Second, func() bool { return w.told("n1").Promised == 7 && w.told("n1").Frozen })
		for _, s := range w.seats {
			s.stop()
		}
		w.openStore() // rolled back: everything after epoch 1 is forgotten
		before.Epoch = 6
		w.order(before)
		w.start("n1")
		w.until("n1 is heard", time.Second, func() bool { return w.told("n1").Epoch == 6 })
		w.always("n1 stays frozen under an order older than its promise", 3*time.Second, func() bool {
			return s.look().Frozen && w.told("n1").Promised == 7
		})
		before.Epoch = 8
		w.order(before)
		w.until("n1 follows at epoch 8", time.Second, func() bool { return s.look().Following == "n2:1" })
	})
}

func TestWritableServerUnderAnOrderOlderThanThePromiseIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.promote("n1", 7)
		before := w.agreed()
		s.stop()
		w.openStore()
		before.Epoch, before.History[0].Epoch = 6, 6
		w.order(before)
		w.start("n1")
		w.until("the server is fenced", 200*time.Millisecond, func() bool { return s.look().Frozen })
	})
}

func TestRefusedPromotionIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.until("the node reports", time.Second, func() bool { return w.told("n1").RunID != "" })
		e := s.elected()
		e.Offset += 5 // somebody else's position
		w.order(topo.Assigned{Term: 1, Epoch: 1, Phase: topo.PhasePromoting, Primary: "n1", RunID: e.RunID, Elected: e})
		w.until("the refusal is reported", 200*time.Millisecond, func() bool { return strings.Contains(w.told("n1").Refused, "refused") })
		if !s.look().Frozen {
			t.Fatal("a refused promotion changed the server")
		}
		w.fencing(2)
		w.until("the refusal is over with its epoch", 200*time.Millisecond, func() bool { r := w.told("n1"); return r.Epoch == 2 && r.Refused == "" })
	})
}

func TestExitedServerIsRestartedFrozenWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.promote("n1", 1)
		s.SetFault("Restart", errors.New("out of memory"))
		crashed := time.Now()
		s.Crash()
		w.until("the exit is reported", 10*time.Millisecond, func() bool { r := w.told("n1"); return r.Health == topo.HealthExited && r.Fenced })
		w.always("the agent goes on reporting while it waits", 30*time.Second, func() bool {
			all, err := w.control.All(context.Background())
			return err == nil && all[topo.BeatNode+"n1"].Age <= w.spec.Timing.Silence.D()/2
		})
		s.mu.Lock()
		attempts := slices.Clone(s.restarts)
		s.mu.Unlock()
		pauses := make([]time.Duration, 0, len(attempts))
		for last := crashed; len(attempts) > 0; attempts = attempts[1:] {
			pauses = append(pauses, attempts[0].Sub(last).Round(time.Millisecond))
			last = attempts[0]
		}
		if len(pauses) < 5 || len(pauses) > 15 || !slices.IsSorted(pauses) || pauses[0] < 100*time.Millisecond || pauses[len(pauses)-1] > 5*time.Second {
			t.Fatalf("pauses between attempts: %s", pauses)
		}
		s.SetFault("Restart", nil)
		w.until("the server is back", 6*time.Second, func() bool { return w.told("n1").Health == topo.HealthUp })
		w.always("the restarted server stays frozen: it is not the process that was promoted", 2*time.Second, func() bool { return s.look().Frozen })
	})
}

// outOfLease waits until everybody else counts on the fence of s, which has no lease from a read that began later, and then
// looks.
func (s *seat) outOfLease() {
	s.w.t.Helper()
	looptest.Pass(s.view.Load().ReadStart + s.w.leaseAndMargin() - s.w.clock.Uptime())
	if o := s.look(); o.Health != topo.HealthExited && !o.Frozen { // frozen: started again already
		s.w.t.Fatalf("%s after the start of the last read: %+v", s.w.leaseAndMargin(), o)
	}
}

// TestHungPrimaryIsFencedWithinLeaseAndMargin: whenever it stops answering, it is dead when everybody else counts on it.
func TestHungPrimaryIsFencedWithinLeaseAndMargin(t *testing.T) {
	for after := time.Duration(0); after < 700*time.Millisecond; after += 35 * time.Millisecond {
		t.Run(fmt.Sprintf("%s after the outage", after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1")
				s := w.start("n1")
				w.promote("n1", 1)
				<-time.After(777 * time.Millisecond)
				w.store.Outage(true)
				<-time.After(after)
				if s.look().Frozen {
					return // it answered at the end of its lease
				}
				s.SetHealth(topo.HealthHung)
				s.outOfLease()
			})
		})
	}
}

// TestPrimaryThatHangsInAnOrderIsFencedWithinLeaseAndMargin: whatever the agent was waiting for.
func TestPrimaryThatHangsInAnOrderIsFencedWithinLeaseAndMargin(t *testing.T) {
	const fenceLead = 20 * time.Millisecond // the fence begins so long before
	for _, verb := range []string{"ProxyConnections", "Fence", "Configure"} {
		for before := 5 * time.Millisecond; before < 600*time.Millisecond; before *= 3 {
			t.Run(fmt.Sprintf("%s, %s before the end of the lease", verb, before), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, "n1", "n2")
					s := w.start("n1")
					w.promote("n1", 1)
					s.SetProxyConnections(map[string]int{"ProxyConnections": 1}[verb])
					w.store.Cut("n1")
					<-time.After(s.view.Load().ReadStart + w.spec.Timing.Lease.D() - fenceLead - before - w.clock.Uptime())
					a := w.agreed()
					if verb == "Configure" {
						w.spec.Durability, w.spec.AckReplicas = topo.Quorum, 1 // other settings
					} else {
						a.Phase, a.Elected = topo.PhaseDraining, &topo.Elected{Node: "n2"}
					}
					s.hangIn = verb
					w.order(a)
					w.tell("n1")
					s.outOfLease()
				})
			})
		}
	}
}

// A member that is handed over has a new agent, which has never heard the server: the document tells that it may be writing.
func TestPrimaryThatStopsWhileItsAgentIsReplacedIsFencedWithinLeaseAndMargin(t *testing.T) {
	for _, health := range []topo.Health{topo.HealthStopped, topo.HealthHung, topo.HealthBusy} {
		for _, cut := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, cut off: %v", health, cut), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, "n1")
					s := w.start("n1")
					w.promote("n1", 1)
					s.stop()
					s.SetHealth(health)
					w.start("n1")
					w.always("a good lease is left to the controller", 500*time.Millisecond, func() bool { return s.look().Health == health })
					if cut {
						w.store.Outage(true)
						s.outOfLease()
						return
					}
					w.fencing(2)
					w.until("it is fenced", 200*time.Millisecond, func() bool { return !s.writable() })
				})
			})
		}
	}
}

func TestServerThatHangsInItsPromotionIsFencedWithinLeaseAndMargin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.until("the node reports", time.Second, func() bool { return w.told("n1").RunID != "" })
		e := s.elected()
		s.hangIn = "Promote"
		w.order(topo.Assigned{Term: 1, Epoch: 1, Phase: topo.PhasePromoting, Primary: "n1", RunID: e.RunID, Elected: e})
		w.until("it hangs", 200*time.Millisecond, func() bool { return s.look().Health == topo.HealthHung })
		w.store.Outage(true)
		s.outOfLease()
	})
}

func TestHungReplicaIsNotKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.start("n1")
		s := w.start("n2")
		w.promote("n1", 1)
		w.until("n2 follows", time.Second, func() bool { return s.look().LinkUp })
		run := s.look().RunID
		s.SetHealth(topo.HealthStopped)
		w.fencing(2)
		w.until("the stop is reported under the new epoch", time.Second, func() bool {
			r := w.told("n2")
			return r.Health == topo.HealthStopped && r.Epoch == 2 && r.Promised == 2 && !r.Frozen && !r.Fenced
		})
		w.store.Outage(true)
		w.always("the replica lives", 3*time.Second, func() bool { return s.look().Health == topo.HealthStopped })
		w.store.Outage(false)
		w.lead()
		s.SetHealth(topo.HealthUp)
		w.until("it freezes when it answers", time.Second, func() bool { o := s.look(); return o.Frozen && o.RunID == run })
	})
}

func TestDrainWaitsForProxiesButNotLongerThanItsGrace(t *testing.T) {
	const grace = 150 * time.Millisecond
	for _, c := range []struct {
		name        string
		leave       time.Duration // when the proxies let go; zero: never
		least, most time.Duration
	}{
		{"proxies that let go", 60 * time.Millisecond, 60 * time.Millisecond, 70 * time.Millisecond},
		{"proxies that never do", 0, grace, grace + 20*time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				s := w.start("n1")
				w.start("n2")
				w.promote("n1", 1)
				w.until("n2 follows", time.Second, func() bool { return w.seats["n2"].look().LinkUp })
				s.SetProxyConnections(3)
				a := w.agreed()
				a.Phase, a.Elected = topo.PhaseDraining, &topo.Elected{Node: "n2"}
				w.order(a)
				if c.leave > 0 {
					time.AfterFunc(c.leave, func() { s.SetProxyConnections(0) })
				}
				took := w.until("the primary is fenced", time.Second, func() bool { return s.look().Frozen })
				if took < c.least || took > c.most {
					t.Fatalf("fenced after %s, want %s to %s", took, c.least, c.most)
				}
				w.until("the final offset is reported", 50*time.Millisecond, func() bool { r := w.told("n1"); return r.Fenced && r.Phase == topo.PhaseDraining })
			})
		})
	}
}

// What a drain has waited for the proxies is not taken from its fence, which kills a primary that does not carry it out in time.
func TestAPrimaryThatIsWellSurvivesItsSwitchoverHoweverLateTheProxiesLetGo(t *testing.T) {
	for leave := 20 * time.Millisecond; leave < 150*time.Millisecond; leave += 9700 * time.Microsecond {
		t.Run(leave.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				s := w.start("n1")
				w.start("n2")
				w.promote("n1", 1)
				w.until("n2 follows", time.Second, func() bool { return w.seats["n2"].look().LinkUp })
				s.SetProxyConnections(3)
				s.mu.Lock()
				s.fenceTakes = 20 * time.Millisecond
				s.mu.Unlock()
				a := w.agreed()
				a.Phase, a.Elected = topo.PhaseDraining, &topo.Elected{Node: "n2"}
				run := s.look().RunID
				w.order(a)
				time.AfterFunc(leave, func() { s.SetProxyConnections(0) })
				w.until("the primary is fenced", time.Second, func() bool { o := s.look(); return o.Frozen || o.Health == topo.HealthExited })
				if o := s.look(); o.RunID != run || o.Health == topo.HealthExited {
					t.Fatalf("a primary that carries out a fence within 20ms was killed: %+v", o)
				}
			})
		})
	}
}

// A fence whose time ends kills the server: that its agent is asked to stop is no reason for that.
func TestAgentThatIsStoppedInTheMiddleOfAFenceDoesNotKillTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		s := w.start("n1")
		w.promote("n1", 1)
		s.mu.Lock()
		s.fenceTakes = 20 * time.Millisecond
		s.mu.Unlock()
		w.fencing(2)
		w.until("the fence is under way", time.Second, func() bool { return s.look().Health == topo.HealthHung })
		s.stop()
		if o := s.look(); !o.Frozen {
			t.Fatalf("after the end of its agent: %+v", o)
		}
	})
}

func TestSettingsAreAppliedAgainAndNeverDuringAnElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.spec.Durability, w.spec.AckReplicas = topo.Quorum, 1
		s := w.start("n2")
		w.start("n1")
		w.promote("n1", 1)
		w.until("the second line is in place", 2*time.Second, func() bool { return s.Demands().MinReplicas == 1 && s.Demands().MinReplicasMaxLag == 1 })
		s.SetReport([]string{"replica-read-only is no"}, nil)
		w.until("a lying setting is mended", 2*time.Second, func() bool { return len(s.look().Settings) == 0 })
		w.fencing(2)
		w.until("n2 freezes", time.Second, func() bool { return w.told("n2").Frozen })
		s.SetReport([]string{"replica-read-only is no"}, nil)
		w.always("settings wait for the end of an election", 3*time.Second, func() bool { return len(s.look().Settings) == 1 })
	})
}

// TestAgentEndsWithItsContextAndLeavesTheServerAsItIs: the bubble itself fails if a goroutine is left.
func TestAgentEndsWithItsContextAndLeavesTheServerAsItIs(t *testing.T) {
	for _, health := range []topo.Health{topo.HealthUp, topo.HealthHung, topo.HealthExited} {
		t.Run(string(health), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1")
				s := w.start("n1")
				w.promote("n1", 1)
				s.SetHealth(health)
				<-time.After(40 * time.Millisecond)
				at := time.Now()
				s.stop()
				if took := time.Since(at); took > 100*time.Millisecond {
					t.Fatalf("ended after %s", took)
				}
				if o := s.look(); o.Health != health || health == topo.HealthUp && o.Role != topo.RolePrimary {
					t.Fatalf("stopping the agent changed the server: %+v", o)
				}
			})
		})
	}
}

func TestDamagedPromiseStopsTheAgentFromStarting(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "promise"), []byte(strings.Repeat("?", 1024)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.New(agent.Options{ID: "n1", Clock: looptest.NewClock(), Dir: dir}); err == nil {
		t.Fatal("an agent started without knowing what it had promised")
	}
}
