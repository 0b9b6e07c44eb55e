// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

func TestAPrimaryThatRestartsEmptyDoesNotWipeItsReplica(t *testing.T) {
	t.Parallel()
	p, r := primary(t, nil), open(t, nil)
	follow(t, r, p)
	must(t, client(t, p.addr, ""), "SET", "k", "v")
	caughtUp(t, r, p)
	if err := p.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := p.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	see(t, p, "the empty server", func(o redis.Observation) bool { return isUp(o) && o.Frozen && o.Keys == 0 })
	// Force attempts of the replica against the empty server; each is answered with NOMASTERLINK.
	for range 3 {
		if err := r.Follow(within(t, time.Second), p.addr, tenure()); err != nil {
			t.Fatal(err)
		}
	}
	if o := r.Observe(within(t, time.Second)); o.Keys != 1 || o.LinkUp {
		t.Fatalf("the replica after its primary came back empty: %+v", o)
	}
}

func TestAFrozenReplicaStandsStillAndContinuesWithAPartialResync(t *testing.T) {
	t.Parallel()
	p, r := primary(t, nil), open(t, nil)
	follow(t, r, p)
	c := client(t, p.addr, "")
	must(t, c, "SET", "a", "1")
	caughtUp(t, r, p)
	if err := r.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	frozen := r.Observe(within(t, time.Second))
	must(t, c, "SET", "b", "2")
	if o := r.Observe(within(t, time.Second)); !o.Frozen || !o.Whole || o.Pos != frozen.Pos || o.Keys != 1 {
		t.Fatalf("the frozen replica moved from %+v to %+v", frozen, o)
	}
	if err := run(t, client(t, r.addr, ""), "SET", "x", "y").err(); !isCode(err, "READONLY") {
		t.Fatalf("a write on a frozen replica: %v", err)
	}
	before := parseInfo(must(t, c, "INFO", "stats").text).num("sync_full") // priming counts as one
	began := time.Now()
	follow(t, r, p)
	t.Logf("link after follow: %s", time.Since(began))
	caughtUp(t, r, p)
	stats := must(t, client(t, p.addr, ""), "INFO", "stats").text
	if syncs := parseInfo(stats).num("sync_full"); syncs != before || parseInfo(stats).num("sync_partial_ok") != 1 {
		t.Fatalf("not a partial resync: %d full syncs, before %d", syncs, before)
	}
}

func TestASwitchoverNeedsNoFullSync(t *testing.T) {
	t.Parallel()
	p, r := primary(t, nil), open(t, nil)
	follow(t, r, p)
	must(t, client(t, p.addr, ""), "SET", "a", "1")
	began := time.Now()
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	final := p.Observe(within(t, time.Second))
	o := lookUntil(within(t, 2*time.Second), r, func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
	if final.Version >= "redis 7" && o.Following != p.addr {
		t.Fatalf("the candidate should still follow: %+v", o)
	}
	if _, err := r.Promote(within(t, time.Second), electedOf(final), tenure()); !errors.Is(err, redis.ErrRefused) {
		t.Fatalf("promoted with the run id of another server: %v", err)
	}
	pos, err := r.Promote(within(t, time.Second), electedOf(o), tenure())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fence, drain, promote: %s", time.Since(began))
	if pos.ReplID2 != final.Pos.ReplID || pos.Offset2 != final.Pos.Offset+1 {
		t.Fatalf("promoted to %+v from %+v", pos, final.Pos)
	}
	follow(t, p, r)
	stats := must(t, client(t, r.addr, ""), "INFO", "stats").text
	if !strings.Contains(stats, "sync_full:0\r\n") {
		t.Fatal("the old primary needed a full sync")
	}
}

func TestAFenceCutsClientsAndReleasesBlockedOnes(t *testing.T) {
	t.Parallel()
	p := primary(t, nil)
	idle, blocked, subscribed := client(t, p.addr, ""), client(t, p.addr, ""), client(t, p.addr, "")
	must(t, idle, "SET", "k", "v")
	pop, err := blocked.send([]string{"BLPOP", "nothing", "0"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := subscribed.send([]string{"SUBSCRIBE", "ch"}); err != nil {
		t.Fatal(err)
	}
	see(t, p, "the blocked client", func(redis.Observation) bool {
		return strings.Contains(must(t, idle, "INFO", "clients").text, "blocked_clients:1")
	})
	began := time.Now()
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("fence took %s", time.Since(began))
	reps, err := pop.wait(within(t, time.Second))
	if err == nil {
		err = firstError(reps)
	}
	if err == nil || !isCode(err, "UNBLOCKED") && !errors.Is(err, redis.ErrUnanswered) || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the blocked client got %v", err)
	}
	for _, c := range []*conn{idle, subscribed} {
		select {
		case <-c.gone:
		case <-time.After(time.Second):
			t.Fatal("a client was not cut")
		}
	}
	if o := p.Observe(within(t, time.Second)); !o.Frozen || !o.Whole || o.Keys != 1 {
		t.Fatalf("after the fence: %+v", o)
	}
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatalf("the same fence again: %v", err)
	}
}

func TestAStoppedPrimaryIsKilledByItsFenceWithinTheDeadline(t *testing.T) {
	t.Parallel()
	p := primary(t, nil)
	stop(t, p)
	if o := lookUntil(within(t, time.Second), p, func(o redis.Observation) bool { return o.Health == topo.HealthStopped }); o.Health != topo.HealthStopped {
		t.Fatalf("a stopped process looks like %+v", o)
	}
	began := time.Now()
	ctx := within(t, time.Second)
	if err := p.Fence(ctx); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatal("the fence took longer than its deadline")
	}
	t.Logf("fence by kill took %s", time.Since(began))
	if o := p.Observe(within(t, time.Second)); o.Health != topo.HealthExited {
		t.Fatalf("after the fence: %+v", o)
	}
}

