// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// quorumOfCluster is a shard of a cluster, with all slots: a primary and its replica, k 1.
func quorumOfCluster(t *testing.T, change func(*topo.Spec, *Options)) *shard {
	t.Helper()
	a, b := strings.Repeat("a", 40), strings.Repeat("b", 40)
	start := func(id, conf string, bus string) *node {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "nodes.conf"), []byte(conf+"vars currentEpoch 1 lastVoteEpoch 0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return startNode(t, id, "--dir", dir, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "60000", "--cluster-replica-no-failover", "yes")
	}
	bus := strconv.Itoa(ports.Free(t))
	n0 := start("n0", a+" 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-16383\n", bus)
	_, port, _ := strings.Cut(n0.addr, ":")
	n1 := start("n1", fmt.Sprintf("%s 127.0.0.1:%s@%s master - 0 0 1 connected 0-16383\n%s 127.0.0.1:1@2 myself,slave %s 0 0 1 connected\n", a, port, bus, b, a), strconv.Itoa(ports.Free(t)))
	waitFor(t, "the server serves", func() bool { return strings.Contains(n0.do(t, "CLUSTER", "INFO"), "cluster_state:ok") })
	s := shardOf(t, []*node{n0, n1}, func(sp *topo.Spec, o *Options) {
		o.Cluster, o.SlotTag = true, func() string { return "x" }
		sp.Durability, sp.AckReplicas = topo.Quorum, 1
		sp.Timing.Park = topo.Duration(3 * time.Second)
		if change != nil {
			change(sp, o)
		}
	})
	return s
}

// TestAQuorumWriteOfAClusterWaitsForItsReplica: also what another client's write serves, and, with linearizable reads, reads.
func TestAQuorumWriteOfAClusterWaitsForItsReplica(t *testing.T) {
	t.Parallel()
	s := quorumOfCluster(t, func(_ *topo.Spec, o *Options) { o.ReadConsistency = ReadLinearizable })
	c, r, b, x := s.client(), s.client(), s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	r.want("1", "GET", "a")
	c.want("1", "DBSIZE")
	c.want("*0", "FUNCTION", "LIST")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("SET", "a", "2")
	r.send("GET", "a")
	x.send("EVAL", "return redis.call('rpush',KEYS[1],'x')", "1", "l")
	for _, w := range []*wire{c, b, x, r} {
		w.silent("without an acknowledgement")
	}
	s.nodes[1].signal(syscall.SIGCONT)
	for i, w := range []*wire{c, b, x, r} {
		if got, want := w.recv(), []string{"OK", "*2 $1 l $1 x", "1", "2"}[i]; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	s.nodes[1].signal(syscall.SIGSTOP)
	if got := c.do("SET", "a", "3"); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN the write was applied by the primary, but only 0 of 1 replicas acknowledged it") {
		t.Fatal(got)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	c.want("OK", "SET", "a", "4")
}

// TestAFullClusterServerTakesWhatFreesMemory: the marker that every batch ends with is refused as writes are, and those that are not
// refused are acknowledged nevertheless; those that are, are answered with the server's words.
func TestAFullClusterServerTakesWhatFreesMemory(t *testing.T) {
	t.Parallel()
	s := quorumOfCluster(t, nil)
	c, x := s.client(), s.client()
	c.want("OK", "MSET", "{t}a", "1", "{t}b", "2", "{t}c", "3")
	s.nodes[0].do(t, "CONFIG", "SET", "maxmemory", "1")
	begun := time.Now()
	const full = "-OOM command not allowed when used memory > 'maxmemory'."
	for i := range 5 {
		c.send("SET", "d", "1")
		c.send("DEL", "{t}"+string(rune('a'+i)))
		c.send("GET", "{t}c")
		x.want(full, "SET", "e", "1")
		for _, want := range [][]string{{full}, {"1", "0"}, {"3", "$-1"}} {
			if got := c.recv(); got != want[0] && got != want[len(want)-1] {
				t.Fatalf("%q, want one of %q", got, want)
			}
		}
	}
	c.want("0", "DBSIZE")
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("FLUSHALL")
	c.silent("without an acknowledgement")
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	s.nodes[0].do(t, "CONFIG", "SET", "maxmemory", "0")
	c.want("OK", "SET", "a", "1")
	if n := s.p.Stats().Unknown; n != 0 {
		t.Errorf("%d outcomes are unknown", n)
	}
}

// TestWritesThatAClusterServerRefusesForLackOfReplicasAreTriedAgain: its marker is refused with them, and nothing is lost by that.
func TestWritesThatAClusterServerRefusesForLackOfReplicasAreTriedAgain(t *testing.T) {
	t.Parallel()
	s := quorumOfCluster(t, nil)
	c := s.client()
	c.want("OK", "SET", "n", "0")
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "2")
	var wg sync.WaitGroup
	for range 8 {
		w := s.client()
		wg.Go(func() {
			for i := range 3 {
				w.send("INCR", "n")
				w.send("GET", "other")
				if n, other := w.recv(), w.recv(); strings.HasPrefix(n, "-") || other != "$-1" {
					t.Errorf("round %d: %q, %q", i, n, other)
				}
			}
		})
	}
	waitFor(t, "something was refused", func() bool { return s.p.Stats().Resent > 0 })
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "0")
	wg.Wait()
	c.want("24", "GET", "n")
	if n := s.p.Stats().Unknown; n != 0 {
		t.Errorf("%d outcomes are unknown", n)
	}
}

// TestAMarkerThatIsRefusedAcknowledgesNothing: a write fills the server's memory, so that the marker behind it is refused. The replica has
// the write, and a WAIT says so, but nothing says that this is what it is about.
func TestAMarkerThatIsRefusedAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	s := quorumOfCluster(t, func(sp *topo.Spec, o *Options) {
		o.SlotTag = func() string { return "" }
		sp.Timing.Park = topo.Duration(20 * time.Second)
	})
	c, admin := s.client(), dialWire(t, s.nodes[0].addr)
	c.want("OK", "SET", "a", "1")
	used, err := strconv.Atoi(s.nodes[0].info("used_memory"))
	if err != nil {
		t.Fatal(err)
	}
	admin.want("OK", "CONFIG", "SET", "maxmemory", strconv.Itoa(used+1<<20))
	c.send("EVAL", "return redis.call('set',KEYS[1],string.rep('x',4000000))", "1", "a")
	c.silent("behind a marker that was refused")
	admin.want("4000000", "STRLEN", "a")
	waitFor(t, "the replica has it", func() bool { return s.nodes[1].info("slave_repl_offset") == s.nodes[0].info("master_repl_offset") })
	c.silent("behind a marker that was refused")
	admin.want("OK", "CONFIG", "SET", "maxmemory", "0")
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
}
