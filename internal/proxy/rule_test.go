// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// TestConnectionsTakeANewRule: a shared connection, one of a session and one in the middle of a transaction; no client
// notices, and a pop that was waiting is acknowledged by the new rule.
func TestConnectionsTakeANewRule(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) {
		sp.Durability = topo.Async
		sp.Timing.Park = topo.Duration(3 * time.Second)
	})
	c, watch, txn, b, sub := s.client(), s.client(), s.client(), s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	watch.want("OK", "WATCH", "a")
	txn.want("OK", "MULTI")
	txn.want("QUEUED", "SET", "in", "1")
	sub.want("*3 $9 subscribe $4 news :1", "SUBSCRIBE", "news")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	s.write(func(a *topo.Assigned) {
		a.Begin(topo.Change{Kind: topo.ChangeAck, Durability: topo.Quorum, AckReplicas: 1})
	})
	older := func() (out []string) {
		for line := range strings.Lines(s.nodes[0].do(t, "CLIENT", "LIST")) {
			ours := strings.Contains(line, "name=redoubt-proxy:p1") || strings.Contains(line, "name=redoubt-pinned:p1")
			if ours && !strings.Contains(line, "name=redoubt-proxy:p1#1 ") && !strings.Contains(line, "name=redoubt-pinned:p1#1 ") && !strings.Contains(line, " flags=P ") {
				out = append(out, line)
			}
		}
		return out
	}
	waitFor(t, "all but the transaction have taken the rule", func() bool { return len(older()) == 1 })
	txn.want("*1 +OK", "EXEC")
	waitFor(t, "all have taken the rule", func() bool { return len(older()) == 0 })
	waitFor(t, "blocked again", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	c.want("1", "RPUSH", "l", "x")
	if got := b.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
	if got := watch.do("GET", "a"); got != "1" {
		t.Fatal(got)
	}
	c.want("1", "PUBLISH", "news", "hello")
	if got := sub.recv(); got != "*3 $7 message $4 news $5 hello" {
		t.Fatal(got)
	}
	if n := s.p.Stats().Unknown; n != 0 {
		t.Fatalf("%d commands had an unknown outcome", n)
	}
}

func TestAWriteThatWaitedInVainNamesWhoIsMissing(t *testing.T) {
	spec := topo.Shard{Assigned: topo.Assigned{Primary: "n1"}}
	spec.Spec.Timing = topo.LANTiming()
	for _, id := range []topo.NodeID{"n1", "n2", "n3", "n4"} {
		spec.Spec.Nodes = append(spec.Spec.Nodes, topo.Node{ID: id})
	}
	got := missing(spec, reportsOf(
		topo.Sighting{Node: "n2", Health: topo.HealthExited},
		topo.Sighting{Node: "n3", Health: topo.HealthUp, LinkUp: true, Whole: true},
	))
	if want := "missing: n2 (its server is exited), n4 (its agent does not report)"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

func reportsOf(all ...topo.Sighting) view.Reports {
	r := view.Reports{Nodes: map[topo.NodeID]view.Seen{}}
	for _, s := range all {
		r.Nodes[s.Node] = view.Seen{Sighting: s, Age: time.Millisecond}
	}
	return r
}
