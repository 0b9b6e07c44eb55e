// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// wipedAfter is how long the tests watch for a replica to be wiped. By a reborn primary that is open it is after half a second.
const wipedAfter = 1500 * time.Millisecond

// stays looks for that long and ends the test if what is looked for is ever not so. A look at a server that works and did not answer in
// time, as on a machine with too much to do, says nothing; the last one has an answer.
func stays(t testing.TB, n *Node, d time.Duration, what string, cond func(redis.Observation) bool) redis.Observation {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for {
		o := n.Observe(within(t, time.Second))
		if o.Health == topo.HealthBusy && time.Since(begun) < d+10*time.Second {
			continue
		}
		if !cond(o) {
			t.Fatalf("not %s any more: %+v", what, o)
		}
		if time.Since(begun) > d {
			return o
		}
		<-tick.C
	}
}

// conf reads the nodes.conf of a server.
func conf(t testing.TB, n *Node) slots.Nodes {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.managed.o.Dir, nodesConf))
	if err != nil {
		t.Fatal(err)
	}
	nodes, _, err := slots.Parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

// crash kills a server behind its driver's back, does something to its directory, and starts it again.
func crash(t testing.TB, n *Node, change func(dir string)) {
	t.Helper()
	if err := n.process().signal(sigKill); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
	if change != nil {
		change(n.managed.o.Dir)
	}
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// TestAPrimaryThatIsBornAgainEmptyWipesNobody: in the three ways in which it can come back without data, its replica keeps
// its own, and takes over with them.
func TestAPrimaryThatIsBornAgainEmptyWipesNobody(t *testing.T) {
	t.Parallel()
	empty := func(dir string) {
		for _, pattern := range []string{"*", ".*"} {
			found, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, path := range found {
				_ = os.RemoveAll(path)
			}
		}
	}
	for name, change := range map[string]func(dir string){
		"as it was":             nil,
		"without a nodes.conf":  func(dir string) { _ = os.Remove(filepath.Join(dir, nodesConf)) },
		"in an empty directory": empty,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := cluster(t, 2, 2, nil)
			p, r := f.shards[0][0], f.shards[0][1]
			put(t, p, f.keys[0], "kept")
			caughtUp(t, r, p)
			crash(t, p, change)
			// Nobody looks at it meanwhile: a look would fence what boots open.
			stays(t, r, wipedAfter, "a replica with its data", func(o redis.Observation) bool { return isUp(o) && o.Keys == 1 && !o.LinkUp })
			if !refusesTCP(p) {
				t.Fatal("it can be connected to before anybody allowed it")
			}
			born := see(t, p, "the new process", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
			if born.Keys != 0 || len(born.Problems) > 0 {
				t.Fatalf("born again: %+v", born)
			}
			if nodes := conf(t, p); len(nodes) != 4 {
				t.Errorf("its nodes.conf: %+v", nodes)
			} else if self, _ := nodes.Self(); self.ID != p.cluster.ID {
				t.Errorf("it came back as %s, not as %s", self.ID, p.cluster.ID)
			}

			if err := r.Freeze(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			crown(t, r)
			put(t, r, "{"+f.keys[0]+"}2", "new")
			if o := join(t, p, r); o.Keys != 2 {
				t.Errorf("after following: %+v", o)
			}
			for _, shard := range f.shards {
				for _, n := range shard {
					for _, line := range strings.Split(inside(t, n, "CLUSTER", "NODES").text, "\n") {
						if strings.Contains(line, "noaddr") {
							t.Errorf("%s knows a ghost: %s", n.addr, line)
						}
					}
				}
			}
		})
	}
}

// TestALostPromotedNodeLeavesSlotsThatItsSuccessorClaims: a node that was a replica when the cluster was founded, was promoted, and
// lost everything, says that it is a replica again: every node then takes the slots from it. Whoever is promoted has them again.
func TestALostPromotedNodeLeavesSlotsThatItsSuccessorClaims(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 2, nil)
	a, b := f.shards[0][0], f.shards[0][1]
	put(t, a, f.keys[0], "kept")
	caughtUp(t, b, a)
	if err := a.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	final := see(t, a, "the fence", func(o redis.Observation) bool { return o.Frozen })
	see(t, b, "the rest of the stream", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
	if err := b.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	crown(t, b)
	join(t, a, b)
	crash(t, b, func(dir string) {
		_ = os.Remove(filepath.Join(dir, nodesConf))
	})
	stays(t, a, wipedAfter, "a replica with its data", func(o redis.Observation) bool { return isUp(o) && o.Keys == 1 })
	if err := a.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	crown(t, a)
	put(t, a, "{"+f.keys[0]+"}2", "new")
	if o := join(t, b, a); o.Keys != 2 {
		t.Errorf("after following: %+v", o)
	}
	want := a.cluster.expected()
	for _, n := range []*Node{b, f.shards[1][0], f.shards[1][1]} {
		see(t, n, "the slots at their owner", func(redis.Observation) bool {
			nodes, _, err := slots.Parse(inside(t, n, "CLUSTER", "NODES").text)
			owner, _ := nodes.ByID(a.cluster.ID)
			return err == nil && owner.Slots == want
		})
	}
}

// TestAClusterWithoutAFirstPrimaryIsFoundedByPromotions: a layout that names no primary gives slots to nobody.
func TestAClusterWithoutAFirstPrimaryIsFoundedByPromotions(t *testing.T) {
	t.Parallel()
	f := plan(t, 2, 2)
	for i := range f.layout.Nodes {
		f.layout.Nodes[i].Primary = false
	}
	f.change = func(o *Options) { o.Directives = map[string]string{nodeTimeout: "500"} } // the time in which a minority comes back
	f.boot(t)
	for s, shard := range f.shards {
		crown(t, shard[1])
		join(t, shard[0], shard[1])
		put(t, shard[1], f.keys[s], "1")
	}
	for _, shard := range f.shards {
		caughtUp(t, shard[0], shard[1])
	}
}

func TestANodesConfThatIsNotItsOwnIsSetAside(t *testing.T) {
	t.Parallel()
	f := plan(t, 1, 1)
	seat := f.layout.Nodes[0]
	other := slots.Nodes{{ID: slots.Derived("other"), Host: "127.0.0.1", Port: 1, BusPort: 2, Myself: true}}
	for name, text := range map[string]string{"torn": "0123 127.", "another's": other.Conf(7, false), "half": strings.Repeat("a", 40) + " ", "empty": ""} {
		dir := f.dirs[seat.ID]
		if err := os.WriteFile(filepath.Join(dir, nodesConf), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n := f.start(t, seat)
		see(t, n, "a frozen server", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
		if self, _ := conf(t, n).Self(); self.ID != seat.ID || self.Slots != n.cluster.expected() {
			t.Errorf("%s: it is %+v", name, self)
		}
		aside, err := os.ReadFile(filepath.Join(dir, nodesConf+".aside"))
		if text != "" && (err != nil || string(aside) != text) {
			t.Errorf("%s: set aside %q, %v", name, aside, err)
		}
		if err := n.Kill(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAMemberComesBackClosedWithItsDataAndServesThem(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 1, keepsAll)
	p := f.shards[0][0]
	put(t, p, f.keys[0], "kept")
	see(t, p, "the primary", isUp)
	crash(t, p, nil)
	o := see(t, p, "the new process with its data", func(o redis.Observation) bool { return isUp(o) && o.Keys == 1 && o.Kept })
	if !o.Frozen || !o.Whole || !refusesTCP(p) {
		t.Fatalf("after the restart: %+v", o)
	}
	crown(t, p)
	if c := client(t, p.addr, ""); must(t, c, "GET", f.keys[0]).text != "kept" {
		t.Fatal("its data are gone")
	}
	put(t, p, f.keys[0], "new")
}

func TestOptionsOfAMemberAreChecked(t *testing.T) {
	t.Parallel()
	good := Options{Addr: "127.0.0.1:7000", Dir: "x", Cluster: &ClusterSeat{
		ID: slots.Derived("a"), ShardID: slots.Derived("b"), BusPort: 17000, Layout: func() ClusterLayout { return ClusterLayout{} },
	}}
	if errs := good.Validate(); len(errs) > 0 {
		t.Fatal(errs)
	}
	for name, spoil := range map[string]func(*Options){
		"a name":       func(o *Options) { o.Addr = "localhost:7000" },
		"no id":        func(o *Options) { o.Cluster.ID = "1" },
		"no shard":     func(o *Options) { o.Cluster.ShardID = "" },
		"no bus":       func(o *Options) { o.Cluster.BusPort = 0 },
		"one port":     func(o *Options) { o.Cluster.BusPort = 7000 },
		"no layout":    func(o *Options) { o.Cluster.Layout = nil },
		"own failover": func(o *Options) { o.Directives = map[string]string{"cluster-replica-no-failover": "no"} },
		"a socket":     func(o *Options) { o.Directives = map[string]string{"unixsocket": "/tmp/x"} },
		"TLS":          func(o *Options) { o.Directives = map[string]string{"TLS-Port": "7443"} },
		"no CLUSTER":   func(o *Options) { o.Directives = map[string]string{"rename-command": "CLUSTER x"} },
	} {
		bad, seat := good, *good.Cluster
		bad.Cluster = &seat
		spoil(&bad)
		if errs := bad.Validate(); len(errs) != 1 {
			t.Errorf("%s: %v", name, errs)
		}
	}
	alone := Options{Addr: "localhost:7000", Dir: "x", Directives: map[string]string{"rename-command": "CLUSTER x", "unixsocket": "/tmp/x"}}
	if errs := alone.Validate(); len(errs) > 0 {
		t.Errorf("a server by itself: %v", errs)
	}
}
