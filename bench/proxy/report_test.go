// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sketch is a result with these medians for every stack: rate and CPU by workload.
func sketch(t *testing.T, names string, figures map[string]map[string]sample) *results {
	t.Helper()
	loads, err := selectWorkloads(names, false)
	if err != nil {
		t.Fatal(err)
	}
	res := newResults(&rig{}, 3, 2)
	for _, n := range stackNames(false) {
		res.columns = append(res.columns, column{name: n, redoubt: n == "redoubt", proxy: n != "direct"})
	}
	for _, w := range loads {
		for name, s := range figures[w.name] {
			for _, drift := range []float64{0.5, 1, 1.1} {
				x := s
				x.rate *= drift
				res.add(w, &stack{name: name}, x)
			}
		}
	}
	return res
}

func TestFigureIsTheMedianWithTheExtremes(t *testing.T) {
	w := workload{name: "w"}
	res := newResults(&rig{}, 4, 1)
	for _, v := range []float64{40, 10, 20, 30} {
		res.add(w, &stack{name: "s"}, sample{rate: v})
	}
	if f, ok := res.of("w", "s", rate); !ok || f != (figure{25, 10, 40}) {
		t.Errorf("got %v %v", f, ok)
	}
	res.fail(w, &stack{name: "s"}, errors.New("broken"))
	if f, ok := res.of("w", "s", rate); ok {
		t.Errorf("a stack that failed has %v", f)
	}
}

