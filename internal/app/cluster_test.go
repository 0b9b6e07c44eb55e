// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const clusterFile = `member: {id: n1}
store: {members: [{id: n1, addr: "127.0.0.1:7380"}, {id: n2, addr: "127.0.0.1:7381"}, {id: n3, addr: "127.0.0.1:7382"}]}
deployments:
  - name: big
    mode: cluster
    shards:
      - {name: a, nodes: [{id: n1, addr: "127.0.0.1:6479"}, {id: n2, addr: "127.0.0.1:6480"}]}
      - {name: b, nodes: [{id: n2, addr: "127.0.0.1:6481"}, {id: n3, addr: "127.0.0.1:6482"}]}
    node: {}
proxy: {listen: "127.0.0.1:6379"}
`

func clusterMember(t *testing.T, store coord.Store) *member {
	t.Helper()
	c, err := config.Parse([]byte(clusterFile), "f", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &member{o: Options{Config: c}, log: slog.New(slog.DiscardHandler), clock: clock.Real{}, deploy: c.Deployments[0], store: store, shared: newSource(store), slots: newSlotBook(), jobs: newJobBook(), roster: newShardBook()}
}

// TestAllMembersHaveOneSlotMap: whoever comes first writes it, everybody has it, and a change reaches everybody.
func TestAllMembersHaveOneSlotMap(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := memstore.New(clock.Real{}, "n1", "n2")
	if _, err := cl.Member("n1").Campaign(ctx); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	defer all.Wait()
	defer stop()
	var members []*member
	for _, id := range []string{"n1", "n2"} {
		m := clusterMember(t, cl.Member(id))
		members = append(members, m)
		all.Go(func() { _ = m.keepSlots(running) })
	}
	for _, m := range members {
		if err := m.slots.await(ctx); err != nil {
			t.Fatal(err)
		}
		if !m.slots.Map().Equal(slots.Even("big-a", "big-b")) {
			t.Error("another map than that of the file")
		}
	}
	changed := members[1].slots.next()
	doc, err := cl.Member("n1").Get(ctx, topo.KeySlots+"big")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Member("n1").Swap(ctx, doc.Key, members[0].slots.Map().With(0, "big-b").Encode(), doc.Rev); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-ctx.Done():
		t.Fatal("the change does not arrive")
	}
	if got := members[1].slots.Map().Shard(0); got != 1 {
		t.Errorf("slot 0 is of shard %d", got)
	}
	if err := members[1].slots.offer(doc); err != nil || members[1].slots.Map().Shard(0) != 1 {
		t.Error("an older version took the place of a newer one", err)
	}
	if err := members[1].slots.offer(coord.Doc{Value: []byte("{}"), Rev: doc.Rev + 9}); err == nil {
		t.Error("a document that is none was taken")
	}
}

// TestTheFaceShowsWhoIsThere: proxies of members that are heard, with ids that do not change; a new controller, which knows nobody for
// a moment, makes nobody vanish.
func TestTheFaceShowsWhoIsThere(t *testing.T) {
	m := clusterMember(t, nil)
	f := &clusterFace{m: m, addr: "127.0.0.1:6379", heard: map[string]heard{}}
	report := func(id, proxy string) []byte {
		b, _ := json.Marshal(topo.MemberReport{ID: id, ProxyAddr: proxy})
		return b
	}
	beats := map[string]coord.Beat{
		topo.BeatMember + "n1":       {Body: report("n1", "127.0.0.1:6379")},
		topo.BeatMember + "n2":       {Body: report("n2", "127.0.0.1:6380"), Age: 900 * time.Millisecond},
		topo.BeatNode + "n2@big-a":   {Body: []byte("{}"), Age: 50 * time.Millisecond},
		topo.BeatMember + "n3":       {Body: report("n3", "127.0.0.1:60000"), Age: 2 * time.Second},
		topo.BeatNode + "n3@big-b":   {Body: []byte("{}"), Age: 2 * time.Second}, // its agent is silent
		topo.BeatMember + "arbiter1": {Body: report("arbiter1", "127.0.0.1:60001"), Age: 1500 * time.Millisecond},
		topo.BeatMember + "n4":       {Body: report("n4", "")},
	}
	first := f.topology(beats)
	var addrs []string
	covered := 0
	for _, n := range first.Nodes {
		addrs = append(addrs, n.Addr)
		for _, r := range n.Slots {
			covered += r.Size()
		}
	}
	if len(addrs) != 3 || addrs[0] != "127.0.0.1:60001" || addrs[1] != "127.0.0.1:6379" || addrs[2] != "127.0.0.1:6380" || covered != slots.Count {
		t.Errorf("%v with %d slots", addrs, covered)
	}
	if first.Me != first.Nodes[1].ID || !slots.IsID(first.Me) || first.Nodes[0].BusPort != 0 || first.Nodes[1].BusPort != 16379 {
		t.Errorf("%+v", first)
	}
	if next := f.topology(nil); len(next.Nodes) != 3 || next.Nodes[2].ID != first.Nodes[2].ID {
		t.Errorf("%+v", next.Nodes)
	}
}

func TestTheDriverIsToldTheSlotsOnceTheyAreKnown(t *testing.T) {
	m := clusterMember(t, nil)
	for _, d := range m.deploy.Units() {
		u := &unit{member: m, deploy: d, log: m.log}
		u.view = view.New(newSource(nil), m.clock, topo.KeyShard+d.ID(), m.log)
		m.units = append(m.units, u)
	}
	l := m.layout()
	if len(l.Nodes) != 4 || len(l.Slots) != 0 || l.Nodes[0].BusPort != 16479 || l.Nodes[0].Primary {
		t.Errorf("%+v", l)
	}
	if err := m.slots.offer(coord.Doc{Value: slots.Even("big-a", "other").Encode(), Rev: 1}); err != nil {
		t.Fatal(err)
	}
	l = m.layout()
	a, b := clusterShardID("big", "big-a"), clusterShardID("big", "big-b")
	if got, ok := l.Slots[b]; len(l.Slots[a]) != 1 || l.Slots[a][0] != [2]int{0, 8191} || !ok || len(got) != 0 {
		t.Errorf("%+v", l.Slots)
	}
	if s := m.units[0].seat(); s.ID != clusterID("big", "big-a", "n1") || s.BusPort != 16479 || s.ShardID != a {
		t.Errorf("%+v", s)
	}
	if got := m.units[0].slotsText(); got != "0-8191" {
		t.Error(got)
	}
	if got := m.units[1].slotsText(); got != "none" {
		t.Error(got)
	}
}
