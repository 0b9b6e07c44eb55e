// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// reshardMember is a member that knows the slot map, of a store with one more.
func reshardMember(t *testing.T) (*member, *member) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := memstore.New(clock.Real{}, "n1", "n2")
	if _, err := cl.Member("n1").Campaign(ctx); err != nil {
		t.Fatal(err)
	}
	var ms []*member
	for _, id := range []string{"n1", "n2"} {
		m := clusterMember(t, cl.Member(id))
		m.jobs, m.roster = newJobBook(), newShardBook()
		for _, d := range m.deploy.Units() {
			u := &unit{member: m, deploy: d, log: m.log}
			u.view = view.New(newSource(nil), m.clock, topo.KeyShard+d.ID(), m.log)
			m.units = append(m.units, u)
		}
		first, err := m.deploy.SlotMap()
		if err != nil {
			t.Fatal(err)
		}
		for m.slots.Map() == nil {
			if _, err := m.readSlots(ctx, topo.KeySlots+"big", first); err != nil {
				t.Fatal(err)
			}
		}
		ms = append(ms, m)
	}
	return ms[0], ms[1]
}

// TestABatchIsTheTargetsInOneWrite: the stage and the owner are one document, and only who has seen the stage may go on from it.
func TestABatchIsTheTargetsInOneWrite(t *testing.T) {
	a, b := reshardMember(t)
	ctx := t.Context()
	mv := reshard.Move{Slots: []int{5, 6}, From: "big-a", To: "big-b"}
	if begun, err := a.beginMove(ctx, mv); err != nil || !begun {
		t.Fatal(begun, err)
	}
	if _, err := b.beginMove(ctx, reshard.Move{Slots: []int{7}, From: "big-a", To: "big-b"}); !errors.Is(err, errNotOurs) {
		t.Fatalf("two batches at a time: %v", err)
	}
	was := mv
	for _, stage := range []reshard.Stage{reshard.Copying, reshard.LettingGo} {
		next := was
		next.Stage = stage
		if err := a.storeMove(ctx, was, next); err != nil {
			t.Fatal(err)
		}
		was = next
	}
	late := mv
	late.Stage = reshard.Copying
	if err := b.storeMove(ctx, mv, late); !errors.Is(err, errNotOurs) {
		t.Fatalf("who was overtaken goes on: %v", err)
	}
	l := a.layout()
	from, to := clusterShardID("big", "big-a"), clusterShardID("big", "big-b")
	if !reflect.DeepEqual(l.Slots[from], [][2]int{{0, 4}, {7, 8191}}) || len(l.Either[to]) != 2 || len(l.Either[from]) != 0 {
		t.Errorf("while the target may take them: %v, %v", l.Slots[from], l.Either)
	}

	// The target has taken them, which is not stored yet: commands go there, at this member alone.
	_, rev := a.slots.latest()
	a.slots.steer(mv.Slots, "big-b", rev)
	if got := a.slots.Routes().Shard(5); got != 1 || a.slots.Map().Shard(5) != 0 {
		t.Errorf("commands go to %d", got)
	}
	done := was
	done.Stage = reshard.Settling
	if err := a.storeMove(ctx, was, done); err != nil {
		t.Fatal(err)
	}
	if a.slots.Map().Shard(6) != 1 || a.slots.Routes() != a.slots.Map() || len(a.layout().Either[to]) != 2 {
		t.Error("it is stored, and not in force")
	}
	over := done
	over.Stage = reshard.Done
	if err := a.storeMove(ctx, done, over); err != nil || len(a.slots.Map().Moves()) != 0 || len(a.layout().Either) != 0 {
		t.Error(err, string(a.slots.Map().Moves()))
	}
	if _, err := b.readSlots(ctx, topo.KeySlots+"big", nil); err != nil || !b.slots.Map().Equal(a.slots.Map()) {
		t.Error(err)
	}
	if begun, err := b.beginMove(ctx, mv); err != nil || begun {
		t.Errorf("slots that were moved already are moved again: %v", err)
	}
}

// TestASteerOfAnotherTimeIsForgotten: what was not stored as on its way sends nobody anywhere.
func TestASteerOfAnotherTimeIsForgotten(t *testing.T) {
	a, _ := reshardMember(t)
	_, rev := a.slots.latest()
	a.slots.steer([]int{5}, "big-b", rev)
	if a.slots.Routes().Shard(5) != 0 {
		t.Error("a slot that nobody moves was sent elsewhere")
	}
}

