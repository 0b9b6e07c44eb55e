// SPDX-License-Identifier: Apache-2.0

// Command proxy compares Redoubt's proxy with a direct connection and with the proxies that people use instead:
// twemproxy, predixy and HAProxy. It starts one server and all stacks in front of it, drives one stack at a time in
// interleaved rounds, and writes medians, ratios, CPU per request, a plot, and whether the targets are met.
//
// It is not for absolute figures: these move from machine to machine and from hour to hour. What counts are the
// ratios within one run. It runs on Linux only, and is a module of its own because nothing of it is in the product.
//
// Invariant: while a stack is measured, nothing else that this program started has work to do.
//
// Goroutines: one per started process, which reaps it; process.stop waits for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line.
type options struct {
	rounds    int
	seconds   float64
	workloads string
	stacks    string
	redoubt   string
	shards    int
	out       string
	lock      string
}

// binary is one build of Redoubt, by the name that its row has.
type binary struct{ name, path string }

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 7, "interleaved rounds for each workload")
	flag.Float64Var(&o.seconds, "seconds", 2, "how long a round of one stack takes, about")
	flag.StringVar(&o.workloads, "workloads", "", "only these, with commas between: "+strings.Join(workloadNames(false), ",")+"; with -shards "+strings.Join(workloadNames(true), ","))
	flag.StringVar(&o.stacks, "stacks", "", "only these, with commas between: "+strings.Join(stackNames(false), ","))
	flag.StringVar(&o.redoubt, "redoubt", "bin/redoubt", "the binary, or several builds to compare: name=path,name2=path2")
	flag.IntVar(&o.shards, "shards", 0, "compare the front of so many shards with the peers over the same servers; 0: the proxy of one")
	flag.StringVar(&o.out, "out", "bin/bench-proxy.md", "where the report goes; the plot goes beside it as .png")
	flag.StringVar(&o.lock, "lock", "", "hold this file's lock while a workload is measured, as flock(1) does, so that benchmarks take turns")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-proxy:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	builds, err := parseBuilds(o.redoubt)
	if err != nil {
		return err
	}
	loads, err := selectWorkloads(o.workloads, o.shards > 0)
	if err != nil {
		return err
	}
	wanted, err := selectNames(o.stacks, stackNames(o.shards > 0))
	if err != nil {
		return err
	}
	if o.rounds < 1 || o.seconds <= 0 || o.shards < 0 {
		return errors.New("-rounds and -seconds must be positive")
	}
	files, err := raiseFileLimit()
	if err != nil {
		return err
	}
	r, err := startRig(ctx, builds, wanted, o.shards)
	if err != nil {
		return err
	}
	defer r.stop()
	begun := time.Now()
	res := newResults(r, o.rounds, o.seconds)
	for _, w := range loads {
		if need := 2*w.clients + 200; need > files {
			res.note("%s is left out: it needs %d open files for one process, the limit is %d (ulimit -n)", w.title, need, files)
			continue
		}
		if err := measureLocked(ctx, o, r, w, res); err != nil {
			return err
		}
	}
	res.took = time.Since(begun)
	return write(o.out, res)
}

// measureLocked measures one workload, in turn with others who use the same lock.
func measureLocked(ctx context.Context, o options, r *rig, w workload, res *results) error {
	if o.lock != "" {
		f, err := os.OpenFile(o.lock, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return fmt.Errorf("open the lock: %w", err)
		}
		defer f.Close() // releases it
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return fmt.Errorf("lock %s: %w", o.lock, err)
		}
	}
	busy, err := othersBusy(ctx)
	if err != nil {
		return err
	}
	if res.busy = append(res.busy, busy); busy > 0.05 {
		fmt.Fprintf(os.Stderr, "other programs use %.0f %% of this machine's CPU time: expect scattered figures\n", 100*busy)
	}
	return measure(ctx, r, w, res)
}

// write stores the report and its plot, and shows the report.
func write(path string, res *results) error {
	picture := strings.TrimSuffix(path, filepath.Ext(path)) + ".png"
	text := report(res, filepath.Base(picture))
	fmt.Println(text)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the report's directory: %w", err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := plotTo(picture, res); err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	fmt.Fprintf(os.Stderr, "wrote %s and %s\n", path, picture)
	return nil
}

// parseBuilds reads -redoubt: a path, or names with paths.
func parseBuilds(s string) ([]binary, error) {
	var all []binary
	for part := range strings.SplitSeq(s, ",") {
		name, path, named := strings.Cut(part, "=")
		if !named {
			name, path = "redoubt", part
		}
		if name == "" || path == "" || name != "redoubt" && slices.Contains(stackNames(false), name) {
			return nil, fmt.Errorf("-redoubt %q: a path, or name=path with a name that no other stack has", part)
		}
		if slices.ContainsFunc(all, func(b binary) bool { return b.name == name }) {
			return nil, fmt.Errorf("-redoubt: %q is named twice", name)
		}
		full, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("-redoubt %s: %w", path, err)
		}
		all = append(all, binary{name, full})
	}
	return all, nil
}

// selectNames reads a list of names with commas between; empty means all.
func selectNames(s string, known []string) ([]string, error) {
	if s == "" {
		return known, nil
	}
	names := strings.Split(s, ",")
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("%q is none of %s", n, strings.Join(known, ", "))
		}
	}
	return names, nil
}

// raiseFileLimit lets this program and what it starts open as many files as the hard limit allows.
func raiseFileLimit() (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	l.Cur = l.Max
	// Set through this package, the limit is inherited by children; the runtime's own raise is not.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return int(min(l.Cur, 1<<30)), nil
}
