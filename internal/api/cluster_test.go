// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"testing"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
)

// TestANodeOfAClusterHasAnAddressThatServersTell: an IP address, and room for the port of its bus.
func TestANodeOfAClusterHasAnAddressThatServersTell(t *testing.T) {
	o := NewOrders(memstore.New(clock.Real{}, "m1").Member("m1"), "big-a")
	o.cluster = true
	for _, addr := range []string{"redis.example:6379", "127.0.0.1:60000"} {
		var e *Error
		if err := o.AddNode(t.Context(), NodeRequest{Node: topo.Node{ID: "n9", Addr: addr}}); !errors.As(err, &e) || e.Code != "bad-request" {
			t.Errorf("node add %s: %v", addr, err)
		}
	}
}

// TestWhatTheServersSeeIsPutTogether: the same finding of several servers is one, and what a person has to do comes first.
func TestWhatTheServersSeeIsPutTogether(t *testing.T) {
	ghost := topo.ClusterFinding{Name: "ghost", Text: "x", Does: "it is forgotten"}
	open := topo.ClusterFinding{Name: "open-slot", Text: "y", Person: "finish it"}
	at := func(f topo.ClusterFinding, server string) topo.ClusterFinding { f.Server = server; return f }
	c := combine([]topo.ClusterBook{
		{Member: "n2", Servers: 2, Findings: []topo.ClusterFinding{at(ghost, "s2/n2"), at(open, "s1/n2")}},
		{Member: "n1", Servers: 1, Findings: []topo.ClusterFinding{at(ghost, "s1/n1")}},
	})
	if c.Servers != 3 || len(c.Findings) != 2 || c.Findings[0].Name != "open-slot" || len(c.Findings[1].Servers) != 2 || c.Findings[1].Servers[0] != "s1/n1" {
		t.Errorf("%+v", c)
	}
}

// TestANodeMoves: another address of a replica is written down; a primary does not move, nor does anybody to an address that is taken.
func TestANodeMoves(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	o := NewOrders(r.store, "mymaster-0")
	move := func(id topo.NodeID, addr string) error {
		return o.AddNode(t.Context(), NodeRequest{Node: topo.Node{ID: id, Addr: addr}, Move: true})
	}
	before := r.get()
	var replica, other topo.Node
	for _, n := range before.Spec.Nodes {
		switch {
		case n.ID == before.Assigned.Primary:
		case replica.ID == "":
			replica = n
		default:
			other = n
		}
	}
	for name, err := range map[string]error{
		"is-primary": move(before.Assigned.Primary, "127.0.0.1:9"), "unknown-node": move("nobody", "127.0.0.1:9"), "address-taken": move(replica.ID, other.Addr),
	} {
		var e *Error
		if !errors.As(err, &e) || e.Code != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 2 {
		if err := move(replica.ID, "127.0.0.1:9"); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := r.get().Spec.Node(replica.ID); n.Addr != "127.0.0.1:9" {
		t.Errorf("%+v", n)
	}
}
