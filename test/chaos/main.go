// SPDX-License-Identifier: Apache-2.0

// Command chaos is the proof by violence: it builds hosts of network namespaces, runs a real member with its server in
// each, lets clients on every host write and read, does to the hosts what production does (kills, stops, cuts, lost
// packets, full disks, switchovers in the middle of it), and judges the recorded histories. It also runs the same against
// plain Sentinel, which must be seen to lose acknowledged writes: a judge that sees nothing proves nothing.
//
// It is no unit test and measures no speed. Invariant: an operation whose outcome is not certain is recorded as unknown;
// the judge allows it to have happened or not. Goroutines: those of the supervisor (one for each process), of the clients,
// and of the faults; a run waits for all of them. docs/internals/chaos.md says how to read its output.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"redoubt/test/netns"
)

// options are the command line.
type options struct {
	mode        string
	store       string
	reads       string
	retry       string
	persistence string
	plan        string
	script      []fault // what plan says
	seed        int64
	seeds       int
	hosts       int
	seconds     int
	soak        time.Duration
	detect      time.Duration
	maxLoss     time.Duration
	compare     string
	bin         string
	out         string
	expectLoss  bool
	keep        bool
	quick       bool
	judgeLease  bool
	cluster     bool
}

func flags() options {
	var o options
	flag.StringVar(&o.mode, "mode", "quorum", "quorum, async, direct (Redoubt's Sentinel endpoint with the servers' own addresses), sentinel (plain Sentinel) or cluster (plain Redis Cluster)")
	flag.BoolVar(&o.cluster, "cluster", false, "Redoubt in mode cluster: three shards, one of which has the traffic (quorum, async)")
	flag.StringVar(&o.store, "store", "raft", "raft, etcd, consul or kubernetes, of which one node runs on each host (Redoubt's modes)")
	flag.StringVar(&o.retry, "retry", "none", "exact: writes in doubt are settled by a marker (quorum)")
	flag.StringVar(&o.reads, "reads", "", "local, lease or linearizable; empty: the seed decides (quorum)")
	flag.BoolVar(&o.judgeLease, "judge-lease", false, "judge reads under the lease as linearizable ones; they do not promise that across proxies")
	flag.StringVar(&o.persistence, "persistence", "", "aof or none; empty: the seed decides, mostly aof")
	flag.StringVar(&o.plan, "plan", "", "a schedule instead of the seed's: KIND@AT+LASTS:TARGET,… such as cut@2s+6s:primary")
	flag.Int64Var(&o.seed, "seed", 0, "first seed; 0: from the clock")
	flag.IntVar(&o.seeds, "seeds", 1, "how many seeds")
	flag.IntVar(&o.hosts, "hosts", 0, "3 or 5; 0: the seed decides, mostly 3")
	flag.IntVar(&o.seconds, "seconds", 60, "length of each run; faults in its first three quarters")
	flag.DurationVar(&o.soak, "soak", 0, "go on with further seeds for this long")
	flag.StringVar(&o.bin, "bin", "", "the program under test; empty: it is built")
	flag.StringVar(&o.out, "out", filepath.Join(os.TempDir(), "redoubt-chaos-failed"), "what failing runs leave")
	flag.DurationVar(&o.detect, "detect", 5*time.Second, "Sentinel's down-after, and Cluster's node-timeout")
	flag.DurationVar(&o.maxLoss, "max-loss", 0, "async: the dial max-loss.time")
	flag.StringVar(&o.compare, "compare", "", "single faults of the primary against all systems, or those that are named with commas; prints a table")
	flag.BoolVar(&o.expectLoss, "expect-loss", false, "fail unless acknowledged writes are seen to be lost, in all seeds together")
	flag.BoolVar(&o.keep, "keep", false, "runs that pass leave their histories, too")
	flag.BoolVar(&o.quick, "quick", false, "four short seeds of quorum, then a cut primary in async, whose losses must be found")
	flag.Parse()
	switch {
	case o.seed == 0 && o.quick:
		o.seed = 1 // a gate that plays something else each time is none
	case o.seed == 0:
		o.seed = time.Now().UnixNano() % 1_000_000
	}
	if o.plan != "" && o.hosts == 0 {
		o.hosts = 3 // a plan names them
	}
	if o.soak > 0 {
		o.seeds = math.MaxInt
	}
	return o
}

// ours tells our own systems from those that are there for comparison.
func (o options) ours() bool { return o.mode != "sentinel" && o.mode != "cluster" }

// topology says, behind the mode, that there are several shards, and that there is a store outside.
func (o options) topology() string {
	text := ""
	if o.cluster {
		text = " in a cluster"
	}
	if o.ours() && o.store != raft {
		text += " over " + o.store
	}
	return text
}

func (o options) check() error {
	switch {
	case o.mode != "quorum" && o.mode != "async" && o.mode != "direct" && o.ours():
		return fmt.Errorf("mode %q: give quorum, async, direct, sentinel or cluster", o.mode)
	case o.cluster && o.mode != "quorum" && o.mode != "async":
		return fmt.Errorf("-cluster is for modes quorum and async, not %s", o.mode)
	case o.hosts != 0 && o.hosts != 3 && o.hosts != 5:
		return fmt.Errorf("%d hosts: give 3 or 5", o.hosts)
	case o.seconds < 10:
		return fmt.Errorf("%d seconds: give at least 10", o.seconds)
	case os.Geteuid() != 0:
		return errors.New("chaos builds network namespaces and mounts bounded disks, and needs root: run it as root")
	}
	if _, err := program(o.store); err != nil {
		return err
	}
	for _, tool := range []string{"ip", "iptables", "redis-server"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: `make deps` and your package manager install it", tool)
		}
	}
	return nil
}

