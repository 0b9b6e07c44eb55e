// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/topo"
)

var outageFor = flag.Duration("outage", 5*time.Second, "how long the store is away")

// voters is a crew with three data nodes in a store of seven members: the four without a data node can take the majority away.
func voters(t *testing.T) *crew {
	t.Helper()
	c := newCrew(t)
	c.first, c.extra = 7, "    timing: {park: 1s}\n"
	for _, i := range []int{4, 5, 6, 7, 1, 2, 3} { // those who come first elect the controller from among them, usually
		c.start(fmt.Sprintf("n%d", i), "")
	}
	c.d.waitHealthy(30 * time.Second)
	return c
}

// away stops the four members without a data node; the function that it returns lets them go on.
func (c *crew) away() (back func()) {
	c.t.Helper()
	each := func(sig syscall.Signal) {
		for i := 4; i <= 7; i++ {
			signal(c.t, c.members[fmt.Sprintf("n%d", i)].Process.Pid, sig)
		}
	}
	each(syscall.SIGSTOP)
	stopped := true
	back = func() {
		if stopped {
			stopped = false
			each(syscall.SIGCONT)
		}
	}
	c.t.Cleanup(back)
	return back
}

// gap is the longest time that any of the writers went without an acknowledged write in the time given.
func gap(ws []*writer, from, to time.Time) (longest time.Duration, acked, errors int, message string) {
	for _, w := range ws {
		last := from
		for _, a := range w.all() {
			if a.end.Before(from) || a.end.After(to) {
				continue
			}
			if !a.ok {
				errors++
				message = a.err
				continue
			}
			acked++
			longest = max(longest, a.end.Sub(last))
			last = a.end
		}
		longest = max(longest, to.Sub(last))
	}
	return longest, acked, errors, message
}

func (c *crew) writersAt(members ...int) []*writer {
	var ws []*writer
	for _, i := range members {
		ws = append(ws, goRedisWriter(fmt.Sprintf("n%d", i), fmt.Sprintf("w:%d", i), redis.NewClient(&redis.Options{Addr: c.d.proxyAddr(i - 1)})))
	}
	c.t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	for _, w := range ws {
		waitAcked(c.t, w, 20)
	}
	return ws
}

// metric reads a line of a member's metrics.
func (c *crew) metric(i int, name string) string {
	r, err := http.Get("http://" + c.at(30, i) + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	text, _ := io.ReadAll(r.Body)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name) {
			return strings.TrimSpace(line[strings.LastIndexByte(line, ' '):])
		}
	}
	return "absent"
}

// says waits until what a verb prints at member i has the words.
func (c *crew) says(i int, verb, words string) {
	c.t.Helper()
	d := *c.d
	d.api = func() string { return c.at(30, i) }
	d.until(5*time.Second, fmt.Sprintf("%s of n%d says %q", verb, i, words), func() (bool, string) {
		out, err := d.run(verb)
		return err == nil && strings.Contains(out, words), out + errText(err)
	})
}

// TestAStoreOutageIsNoOutageOfService: without a majority of the store's members the primary goes on, because both other nodes promise not
// to freeze, and when the store is back everything is as it was.
func TestAStoreOutageIsNoOutageOfService(t *testing.T) {
	c := voters(t)
	s, err := c.d.status()
	if err != nil {
		t.Fatal(err)
	}
	ws := c.writersAt(1, 2, 3)
	for round := range roundsOr(1) {
		if s, err = c.d.status(); err != nil {
			t.Fatal(err)
		}
		back := c.away()
		begun := time.Now()
		wait(time.Second)
		p := number(t, s.primary())
		for i := 1; i <= 3; i++ {
			c.says(i, "status", s.primary()+" goes on by the promise of")
		}
		c.says(p, "explain", "store-outage")
		if v := c.metric(p, "redoubt_shard_pledged"); v != "1" {
			t.Errorf("redoubt_shard_pledged is %s", v)
		}
		wait(*outageFor - time.Since(begun))
		ended := time.Now()
		back()
		after := c.d.waitHealthy(20 * time.Second)
		wait(3 * time.Second)
		longest, acked, errors, message := gap(ws, begun, time.Now())
		t.Logf("round %d: the store was away for %s, with its controller %s: %d writes acknowledged through three proxies, %d errors %s, longest time without one %.0f ms; epoch %d before, %d after; all well %s after its return",
			round+1, ended.Sub(begun).Round(time.Millisecond), s.Controller, acked, errors, message, ms(longest), s.epoch(), after.epoch(), time.Since(ended).Round(time.Millisecond)-3*time.Second)
		if errors > 0 || longest > 2*time.Second {
			t.Errorf("writes did not go on: %d errors (%s), longest time without an acknowledged one %s", errors, message, longest)
		}
		if after, err = c.d.status(); err != nil || after.epoch() != s.epoch() || after.primary() != s.primary() {
			t.Errorf("epoch %d and primary %s became %d and %s (%v)", s.epoch(), s.primary(), after.epoch(), after.primary(), err)
		}
	}
	for _, w := range ws {
		w.finish()
	}
	if v := judge(t, c.d.proxyAddr(0), ws); v.lost+v.duplicated > 0 {
		t.Errorf("%d lost, %d doubled of %d", v.lost, v.duplicated, v.acked)
	}
}

