// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is the whole page.
func report(r *results, picture string) string {
	var b strings.Builder
	if r.shards > 0 {
		fmt.Fprintf(&b, "# Redoubt's front beside others, over %d shards\n\nWritten by `make bench-front`. %s\n\n", r.shards, conditions(r))
	} else {
		b.WriteString("# Redoubt's proxy beside others\n\nWritten by `make bench-proxy`. " + conditions(r) + "\n\n")
	}
	if len(r.columns) > 1 {
		fmt.Fprintf(&b, "![Rate relative to a direct connection, and CPU per request](%s)\n\n", picture)
	}
	for _, c := range r.columns {
		if c.redoubt {
			writeVerdicts(&b, r, c.name)
		}
	}
	writeOverview(&b, r)
	writeLatency(&b, r)
	writeDetails(&b, r)
	writeMethod(&b, r)
	return b.String()
}

// conditions says where and how long.
func conditions(r *results) string {
	text := fmt.Sprintf("%s, %s, %s; %d interleaved rounds of %g s, %s in all.", time.Now().UTC().Format("2 January 2006"), machine(),
		kernel(), r.rounds, r.seconds, r.took.Round(time.Second))
	if len(r.busy) > 0 {
		text += fmt.Sprintf(" Just before each workload, %.0f–%.0f %% of the machine's CPU time was in use by others.", 100*slices.Min(r.busy), 100*slices.Max(r.busy))
	}
	return text
}

func machine() string {
	model := runtime.GOARCH
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%d CPUs (%s)", runtime.NumCPU(), model)
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return runtime.GOOS
	}
	version, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return "Linux " + version
}

func writeVerdicts(b *strings.Builder, r *results, name string) {
	all := verdicts(r, name)
	met, measured := 0, 0
	for _, v := range all {
		if v.measured {
			measured++
		}
		if v.measured && v.met {
			met++
		}
	}
	fmt.Fprintf(b, "## Targets of %s: %d of %d met\n\n| workload | target | measured | |\n| --- | --- | --- | --- |\n", name, met, measured)
	for _, v := range all {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", v.workload, v.target, v.figures, v.word())
	}
	b.WriteString("\n")
}

