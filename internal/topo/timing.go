// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"fmt"
	"time"
)

// Timing holds every interval that a decision depends on. All of them belong to one shard and travel in its document,
// so that all members use the same values.
type Timing struct {
	Beat     Duration `json:"beat"`     // how often an agent reports when nothing changes
	Lease    Duration `json:"lease"`    // a primary fences itself this long after the start of its last linearizable read
	Margin   Duration `json:"margin"`   // added by the controller to Lease: clock rates, and the time a fence takes
	Silence  Duration `json:"silence"`  // no report for this long: the primary's host counts as lost
	Hang     Duration `json:"hang"`     // stopped or hung for this long: the primary counts as dead
	Loading  Duration `json:"loading"`  // a primary may load for this long
	Busy     Duration `json:"busy"`     // a primary may run one script or command for this long
	Gather   Duration `json:"gather"`   // async: wait this long for more positions before electing
	Promote  Duration `json:"promote"`  // an elected node that has not promoted by then is given up
	Park     Duration `json:"park"`     // a proxy holds a client's command this long without a primary
	Recovery Duration `json:"recovery"` // spacing of automatic failovers once Burst have happened within a minute
	Burst    int      `json:"burst"`
}

// LANTiming is the default: one local network.
func LANTiming() Timing {
	ms := func(n int) Duration { return Duration(time.Duration(n) * time.Millisecond) }
	return Timing{
		Beat: ms(100), Lease: ms(800), Margin: ms(100), Silence: ms(900), Hang: ms(600),
		Loading: ms(10_000), Busy: ms(15_000), Gather: ms(150), Promote: ms(1_000), Park: ms(10_000), Recovery: ms(5_000), Burst: 20,
	}
}

// WANTiming suits members that are tens of milliseconds apart.
func WANTiming() Timing {
	t := LANTiming()
	t.Beat, t.Lease, t.Margin, t.Silence, t.Hang = t.Beat*3, t.Lease*4, t.Margin*4, t.Silence*4, t.Hang*4
	t.Gather, t.Promote, t.Park = t.Gather*4, t.Promote*4, t.Park*3
	return t
}

// Validate returns every inequality that the timing breaks; nil when it is sound.
func (t Timing) Validate() []error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for _, f := range []struct {
		name string
		v    Duration
	}{{"beat", t.Beat}, {"lease", t.Lease}, {"margin", t.Margin}, {"silence", t.Silence}, {"hang", t.Hang}, {"loading", t.Loading},
		{"busy", t.Busy}, {"promote", t.Promote}, {"park", t.Park}} {
		need(f.v > 0, "timing.%s is %s: it must be positive", f.name, f.v)
	}
	need(t.Gather >= 0, "timing.gather is %s: it must not be negative", t.Gather)
	need(t.Burst >= 1, "timing.burst is %d: it must be at least 1", t.Burst)
	need(t.Lease >= 3*t.Beat, "timing.lease %s < 3 × beat %s: one lost read would fence a healthy primary; raise lease or lower beat", t.Lease, t.Beat)
	need(t.Silence >= 3*t.Beat, "timing.silence %s < 3 × beat %s: one lost report would cost a failover; raise silence or lower beat", t.Silence, t.Beat)
	need(t.Margin*10 >= t.Lease, "timing.margin %s < lease %s / 10: clocks that differ by 10 %% would allow two primaries; raise margin", t.Margin, t.Lease)
	need(t.Margin >= Duration(100*time.Millisecond), "timing.margin %s < 100ms: the fence of a server that does not answer takes nearly that long; raise margin", t.Margin)
	need(t.Recovery <= Duration(5*time.Second), "timing.recovery %s > 5s: a shard must not wait longer than that for its next failover", t.Recovery)
	return errs
}
