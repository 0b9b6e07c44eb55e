// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// TestTheAgreedRosterDecidesWhoBelongs: not the file; and nobody is a stranger before every shard of the slot map is known for certain.
func TestTheAgreedRosterDecidesWhoBelongs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := memstore.New(clock.Real{}, "n1")
	store := cl.Member("n1")
	if _, err := store.Campaign(ctx); err != nil {
		t.Fatal(err)
	}
	m := clusterMember(t, store)
	own := slots.Derived("somebody's own")
	doc := topo.Shard{Format: topo.Format, ID: "big-a", Spec: m.deploy.Units()[0].Spec(), Assigned: topo.Assigned{
		Epoch: 3, Phase: topo.PhaseServing, Primary: "n7", RunID: "r7", History: []topo.HistoryEntry{{Epoch: 3, ReplID: "A", Node: "n7"}}, Enrolled: map[topo.NodeID]string{"n7": "r7"},
	}}
	doc.Spec.Nodes = []topo.Node{{ID: "n1", Addr: "127.0.0.1:6479"}, {ID: "n7", Addr: "127.0.0.1:6477", BusPort: 17000, ServerID: own}}
	doc.Assigned.Begin(topo.Change{Kind: topo.ChangeAdd, Node: topo.Node{ID: "n8", Addr: "127.0.0.1:6478"}, Direct: true})
	if _, err := store.Swap(ctx, topo.KeyShard+"big-a", doc.Encode(), 0); err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	for _, d := range m.deploy.Units() {
		u := &unit{member: m, deploy: d, log: m.log}
		u.view = view.New(newSource(store), m.clock, topo.KeyShard+d.ID(), m.log)
		m.units = append(m.units, u)
		all.Go(func() { _ = u.view.Run(running) })
	}
	beat, _ := json.Marshal(topo.Sighting{Node: "n7", Health: topo.HealthUp, Addr: "127.0.0.1:6477"})
	if err := store.Send(ctx, topo.BeatNode+"n7@big-a", beat, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := m.slots.offer(coord.Doc{Value: slots.Even("big-a").Encode(), Rev: 1}); err != nil {
		t.Fatal(err)
	}
	for m.units[0].view.Load() == nil || !m.units[0].view.Load().Confirmed {
		select {
		case <-m.units[0].view.Next():
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the document is not read")
		}
	}
	roster, whole := m.rollCall(ctx)
	if whole {
		t.Error("the roster is whole, although nothing is agreed about shard b yet")
	}
	names := map[string]bool{}
	for _, x := range roster {
		names[x.Name] = x.Up
		if x.Name == "a/n7" && (x.ID != own || x.BusPort != 17000 || !x.Primary) || x.Name == "a/n8" && (x.BusPort != 16478 || x.ID != clusterID("big", "big-a", "n8")) {
			t.Errorf("%+v", x)
		}
	}
	if _, old := names["a/n2"]; old || len(names) != 5 || !names["a/n7"] || names["a/n8"] {
		t.Errorf("the roster is %v", names)
	}
	if s := m.units[0].seating(); len(s.Nodes) != 5 {
		t.Errorf("%+v", s.Nodes)
	}
	m.units = m.units[:1] // as if there were one shard
	if _, whole := m.rollCall(ctx); !whole {
		t.Error("the roster is not whole")
	}
	if err := m.slots.offer(coord.Doc{Value: slots.Even("big-a", "big-new").Encode(), Rev: 2}); err != nil {
		t.Fatal(err)
	}
	if _, whole := m.rollCall(ctx); whole {
		t.Error("the roster is whole, although the slot map names a shard that is not known here")
	}
	if err := m.slots.offer(coord.Doc{Value: slots.Even("big-a").Encode(), Rev: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Swap(ctx, topo.KeyShards+"big", []byte(`{"format":1,"added":[{"name":"new","nodes":[]}]}`), 0); err != nil {
		t.Fatal(err)
	}
	if _, whole := m.rollCall(ctx); whole {
		t.Error("the roster is whole, although a shard has come that was not opened here yet")
	}
}

// TestSlotsOnTheirWayAreNobodysToSettle: a mark of a batch that is under way is not that of a dead move.
func TestSlotsOnTheirWayAreNobodysToSettle(t *testing.T) {
	m := clusterMember(t, memstore.New(clock.Real{}, "n1").Member("n1"))
	if m.moving() != nil {
		t.Error("before the slot map is known, it is said which slots move")
	}
	now, err := withMoves(slots.Even("big-a", "big-b"), []reshard.Move{{Slots: []int{7, 9}, From: "big-a", To: "big-b", Stage: reshard.Copying}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.slots.offer(coord.Doc{Value: now.Encode(), Rev: 1}); err != nil {
		t.Fatal(err)
	}
	if got := m.moving(); got == nil || *got != slots.SetOf([2]int{7, 7}, [2]int{9, 9}) {
		t.Errorf("%v are on their way", got)
	}
}