// writeOverview is one line for each workload: the rate relative to direct, and the proxy's CPU.
func writeOverview(b *strings.Builder, r *results) {
	b.WriteString("## Rate relative to a direct connection (proxy CPU per request, µs)\n\n| workload |")
	for _, c := range r.columns {
		b.WriteString(" " + c.name + " |")
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(r.columns)) + "\n")
	for _, w := range r.loads {
		if w.rate > 0 {
			continue
		}
		fmt.Fprintf(b, "| %s |", w.title)
		for _, c := range r.columns {
			b.WriteString(" " + overviewCell(r, w, c) + " |")
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

func overviewCell(r *results, w workload, c column) string {
	own, ok := r.of(w.name, c.name, rate)
	if !ok {
		return "failed"
	}
	text := thousands(own.median)
	if q, ok := r.ratio(w.name, c.name, "direct"); ok && c.name != "direct" {
		text = fmt.Sprintf("%.2f", q)
	}
	if cpu, ok := r.of(w.name, c.name, proxyCPU); ok && c.proxy {
		text += " (" + short(cpu.median) + ")"
	}
	return text
}

func writeLatency(b *strings.Builder, r *results) {
	for _, w := range r.loads {
		if w.rate == 0 {
			continue
		}
		fmt.Fprintf(b, "## Latency: %s\n\n| stack | median, µs | p99, µs | proxy CPU, µs/request | server CPU, µs/request |\n| --- | --- | --- | --- | --- |\n", w.title)
		for _, c := range r.columns {
			half, ok := r.of(w.name, c.name, p50)
			if !ok {
				fmt.Fprintf(b, "| %s | failed | | | |\n", c.name)
				continue
			}
			late, _ := r.of(w.name, c.name, p99)
			fmt.Fprintf(b, "| %s | %.0f (%.0f–%.0f) | %.0f (%.0f–%.0f) | %s | %s |\n", c.name, half.median, half.least, half.most,
				late.median, late.least, late.most, cpuText(r, w, c, proxyCPU), cpuText(r, w, c, serverCPU))
		}
		b.WriteString("\n")
	}
}

func cpuText(r *results, w workload, c column, pick func(sample) float64) string {
	f, ok := r.of(w.name, c.name, pick)
	if !ok || f.median == 0 {
		return ""
	}
	return short(f.median)
}

// writeDetails has every figure of the closed workloads.
func writeDetails(b *strings.Builder, r *results) {
	b.WriteString("## All figures: medians (least–most)\n\n| workload | stack | requests/s | × direct | × the better of twemproxy and predixy | proxy CPU, µs/request | server CPU, µs/request |\n")
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, w := range r.loads {
		if w.rate > 0 {
			continue
		}
		_, better, peer := r.best(w.name, multiplexers(), rate, true)
		for _, c := range r.columns {
			own, ok := r.of(w.name, c.name, rate)
			if !ok {
				fmt.Fprintf(b, "| %s | %s | failed | | | | |\n", w.title, c.name)
				continue
			}
			var direct, best string
			if q, ok := r.ratio(w.name, c.name, "direct"); ok {
				direct = fmt.Sprintf("%.2f", q)
			}
			if peer {
				best = fmt.Sprintf("%.2f", own.median/better)
			}
			fmt.Fprintf(b, "| %s | %s | %.0f (%.0f–%.0f) | %s | %s | %s | %s |\n", w.title, c.name, own.median, own.least, own.most, direct, best,
				cpuText(r, w, c, proxyCPU), cpuText(r, w, c, serverCPU))
		}
	}
	b.WriteString("\n")
}

func writeMethod(b *strings.Builder, r *results) {
	b.WriteString("## How it is measured\n\n")
	if r.shards > 0 {
		fmt.Fprintf(b, `%d servers that keep nothing on disk, all stacks in front of them, everything on one machine over loopback. All servers have all keys, so that
each stack places them in its own way and finds them. "Direct" is one of the servers.
`, r.shards)
	} else {
		b.WriteString("One server that keeps nothing on disk, all stacks in front of it, everything on one machine over loopback.\n")
	}
	b.WriteString(`In each round every stack has its turn,
and each round begins with another one; only the stack whose turn it is has work. The rate is that of redis-benchmark with one thread, which is
given as many requests as take the stack about one round, found in a short run before. Keys are random among 1,000 that are there; the server's
counters are compared after each turn, so that a request which did not reach it, found nothing, or was answered with an error is a failure and not
a fast request. CPU is the user and kernel time of the proxy's whole process, for Redoubt with its agent, controller and store. The generator at a fixed
rate sends whether or not earlier requests have been answered, and counts latency from the moment at which a request was to be sent.

Absolute figures move from machine to machine and from hour to hour, ratios by 15–20 % between runs on a shared machine. A direct connection
is not an upper bound: a proxy that shares connections to the server spares the server work.

`)
	for _, c := range r.columns {
		fmt.Fprintf(b, "- %s: %s\n", c.name, c.about)
	}
	if len(r.notes) > 0 {
		b.WriteString("\nNotes:\n\n")
		for _, n := range r.notes {
			b.WriteString("- " + n + "\n")
		}
	}
}

// brief shows one workload on the terminal as soon as it has been measured.
func brief(r *results, w workload) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n", w.title)
	for _, c := range r.columns {
		own, ok := r.of(w.name, c.name, rate)
		if !ok {
			fmt.Fprintf(&b, "  %-14s failed: %s\n", c.name, r.failures[cell{w.name, c.name}])
			continue
		}
		q, _ := r.ratio(w.name, c.name, "direct")
		cpu, _ := r.of(w.name, c.name, proxyCPU)
		fmt.Fprintf(&b, "  %-14s %9.0f/s (%.0f–%.0f)  %.2f × direct  %s µs CPU", c.name, own.median, own.least, own.most, q, short(cpu.median))
		if half, _ := r.of(w.name, c.name, p50); w.rate > 0 {
			late, _ := r.of(w.name, c.name, p99)
			fmt.Fprintf(&b, "  median %.0f µs, p99 %.0f µs", half.median, late.median)
		}
		b.WriteString("\n")
	}
	return b.String()
}
