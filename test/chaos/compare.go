// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// contestant is one system at one setting; what its name says.
type contestant struct {
	name, mode, reads string
	detect, maxLoss   time.Duration
}

func contestants() []contestant {
	return []contestant{
		{"quorum", "quorum", "local", 0, 0},
		{"linearizable", "quorum", "linearizable", 0, 0},
		{"async", "async", "", 0, 0},
		{"max-loss", "async", "", 0, 500 * time.Millisecond},
		{"sentinel-5s", "sentinel", "", 5 * time.Second, 0},
		{"sentinel-1s", "sentinel", "", time.Second, 0},
		{"cluster-5s", "cluster", "", 5 * time.Second, 0},
		{"cluster-1s", "cluster", "", time.Second, 0},
	}
}

// trials are the faults of the comparison, one in each run: those of the plan, or some of the primary.
func trials(o options) []fault {
	if len(o.script) > 0 {
		return o.script
	}
	var fs []fault
	for _, kind := range []string{"kill-server", "kill-host", "stop-server", "cut", "disk-hang", "switchover"} {
		f := fault{at: 3 * time.Second, lasts: 12 * time.Second, kind: kind, target: "primary"}
		if kind == "switchover" {
			f.lasts = 0
		}
		fs = append(fs, f)
	}
	return fs
}

// compare plays the same faults against all contestants, or those that are named, and prints what each of them lost.
func compare(ctx context.Context, o options, work string) error {
	names := strings.FieldsFunc(o.compare, func(c rune) bool { return c == ',' })
	var table []string
	for _, trial := range trials(o) {
		for _, c := range contestants() {
			if !slices.Contains(names, c.name) && o.compare != "all" {
				continue
			}
			run := o
			run.mode, run.reads, run.detect, run.maxLoss, run.persistence = c.mode, c.reads, c.detect, c.maxLoss, "aof"
			run.seconds, run.script = 20, []fault{trial}
			if run.hosts == 0 {
				run.hosts = 3
			}
			s := sum{}
			for k := range o.seeds {
				v, err := one(ctx, run, o.seed+int64(k), work)
				if ctx.Err() != nil {
					return errors.New("interrupted")
				}
				s.add(v, err)
			}
			table = append(table, fmt.Sprintf("| %s | %s | %s |", trial.kind, c.name, s))
		}
	}
	fmt.Println("\n| fault | system | runs | acknowledged writes | lost | of these back or twice | keys without an order | within | reads that missed something | longest outage of the other hosts | failed |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, line := range table {
		fmt.Println(line)
	}
	return nil
}

// sum is what several runs of one fault show together.
type sum struct {
	runs, writes, lost, again, unordered, missed, failed int
	span                                                 time.Duration
	gaps                                                 []time.Duration
}

func (s *sum) add(v verdict, err error) {
	s.runs++
	s.writes += v.writes
	s.lost += len(v.lostElements)
	s.again += v.again
	s.unordered += len(v.unordered)
	s.missed += len(v.stale) + v.lax
	s.span = max(s.span, v.span())
	s.gaps = append(s.gaps, v.others)
	if err != nil {
		s.failed++
	}
}

func (s sum) String() string {
	slices.Sort(s.gaps)
	return fmt.Sprintf("%d | %d | %d | %d | %d | %s | %d | %.1f–%.1f s | %d", s.runs, s.writes, s.lost, s.again, s.unordered, s.span.Round(time.Millisecond),
		s.missed, s.gaps[0].Seconds(), s.gaps[len(s.gaps)-1].Seconds(), s.failed)
}
