// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/reshard"
)

// WholeOptions are what a migration works with.
type WholeOptions struct {
	Source Source
	Target Endpoint // proxies of a deployment, or a server
	// Keys makes of a server's reply to COMMAND what appends the places of a command's keys; known is false for a command of which
	// that is not known.
	Keys      func(command []byte) func(args [][]byte, dst []int) (at []int, known bool)
	Overwrite bool // the target may have data: what the source has not is removed there
	Blind     bool // a source whose writes cannot be followed is copied once more while its writers wait
	Rate      reshard.Rate
	CutOver   bool // when the target is in step, without an order
	After     After
	Pause     time.Duration // for which writers at the source may wait, at most
	Verify    int           // how many keys are compared before the cut-over; -1: all
	// Told gets the progress, about once a second, from a goroutine of the migration.
	Told func(Progress)
	// Note gets a sentence about what happened.
	Note func(string)
}

// After says what becomes of the source behind the cut-over.
type After string

// What a source can become.
const (
	ReadOnly After = "readonly" // it refuses writes, by its own setting min-replicas-to-write
	Leave    After = "leave"    // it takes writes again, which nobody carries on
)

// Progress is how far a migration is.
type Progress struct {
	Phase string // copy, follow, verify, cut-over
	Keys  int64  // copied, each time counted
	Bytes int64
	Total int64 // keys of the source
	Lag   int64 // bytes of the stream that were not read yet
	Dirty int64 // keys that are to be copied again
	Again int64 // how often everything had to be copied again
}

// Outcome is what a migration came to.
type Outcome struct {
	Keys, Bytes int64
	Took        time.Duration
	CutOver     time.Duration // from the order to the source to keep writers waiting until the target had everything
	LastKeys    int64         // copied in it
	Sources     []string      // each with the offset at which it was closed
	Reopen      []string      // how the sources are made to take writes again
	Verified    Verified
	Acked       int64 // replicas of the target that had everything
}

// Whole carries everything that a source has into a target, and keeps it in step until the cut-over. Its goroutines end before its methods return.
type Whole struct {
	o          WholeOptions
	tgt        *link // for the state
	front      bool  // the target has several shards
	dbOf       func(int) int
	blind      bool
	home       string // the server processes that are the target's primaries
	token      string // under which this process is known to work
	known      bool   // an earlier process has begun
	replicas   int64  // of the target
	tries      int    // of a cut-over
	compared   bool
	wanted     bool // the cut-over
	libs       atomic.Bool
	legs       []*leg
	keys       atomic.Int64
	bytes      atomic.Int64
	again      atomic.Int64
	lag, dirty atomic.Int64
	total      atomic.Int64
	phase      atomic.Value
	verified   Verified

	mu    sync.Mutex // guards what follows
	state state
}

