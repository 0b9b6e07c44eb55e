// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// repeat does something to a healthy deployment under load, again and again, and measures what clients saw. hit returns
// when it happened, and may return a cleanup for after the round.
func repeat(t *testing.T, d *deployment, n int, within time.Duration, pick func(status) string, hit func(status) (time.Time, func())) ([]time.Duration, verdict) {
	t.Helper()
	var outages []time.Duration
	sum := verdict{messages: map[string]int{}}
	for i := range n {
		s := d.waitHealthy(30 * time.Second)
		addr := pick(s)
		ws := startWriters(t, fmt.Sprint(i), addr)
		wait(300 * time.Millisecond)
		at, after := hit(s)
		d.until(within, "writes go on", func() (bool, string) {
			for _, w := range ws {
				all := w.all()
				if len(all) == 0 || !slices.ContainsFunc(all, func(a attempt) bool { return a.ok && a.start.After(at.Add(20*time.Millisecond)) }) {
					return false, w.name + " has no success since"
				}
			}
			return true, ""
		})
		wait(400 * time.Millisecond)
		if after != nil {
			after()
		}
		for _, w := range ws {
			w.finish()
		}
		o := outage(ws, at)
		outages, sum.waits = append(outages, o.outage), append(sum.waits, o.wait)
		calm := outage(ws, at.Add(-2*begins))
		v := judge(t, addr, ws)
		t.Logf("round %d: %.1f ms (%s; without any event %.1f ms), %d acknowledged, %d errors, lost %d, duplicated %d", i+1, ms(o.outage), o.who, ms(calm.outage), v.acked, v.errors, v.lost, v.duplicated)
		sum.acked, sum.lost, sum.duplicated, sum.errors = sum.acked+v.acked, sum.lost+v.lost, sum.duplicated+v.duplicated, sum.errors+v.errors
		sum.lostOf = append(sum.lostOf, v.lostOf...)
		for m, c := range v.messages {
			sum.messages[m] += c
		}
	}
	return outages, sum
}

// survivor picks the proxy of a member that is not the primary's.
func (d *deployment) survivor(s status) string {
	dead := s.node(s.primary()).AgentPID
	for _, p := range s.Deployments[0].Proxies {
		if p.PID != dead {
			return p.Addr
		}
	}
	d.t.Fatal("no proxy besides the primary's")
	return ""
}

func (d *deployment) first(status) string { return d.proxyAddr(0) }

func TestKillPrimaryUnderLoad(t *testing.T) {
	d := up(t)
	outages, v := repeat(t, d, roundsOr(3), 10*time.Second, d.first, func(s status) (time.Time, func()) {
		at := time.Now()
		signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
		return at, nil
	})
	figures(t, "kill -9 of the primary's server", outages, v)
	requireNothingLost(t, v)
}

func TestHangPrimaryUnderLoad(t *testing.T) {
	d := up(t)
	outages, v := repeat(t, d, roundsOr(2), 10*time.Second, d.first, func(s status) (time.Time, func()) {
		at := time.Now()
		signal(t, s.node(s.primary()).PID, syscall.SIGSTOP)
		return at, nil
	})
	figures(t, "SIGSTOP of the primary's server", outages, v)
	requireNothingLost(t, v)
}

func TestKillHostUnderLoad(t *testing.T) {
	d := up(t)
	outages, v := repeat(t, d, roundsOr(2), 15*time.Second, d.survivor, func(s status) (time.Time, func()) {
		n := s.node(s.primary())
		at := time.Now()
		signal(t, n.AgentPID, syscall.SIGKILL)
		signal(t, n.PID, syscall.SIGKILL)
		return at, d.start
	})
	figures(t, "kill -9 of the primary's agent and server", outages, v)
	requireNothingLost(t, v)
}

func TestSwitchoverUnderLoad(t *testing.T) {
	d := up(t)
	full := d.fullSyncs()
	outages, v := repeat(t, d, roundsOr(3), 10*time.Second, d.first, func(status) (time.Time, func()) {
		at := time.Now()
		if out, err := d.run("switchover", "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return at, nil
	})
	figures(t, "planned switchover", outages, v)
	requireNothingLost(t, v)
	if v.errors > 0 {
		t.Errorf("%d errors in planned work", v.errors)
	}
	if now := d.fullSyncs(); now != full {
		t.Errorf("%d full resyncs; a switchover needs partial ones only", now-full)
	}
}
