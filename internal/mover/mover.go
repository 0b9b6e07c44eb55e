// SPDX-License-Identifier: Apache-2.0

// Package mover carries slots from one shard of a cluster to another on unmodified servers, step by step as reshard decides; and,
// by the same means, everything that servers have into a deployment (Whole).
//
// It copies by state: every key is dumped at the source and restored at the target, large ones in pieces, while clients go on; the
// source's replication stream only tells which keys were written meanwhile, and these are copied again. When few are left
// the clients of these slots wait for a few milliseconds, in which the last keys are copied, enough replicas of the target acknowledge,
// the source gives up the slots and the target takes them by one command. The source's copies are deleted afterwards.
//
// It is not for deciding which slots move, or what comes next (reshard), nor for keeping clients waiting (a Parker does), nor for
// storing (Options.Store does). Its invariants: the target takes slots only after the source gave them up, everything that it wrote
// before was copied, and that was stored; nothing is ever deleted at an owner of the slots. A Mover serves one batch at a time; each batch has the goroutine
// of its caller, one that reads the source's stream, and one that reads values ahead. Close waits for them.
package mover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"redoubt/internal/reshard"
)

// Node is one server.
type Node struct {
	ID   string // of the cluster: 40 hex digits
	Addr string
}

// Shard is what a move has to know about one shard.
type Shard struct {
	ID       string
	Primary  Node
	Replicas []Node // those that live
	Absent   []Node // its other nodes: not asked, but whom they call the owner of a slot belongs to this shard
	Busy     string // why it is to be left alone: a failover, a switchover
	Tenure   string // of the primary: another one means that its shard may have been served by somebody else. Empty: the primary's id
}

// Parker keeps clients away from slots, so that they wait and see no error. Nothing depends on it but that: what is written at the source
// all the same is seen, and copied, before it gives up the slots, and refused by it behind that.
type Parker interface {
	// Park has clients' commands about these slots wait, and returns when none is under way at their owner any more, or with ErrUnderWay if
	// that takes long. It can be repeated.
	Park(ctx context.Context, slots []int) error
	// Flow sends the clients of these slots to a shard. It can be repeated, also for slots that are not parked.
	Flow(ctx context.Context, slots []int, owner string) error
}

// ErrUnderWay: clients wait, but some commands of before take long. Tried again later, they need not meet an owner that is none any more.
var ErrUnderWay = errors.New("commands are still under way")

// Options are what a Mover works with. Those without a remark are needed.
type Options struct {
	Name   string // of the deployment: one mover of that name works on a batch at a time
	Shards func() []Shard
	Dial   func(ctx context.Context, addr string) (net.Conn, error) // nil: plain TCP
	Login  [][]string                                               // commands that begin each connection
	Slot   func(key []byte) int
	// Keys appends the places of a command's keys to dst; known is false for a command of which that is not known.
	Keys   func(args [][]byte, dst []int) (at []int, known bool)
	Parker Parker
	// Store stores the stage of a batch, and fails if the batch is not this mover's any more. Its error ends Run at once.
	Store func(ctx context.Context, m reshard.Move) error
	// Confirm returns the tenures of both shards as they are agreed now, by a read that begins in the call; nil: Shards is that good.
	Confirm func(ctx context.Context, from, to string) (fromTenure, toTenure string, err error)
	Wish    func() reshard.Wish // what is wanted now; nil: what the Move says
	// Replicas of the target that must have everything before the source lets go.
	Replicas int
	Limits   reshard.Limits // zero: the default
	Rate     reshard.Rate
	BigBytes int64                    // a value of more is copied in pieces. 0: 256 KiB
	Stop     time.Duration            // of clients, before the source has let go; 0: 250 ms
	Before   func(reshard.Step) error // nil, or called before each step: an error ends Run as a crash would
	Done     func(Report)             // nil, or called for each batch that ends
}

// Report is what became of a batch in this process.
type Report struct {
	Move   reshard.Move
	Keys   int64 // copied, each time counted
	Bytes  int64
	Pieces int64 // of large values
	Rounds int
	Took   time.Duration
	Parked time.Duration            // from the order to park until clients flowed to the new owner
	Steps  map[string]time.Duration // by rule
}

// ErrHalted is what a person has to look at.
var ErrHalted = errors.New("the move needs a decision")

const (
	batchKeys    = 100
	batchBytes   = 64 << 10
	bigBytes     = 256 << 10
	stopDefault  = 250 * time.Millisecond
	underWayMost = 5  // times that commands which take long put a hand-over off
	parksInVain  = 20 // after that Run returns, and whoever called it decides
)

// Mover moves batches.
type Mover struct {
	o Options
	s *session
}

