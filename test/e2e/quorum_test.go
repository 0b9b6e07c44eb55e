// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/csv"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// cost is one run of redis-benchmark.
type cost struct{ rate, p50 float64 } // requests per second; milliseconds

// benchmark runs one command of redis-benchmark with 64 bytes through the first proxy.
func (d *deployment) benchmark(command string, clients, requests int) cost {
	d.t.Helper()
	_, port, _ := strings.Cut(d.proxyAddr(0), ":")
	out, err := exec.Command("redis-benchmark", "-p", port, "-c", strconv.Itoa(clients), "-n", strconv.Itoa(requests), "-d", "64", "-t", command, "--csv").Output()
	if err != nil {
		d.t.Fatalf("redis-benchmark: %v", err)
	}
	rows, err := csv.NewReader(strings.NewReader(string(out))).ReadAll()
	if err != nil || len(rows) != 2 {
		d.t.Fatalf("redis-benchmark answered %q (%v)", out, err)
	}
	row := map[string]float64{}
	for i, name := range rows[0] {
		row[name], _ = strconv.ParseFloat(rows[1][i], 64)
	}
	return cost{row["rps"], row["p50_latency_ms"]}
}

// TestWhatQuorumCosts compares writes with durability quorum and async: two deployments of three nodes on this machine, one
// at work at a time, in interleaved rounds. Medians and ratios are worth something, absolute figures are not.
func TestWhatQuorumCosts(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		t.Skip("redis-benchmark is not installed")
	}
	quorum, async := up(t, "--durability", "quorum"), up(t, "--durability", "async")
	quorum.waitHealthy(60e9)
	async.waitHealthy(60e9)
	costs(t, "quorum", quorum, "async", async, 0.05)
}

// TestWhatQuorumCostsInACluster is the same for one shard of a cluster, whose servers take another marker. A benchmark: it takes -rounds.
func TestWhatQuorumCostsInACluster(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil || *rounds == 0 {
		t.Skip("make bench-quorum plays it")
	}
	of := func(durability string) *deployment {
		d := up(t, "--mode", "cluster", "--shards", "1", "--replicas", "2", "--durability", durability)
		d.waitHealthy(60e9)
		return d
	}
	costs(t, "quorum in a cluster", of("quorum"), "async in a cluster", of("async"), 0.05)
}

// costs compares two deployments, one at work at a time, in interleaved rounds. One that has no more than least of the other's
// throughput waits for something.
func costs(t *testing.T, name string, d *deployment, other string, od *deployment, least float64) {
	scale := 1
	if *rounds > 0 {
		scale = 20
	}
	for _, c := range []struct{ clients, requests int }{{1, 1000}, {50, 5000}, {500, 10000}} {
		var ratio, added, rates, others []float64
		for range roundsOr(1) {
			o := od.benchmark("set", c.clients, c.requests*scale)
			x := d.benchmark("set", c.clients, c.requests*scale)
			ratio, added = append(ratio, x.rate/o.rate), append(added, (x.p50-o.p50)*1000)
			rates, others = append(rates, x.rate), append(others, o.rate)
		}
		r := middle(ratio)
		t.Logf("%3d clients: %s %.0f, %s %.0f requests/s: %.2f of %s; %+.0f µs at the median", c.clients, name, middle(rates), other, middle(others), r, other, middle(added))
		if r <= least {
			t.Errorf("%s has %.3f of the throughput of %s: something waits", name, r, other)
		}
	}
}

func middle(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
