// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/slots"
)

// clusterCrew is 3 × (1+1) servers on three members, and room for more: seats says who has a server of which shard.
type clusterCrew struct {
	*crew
	seats [][]int // shard → members, the preferred one first
	shift [9]int  // by member: how far its servers' ports are above the usual ones
}

func newClusterCrew(t *testing.T) *clusterCrew {
	c := &clusterCrew{crew: newCrew(t), seats: [][]int{{1, 2}, {2, 3}, {3, 1}}}
	c.extra = "    mode: cluster\n"
	c.roster = func() string {
		var b strings.Builder
		b.WriteString("    shards:\n")
		for k, members := range c.seats {
			fmt.Fprintf(&b, "      - name: s%d\n        nodes:\n", k+1)
			for rank, i := range members {
				fmt.Fprintf(&b, "          - {id: n%d, host: h%d, addr: %q, bus-port: %d, priority: %d}\n", i, i, c.at(100+10*k+c.shift[i], i), c.bus(k, i), rank)
			}
		}
		return b.String()
	}
	for _, id := range []string{"n1", "n2", "n3"} {
		c.start(id, "")
	}
	c.d.waitHealthy(30 * time.Second)
	return c
}

// bus is the port of the bus of a server.
func (c *clusterCrew) bus(shard, member int) int {
	return c.d.base + 300 + 10*shard + member - 1 + c.shift[member]
}

// serverID is what a server of this crew is called in the cluster.
func serverID(shard, node string) string { return slots.Derived("mymaster", "mymaster-"+shard, node) }

// view asks a server what it knows of the cluster.
func view(t *testing.T, addr string) slots.Nodes {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer c.Close()
	text, err := c.ClusterNodes(t.Context()).Result()
	if err != nil {
		return nil
	}
	nodes, _, err := slots.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

// knows waits until every server that is well has exactly these in its view, all of them linked.
func (c *clusterCrew) knows(within time.Duration, ids ...string) {
	c.t.Helper()
	slices.Sort(ids)
	begun := time.Now()
	c.d.until(within, fmt.Sprintf("all servers know these %d, and no others", len(ids)), func() (bool, string) {
		s, err := c.d.status()
		if err != nil {
			return false, err.Error()
		}
		for _, sh := range s.Deployments[0].Shards {
			for _, n := range sh.Nodes {
				if n.State != "serving" && n.State != "following" {
					continue
				}
				var known []string
				for _, x := range view(c.t, n.Addr) {
					if !x.Handshake {
						known = append(known, x.ID)
					}
					if !x.Linked && !x.Myself {
						return false, fmt.Sprintf("%s/%s has no link to %s", sh.ID, n.ID, x.Addr())
					}
				}
				if slices.Sort(known); !slices.Equal(known, ids) {
					return false, fmt.Sprintf("%s/%s knows %v", sh.ID, n.ID, known)
				}
			}
		}
		return true, ""
	})
	c.t.Logf("all servers know the same %d %.0f ms later", len(ids), ms(time.Since(begun)))
}

// TestClusterNodesJoinLeaveAndAreReplaced: a new host takes a seat in a shard, a node leaves it, a host is lost for good and another
// has its seats; all under the load of plain and cluster-aware clients. Every server knows exactly those that are agreed.
func TestClusterNodesJoinLeaveAndAreReplaced(t *testing.T) {
	c := newClusterCrew(t)
	all := []string{serverID("s1", "n1"), serverID("s1", "n2"), serverID("s2", "n2"), serverID("s2", "n3"), serverID("s3", "n3"), serverID("s3", "n1")}
	c.knows(10*time.Second, all...)
	g := c.load("join")

	c.nodes = 4
	c.seats[0], c.seats[2] = append(c.seats[0], 4), append(c.seats[2], 4)
	c.start("n4", c.at(40, 1))
	begun := time.Now()
	c.d.until(15*time.Second, "the new member's agents report, and it joins", func() (bool, string) {
		out, err := c.d.run("node", "add", "n4", "--shard", "mymaster-s1", "--yes")
		return err == nil && strings.Contains(out, "7 nodes"), out + errText(err)
	})
	t.Logf("in the roster %.0f ms after its start", ms(time.Since(begun)))
	c.knows(10*time.Second, append(all, serverID("s1", "n4"))...)
	s := c.d.waitHealthy(20 * time.Second)
	replica := "n2"
	if s.shard("mymaster-s1").Primary == replica {
		replica = "n1"
	}
	if out := g.step("node", "remove", replica, "--shard", "mymaster-s1", "--yes"); !strings.Contains(out, "6 nodes") {
		t.Errorf("node remove said %q", out)
	}
	all = slices.DeleteFunc(append(all, serverID("s1", "n4")), func(id string) bool { return id == serverID("s1", replica) })
	c.knows(15*time.Second, all...)
	left := c.at(100, number(t, replica))
	c.d.until(15*time.Second, "the one that left knows nobody but whom it followed", func() (bool, string) {
		v := view(t, left)
		self, _ := v.Self()
		return self.ID == serverID("s1", replica) && (len(v) <= 2 || spreads(t, left)), fmt.Sprint(len(v), " nodes")
	})
	g.calm(c.d.proxyAddr(1))

	c.moveNode(all)
	c.replaceHost(s.shard("mymaster-s1").Primary, all)
}

// moveNode gives n4's server of the first shard another port.
func (c *clusterCrew) moveNode(all []string) {
	t := c.t
	_ = c.members["n4"].Process.Signal(syscall.SIGINT)
	_ = c.members["n4"].Wait()
	delete(c.members, "n4")
	c.shift[4] = 4
	c.start("n4", c.at(40, 1))
	addr := c.at(100+c.shift[4], 4)
	if out, err := c.d.run("node", "move", "n4", "--shard", "mymaster-s1", "--addr", addr, "--bus-port", strconv.Itoa(c.bus(0, 4)), "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.d.until(20*time.Second, "n4 follows at its new address", func() (bool, string) {
		s, err := c.d.status()
		if err != nil {
			return false, err.Error()
		}
		n := s.shard("mymaster-s1").node("n4")
		return n.State == "following" && n.Addr == addr, fmt.Sprintf("%+v", n)
	})
	c.knows(20*time.Second, all...)
	s := c.d.waitHealthy(20 * time.Second)
	for _, n := range s.shard("mymaster-s1").Nodes {
		x, _ := view(t, n.Addr).ByID(serverID("s1", "n4"))
		if x.Addr() != addr {
			t.Errorf("%s knows n4 at %s, and it is at %s", n.ID, x.Addr(), addr)
		}
	}
}

