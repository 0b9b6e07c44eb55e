// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/topo"
)

func (n *node) gets(t *testing.T) int {
	t.Helper()
	m := regexp.MustCompile(`cmdstat_get:calls=(\d+)`).FindStringSubmatch(n.do(t, "INFO", "commandstats"))
	if m == nil {
		return 0
	}
	v, _ := strconv.Atoi(m[1])
	return v
}

func TestSplitReadsShowTheSessionsOwnWritesAndNothingOld(t *testing.T) {
	t.Parallel()
	s := newShard(t, 2, func(_ *spec, o *Options) { o.SplitReads, o.Staleness = true, 400*time.Millisecond })
	w, r := s.client(), s.client()
	w.want("OK", "SET", "k", "0")
	waitFor(t, "reads reach a replica", func() bool {
		r.want("0", "GET", "k")
		return s.nodes[1].gets(t)+s.nodes[2].gets(t) > 0
	})
	began := time.Now()
	for i := 1; time.Since(began) < time.Second; i++ {
		w.want("OK", "SET", "k", strconv.Itoa(i))
		w.want(strconv.Itoa(i), "GET", "k")
		w.send("SET", "p", strconv.Itoa(i))
		w.send("GET", "p")
		w.send("ECHO", "x")
		for _, want := range []string{"OK", strconv.Itoa(i), "x"} {
			if got := w.recv(); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
	}
	waitFor(t, "the writer's reads reach a replica, once it covers its writes", func() bool {
		before := s.nodes[0].gets(t)
		got := w.do("GET", "k")
		return got != "" && s.nodes[0].gets(t) == before
	})

	// Replicas that have lost their primary are left when what they show gets old.
	s.nodes[1].do(t, "REPLICAOF", "127.0.0.1", "1")
	s.nodes[2].do(t, "REPLICAOF", "127.0.0.1", "1")
	w.want("OK", "SET", "k", "new")
	waitFor(t, "the new value is seen", func() bool { return r.do("GET", "k") == "new" })
	if since := time.Since(began); since > 10*time.Second {
		t.Log(since)
	}
	s.follow(s.nodes[1], s.nodes[0])
	s.follow(s.nodes[2], s.nodes[0])
	s.inSync(s.nodes[0])
	was := s.nodes[1].gets(t) + s.nodes[2].gets(t)
	waitFor(t, "replicas answer again", func() bool { r.want("new", "GET", "k"); return s.nodes[1].gets(t)+s.nodes[2].gets(t) > was })

	s.switchover(s.nodes[0], s.nodes[1])
	for i := range 500 {
		w.want("OK", "SET", "k", strconv.Itoa(i))
		w.want(strconv.Itoa(i), "GET", "k")
	}
	was = s.nodes[0].gets(t) + s.nodes[2].gets(t)
	waitFor(t, "replicas of the new primary answer", func() bool { r.want("499", "GET", "k"); return s.nodes[0].gets(t)+s.nodes[2].gets(t) > was })
	if r.do("HELLO", "3"); r.do("GET", "k") != "499" {
		t.Error("RESP3")
	}
}

func TestReadsPreferTheirZoneThenTheNearest(t *testing.T) {
	covers := []cover{{node: "far", trip: 1, away: true}, {node: "slow", trip: 9}, {node: "quick", trip: 3}}
	slices.SortFunc(covers, nearest)
	if covers[0].node != "quick" || covers[1].node != "slow" || covers[2].node != "far" {
		t.Errorf("order %v", covers)
	}
	shard := topo.Shard{Spec: topo.Spec{Nodes: []topo.Node{{ID: "n1", Zone: "a"}, {ID: "n2", Zone: "a"}, {ID: "n3", Zone: "b"}}},
		Assigned: topo.Assigned{Phase: topo.PhaseServing, Primary: "n1"}}
	replica := func(id topo.NodeID) topo.Sighting {
		return topo.Sighting{Node: id, Role: topo.RoleReplica, Health: topo.HealthUp, LinkUp: true, Whole: true, InSync: 1}
	}
	seen := []topo.Sighting{{Node: "n1", Role: topo.RolePrimary}, replica("n2"), replica("n3")}
	for zone, want := range map[string][]topo.NodeID{"a": {"n2"}, "b": {"n3"}, "c": {"n2", "n3"}, "": {"n2", "n3"}} {
		var got []topo.NodeID
		for _, to := range fitReplicas(shard, seen, 100, zone) {
			got = append(got, to.node)
		}
		if !slices.Equal(got, want) {
			t.Errorf("zone %q reads from %v, want %v", zone, got, want)
		}
	}
}

func TestAReadThatAReplicaDoesNotAnswerGoesToThePrimary(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(_ *spec, o *Options) { o.SplitReads, o.Staleness = true, 400*time.Millisecond })
	c := s.client()
	c.want("OK", "SET", "k", "v")
	waitFor(t, "reads reach the replica", func() bool { c.want("v", "GET", "k"); return s.nodes[1].gets(t) > 0 })
	was := s.nodes[0].gets(t)
	s.nodes[1].signal(syscall.SIGSTOP)
	defer s.nodes[1].signal(syscall.SIGCONT)
	c.want("v", "GET", "k")
	if s.nodes[0].gets(t) == was {
		t.Error("the replica has answered")
	}
}
