// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// lostWatch is how every client program reports an EXEC that answered null.
const lostWatch = "EXEC answered null"

// report is what a client program says of one operation, as one line of JSON.
type report struct {
	Feature string `json:"f"`
	Seq     int64  `json:"seq"`
	StartUS int64  `json:"s"`
	EndUS   int64  `json:"e"`
	Error   string `json:"err"`
	Value   string `json:"v"`
}

func (r report) start() time.Time { return time.UnixMicro(r.StartUS) }
func (r report) end() time.Time   { return time.UnixMicro(r.EndUS) }

// participant is one client in four roles, each with connections of its own: the main loop over all features, a waiting
// pop, a subscriber, and a slow SCAN.
type participant struct {
	name   string
	tagged bool     // its keys have a hash tag
	skips  []string // features that it does without
	stops  []func()
	ends   []chan struct{}
	stderr lockedText

	mu      sync.Mutex
	reports map[string][]report
}

func (p *participant) prefix() string {
	if p.tagged {
		return "{m:" + p.name + "}:"
	}
	return "m:" + p.name + ":"
}

func (p *participant) add(r report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reports == nil {
		p.reports = map[string][]report{}
	}
	p.reports[r.Feature] = append(p.reports[r.Feature], r)
}

// all returns the reports of a feature; they are only ever appended to.
func (p *participant) all(feature string) []report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reports[feature]
}

// successes counts those that began after a moment, or for messages arrived; and gives the latest report of any kind.
func (p *participant) successes(feature string, since time.Time) (int, string) {
	n, last := 0, "none"
	for _, r := range p.all(feature) {
		if r.Error == "" && r.start().After(since) {
			n++
		}
		last = fmt.Sprintf("%d %q %s", r.Seq, r.Error, r.end().Format("15:04:05.000"))
	}
	return n, last
}

func (p *participant) complaints() string {
	if s := p.stderr.String(); s != "" {
		return "; its standard error: " + s
	}
	return ""
}

// finish ends the roles one after the other, those that others wait for last, with a bound.
func (p *participant) finish(t *testing.T) {
	t.Helper()
	for i, stop := range p.stops {
		stop()
		select {
		case <-p.ends[i]:
		case <-time.After(2 * patience):
			t.Errorf("%s did not end within %s: an operation hangs", p.name, 2*patience)
		}
	}
}

// lockedText keeps the first 64 KiB that are written to it.
type lockedText struct {
	mu   sync.Mutex
	text []byte
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b[:min(len(b), 65536-len(l.text))]...)
	return len(b), nil
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// asProcess runs a program once for each role: PROGRAM HOST PORT PREFIX ROLE. It ends when its standard input is closed.
func asProcess(argv ...string) func(*testing.T, *participant, string) {
	return func(t *testing.T, p *participant, addr string) {
		t.Helper()
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Skipf("%s is not installed (scripts/deps.sh matrix installs it)", argv[0])
		}
		host, port, _ := net.SplitHostPort(addr)
		for _, role := range []string{"main", "scan", "sub", "pop"} {
			p.process(t, role, append(argv[1:len(argv):len(argv)], host, port, p.prefix(), role), argv[0])
		}
	}
}

func (p *participant) process(t *testing.T, role string, args []string, program string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stderr = &p.stderr
	in, out := pipes(t, cmd)
	end := make(chan struct{})
	p.ends = append(p.ends, end)
	p.stops = append(p.stops, sync.OnceFunc(func() {
		in.Close()
		if role == "pop" || role == "sub" {
			wait(50 * time.Millisecond) // what is on its way arrives
			_ = cmd.Process.Kill()      // a program that waits for an element need not look at its input
		}
	}))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-end
	})
	go func() {
		defer close(end)
		defer cmd.Wait()
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var r report
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				r = report{Feature: "setup", Error: fmt.Sprintf("%s wrote %q", role, clip(lines.Text()))}
			}
			p.add(r)
		}
	}()
}

