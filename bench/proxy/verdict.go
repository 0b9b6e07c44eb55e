// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// The targets of Redoubt's proxy.
const (
	peerRatio     = 1.0  // of the better of twemproxy and predixy, in every workload
	pipelineRatio = 1.2  // the same with pipelines
	latencyFactor = 1.1  // at most so many times the best peer's median
	p16Direct     = 0.60 // of a direct connection
	oneDirect     = 0.65 // of a direct connection
)

// verdict is one target under one workload.
type verdict struct {
	target   string
	workload string
	measured bool
	met      bool
	figures  string
}

func (v verdict) word() string {
	switch {
	case !v.measured:
		return "not measured"
	case v.met:
		return "met"
	}
	return "**not met**"
}

// verdicts judges one build of Redoubt.
func verdicts(r *results, name string) []verdict {
	var all []verdict
	for _, w := range r.loads {
		if w.rate > 0 {
			all = append(all, latencyVerdict(r, w, name))
		} else {
			all = append(all, rateVerdict(r, w, name))
		}
		all = append(all, cpuVerdict(r, w, name))
		switch {
		case r.shards > 0: // one server is another thing
		case w.pipeline == 16:
			all = append(all, directVerdict(r, w, name, p16Direct))
		case w.clients == 1:
			all = append(all, directVerdict(r, w, name, oneDirect))
		}
	}
	return all
}

func rateVerdict(r *results, w workload, name string) verdict {
	least := peerRatio
	if w.pipeline > 1 && r.shards == 0 {
		least = pipelineRatio
	}
	v := verdict{target: fmt.Sprintf("≥ %.2f × the better of twemproxy and predixy", least), workload: w.title}
	own, ok := r.of(w.name, name, rate)
	peer, theirs, ok2 := r.best(w.name, multiplexers(), rate, true)
	if v.measured = ok && ok2; v.measured {
		v.met = own.median >= least*theirs
		v.figures = fmt.Sprintf("%.2f × %s (%s against %s)", own.median/theirs, peer, thousands(own.median), thousands(theirs))
	}
	return v
}

func cpuVerdict(r *results, w workload, name string) verdict {
	v := verdict{target: "CPU per request ≤ predixy's", workload: w.title}
	own, ok := r.of(w.name, name, proxyCPU)
	peer, theirs, ok2 := r.best(w.name, predixies(), proxyCPU, false)
	if v.measured = ok && ok2; v.measured {
		v.met = own.median <= theirs
		v.figures = fmt.Sprintf("%s µs against %s of %s", short(own.median), short(theirs), peer)
	}
	return v
}

func latencyVerdict(r *results, w workload, name string) verdict {
	v := verdict{target: fmt.Sprintf("median latency ≤ %.1f × the best peer's", latencyFactor), workload: w.title}
	own, ok := r.of(w.name, name, p50)
	peer, theirs, ok2 := r.best(w.name, peers(), p50, false)
	if v.measured = ok && ok2; v.measured {
		v.met = own.median <= latencyFactor*theirs
		v.figures = fmt.Sprintf("%.2f × %s (%.0f µs against %.0f)", own.median/theirs, peer, own.median, theirs)
	}
	return v
}

func directVerdict(r *results, w workload, name string, least float64) verdict {
	v := verdict{target: fmt.Sprintf("≥ %.2f × direct", least), workload: w.title}
	q, ok := r.ratio(w.name, name, "direct")
	if v.measured = ok; ok {
		v.met = q >= least
		v.figures = fmt.Sprintf("%.2f × direct", q)
	}
	return v
}

// thousands is a rate, shortened.
func thousands(v float64) string {
	if v < 99950 {
		return fmt.Sprintf("%.1f k/s", v/1000)
	}
	return fmt.Sprintf("%.0f k/s", v/1000)
}

// short is a number of µs with two significant digits or more.
func short(v float64) string {
	switch {
	case v < 0.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.5:
		return fmt.Sprintf("%.1f", v)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.0f", v), ".")
}