func TestOrdersOfMovingSlots(t *testing.T) {
	m, other := reshardMember(t)
	ctx, o := t.Context(), reshardOrders{m}
	if p, err := o.Plan(ctx, api.ReshardRequest{Weights: map[string]float64{"b": 0}}); err != nil || p.Slots != slots.Count/2 {
		t.Fatalf("%+v %v", p, err)
	}
	for name, bad := range map[string]api.ReshardRequest{
		"no shard": {Weights: map[string]float64{"c": 1}}, "negative": {Weights: map[string]float64{"a": -1}}, "no part": {Weights: map[string]float64{"a": 0, "b": 0}},
		"batch": {Batch: batchMost + 1}, "rate": {KeysPerSecond: -1}, "operations": {Measure: reshard.ByOperations},
	} {
		var refusal *api.Error
		if _, err := o.Start(ctx, bad); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := o.Wish(ctx, reshard.Pause); err == nil {
		t.Error("nothing is under way, and it can be paused")
	}
	st, err := o.Start(ctx, api.ReshardRequest{Weights: map[string]float64{"big-b": 0}, Batch: 10})
	if err != nil || st.State != api.ReshardRunning || st.Slots != slots.Count/2 || m.jobs.secret() == "" {
		t.Fatalf("%+v %v", st, err)
	}
	if _, err := (reshardOrders{other}).Start(ctx, api.ReshardRequest{}); err == nil {
		t.Error("two at a time")
	}
	if st, err = (reshardOrders{other}).Wish(ctx, reshard.Pause); err != nil || st.State != api.ReshardPaused {
		t.Errorf("%+v %v", st, err)
	}
	j, err := m.readJob(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mv, any := j.next()
	if !any || len(mv.Slots) != 10 || mv.Slots[0] != 8192 || mv.From != "big-b" || mv.To != "big-a" {
		t.Fatalf("%+v", mv)
	}
	c := &carrier{m: m}
	mv.Stage = reshard.Done
	if err := c.note(ctx, mv, true); err != nil {
		t.Fatal(err)
	}
	if j, _, _ = m.jobs.get(); j.Moved != 10 || j.Todo[0].Slots != "8202-16383" {
		t.Errorf("%+v", j)
	}
	if err := c.end(ctx, j.N, api.ReshardCancelled, "enough"); err != nil || m.jobs.secret() != "" {
		t.Error(err)
	}
	if st, err = o.Status(ctx); err != nil || st.State != api.ReshardCancelled || st.Moved != 10 {
		t.Errorf("%+v %v", st, err)
	}
}

func TestAShardThatIsAddedIsChecked(t *testing.T) {
	m, _ := reshardMember(t)
	o := reshardOrders{m}
	node := func(id, addr string) api.ShardNode { return api.ShardNode{ID: id, Addr: addr} }
	for name, bad := range map[string]api.ShardSpec{
		"no name": {Nodes: []api.ShardNode{node("n1", "127.0.0.1:7000")}}, "no nodes": {Name: "c"}, "known": {Name: "a", Nodes: []api.ShardNode{node("n1", "127.0.0.1:7000")}},
		"a host's name": {Name: "c", Nodes: []api.ShardNode{node("n1", "localhost:7000")}}, "twice": {Name: "c", Nodes: []api.ShardNode{node("n1", "127.0.0.1:7000"), node("n1", "127.0.0.1:7001")}},
		"another's address": {Name: "c", Nodes: []api.ShardNode{node("n1", "127.0.0.1:6479")}}, "another's bus": {Name: "c", Nodes: []api.ShardNode{node("n1", "127.0.0.1:16479")}},
	} {
		if err := o.AddShard(t.Context(), bad); err == nil {
			t.Errorf("%s: added", name)
		}
	}
	good := api.ShardSpec{Name: "c", Nodes: []api.ShardNode{node("n1", "127.0.0.1:7000"), node("n2", "127.0.0.1:7001")}}
	if err := o.AddShard(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if list, _ := m.roster.get(); len(list.Added) != 1 || list.Added[0].Nodes[0].BusPort != 17000 {
		t.Errorf("%+v", list)
	}
	if err := o.AddShard(t.Context(), good); err == nil {
		t.Error("added twice")
	}
}