// New returns a mover that is connected to nothing.
func New(o Options) (*Mover, error) {
	if o.Shards == nil || o.Slot == nil || o.Keys == nil || o.Parker == nil || o.Store == nil {
		return nil, errors.New("a mover needs Shards, Slot, Keys, Parker and Store")
	}
	if o.Limits == (reshard.Limits{}) {
		o.Limits = reshard.DefaultLimits()
	}
	if o.BigBytes <= 0 {
		o.BigBytes = bigBytes
	}
	if o.Stop <= 0 {
		o.Stop = stopDefault
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	return &Mover{o: o}, nil
}

// Close ends the connections and waits for the goroutines.
func (m *Mover) Close() { m.drop() }

func (m *Mover) drop() {
	m.s.close()
	m.s = nil
}

// errCrash wraps what Options.Before said.
var errCrash = errors.New("stopped before a step")

// Run carries a batch on from its stored stage until it is over, and returns what is stored about it then. On an error the
// caller reads what is stored, and calls Run with it again: nothing else is needed after an error, a crash or a change of the mover.
func (m *Mover) Run(ctx context.Context, mv reshard.Move) (reshard.Move, error) {
	b := &batch{Mover: m, mv: mv, report: Report{Steps: map[string]time.Duration{}}, began: time.Now(), big: map[name]int64{}}
	b.f.Limits = m.o.Limits
	// Whether somebody left clients waiting is not known; ending that can be repeated.
	b.f.Parked = mv.Stage != reshard.Planned
	err := b.run(ctx)
	if err != nil {
		m.drop() // and with it whatever was on its way
		if b.f.Parked && b.mv.Stage == reshard.Copying && !errors.Is(err, errCrash) && !errors.Is(err, errStore) {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			err = errors.Join(err, m.o.Parker.Flow(undo, mv.Slots, mv.From))
		}
		return b.mv, fmt.Errorf("move slots %s: %w", b.mv, err)
	}
	if m.o.Done != nil {
		b.report.Move, b.report.Took, b.report.Rounds = b.mv, time.Since(b.began), b.rounds
		m.o.Done(b.report)
	}
	return b.mv, nil
}

// errStore: it is not known what is stored, so that nothing may be done, not even clients be let go.
var errStore = errors.New("what is stored about the move is not known")

// batch is one batch in the hands of this process.
type batch struct {
	*Mover
	mv     reshard.Move
	f      reshard.Facts
	report Report
	began  time.Time
	parked time.Time
	rounds int
	big    map[name]int64 // keys that were large, and how large
}

func (b *batch) run(ctx context.Context) error {
	var failed error // in the hand-over
	for {
		if b.mv.Stage == reshard.Settling {
			failed = nil
		}
		if failed != nil && !b.f.Parked {
			return failed
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.refresh(); err != nil {
			return err
		}
		step := reshard.Next(b.mv, b.f)
		if b.o.Before != nil {
			if err := b.o.Before(step); err != nil {
				return errors.Join(errCrash, err)
			}
		}
		switch step.Do {
		case reshard.Nothing:
			return nil
		case reshard.Halt:
			return fmt.Errorf("%w: %s", ErrHalted, step.Why)
		}
		began := time.Now()
		if err := b.do(ctx, step); err != nil {
			err = fmt.Errorf("%s: %w", step.Rule, err)
			if b.mv.Stage != reshard.LettingGo || step.Do == reshard.Recall || errors.Is(err, errStore) || ctx.Err() != nil {
				return err
			}
			failed = err // the source has its slots again before this ends, if the target has not taken them
			if err := b.recall(ctx); err != nil {
				return errors.Join(failed, err)
			}
		}
		b.report.Steps[step.Rule] += time.Since(began)
	}
}

// refresh takes what may have changed since the last step: orders, who is primary, what was written.
func (b *batch) refresh() error {
	if b.o.Wish != nil {
		b.mv.Wish = b.o.Wish()
	}
	from, to, others, err := b.sides()
	if err != nil {
		return err
	}
	b.f.Busy, b.f.Tenure = "", tenure(from)+" "+tenure(to)
	for _, s := range []Shard{from, to} {
		if s.Busy != "" {
			b.f.Busy = "shard " + s.ID + ": " + s.Busy
		}
	}
	if b.s != nil && !b.s.same(from, to) {
		b.drop()
	}
	if b.s == nil {
		b.f.Seen, b.f.Copy = false, reshard.Copy{}
	}
	if b.s != nil {
		b.s.from, b.s.to, b.s.others = from, to, others
	}
	if b.f.Copy.Tracked {
		c := &b.f.Copy
		each := int64(64)
		if b.report.Keys > 0 {
			each += b.report.Bytes / b.report.Keys
		}
		if c.Dirty, c.Bytes, err = b.s.stream.debt(b.big, each); err != nil {
			return err
		}
	}
	return nil
}

func tenure(s Shard) string { return cmp.Or(s.Tenure, s.Primary.ID) }

func (b *batch) sides() (from, to Shard, others []Node, err error) {
	for _, s := range b.o.Shards() {
		switch s.ID {
		case b.mv.From:
			from = s
		case b.mv.To:
			to = s
		default:
			others = append(others, s.Primary)
		}
	}
	if from.ID == "" || to.ID == "" {
		return from, to, nil, fmt.Errorf("%w: shard %s or %s does not exist", ErrHalted, b.mv.From, b.mv.To)
	}
	return from, to, others, nil
}
