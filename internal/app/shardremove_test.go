// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"slices"
	"testing"

	"redoubt/internal/api"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
)

// TestAShardLeavesByDocuments: it is emptied by a job, a cancel of which keeps it; when it has nothing it is forgotten, and nobody can bring it
// slots again, not even who has planned that before.
func TestAShardLeavesByDocuments(t *testing.T) {
	m, other := reshardMember(t)
	ctx, c, o := t.Context(), &carrier{m: m}, reshardOrders{m}
	var refusal *api.Error
	if err := o.RemoveShard(ctx, "b", "me"); !errors.As(err, &refusal) || refusal.Code != "not-serving" {
		t.Fatalf("a shard that does not serve: %v", err)
	}
	if err := o.RemoveShard(ctx, "x", "me"); !errors.As(err, &refusal) || refusal.Code != "unknown-shard" {
		t.Errorf("nobody: %v", err)
	}
	leave := func(after int) {
		t.Helper()
		if err := m.changeShards(ctx, func(l *shardList) error { l.Leaving = []leaving{{Name: "b", After: after}}; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	step := func() {
		t.Helper()
		j, _, _ := m.jobs.get()
		if more, err := c.removal(ctx, j); err != nil || !more {
			t.Fatal(more, err)
		}
	}
	leave(0)
	if err := o.RemoveShard(ctx, "a", "me"); !errors.As(err, &refusal) || refusal.Code != "last-shard" {
		t.Errorf("the last one: %v", err)
	}
	if _, err := o.Plan(ctx, api.ReshardRequest{Weights: map[string]float64{"b": 1}}); err == nil {
		t.Error("a shard that is to be removed is given slots")
	}
	if _, err := m.beginMove(ctx, reshard.Move{Slots: []int{5}, From: "big-a", To: "big-b"}); !errors.Is(err, errLeaves) {
		t.Errorf("a batch to it is begun: %v", err)
	}
	step()
	j, _, _ := m.jobs.get()
	if !j.active() || j.Leaving != "big-b" || j.Slots != slots.Count/2 {
		t.Fatalf("%+v", j)
	}
	if err := c.end(ctx, j.N, api.ReshardCancelled, "enough"); err != nil {
		t.Fatal(err)
	}
	step()
	if list, _ := m.roster.get(); len(list.Leaving) > 0 || len(list.Removed) > 0 {
		t.Fatalf("cancelled, and %+v", list)
	}

	leave(j.N) // once more, behind that job
	step()
	if err := m.changeSlots(ctx, func(now *slots.Map) (*slots.Map, error) {
		return now.WithAll(numbersOf(now.Ranges(now.Index("big-b"))), "big-a"), nil
	}); err != nil {
		t.Fatal(err)
	}
	if j, _, _ = m.jobs.get(); c.end(ctx, j.N, api.ReshardDone, "") != nil {
		t.Fatal("it does not end")
	}
	if _, err := other.readSlots(ctx, other.deploy.Name, nil); err != nil {
		t.Fatal(err)
	}
	step()
	list, _ := m.roster.get()
	if !slices.Equal(list.Removed, []string{"b"}) || len(list.Leaving) > 0 || m.slots.Map().Index("big-b") >= 0 || len(m.slots.Map().Missing()) > 0 {
		t.Fatalf("%+v", list)
	}
	if _, err := other.beginMove(ctx, reshard.Move{Slots: []int{5}, From: "big-a", To: "big-b"}); !errors.Is(err, errLeaves) {
		t.Errorf("whoever read the map before begins a batch: %v", err)
	}
	if p, err := o.Plan(ctx, api.ReshardRequest{}); err != nil || p.Slots != 0 {
		t.Errorf("%+v %v", p, err)
	}
	if list, _ := other.roster.get(); !list.removed("big", "big-b") {
		t.Errorf("%+v", list)
	}
	for _, u := range m.all() {
		u.left.Store(u.deploy.Shard == "b")
	}
	if m.unitOf("big-b") != nil || len(m.all()) != 1 || len(m.opened()) != 2 {
		t.Error("a shard that was closed is one still")
	}
	if err := o.AddShard(ctx, api.ShardSpec{Name: "b", Nodes: []api.ShardNode{{ID: "n1", Addr: "127.0.0.1:7000"}}}); !errors.As(err, &refusal) || refusal.Code != "name-used" {
		t.Errorf("its name is used again: %v", err)
	}
}
