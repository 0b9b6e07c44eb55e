// SPDX-License-Identifier: Apache-2.0

//go:build planted

package proxy

import (
	"testing"

	"redoubt/internal/invariant"
	"redoubt/internal/topo"
)

// TestPlantedBugsOfExactRetryAreFound: each of the bugs executes an increment twice, in the story of the test that stands
// against it.
func TestPlantedBugsOfExactRetryAreFound(t *testing.T) {
	defer invariant.Plant("")
	for _, bug := range []struct {
		name  string
		story func(t *testing.T) (n string)
	}{
		{"replay-without-kill", func(t *testing.T) string {
			s, wire := exactShard(t, 1)
			c := s.client()
			c.want("1", "INCR", "n")
			wire.hold(true, false)
			c.send("INCR", "n")
			waitFor(t, "it is on its way", func() bool { return wire.kept("INCR") })
			wire.cut()
			c.recv()
			wire.deliver()
			until(2e9, func() bool { return s.nodes[0].do(t, "GET", "n") != "2" })
			return s.nodes[0].do(t, "GET", "n")
		}},
		{"absent-marker-not-applied", func(t *testing.T) string {
			s, wire := exactShard(t, 1)
			c := s.client()
			c.want("1", "INCR", "n")
			wire.hold(false, true)
			c.send("INCR", "n")
			waitFor(t, "it ran", func() bool { return s.nodes[0].do(t, "GET", "n") == "2" })
			key, _ := s.nodes[0].marker(t)
			s.nodes[0].do(t, "DEL", key)
			wire.cut()
			c.recv()
			return s.nodes[0].do(t, "GET", "n")
		}},
		{"replay-with-new-number", func(t *testing.T) string {
			s, _ := exactShard(t, 1)
			old, next := s.nodes[0], s.nodes[1]
			c := s.client()
			c.want("1", "INCR", "n")
			waitFor(t, "replicated", func() bool { return s.caughtUp(old) })
			next.do(t, "REPLICAOF", "127.0.0.1", "0")
			c.send("INCR", "n")
			waitFor(t, "it ran on the old primary", func() bool { return old.do(t, "GET", "n") == "2" })
			s.phase(topo.PhaseFencing)
			next.do(t, "REPLICAOF", "NO", "ONE")
			s.serve(next)
			waitFor(t, "it was sent again", func() bool { return next.do(t, "GET", "n") == "2" })
			s.phase(topo.PhaseFencing)
			s.serve(old)
			s.follow(next, old)
			c.recv()
			return old.do(t, "GET", "n")
		}},
	} {
		t.Run(bug.name, func(t *testing.T) {
			invariant.Plant("")
			if n := bug.story(t); n != "2" {
				t.Fatalf("n is %s without the bug", n)
			}
			invariant.Plant(bug.name)
			if n := bug.story(t); n != "3" {
				t.Errorf("n is %s with the bug: it was not found", n)
			}
		})
	}
}