// replaceHost loses a host for good, and gives its seats to n4.
func (c *clusterCrew) replaceHost(lost string, all []string) {
	t := c.t
	s := c.d.waitHealthy(20 * time.Second)
	for _, sh := range s.Deployments[0].Shards {
		for _, n := range sh.Nodes {
			if n.ID == lost {
				signal(t, n.PID, syscall.SIGKILL)
			}
		}
	}
	c.kill(lost)
	c.endManaged(lost)
	c.d.until(15*time.Second, "all shards serve without it", func() (bool, string) {
		now, err := c.d.status()
		if err != nil {
			return false, err.Error()
		}
		for _, sh := range now.Deployments[0].Shards {
			if sh.Phase != "serving" || sh.Primary == lost {
				return false, fmt.Sprintf("%+v", sh)
			}
		}
		return true, ""
	})
	begun := time.Now()
	for _, sh := range s.Deployments[0].Shards {
		if !slices.ContainsFunc(sh.Nodes, func(n node) bool { return n.ID == lost }) {
			continue
		}
		if !slices.ContainsFunc(sh.Nodes, func(n node) bool { return n.ID == "n4" }) && sh.ID == "mymaster-s3" {
			if out, err := c.d.run("node", "add", "n4", "--shard", sh.ID, "--yes"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			all = append(all, serverID("s3", "n4"))
		}
		if out, err := c.d.run("node", "remove", lost, "--shard", sh.ID, "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		name := strings.TrimPrefix(sh.ID, "mymaster-")
		all = slices.DeleteFunc(all, func(id string) bool { return id == serverID(name, lost) })
	}
	c.knows(20*time.Second, all...)
	t.Logf("the lost host is replaced %.1f s after the first order", time.Since(begun).Seconds())
	c.d.waitHealthy(20 * time.Second)
}

// load starts writers: plain ones through two proxies, and one that is cluster-aware.
func (c *clusterCrew) load(run string) *growth {
	c.t.Helper()
	g := &growth{t: c.t, d: c.d}
	for k := range c.seats {
		addr, key := c.d.proxyAddr(1+k%2), c.d.keyOn(fmt.Sprintf("mymaster-s%d", k+1), "w:"+run)
		g.ws = append(g.ws, goRedisWriter(fmt.Sprintf("go-redis on s%d", k+1), key, redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})))
		aware := c.d.keyOn(fmt.Sprintf("mymaster-s%d", k+1), "wc:"+run)
		g.ws = append(g.ws, goRedisWriter(fmt.Sprintf("go-redis ClusterClient on s%d", k+1), aware, clusterClient(c.d.proxyAddr(0), c.d.proxyAddr(1), c.d.proxyAddr(2))))
	}
	host, port, _ := net.SplitHostPort(c.d.proxyAddr(1))
	g.ws = append(g.ws, cliWriter(c.t, "w:"+run+":cli", host, port))
	ws := g.ws
	c.t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	for _, w := range ws {
		waitAcked(c.t, w, 20)
	}
	return g
}

// spreads reports whether what a server forgets is forgotten by all who know it: then one that has left forgets nobody.
func spreads(t *testing.T, addr string) bool {
	t.Helper()
	r := redis.NewClient(&redis.Options{Addr: addr})
	defer r.Close()
	info, err := r.Info(t.Context(), "server").Result()
	return err == nil && !strings.Contains(info, "redis_version:7.0.")
}