func main() {
	o := flags()
	var err error
	if o.script, err = script(o.plan, o.hosts, o.faultTime()); err == nil {
		err = o.check()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	}
	redis.SetLogger(&logging.VoidLogger{}) // what clients meet is in the histories
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	passed, failed, err := all(ctx, o.batches())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || err != nil {
		os.Exit(1)
	}
}

// batches are what is played one after the other: one, or those of the quick proof.
func (o options) batches() []options {
	if !o.quick {
		return []options{o}
	}
	sound, planted := o, o
	sound.mode, sound.seeds, sound.seconds, sound.soak = "quorum", 4, 20, 0
	planted.mode, planted.seeds, planted.seconds, planted.soak, planted.expectLoss = "async", 1, 20, 0, true
	planted.hosts = 3
	planted.script = []fault{{at: 2 * time.Second, lasts: 6 * time.Second, kind: "cut", target: "primary"}}
	return []options{sound, planted}
}

// all plays batches, in a directory that does not outlive it.
func all(ctx context.Context, batches []options) (passed, failed int, err error) {
	if err := sweep(); err != nil {
		return 0, 0, err
	}
	work := workDir(os.Getpid())
	if err := os.MkdirAll(work, 0o700); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, discard(work)) }()
	for _, o := range batches {
		if batches[0].bin == "" && o.ours() {
			batches[0].bin = filepath.Join(work, "redoubt")
			build := exec.CommandContext(ctx, "go", "build", "-o", batches[0].bin, "./cmd/redoubt")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return passed, failed, fmt.Errorf("build: %w: %s", err, out)
			}
		}
		o.bin = batches[0].bin
		if o.compare != "" {
			return passed, failed, compare(ctx, o, work)
		}
		good, bad, err := batch(ctx, o, work)
		passed, failed = passed+good, failed+bad
		if err != nil {
			return passed, failed, err
		}
	}
	return passed, failed, nil
}

// batch plays the seeds one after the other.
func batch(ctx context.Context, o options, work string) (passed, failed int, err error) {
	end := time.Now().Add(o.soak)
	lost := 0
	for i := 0; i < o.seeds && (o.soak == 0 || time.Now().Before(end)); i++ {
		v, err := one(ctx, o, o.seed+int64(i), work)
		switch {
		case ctx.Err() != nil:
			return passed, failed, errors.New("interrupted")
		case err != nil:
			fmt.Printf("seed %d FAILED: %v\n", o.seed+int64(i), err)
			failed++
		default:
			passed++
		}
		lost += v.lost()
	}
	if o.expectLoss && lost == 0 {
		fmt.Println("FAILED: no loss was seen where there must be one: the harness is blind, or the faults were too mild")
		return 0, passed + failed, nil
	}
	return passed, failed, nil
}

// one plays and judges one seed. An error is a violated promise, or a harness that could not do its work.
func one(ctx context.Context, o options, seed int64, work string) (verdict, error) {
	r := newRun(o, seed, filepath.Join(work, strconv.FormatInt(seed, 10)))
	fmt.Printf("seed %d: mode %s%s, reads %s, persistence %s, %d hosts, %d s\n", seed, o.mode, o.topology(), r.reads, r.persistence, r.o.hosts, o.seconds)
	err := r.play(ctx)
	var v verdict
	if len(r.history.ops) > 0 && ctx.Err() == nil {
		v = judge(r.history.ops, judging{linearReads: r.reads == "linearizable" || r.reads == "lease" && o.judgeLease, dir: r.dir, hit: int(r.hit.Load())})
		v.fatal = append(v.fatal, r.troubles()...)
		fmt.Println(v.String())
		if o.ours() { // what the others promise is seen, not judged
			err = errors.Join(err, v.verdict(o.mode == "quorum"), v.withinDial(o))
		}
	}
	if ctx.Err() == nil && (err != nil || o.keep) {
		fmt.Println("  everything about it is in", r.leave(filepath.Join(o.out, fmt.Sprintf("%s-%d-%d", o.mode, seed, os.Getpid())), err))
	}
	return v, errors.Join(err, discard(r.dir))
}

// newRun draws what the seed decides beside the faults.
func newRun(o options, seed int64, dir string) *run {
	r := &run{o: o, seed: seed, dir: dir, reads: o.reads, persistence: o.persistence, history: newHistory()}
	draw := rand.New(rand.NewPCG(uint64(seed), 1))
	linear, none := draw.IntN(2) == 0, draw.IntN(4) == 0
	if five := draw.IntN(4) == 0; r.o.hosts == 0 {
		r.o.hosts = 3
		if five {
			r.o.hosts = 5
		}
	}
	if o.mode == "quorum" {
		if r.reads == "" && linear {
			r.reads = "linearizable"
		}
		if r.persistence == "" && none {
			r.persistence = "none"
		}
	}
	if r.reads == "" || o.mode != "quorum" {
		r.reads = "local"
	}
	if r.persistence == "" {
		r.persistence = "aof"
	}
	return r
}

const workPrefix = "redoubt-chaos-"

func workDir(pid int) string { return filepath.Join(os.TempDir(), workPrefix+strconv.Itoa(pid)) }

// sweep removes hosts, mounts and directories of runs that are gone.
func sweep() error {
	if err := netns.Sweep(); err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), workPrefix+"*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), workPrefix))
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			if err := discard(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// discard unmounts what is mounted below a directory and removes it.
func discard(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = freeze(f[1], false) // a killed run may have left it frozen; the others say that they are not
			if err := syscall.Unmount(f[1], syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", f[1], err)
			}
		}
	}
	return os.RemoveAll(dir)
}