// NewWhole returns a migration that is connected to nothing.
func NewWhole(o WholeOptions) *Whole {
	if o.Pause <= 0 {
		o.Pause = 5 * time.Second
	}
	if o.Told == nil {
		o.Told = func(Progress) {}
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	w := &Whole{o: o, wanted: o.CutOver}
	w.phase.Store("copy")
	return w
}

const (
	attemptsMax = 20 // in a row, none of which got anywhere
	retryAfter  = time.Second
	followEvery = 50 * time.Millisecond
	inStepKeys  = 1000 // to be copied again, at most, when an automatic cut-over begins
	inStepBytes = 1 << 20
	triesMax    = 5 // of a cut-over that takes too long
)

// Run carries everything over. An error leaves the source open for writers, unless it was closed already, and the target with what it
// has: running it again goes on from there.
func (w *Whole) Run(ctx context.Context) (Outcome, error) {
	began := time.Now()
	defer w.progress(ctx)()
	var out Outcome
	for failed := 0; ; {
		before := w.keys.Load()
		err := w.attempt(ctx, &out)
		if err == nil {
			out.Keys, out.Bytes, out.Took, out.Verified = w.keys.Load(), w.bytes.Load(), time.Since(began), w.verified
			return out, nil
		}
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if failed++; w.keys.Load() > before {
			failed = 0
		}
		if !passing(err) || failed > attemptsMax {
			return out, err
		}
		w.o.Note(fmt.Sprintf("%v; going on in %s", err, retryAfter))
		if err := rest(ctx, retryAfter); err != nil {
			return out, err
		}
	}
}

var errTooBusy = errors.New("the last keys could not be copied while writers waited,")

// passing says whether an error may be over when it is tried again: connections that ended, servers that are between two primaries.
func passing(err error) bool {
	var refused serverError
	if errors.As(err, &refused) {
		code, _, _ := strings.Cut(string(refused), " ")
		return slices.Contains([]string{"TRYAGAIN", "OUTCOMEUNKNOWN", "LOADING", "CLUSTERDOWN", "READONLY", "NOREPLICAS", "MASTERDOWN", "MOVED", "ASK", "BUSY", "UNKILLABLE"}, code)
	}
	var broken net.Error
	if errors.Is(err, errTaken) || errors.Is(err, errTooBusy) {
		return false
	}
	return errors.As(err, &broken) || slices.ContainsFunc([]error{errStream, errSlow, errDemoted, errTurned, errMoved, io.EOF, io.ErrUnexpectedEOF, context.DeadlineExceeded}, func(e error) bool { return errors.Is(err, e) })
}

// attempt connects, goes on from what is stored, and cuts over.
func (w *Whole) attempt(ctx context.Context, out *Outcome) error {
	if err := w.connect(ctx); err != nil {
		return err
	}
	defer w.disconnect()
	if err := w.load(ctx); err != nil {
		return err
	}
	if !w.known && !w.o.Overwrite {
		if err := w.vacant(ctx); err != nil {
			return err
		}
	}
	if err := w.begin(ctx); err != nil {
		return err
	}
	for _, g := range w.legs {
		if err := w.startLeg(ctx, g); err != nil {
			return err
		}
	}
	total := int64(0)
	for _, g := range w.legs {
		for _, n := range g.keyspace() {
			total += n
		}
	}
	w.total.Store(total)
	if err := w.functions(ctx); err != nil {
		return err
	}
	w.phase.Store("copy")
	if err := w.first(ctx); err != nil {
		return err
	}
	w.compared = false
	w.phase.Store("follow")
	if err := w.follow(ctx); err != nil {
		return err
	}
	err := w.cutOver(ctx, out)
	if errors.Is(err, errSlow) {
		if w.tries++; w.tries == triesMax {
			return fmt.Errorf("%w %d times: let writers wait for longer, or slow them down", errTooBusy, w.tries)
		}
	}
	return err
}

func (w *Whole) startLeg(ctx context.Context, g *leg) error {
	err := g.start(ctx)
	if errors.Is(err, errBlind) && w.o.Blind {
		w.blind = true
		w.o.Note(fmt.Sprintf("%v: everything will be copied once more while writers wait", err))
		return g.start(ctx)
	}
	return w.sighted(err)
}

// sighted explains what can be done about a source that cannot be followed.
func (w *Whole) sighted(err error) error {
	if errors.Is(err, errBlind) && !w.o.Blind {
		return fmt.Errorf("%w: %w; with --scan everything is copied once more while its writers wait, which takes as long as the first copy", ErrRefused, err)
	}
	return err
}

// connect opens everything that an attempt needs.
func (w *Whole) connect(ctx context.Context) (err error) {
	origins, err := w.o.Source.origins(ctx)
	if err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	if w.tgt, err = w.o.Target.any(ctx, "redoubt-migrate"); err != nil {
		return fmt.Errorf("the target: %w", err)
	}
	if err := w.meet(ctx); err != nil {
		w.disconnect()
		return err
	}
	for _, o := range origins {
		g, err := w.open(ctx, o)
		if err != nil {
			w.disconnect()
			return err
		}
		w.legs = append(w.legs, g)
	}
	return nil
}

// meet asks the target whether it is a front of several shards.
func (w *Whole) meet(ctx context.Context) error {
	w.tgt.add("PROXY", "SHARDOF", "x")
	w.tgt.add("SELECT", "1")
	w.tgt.add("SELECT", "0")
	w.tgt.add("INFO", "replication")
	reps, err := w.tgt.round(ctx)
	if err != nil {
		return err
	}
	if err := w.tgt.firstError(reps[2:]); err != nil {
		return err
	}
	w.replicas, _ = strconv.ParseInt(fields(reps[3].body)["connected_slaves"], 10, 64)
	if w.home, err = home(ctx, w.tgt); err != nil {
		return err
	}
	w.front = reps[0].err() == nil
	if db := w.o.Source.DB; db >= 0 && (w.front || reps[1].err() != nil) || reps[1].err() != nil {
		w.dbOf = func(int) int { return 0 }
	}
	return nil
}

func (w *Whole) disconnect() {
	for _, g := range w.legs {
		g.close()
	}
	w.legs = nil
	w.tgt.close()
	w.tgt = nil
}

// each has all legs do something at once, and waits for them. The first error ends the others.
func (w *Whole) each(ctx context.Context, do func(context.Context, *leg) error) error {
	all, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, g := range w.legs {
		wg.Go(func() {
			if err := do(all, g); err != nil {
				cancel(fmt.Errorf("%s: %w", g.from.addr, err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return context.Cause(all)
}

// first is the first copy. Who is done with it keeps in step until all are.
func (w *Whole) first(ctx context.Context) error {
	var left atomic.Int64
	left.Store(int64(len(w.legs)))
	return w.each(ctx, func(ctx context.Context, g *leg) error {
		if err := g.copyAll(ctx); err != nil {
			return err
		}
		for left.Add(-1); left.Load() > 0; {
			if err := rest(ctx, followEvery); err != nil {
				return err
			}
			if err := g.catchUp(ctx, w.o.Rate); err != nil {
				return err
			}
		}
		return nil
	})
}

// follow keeps the target in step until the cut-over is wanted.
func (w *Whole) follow(ctx context.Context) error {
	stored, told := time.Now(), false
	for {
		began := time.Now()
		if err := w.each(ctx, func(ctx context.Context, g *leg) error { return g.catchUp(ctx, w.o.Rate) }); err != nil {
			return err
		}
		lag, dirty, err := w.behind(ctx)
		if err != nil {
			return err
		}
		near := lag <= inStepBytes && dirty <= inStepKeys && time.Since(began) < time.Second
		if near && w.o.Verify != 0 && !w.compared {
			if err := w.verify(ctx); err != nil {
				return err
			}
			w.compared = true
			w.phase.Store("follow")
			continue
		}
		if !w.wanted {
			if w.wanted, err = w.ordered(ctx); err != nil {
				return err
			}
		}
		if near && w.wanted {
			return nil
		}
		if near && !told {
			told = true
			w.o.Note("the target is in step with the source")
		}
		if time.Since(stored) > chunkTime {
			stored = time.Now()
			if err := w.each(ctx, func(ctx context.Context, g *leg) error { return errors.Join(g.steady(ctx), g.store(ctx)) }); err != nil {
				return err
			}
		}
		if err := rest(ctx, followEvery); err != nil {
			return err
		}
	}
}

// behind is how far the target is behind the source, over all legs.
func (w *Whole) behind(ctx context.Context) (lag, dirty int64, err error) {
	for _, g := range w.legs {
		l, d, err := g.behind(ctx)
		if err != nil {
			return 0, 0, err
		}
		lag, dirty = lag+l, dirty+d
	}
	w.lag.Store(lag)
	w.dirty.Store(dirty)
	return lag, dirty, nil
}

// progress tells how far it is once a second, until what it returns is called.
func (w *Whole) progress(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				phase, _ := w.phase.Load().(string)
				w.o.Told(Progress{phase, w.keys.Load(), w.bytes.Load(), w.total.Load(), w.lag.Load(), w.dirty.Load(), w.again.Load()})
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-gone }
}
