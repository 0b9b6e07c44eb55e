// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"flag"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/reshard"
)

var speed = flag.Bool("speed", false, "measure how fast slots move, and how long clients wait, beside redis-cli")

// fillSlots writes keys of 64 bytes into each slot.
func fillSlots(t *testing.T, c *cluster, addr string, slots []int, each int) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	l := c.connect(addr)
	value := strings.Repeat("v", 64)
	for _, slot := range slots {
		tag := tagOf(slot)
		for i := range each {
			l.add("SET", "key:"+strconv.Itoa(i)+tag, value)
		}
		if _, err := l.must(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// TestHowLongClientsWait moves slots of several sizes there and back, under a client that reads and writes them.
func TestHowLongClientsWait(t *testing.T) {
	if !*speed {
		t.Skip("measure with -speed")
	}
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	var last Report
	o.Done = func(r Report) { last = r }
	m := c.mover(o)
	slot := 1500
	for _, each := range []int{10, 300, 1000, 2000, 5000} {
		slot++
		fillSlots(t, c, c.primary("a").Addr, []int{slot}, each)
		w := newClients(t, c, g, []int{slot})
		w.pause, w.perKey = time.Millisecond, 1
		w.run(t, 1)
		from, to := "a", "b"
		var waits []time.Duration
		for range 11 {
			mustRun(t, m, reshard.Move{Slots: []int{slot}, From: from, To: to})
			waits = append(waits, g.waits[len(g.waits)-1])
			from, to = to, from
		}
		w.end()
		t.Logf("%5d keys in the slot: clients waited %s (%s to %s); the last: %v", each, median(waits), waits[0], waits[len(waits)-1], last.Steps)
	}
	// The same 2000 keys as a batch of small slots.
	slots := slotsFrom(1600, 20)
	fillSlots(t, c, c.primary("a").Addr, slots, 100)
	from, to := "a", "b"
	var waits []time.Duration
	for range 11 {
		mustRun(t, m, reshard.Move{Slots: slots, From: from, To: to})
		waits = append(waits, g.waits[len(g.waits)-1])
		from, to = to, from
	}
	t.Logf("20 slots of 100 keys in one batch: clients waited %s (%s to %s)", median(waits), waits[0], waits[len(waits)-1])
}

// TestHowFastSlotsMove moves the same slots by the mover and by redis-cli in turn.
func TestHowFastSlotsMove(t *testing.T) {
	if !*speed {
		t.Skip("measure with -speed")
	}
	cli, err := exec.LookPath("redis-cli")
	if err != nil {
		t.Skip("no redis-cli to compare with")
	}
	const count, each = 50, 2000
	c := newCluster(t, 3, 1, 0)
	a, b := c.primary("a"), c.primary("b")
	slots := slotsFrom(0, count)
	fillSlots(t, c, a.Addr, slots, each)
	g, s := newGate(func(slot int) string { return shardNames[slot*3/reshard.SlotCount] }), &shelf{}
	m := c.mover(c.options(g, s))
	perSecond := func(d time.Duration) string { return fmt.Sprintf("%.0f keys/s", count*each/d.Seconds()) }
	for range 3 {
		for _, pipeline := range []string{"10", "100"} {
			began := time.Now()
			out, err := exec.CommandContext(within(t, 3*time.Minute), cli, "--cluster", "reshard", a.Addr, "--cluster-from", a.ID, "--cluster-to", b.ID,
				"--cluster-slots", strconv.Itoa(count), "--cluster-yes", "--cluster-pipeline", pipeline).CombinedOutput()
			took := time.Since(began)
			if err != nil || c.count(b.Addr, slots) != count*each {
				t.Fatalf("redis-cli: %v\n%.2000s", err, out)
			}
			began = time.Now()
			var waits []time.Duration
			for _, slot := range slots {
				mustRun(t, m, reshard.Move{Slots: []int{slot}, From: "b", To: "a"})
				waits = append(waits, g.waits[len(g.waits)-1])
			}
			mine := time.Since(began)
			if c.count(a.Addr, slots) != count*each {
				t.Fatal("keys are missing")
			}
			t.Logf("redis-cli with pipelines of %s: %s %s; the mover: %s %s, clients of a slot waited %s (to %s)", pipeline, took.Round(time.Millisecond), perSecond(took),
				mine.Round(time.Millisecond), perSecond(mine), median(waits), waits[len(waits)-1])
		}
	}
}