// TestAPrimaryFencesItselfInAnOutageWhenANodeCannotPromise: also when that node's agent dies in the middle of it; and service returns
// with the store.
func TestAPrimaryFencesItselfInAnOutageWhenANodeCannotPromise(t *testing.T) {
	c := voters(t)
	s, err := c.d.status()
	if err != nil {
		t.Fatal(err)
	}
	p := number(t, s.primary())
	other := p%3 + 1
	third := 6 - p - other
	ws := c.writersAt(p, third)
	direct := redis.NewClient(&redis.Options{Addr: c.at(100, p), MaxRetries: -1})
	t.Cleanup(func() { direct.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var accepted time.Time
	refused := make(chan error, 1)
	go func() {
		for {
			at := time.Now()
			if err := direct.Set(ctx, "direct", "1", 0).Err(); err != nil {
				refused <- err
				return
			}
			accepted = at
			wait(time.Millisecond)
		}
	}()
	back := c.away()
	wait(3 * time.Second)
	died := time.Now()
	signal(t, c.members[fmt.Sprintf("n%d", other)].Process.Pid, syscall.SIGKILL)
	why := <-refused
	timing := topo.LANTiming()
	took := accepted.Sub(died)
	t.Logf("agent n%d was killed 3 s into the outage; %s took direct writes for %s after that (then: %v); the lease is %s", other, s.primary(), took.Round(time.Millisecond), why, timing.Lease)
	if bound := timing.Lease.D() + timing.Margin.D(); took > bound || took < 0 {
		t.Errorf("direct writes were accepted for %s after the agent died, the lease with its margin is %s", took, bound)
	}
	c.says(p, "status", "the server here takes no writes")
	c.d.until(20*time.Second, "the proxies refuse", func() (bool, string) { // parked first, and the client tries some times
		_, acked, errors, message := gap(ws, died.Add(timing.PledgeFor()), time.Now())
		if acked > 0 {
			t.Fatalf("%d writes were acknowledged without a primary", acked)
		}
		return errors > 0 && strings.Contains(message, "TRYAGAIN"), message
	})
	_, acked, errors, message := gap(ws, died.Add(timing.PledgeFor()), time.Now())
	t.Logf("through the proxies, from the end of the lease on: %d acknowledged, %d refused: %s", acked, errors, message)
	returned := time.Now()
	back()
	id := fmt.Sprintf("n%d", other)
	_ = c.members[id].Wait()
	c.start(id, "")
	c.d.until(20*time.Second, "a write is acknowledged", func() (bool, string) {
		_, acked, _, message := gap(ws, returned, time.Now())
		return acked > 0, message
	})
	t.Logf("service returned %s after the store did", time.Since(returned).Round(time.Millisecond))
	after := c.d.waitHealthy(30 * time.Second)
	if after.epoch() <= s.epoch() {
		t.Errorf("epoch %d after %d: a fenced primary took its role back", after.epoch(), s.epoch())
	}
	for _, w := range ws {
		w.finish()
	}
	if v := judge(t, c.d.proxyAddr(p-1), ws); v.lost > 0 {
		t.Errorf("%d lost of %d", v.lost, v.acked)
	}
}
