// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
)

// Options say who this member is and how it finds the others.
type Options struct {
	ID            string // stable name of this member, never an address
	ListenAddr    string // host:port of the one TCP port, for Raft and for member streams
	AdvertiseAddr string // where the others reach it; empty: the address that it listens on
	Dir           string // data directory, made if it does not exist; one process at a time

	// Bootstrap is the fixed initial membership. All members of a new deployment are given the same list, which
	// contains them. It is used once, when the directory is empty, and ignored on later starts.
	Bootstrap []coord.Member
	// Join is the address of any living member, which this new member asks to be added. It is used instead of Bootstrap,
	// while the directory is empty.
	Join string

	Clock  clock.Clock  // nil: the machine's clock
	Log    *slog.Logger // nil: silent
	Timing Timing       // zero: DefaultTiming

	wrap func(net.Conn) net.Conn // tests cut and hold connections here
}

// Timing holds the store's intervals.
type Timing struct {
	Election time.Duration // without a word from the controller for one to two times this, a member stands for election
	Lease    time.Duration // a controller without a majority for this long gives up; at most Election
	Request  time.Duration // a request gives up after this time even if its context does not end
}

// DefaultTiming suits one local network. A lost controller is replaced in about a third of a second.
func DefaultTiming() Timing {
	return Timing{Election: 150 * time.Millisecond, Lease: 120 * time.Millisecond, Request: 5 * time.Second}
}

// WANTiming suits members that are tens of milliseconds apart.
func WANTiming() Timing {
	return Timing{Election: 600 * time.Millisecond, Lease: 500 * time.Millisecond, Request: 10 * time.Second}
}

// retry is the pause between attempts to reach a controller; the notice of a change ends it early.
const retry = 20 * time.Millisecond

func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timing == (Timing{}) {
		o.Timing = DefaultTiming()
	}
	return o
}

// Validate returns everything that is wrong with the options, joined; nil when nothing is.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(o.ID != "" && len(o.ID) <= 255, "store id %q must have 1 to 255 bytes", o.ID)
	need(o.ListenAddr != "", "store listen address is missing")
	need(o.Dir != "", "store data directory is missing")
	need(len(o.Bootstrap) == 0 || o.Join == "", "store has both a bootstrap list and an address to join; give one of them")
	need(o.Timing.Election >= 20*time.Millisecond, "store timing: election %s < 20ms", o.Timing.Election)
	need(o.Timing.Lease >= 10*time.Millisecond && o.Timing.Lease <= o.Timing.Election,
		"store timing: lease %s must lie between 10ms and election %s", o.Timing.Lease, o.Timing.Election)
	need(o.Timing.Request >= o.Timing.Election, "store timing: request %s < election %s", o.Timing.Request, o.Timing.Election)
	self, ids, addrs := false, map[string]bool{}, map[string]bool{}
	for _, m := range o.Bootstrap {
		need(m.ID != "" && !ids[m.ID], "bootstrap member id %q is empty or listed twice", m.ID)
		need(m.Addr != "" && !addrs[m.Addr], "bootstrap member address %q is empty or listed twice", m.Addr)
		ids[m.ID], addrs[m.Addr] = true, true
		self = self || m.ID == o.ID
	}
	need(len(o.Bootstrap) == 0 || self, "bootstrap list does not contain this member %q", o.ID)
	return errors.Join(errs...)
}
