// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"redoubt/internal/reshard"
)

// errSlow: writers would have had to wait for too long.
var errSlow = errors.New("the cut-over took too long")

const (
	refusing = "100000" // replicas that a closed source would need to take a write
	undoTime = 5 * time.Second
	ackTime  = time.Second
	nearer   = 3 // last rounds before writers wait
)

// cutOver keeps the source's writers waiting, carries the last keys over, closes the source, and looks whether anything was written
// until then. What goes wrong before the end opens the source again.
func (w *Whole) cutOver(ctx context.Context, out *Outcome) (err error) {
	w.phase.Store("cut-over")
	if err := w.prepare(ctx); err != nil {
		return err
	}
	began, keys := time.Now(), w.keys.Load()
	soft, cancel := context.WithTimeout(ctx, w.o.Pause)
	defer cancel()
	if err := w.closing(soft, out); err != nil {
		if ctx.Err() == nil && soft.Err() != nil {
			err = errors.Join(errSlow, err)
		}
		return errors.Join(err, w.reopen(ctx))
	}
	out.CutOver, out.LastKeys = time.Since(began), w.keys.Load()-keys
	w.end(ctx, out)
	return nil
}

func (w *Whole) closing(ctx context.Context, out *Outcome) error {
	steps := []func(context.Context, *leg) error{
		func(ctx context.Context, g *leg) error { return g.hold(ctx) },
		func(ctx context.Context, g *leg) error { return g.drain(ctx) },
	}
	if w.o.After == ReadOnly {
		steps = append(steps, func(ctx context.Context, g *leg) error { return g.shut(ctx) })
	}
	steps = append(steps, func(ctx context.Context, g *leg) error { return g.drain(ctx) }, // what came in although the source was to hold its writers
		func(ctx context.Context, g *leg) error { return g.last(ctx) },
		func(ctx context.Context, g *leg) error { return g.steady(ctx) })
	for _, step := range steps {
		if err := w.each(ctx, step); err != nil {
			return err
		}
	}
	if w.libs.Load() {
		if err := w.functions(ctx); err != nil {
			return err
		}
	}
	if w.replicas == 0 {
		return w.unturned(ctx, w.tgt)
	}
	var fewest atomic.Int64
	fewest.Store(w.replicas)
	err := w.each(ctx, func(ctx context.Context, g *leg) error {
		rep, err := g.to.ask(ctx, "WAIT", "1", strconv.FormatInt(ackTime.Milliseconds(), 10))
		if err == nil && rep.num < fewest.Load() {
			fewest.Store(rep.num) // of two legs that say different things at once either is told: it is for people
		}
		return err
	})
	out.Acked = fewest.Load()
	return errors.Join(err, w.unturned(ctx, w.tgt))
}

// prepare does what can be done before writers wait.
func (w *Whole) prepare(ctx context.Context) error {
	if w.libs.Load() {
		if err := w.functions(ctx); err != nil {
			return err
		}
	}
	if w.known || w.again.Load() > 0 {
		if err := w.each(ctx, func(ctx context.Context, g *leg) error { return g.sweep(ctx) }); err != nil {
			return err
		}
	}
	if w.o.After == ReadOnly {
		if err := w.each(ctx, func(ctx context.Context, g *leg) error { return g.findDoors(ctx) }); err != nil {
			return err
		}
		err := w.save(ctx, func(s *state) {
			for _, g := range w.legs {
				for _, d := range g.doors {
					s.Was = d.remember(s.Was)
				}
			}
		})
		if err != nil {
			return err
		}
	}
	for range nearer { // what is copied now need not be while writers wait
		if err := w.each(ctx, func(ctx context.Context, g *leg) error { return g.catchUp(ctx, w.o.Rate) }); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps writers waiting at the source, so that who is refused and goes elsewhere finds everything there. Servers before 6.2 can only
// keep everybody waiting, also us: they are closed at once.
func (g *leg) hold(ctx context.Context) error {
	_, err := g.src.ask(ctx, "CLIENT", "PAUSE", strconv.FormatInt((2*g.o.Pause).Milliseconds(), 10), "WRITE")
	var refused serverError
	if errors.As(err, &refused) && g.o.After == ReadOnly {
		return g.shut(ctx)
	}
	return err
}

// drain carries over what was written until now.
func (g *leg) drain(ctx context.Context) error {
	g.c.still = true
	defer func() { g.c.still = false }()
	if g.stream == nil {
		return g.drainBlind(ctx)
	}
	for {
		end, err := offsetOf(ctx, g.src)
		if err != nil {
			return err
		}
		if err := g.stream.readTo(ctx, end); err != nil {
			return err
		}
		if err := g.catchUp(ctx, reshard.Rate{}); err != nil {
			return err
		}
		now, err := offsetOf(ctx, g.src)
		if err != nil {
			return err
		}
		if now == end {
			g.point.Offset = end
			return nil
		}
	}
}

// drainBlind copies everything once more.
func (g *leg) drainBlind(ctx context.Context) error {
	if g.drained {
		return nil
	}
	g.drained, g.point.Copied, g.point.Mirror, g.point.Cursor = true, false, true, "0"
	var err error
	if g.scans, err = g.databases(ctx); err != nil {
		return err
	}
	return g.copyAll(ctx)
}

// end lets writers go on, at a source that refuses them or takes them again, and forgets the migration.
func (w *Whole) end(ctx context.Context, out *Outcome) {
	for _, g := range w.legs {
		if _, err := g.src.ask(ctx, "CLIENT", "UNPAUSE"); err != nil {
			w.o.Note(fmt.Sprintf("%v: writers wait for another %s at most", err, 2*w.o.Pause))
		}
		out.Sources = append(out.Sources, fmt.Sprintf("%s at offset %d", g.from.addr, g.point.Offset))
		for _, d := range g.doors {
			host, port, _ := net.SplitHostPort(d.Addr)
			for _, s := range d.Was {
				out.Reopen = append(out.Reopen, fmt.Sprintf("redis-cli -h %s -p %s config set %s %s", host, port, s.Name, s.Value))
			}
		}
	}
	if _, err := w.tgt.ask(ctx, "UNLINK", StateKey, orderKey); err != nil {
		w.o.Note(fmt.Sprintf("the target's key %s was not removed: %v", StateKey, err))
	}
}

// reopen gives writers back to the source, on connections of its own: the others may be what failed.
func (w *Whole) reopen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var failures []error
	for _, g := range w.legs {
		for _, d := range g.doors {
			for _, s := range d.Was {
				if d.shut {
					failures = append(failures, w.once(ctx, d.Addr, "CONFIG", "SET", s.Name, s.Value))
				}
			}
			d.shut = false
		}
		failures = append(failures, w.once(ctx, g.from.addr, "CLIENT", "UNPAUSE"))
	}
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("the source may go on refusing writers (by CLIENT PAUSE for %s at most, by min-replicas-to-write %s until that is set back): %w", 2*w.o.Pause, refusing, err)
	}
	return nil
}

func (w *Whole) once(ctx context.Context, addr string, args ...string) error {
	l, err := w.o.Source.At.dial(ctx, addr, "")
	if err != nil {
		return err
	}
	defer l.close()
	_, err = l.ask(ctx, args...)
	var refused serverError
	if errors.As(err, &refused) && strings.HasPrefix(string(refused), "ERR unknown subcommand") {
		return nil // UNPAUSE of a server that knows no PAUSE WRITE
	}
	return err
}