func TestVerdicts(t *testing.T) {
	res := sketch(t, "get-64,get-64-p16,get-64-c1,latency-10k", map[string]map[string]sample{
		"get-64": {"direct": {rate: 1000}, "redoubt": {rate: 1000, proxyCPU: 8}, "twemproxy": {rate: 900, proxyCPU: 7}, "predixy-1": {rate: 1001, proxyCPU: 9},
			"predixy-2": {rate: 800, proxyCPU: 8}, "haproxy": {rate: 2000, proxyCPU: 1}},
		"get-64-p16":  {"direct": {rate: 1000}, "redoubt": {rate: 600, proxyCPU: 2}, "twemproxy": {rate: 500, proxyCPU: 7}, "predixy-1": {rate: 400, proxyCPU: 1}},
		"get-64-c1":   {"direct": {rate: 1000}, "redoubt": {rate: 649}},
		"latency-10k": {"redoubt": {rate: 1, p50: 110, proxyCPU: 3}, "haproxy": {rate: 1, p50: 100, proxyCPU: 1}, "predixy-2": {rate: 1, p50: 120, proxyCPU: 4}},
	})
	want := []string{
		"GET 64 B, 50 clients: ≥ 1.00 × the better of twemproxy and predixy: **not met**", // HAProxy is no multiplexer
		"GET 64 B, 50 clients: CPU per request ≤ predixy's: met",                          // the better of the two
		"GET 64 B, 50 clients, pipeline 16: ≥ 1.20 × the better of twemproxy and predixy: met",
		"GET 64 B, 50 clients, pipeline 16: CPU per request ≤ predixy's: **not met**",
		"GET 64 B, 50 clients, pipeline 16: ≥ 0.60 × direct: met",
		"GET 64 B, 1 client: ≥ 1.00 × the better of twemproxy and predixy: not measured",
		"GET 64 B, 1 client: CPU per request ≤ predixy's: not measured",
		"GET 64 B, 1 client: ≥ 0.65 × direct: **not met**",
		"GET 64 B, 50 connections, fixed 10,000 requests/s: median latency ≤ 1.1 × the best peer's: met",
		"GET 64 B, 50 connections, fixed 10,000 requests/s: CPU per request ≤ predixy's: met",
	}
	var got []string
	for _, v := range verdicts(res, "redoubt") {
		got = append(got, v.workload+": "+v.target+": "+v.word())
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func TestReportAndPlot(t *testing.T) {
	res := sketch(t, "get-64,latency-10k", map[string]map[string]sample{
		"get-64":      {"direct": {rate: 100000, serverCPU: 9}, "redoubt": {rate: 90000, proxyCPU: 8.25}, "predixy-1": {rate: 80000, proxyCPU: 0.114}},
		"latency-10k": {"direct": {rate: 1, p50: 50, p99: 200}, "redoubt": {rate: 1, p50: 90, p99: 400}},
	})
	res.note("twemproxy is left out: there is no nutcracker")
	text := report(res, "x.png")
	for _, want := range []string{
		"| GET 64 B, 50 clients | 100 k/s | 0.90 (8.2) | failed | 0.80 (0.11) | failed | failed |",
		"| GET 64 B, 50 clients | redoubt | 90000 (45000–99000) | 0.90 | 1.12 | 8.2 |  |",
		"| redoubt | 90 (90–90) | 400 (400–400) |  |  |",
		"## Targets of redoubt: 1 of 2 met",
		"- twemproxy is left out: there is no nutcracker",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	path := filepath.Join(t.TempDir(), "x.png")
	if err := plotTo(path, res); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := png.Decode(bytes.NewReader(b)); err != nil || img.Bounds().Dx() < 100 {
		t.Errorf("not a picture: %v %v", img, err)
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("17 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0 5\n")
	if err != nil || got != 1750*time.Millisecond {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := parseStat("17 (x) S 1"); err == nil {
		t.Error("a short line is accepted")
	}
	if own, err := cpuOf(os.Getpid()); err != nil || own < 0 || own > time.Hour {
		t.Errorf("own CPU time %s, %v", own, err)
	}
}

func TestParseTimes(t *testing.T) {
	got, err := parseTimes("cpu  1 2 4 1000 2000 8 16 32 64 128")
	if err != nil || got != (times{busy: 63, idle: 3000}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseTimes("cpu 1 2"); err == nil {
		t.Error("a short line is accepted")
	}
}

func TestParseCSV(t *testing.T) {
	for out, want := range map[string]float64{
		"\"test\",\"rps\",\"avg_latency_ms\"\n\"GET k\",\"61234.50\",\"0.4\"\n":          61234.5,
		"Error from server: READONLY no writes here\n\"test\",\"rps\"\n\"SET\",\"10\"\n": -1,
		"\"test\",\"avg\"\n\"GET\",\"10\"\n":                                             -1,
		"\"test\",\"rps\"\n":                                                             -1,
		"\"test\",\"rps\"\n\"GET\",\"0\"\n":                                              -1,
	} {
		if got, err := parseCSV(out); err == nil && got != want || (err != nil) != (want < 0) {
			t.Errorf("%q: got %g, %v", out, got, err)
		}
	}
}

func TestVerifyNeedsTheServerToHaveDoneTheWork(t *testing.T) {
	get, set := workload{reads: 1}, workload{}
	for _, c := range []struct {
		w     workload
		after state
		ok    bool
	}{
		{get, state{hits: 110, commands: 20}, true}, // fewer commands than requests: a proxy may join reads
		{get, state{hits: 109}, false},
		{get, state{hits: 120, misses: 1}, false},
		{set, state{hits: 10, commands: 100}, true},
		{set, state{hits: 10, commands: 99}, false},
	} {
		if err := c.after.verify(state{hits: 10}, c.w, 100); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestParseBuilds(t *testing.T) {
	got, err := parseBuilds("old=/a/redoubt,new=/b/redoubt")
	if err != nil || len(got) != 2 || got[1] != (binary{"new", "/b/redoubt"}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "a=", "=x", "haproxy=/x", "direct=/x", "a=/x,a=/y"} {
		if got, err := parseBuilds(bad); err == nil {
			t.Errorf("%q is accepted as %v", bad, got)
		}
	}
}

func TestAFrontIsJudgedByItsPeersAlone(t *testing.T) {
	loads, err := selectWorkloads("get-64-c50-p16,mget-100-c50", true)
	if err != nil || len(loads) != 2 {
		t.Fatalf("%v, %v", loads, err)
	}
	res := newResults(&rig{shards: 4}, 3, 2)
	for _, w := range loads {
		for name, s := range map[string]sample{"redoubt": {rate: 1000, proxyCPU: 2}, "twemproxy": {rate: 500, proxyCPU: 7}, "predixy-1": {rate: 1001, proxyCPU: 3}} {
			res.add(w, &stack{name: name}, s)
		}
	}
	got := verdicts(res, "redoubt")
	if len(got) != 4 || got[0].met || !got[1].met || got[0].target != "≥ 1.00 × the better of twemproxy and predixy" {
		t.Errorf("%+v", got)
	}
	if text := report(res, "x.png"); !strings.Contains(text, "over 4 shards") || !strings.Contains(text, "make bench-front") {
		t.Error(text)
	}
	if got := lines([]*server{{addr: "a"}, {addr: "b"}}, "%d=%s "); got != "0=a 1=b " {
		t.Errorf("%q", got)
	}
}