func TestAStoppedReplicaIsNeverKilled(t *testing.T) {
	t.Parallel()
	p, r := primary(t, nil), open(t, nil)
	follow(t, r, p)
	stop(t, r)
	if err := r.Fence(within(t, 200*time.Millisecond)); !errors.Is(err, redis.ErrUnanswered) {
		t.Fatalf("fence of a stopped replica: %v", err)
	}
	if err := r.Follow(within(t, 50*time.Millisecond), "127.0.0.1:1", tenure()); !errors.Is(err, redis.ErrUnanswered) {
		t.Fatalf("follow on a stopped replica: %v", err)
	}
	if r.process().exited() {
		t.Fatal("a replica was killed as a fence")
	}
	cont(t, r)
	// The queued fence runs when the server goes on; the order to follow was never sent.
	see(t, r, "the frozen replica", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
}

func TestAPrimaryInAScriptThatWritesIsBusyAndItsFenceKillsIt(t *testing.T) {
	t.Parallel()
	p := primary(t, func(o *Options) { o.Directives = map[string]string{"lua-time-limit": "100"} })
	c := client(t, p.addr, "")
	script := `redis.call('set','k','v') local t=redis.call('time')[1]+4 while tonumber(redis.call('time')[1])<t do end`
	if _, err := c.send([]string{"EVAL", script, "0"}); err != nil {
		t.Fatal(err)
	}
	silent := see(t, p, "a busy server without an answer", func(o redis.Observation) bool { return o.Health != topo.HealthUp })
	if silent.Health != topo.HealthBusy {
		t.Fatalf("in a script the server looks like %+v", silent)
	}
	see(t, p, "the BUSY answer", func(o redis.Observation) bool {
		return o.Health == topo.HealthBusy && strings.Contains(o.Detail, "BUSY")
	})
	if err := p.Fence(within(t, 300*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if o := p.Observe(within(t, time.Second)); o.Health != topo.HealthExited {
		t.Fatalf("after the fence: %+v", o)
	}
}

func TestALongScriptIsBusyAndNotHung(t *testing.T) {
	t.Parallel()
	p := primary(t, nil)
	c := client(t, p.addr, "")
	call, err := c.send([]string{"EVAL", `local t=redis.call('time') local e=t[1]*1000+t[2]/1000+1500 while true do t=redis.call('time') if t[1]*1000+t[2]/1000>e then return 1 end end`, "0"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[topo.Health]int{}
	for !call.finished() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		seen[p.Observe(ctx).Health]++
		cancel()
	}
	if seen[topo.HealthBusy] < 5 || seen[topo.HealthHung] > 0 || seen[topo.HealthStopped] > 0 {
		t.Fatalf("during a long script the server looked like %v", seen)
	}
	see(t, p, "the end of it", isUp)
}

func TestAnOrderOnAStoppedServerNeverOvertakesTheFence(t *testing.T) {
	t.Parallel()
	p := primary(t, nil)
	see(t, p, "the primary", isUp)
	p.setRole(topo.RoleReplica) // so that the fence only queues
	stop(t, p)
	short := within(t, 50*time.Millisecond)
	if _, err := p.replication(short); !errors.Is(err, redis.ErrUnanswered) {
		t.Fatal(err)
	}
	if err := p.Fence(within(t, 50*time.Millisecond)); !errors.Is(err, redis.ErrUnanswered) {
		t.Fatal(err)
	}
	late := queueWrite(t, p.addr)
	cont(t, p)
	reps, err := late.wait(within(t, 2*time.Second))
	if err == nil && reps[1].err() == nil {
		t.Fatal("a write that was sent after the fence was executed")
	}
	if !p.fenced(t) {
		t.Fatal("not fenced after the server went on")
	}
}

// queueWrite queues a write on a new connection of a server that does not run.
func queueWrite(t *testing.T, addr string) *call {
	t.Helper()
	c, err := dial(within(t, time.Second), addr, [][]string{{"PING"}, {"SET", "late", "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c.setup
}

func (n *Node) fenced(t *testing.T) bool {
	return see(t, n, "an answer", isUp).Frozen
}
