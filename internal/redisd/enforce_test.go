// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"slices"
	"testing"
	"time"

	"redoubt/internal/redis"
)

func TestProxiesOfAnOlderRuleAreNamedAndCut(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	for _, name := range []string{
		redis.WithRule(redis.ProxyClientName+"a", 2), redis.WithRule(redis.ProxyClientName+"b", 1), redis.WithRule(redis.PinnedClientName+"b", 0),
		redis.WithRule(redis.PinnedClientName+"c.d-e", 3), redis.ErrandClientName + "f", "somebody",
	} {
		must(t, client(t, n.addr, ""), "CLIENT", "SETNAME", name)
	}
	listener := client(t, n.addr, "") // a subscriber of RESP2 can write nothing, so that its rule does not matter
	must(t, listener, "CLIENT", "SETNAME", redis.PinnedClientName+"g")
	must(t, listener, "SUBSCRIBE", "x")
	late, held, err := n.Enforce(within(t, 2*time.Second), redis.Rule{Change: 1, Law: 2, Acks: 0, Cut: false})
	if err != nil || held || !slices.Equal(late, []string{"b"}) {
		t.Fatalf("late are %v, held %v: %v", late, held, err)
	}
	if late, held, err = n.Enforce(within(t, 2*time.Second), redis.Rule{Change: 1, Law: 2, Acks: 0, Cut: true}); err != nil || held || !slices.Equal(late, []string{"b"}) {
		t.Fatalf("when they are cut, late are %v, held %v: %v", late, held, err)
	}
	if late, held, err = n.Enforce(within(t, 2*time.Second), redis.Rule{Change: 1, Law: 2, Acks: 0, Cut: true}); err != nil || !held || len(late) > 0 {
		t.Fatalf("afterwards late are %v, held %v: %v", late, held, err)
	}
}

func TestABarrierIsHeldByReplicasThatFollow(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	if late, held, err := n.Enforce(within(t, 2*time.Second), redis.Rule{Change: 1, Law: 1, Acks: 1, Cut: true}); err != nil || held || len(late) > 0 {
		t.Fatalf("without a replica: late %v, held %v: %v", late, held, err)
	}
	r := open(t, nil)
	see(t, r, "an answering server", isUp)
	if err := r.Follow(within(t, 5*time.Second), n.addr, tenure()); err != nil {
		t.Fatal(err)
	}
	see(t, r, "a link", func(o redis.Observation) bool { return o.LinkUp && o.Whole })
	end := time.Now().Add(5 * time.Second) // a replica acknowledges for the first time after its sync
	for {
		_, held, err := n.Enforce(within(t, 2*time.Second), redis.Rule{Change: 1, Law: 1, Acks: 1, Cut: true})
		if err != nil {
			t.Fatal(err)
		}
		if held {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the replica does not hold the barrier")
		}
	}
	if _, held, err := r.Enforce(within(t, 2*time.Second), redis.Rule{Change: 1, Law: 0, Acks: 0, Cut: true}); err == nil || held {
		t.Fatalf("a replica wrote a barrier: held %v, %v", held, err)
	}
}