// goOps is a client library in Go, or one that Go drives, feature by feature.
type goOps struct {
	setup     func(context.Context) error
	loop      map[string]func(ctx context.Context, seq int64) (value string, err error)
	pop       func(context.Context) (string, error)                   // "" when the time was over
	subscribe func(ctx context.Context, got func(string)) error       // returns when ctx ends, or fails
	scan      func(ctx context.Context, key func(string)) (err error) // calls key for each that it gets
	close     func()
}

// inGo runs the four roles as goroutines.
func inGo(connect func(t *testing.T, addr, prefix string) goOps) func(*testing.T, *participant, string) {
	return func(t *testing.T, p *participant, addr string) {
		t.Helper()
		ops := connect(t, addr, p.prefix())
		ctx, cancel := context.WithCancel(context.Background())
		end := make(chan struct{})
		p.stops, p.ends = []func(){cancel}, []chan struct{}{end}
		if err := ops.setup(ctx); err != nil {
			p.add(report{Feature: "setup", Error: err.Error()})
		}
		var work, waiting sync.WaitGroup
		work.Go(func() { p.mainLoop(ctx, ops) })
		work.Go(func() {
			for seq := int64(1); ctx.Err() == nil; seq++ {
				p.timed(ctx, "scan", seq, func() (string, error) { return "", p.scanOnce(ctx, ops) })
			}
		})
		waiting.Go(func() {
			for ctx.Err() == nil {
				p.timed(ctx, "pop", 0, func() (string, error) { return ops.pop(ctx) })
			}
		})
		waiting.Go(func() { p.listen(ctx, ops) })
		go func() {
			defer close(end)
			work.Wait()
			ops.close() // which ends those that wait
			waiting.Wait()
		}()
		t.Cleanup(cancel)
	}
}

func (p *participant) listen(ctx context.Context, ops goOps) {
	for ctx.Err() == nil {
		err := ops.subscribe(ctx, func(v string) {
			now := time.Now().UnixMicro()
			p.add(report{Feature: "message", StartUS: now, EndUS: now, Value: v})
		})
		p.timed(ctx, "message", 0, func() (string, error) { return "", fmt.Errorf("the subscription ended: %w", err) })
	}
}

// mainLoop lets no cancellation reach an operation: default clients are used without deadlines.
func (p *participant) mainLoop(ctx context.Context, ops goOps) {
	for seq := int64(1); ctx.Err() == nil; seq++ {
		for _, f := range append(loopFeatures[:len(loopFeatures):len(loopFeatures)], "cache") {
			if op := ops.loop[f]; op != nil && !slices.Contains(p.skips, f) {
				p.timed(context.Background(), f, seq, func() (string, error) { return op(context.Background(), seq) })
			}
		}
		wait(5 * time.Millisecond)
	}
}

// timed reports an operation, unless it failed because the role was ended.
func (p *participant) timed(ctx context.Context, feature string, seq int64, op func() (string, error)) {
	r := report{Feature: feature, Seq: seq, StartUS: time.Now().UnixMicro()}
	v, err := op()
	if err != nil && ctx.Err() != nil {
		return
	}
	r.EndUS, r.Value, r.Error = time.Now().UnixMicro(), v, errText(err)
	p.add(r)
}

var errLostWatch = errors.New(lostWatch)

func (p *participant) scanOnce(ctx context.Context, ops goOps) error {
	seen := map[string]bool{}
	calls := 0
	err := ops.scan(ctx, func(k string) {
		seen[k] = true
		if calls++; calls%20 == 0 {
			wait(10 * time.Millisecond)
		}
	})
	if err != nil {
		return err
	}
	var missing []string
	for i := range scanned {
		if k := fmt.Sprintf("%sfix:%d", p.prefix(), i); !seen[k] {
			missing = append(missing, k)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("a complete SCAN did not return %d of %d keys that were there all the time: %s", len(missing), scanned, strings.Join(missing[:min(3, len(missing))], " "))
	}
	return nil
}
