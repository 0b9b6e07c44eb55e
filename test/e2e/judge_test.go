// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// begins is how long after an event an outage that it caused can begin: a planned one starts a process first.
const begins = 150 * time.Millisecond

// span is what an event cost the client that it cost most.
type span struct {
	outage time.Duration // from its last success before to its first after, its own pause of a millisecond between writes included
	wait   time.Duration // from the beginning of the first write that did not succeed as usual to the first success
	who    string        // had the longest outage
}

// outage is the longest time that one client went without a successful write because of an event.
func outage(ws []*writer, event time.Time) span {
	var worst span
	for _, w := range ws {
		last, begun := time.Time{}, time.Time{}
		for _, a := range w.all() {
			if begun.IsZero() {
				begun = a.start
			}
			if !a.ok {
				continue
			}
			if !last.IsZero() && last.Before(event.Add(begins)) && a.end.After(event) {
				worst.wait = max(worst.wait, a.end.Sub(begun))
				if gap := a.end.Sub(last); gap > worst.outage {
					worst.outage, worst.who = gap, w.name
				}
			}
			last, begun = a.end, time.Time{}
		}
	}
	return worst
}

// verdict is what the lists say about the writers' claims.
type verdict struct {
	acked, lost, duplicated, errors int
	messages                        map[string]int
	waits                           []time.Duration // of each round
	lostOf                          []string
}

// judge reads each writer's list and compares it with what was acknowledged.
func judge(t *testing.T, addr string, ws []*writer) verdict {
	t.Helper()
	return judgeBy(t, redis.NewClient(&redis.Options{Addr: addr}), ws)
}

// judgeBy does so with a client of its own, which it closes.
func judgeBy(t *testing.T, c *redis.Client, ws []*writer) verdict {
	t.Helper()
	defer c.Close()
	v := verdict{messages: map[string]int{}}
	for _, w := range ws {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		items, err := c.LRange(ctx, w.key, 0, -1).Result()
		cancel()
		if err != nil {
			t.Fatalf("read the list of %s: %v", w.name, err)
		}
		times := map[int64]int{}
		for _, s := range items {
			n, _ := strconv.ParseInt(s, 10, 64)
			times[n]++
		}
		for _, n := range times {
			v.duplicated += n - 1
		}
		for _, a := range w.all() {
			switch {
			case !a.ok:
				v.errors++
				v.messages[w.name+": "+clip(a.err)]++
			case times[a.seq] == 0:
				v.lost++
				v.lostOf = append(v.lostOf, fmt.Sprintf("%s %d", w.name, a.seq))
				fallthrough
			default:
				v.acked++
			}
		}
	}
	return v
}

func clip(s string) string {
	if len(s) > 90 {
		return s[:90]
	}
	return s
}

// figures prints the outcome of repeated events: median and worst.
func figures(t *testing.T, what string, outages []time.Duration, v verdict) {
	t.Helper()
	t.Logf("%s: write outage %s; %d acknowledged, %d lost, %d duplicated, %d errors", what, medianWorst(outages), v.acked, v.lost, v.duplicated, v.errors)
	t.Logf("  of it waiting for a write, without the client's own pause before: %s", medianWorst(v.waits))
	for m, n := range v.messages {
		t.Logf("  %d × %s", n, m)
	}
}

func medianWorst(d []time.Duration) string {
	if len(d) == 0 {
		return "no rounds"
	}
	s := slices.Clone(d)
	slices.Sort(s)
	all := make([]string, len(d))
	for i, x := range d {
		all[i] = strconv.FormatFloat(float64(x.Microseconds())/1000, 'f', 1, 64)
	}
	return fmt.Sprintf("median %.1f ms, worst %.1f ms of %d (%s)", ms(s[len(s)/2]), ms(s[len(s)-1]), len(s), strings.Join(all, " "))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// requireNothingLost is the promise in quorum mode.
func requireNothingLost(t *testing.T, v verdict) {
	t.Helper()
	if v.lost > 0 || v.duplicated > 0 {
		t.Errorf("%d acknowledged writes lost (%v), %d duplicated", v.lost, v.lostOf[:min(5, len(v.lostOf))], v.duplicated)
	}
}
