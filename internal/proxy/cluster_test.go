// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// clusterNode starts a server of a cluster of two primaries, of which the other one is never there: it has slot 3300, that of b.
func clusterNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	me, other := strings.Repeat("a", 40), strings.Repeat("b", 40)
	conf := fmt.Sprintf("%s 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-3299 3301-16383\n%s 127.0.0.1:1@3 master - 0 0 2 connected 3300\nvars currentEpoch 2 lastVoteEpoch 0\n", me, other)
	if err := os.WriteFile(filepath.Join(dir, "nodes.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return startNode(t, "n0", "--dir", dir, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(ports.Free(t)), "--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000")
}

func clusterShard(t *testing.T, park time.Duration) *shard {
	t.Helper()
	return shardOf(t, []*node{clusterNode(t)}, func(s *topo.Spec, o *Options) { o.Cluster, s.Timing.Park = true, topo.Duration(park) })
}

// TestACommandWaitsForAServerThatDoesNotServeYet: a primary of a cluster that has just started says CLUSTERDOWN for two seconds.
func TestACommandWaitsForAServerThatDoesNotServeYet(t *testing.T) {
	s := clusterShard(t, 10*time.Second)
	if got := s.nodes[0].do(t, "CLUSTER", "INFO"); !strings.Contains(got, "cluster_state:fail") {
		t.Skip("the server is faster than this test")
	}
	w, x := s.client(), s.client()
	w.send("SET", "a", "1")
	w.send("SET", "a", "2")
	w.send("GET", "a")
	x.send("MULTI")
	x.send("SET", "t", "1")
	x.send("EXEC")
	for _, want := range []string{"OK", "OK", "2"} {
		if got := w.recv(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for range 2 {
		if got := x.recv(); strings.HasPrefix(got, "-") {
			t.Errorf("in a transaction: %q", got)
		}
	}
	if got := x.recv(); !strings.Contains(got, "OK") {
		t.Errorf("EXEC: %q", got)
	}
}

func TestASlotThatNobodyServesIsGivenUp(t *testing.T) {
	s := clusterShard(t, 300*time.Millisecond)
	waitFor(t, "the server serves", func() bool { return strings.Contains(s.nodes[0].do(t, "CLUSTER", "INFO"), "cluster_state:ok") })
	s.nodes[0].do(t, "CLUSTER", "DELSLOTS", "3168")
	w := s.client()
	if got := w.do("SET", "f", "1"); got != "-TRYAGAIN the command was not executed: its primary says: CLUSTERDOWN Hash slot not served" {
		t.Errorf("%q", got)
	}
	w.want("OK", "SET", "a", "1")
}

// TestARedirectionOfAPrimaryIsHandedOn: the first one of a tenure could be that of a primary which is none any more; the second one
// says that the slot is elsewhere. What others have on their way is answered meanwhile.
func TestARedirectionOfAPrimaryIsHandedOn(t *testing.T) {
	s := clusterShard(t, 5*time.Second)
	waitFor(t, "the server serves", func() bool { return strings.Contains(s.nodes[0].do(t, "CLUSTER", "INFO"), "cluster_state:ok") })
	w, x := s.client(), s.client()
	for range 3 {
		w.send("SET", "b", "1")
		x.send("INCR", "a")
		if got := w.recv(); got != "-MOVED 3300 127.0.0.1:1" {
			t.Errorf("%q", got)
		}
		if got := x.recv(); strings.HasPrefix(got, "-") {
			t.Errorf("%q", got)
		}
	}
	w.want("3", "GET", "a")
	if n := s.p.Stats().Unknown; n != 0 {
		t.Errorf("%d outcomes are unknown", n)
	}
}
