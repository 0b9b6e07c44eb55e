// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"redoubt/test/netns"
)

// run is one seed.
type run struct {
	o           options
	seed        int64
	dir         string
	reads       string
	persistence string
	history     *history
	sys         system
	b           *base
	broken      atomic.Bool  // a fault could not be undone
	hit         atomic.Int64 // the host of the last fault
	state       []byte       // what the system said about itself at the end
}

func (r *run) net() *netns.Net   { return r.b.net }
func (r *run) disk(i int) string { return r.b.disk(i) }

const (
	startWithin   = 60 * time.Second
	recoverWithin = 60 * time.Second
)

// play builds the system, torments it under traffic, and reads at the end what is left.
func (r *run) play(ctx context.Context) (err error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	switch r.o.mode {
	case "sentinel":
		s := &plain{base: base{r: r}}
		r.sys, r.b = s, &s.base
	case "cluster":
		s := &cluster{base: base{r: r}}
		r.sys, r.b = s, &s.base
	default:
		m := &members{base: base{r: r}}
		r.sys, r.b = m, &m.base
	}
	defer func() {
		r.sys.stop()
		if r.b.net != nil {
			err = errors.Join(err, r.b.net.Down())
		}
	}()
	if err := r.sys.start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := r.wellWithin(ctx, startWithin); err != nil {
		return fmt.Errorf("not well within %s of the start: %w", startWithin, err)
	}
	r.history.note("all is well; traffic begins")
	busy, quiet := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); r.traffic(busy) }()
	begun := r.history.now()
	r.torment(ctx)
	healed := r.history.now()
	r.history.note("all faults are over")
	wait(ctx, begun+time.Duration(r.o.seconds)*time.Second-r.history.now())
	well := r.wellWithin(ctx, recoverWithin)
	if well == nil {
		r.history.note("all is well again; the traffic goes on for 2 s")
		wait(ctx, 2*time.Second)
	}
	quiet()
	<-done
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.remember(ctx)
	var errs []error
	if well != nil && r.o.ours() {
		errs = append(errs, fmt.Errorf("not well within %s after the last fault: %w", (r.history.now()-healed).Round(time.Second), well))
	}
	if r.broken.Load() {
		errs = append(errs, errors.New("a fault could not be undone: see the timeline"))
	}
	return errors.Join(append(errs, r.readAll(ctx))...) // what is left counts, even if not all is well
}

// wellWithin waits until everything is well.
func (r *run) wellWithin(ctx context.Context, within time.Duration) error {
	end := time.Now().Add(within)
	for {
		err := r.sys.healthy(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil || time.Now().After(end) {
			return err
		}
		wait(ctx, 100*time.Millisecond)
	}
}

// readAll reads every key through every host.
func (r *run) readAll(ctx context.Context) error {
	gens := int(r.history.now()/keyLife) + 1
	for host := 1; host <= r.o.hosts; host++ {
		c := &client{id: 1000 + host, host: host, c: r.sys.client(host, host), h: r.history, rnd: rand.New(rand.NewPCG(1, 1)), final: true}
		err := c.readKeys(ctx, gens)
		c.c.Close()
		r.history.add(c.ops)
		if err != nil {
			return fmt.Errorf("the last reads through host %d: %w", host, err)
		}
	}
	return nil
}

func (c *client) readKeys(ctx context.Context, gens int) error {
	for gen := range gens {
		for _, read := range []func() op{
			func() op { return c.get(fmt.Sprintf("r:%d", gen)) },
			func() op { return c.get(fmt.Sprintf("c:%d", gen)) },
			func() op { return c.counts(fmt.Sprintf("t:%d", gen)) },
			func() op { return c.smembers(fmt.Sprintf("s:%d", gen)) },
			func() op { return c.lrange(fmt.Sprintf("l:%d", gen)) },
		} {
			o := read()
			for try := 0; o.Outcome != ok; try++ {
				if try == 20 || ctx.Err() != nil {
					return fmt.Errorf("%s %s: %s", o.Kind, o.Key, o.Err)
				}
				wait(ctx, 300*time.Millisecond)
				o = read()
			}
		}
	}
	return nil
}

// remember keeps what the system says about itself, for a failing run.
func (r *run) remember(ctx context.Context) {
	m, is := r.sys.(*members)
	if !is {
		return
	}
	for i := 1; i <= r.o.hosts; i++ {
		for _, path := range []string{"/v1/status", "/v1/history", "/v1/explain"} {
			var v any
			if err := m.ask(ctx, i, path, &v); err != nil {
				continue
			}
			text, _ := json.MarshalIndent(v, "", " ")
			r.state = fmt.Appendf(r.state, "host %d %s\n%s\n", i, path, text)
		}
	}
}

// troubles are lines in the logs that no fault excuses.
func (r *run) troubles() []string {
	var out []string
	logs, _ := filepath.Glob(filepath.Join(r.dir, "n*.log"))
	for _, f := range logs {
		text, err := os.ReadFile(f)
		if err != nil {
			out = append(out, err.Error())
		}
		for line := range bytes.Lines(text) {
			if bytes.HasPrefix(line, []byte("panic: ")) || bytes.HasPrefix(line, []byte("fatal error: ")) {
				out = append(out, filepath.Base(f)+": "+strings.TrimSpace(string(line)))
			}
		}
	}
	return out
}

// leave writes everything that explains a run to a directory that outlives it.
func (r *run) leave(dir string, why error) string {
	errs := []error{os.MkdirAll(dir, 0o755)}
	files, _ := filepath.Glob(filepath.Join(r.dir, "*.*"))
	inside, _ := filepath.Glob(filepath.Join(r.dir, "disk-*", "data", "redis", "*.log"))
	if r.o.cluster {
		inside, _ = filepath.Glob(filepath.Join(r.dir, "disk-*", "data", "redis", fmt.Sprintf("s%d", ourShard+1), "*.log"))
	}
	for _, f := range append(files, inside...) {
		text, err := os.ReadFile(f)
		name := filepath.Base(f)
		if slices.Contains(inside, f) {
			name = strings.Split(strings.TrimPrefix(f, r.dir+"/"), "/")[0] + "-" + name
		}
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	plan := ""
	if r.o.cluster {
		plan = " -cluster"
	}
	if r.o.store != raft {
		plan += " -store " + r.o.store
	}
	if r.o.plan != "" {
		plan += " -plan " + r.o.plan
	}
	said := fmt.Sprintf("seed %d\nmode %s\nreads %s\npersistence %s\nhosts %d\nseconds %d\nagain: make chaos SEED=%d MODE=%s SECONDS=%d HOSTS=%d ARGS=\"-reads %s -persistence %s%s\"\nerror: %v\n",
		r.seed, r.o.mode, r.reads, r.persistence, r.o.hosts, r.o.seconds, r.seed, r.o.mode, r.o.seconds, r.o.hosts, r.reads, r.persistence, plan, why)
	errs = append(errs, os.WriteFile(filepath.Join(dir, "run.txt"), []byte(said), 0o600),
		os.WriteFile(filepath.Join(dir, "state.txt"), r.state, 0o600),
		r.history.write(filepath.Join(dir, "operations.jsonl"), filepath.Join(dir, "timeline.txt")))
	if err := errors.Join(errs...); err != nil {
		return fmt.Sprintf("%s (incomplete: %v)", dir, err)
	}
	return dir
}
