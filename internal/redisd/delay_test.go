// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"testing"
	"time"

	"redoubt/internal/redis"
)

// A primary with the server's own default waits five seconds for further replicas, counted from what it last heard of any that
// waits: one that is told to begin anew meanwhile has both wait for ever.
func TestReplicasGetTheirSyncFromAPrimaryThatDelaysIt(t *testing.T) {
	t.Parallel()
	p := primary(t, func(o *Options) { o.Directives = map[string]string{"repl-diskless-sync-delay": "5"} })
	waiting := []*Node{open(t, nil), open(t, nil)}
	for _, n := range waiting {
		see(t, n, "the replica", isUp)
	}
	ctx := within(t, 25*time.Second)
	for begun := time.Now(); len(waiting) > 0; {
		if ctx.Err() != nil {
			t.Fatalf("%d of 2 replicas have no link after %s", len(waiting), time.Since(begun))
		}
		var still []*Node
		for _, n := range waiting {
			if o := n.Observe(within(t, time.Second)); o.LinkUp && o.Whole {
				continue
			}
			still = append(still, n)
			if err := n.Follow(within(t, 2*time.Second), p.addr, tenure()); err != nil {
				t.Fatal(err)
			}
		}
		waiting = still
		pause(ctx, 200*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Priming has a moment in which syncs are delayed. Whoever stops in it must not leave it so: neither when the next attempt takes what it finds for
// what was there before, nor when another agent takes over.
func TestAPrimingThatWasCutShortLeavesNoDelay(t *testing.T) {
	t.Parallel()
	delayed := func(n *Node) string {
		return must(t, client(t, n.addr, ""), "CONFIG", "GET", "repl-diskless-sync-delay").items[1].text
	}
	for name, after := range map[string]func(n *Node){
		"a second promotion": func(n *Node) { promote(t, n) },
		"the next look at its settings": func(n *Node) {
			if err := n.Configure(within(t, time.Second), redis.Settings{}); err != nil {
				t.Fatal(err)
			}
		},
		"another agent": func(n *Node) {
			n.undelay = nil // what an agent knows ends with it
			if err := n.Configure(within(t, time.Second), redis.Settings{}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		n := open(t, nil)
		see(t, n, "the server", isUp)
		c, err := n.ready(within(t, time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.delaySync(within(t, time.Second), c); err != nil {
			t.Fatal(err)
		}
		if got := delayed(n); got != primeDelay {
			t.Fatalf("delayed by %s", got)
		}
		after(n)
		if got := delayed(n); got != "0" {
			t.Errorf("after %s syncs are delayed by %s", name, got)
		}
	}
}
