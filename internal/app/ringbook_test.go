// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
)

// ringMember is a member of a ring with the shards of clusterFile.
func ringMember(t *testing.T, store coord.Store) *member {
	t.Helper()
	c, err := config.Parse([]byte(strings.Replace(clusterFile, "mode: cluster", "mode: ring", 1)), "f", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &member{o: Options{Config: c}, log: slog.New(slog.DiscardHandler), clock: clock.Real{}, deploy: c.Deployments[0], store: store, shared: newSource(store), roster: newShardBook()}
	m.ring = newRingBook(m)
	return m
}

// TestAHandOverThatWasTakenBackIsNotMade: who is silent in the hand-over finds that its word does not count any more; and a process that is not in the crew may
// give nothing to shards, also one of a member that is.
func TestAHandOverThatWasTakenBackIsNotMade(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := memstore.New(clock.Real{}, "n1", "n2")
	if _, err := cl.Member("n1").Campaign(ctx); err != nil {
		t.Fatal(err)
	}
	driver, holder := ringMember(t, cl.Member("n1")), ringMember(t, cl.Member("n2"))
	if _, err := (ringOrders{driver}).begin(ctx, "test", "weights", "", func(now []ringShard) ([]ringShard, error) {
		return append(now, ringShard{"c", "c", 1}), nil
	}); err != nil {
		t.Fatal(err)
	}
	d := &ringDriver{carrier: &carrier{m: driver}, b: driver.ring}
	p := &ringPlan{me: "first"}
	if _, err := driver.ring.change(ctx, func(doc *ringDoc) bool { doc.Change.Driver = p.me; return true }); err != nil {
		t.Fatal(err)
	}
	stamp, err := d.close(ctx, p, map[string]ringReply{"n2": {Me: holder.ring.me}}, []string{"n3"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.ring.read(ctx); err != nil {
		t.Fatal(err)
	}
	doc, _, _, _ := holder.ring.get()
	if doc.Stamp != stamp || doc.shuts(holder.ring.me) || !doc.shuts(ringMember(t, cl.Member("n2")).ring.me) || !doc.shuts(driver.ring.me) {
		t.Errorf("who may give commands to shards: %+v", doc.Change)
	}
	if why := holder.ring.beStill(ctx, stamp); why != "" {
		t.Errorf("it is not still: %s", why)
	}
	if why := holder.ring.beStill(ctx, stamp-1); why == "" {
		t.Error("it is still for an earlier hand-over")
	}
	holder.ring.takeBack(ctx, stamp)
	if err := d.flip(ctx, p, stamp); err == nil {
		t.Error("the ring was changed by a word that was taken back")
	}
	if err := driver.ring.read(ctx); err != nil {
		t.Fatal(err)
	}
	if doc, _, _, _ := driver.ring.get(); doc.Gen != 0 || doc.Change.Stage != ringCopying || len(doc.Shards) != 2 {
		t.Errorf("behind it: %+v", doc)
	}
	if stamp, err = d.close(ctx, p, map[string]ringReply{"n2": {Me: holder.ring.me}}, nil, 2); err != nil {
		t.Fatal(err)
	}
	if err := d.flip(ctx, &ringPlan{me: "second"}, stamp); err == nil {
		t.Error("the ring was changed by an attempt that was replaced")
	}
	if err := d.flip(ctx, p, stamp); err != nil {
		t.Fatal(err)
	}
	if doc, _, _, _ := driver.ring.get(); doc.Gen != 1 || len(doc.Shards) != 3 || len(doc.Change.Other) != 2 || doc.Change.Stage != ringSettling {
		t.Errorf("the next ring: %+v", doc)
	}
}

// TestALeaseIsOneToActByTheRing: a shard's document is not read without the ring, which is known when the read returns.
func TestALeaseIsOneToActByTheRing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := memstore.New(clock.Real{}, "n1", "n2")
	if _, err := cl.Member("n1").Campaign(ctx); err != nil {
		t.Fatal(err)
	}
	m, other := ringMember(t, cl.Member("n1")), ringMember(t, cl.Member("n2"))
	if _, err := m.store.Swap(ctx, "shard/big-a", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	docs := ringed{m.store, m.ring}
	for range 3 {
		stamp := other.ring.stamp() + 1
		if _, err := other.ring.change(ctx, func(d *ringDoc) bool { d.Stamp = stamp; return true }); err != nil {
			t.Fatal(err)
		}
		if _, err := docs.Get(ctx, "shard/big-a"); err != nil || m.ring.stamp() != stamp {
			t.Fatalf("behind a read the ring of stamp %d is known (%v), and there is %d", m.ring.stamp(), err, stamp)
		}
	}
}

// TestAMemberWithAnEarlierProcessDoesNotSayThatItIsStill: what that process has on its way nobody else knows.
func TestAMemberWithAnEarlierProcessDoesNotSayThatItIsStill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := memstore.New(clock.Real{}, "n1", "n2")
	driver, holder := ringMember(t, cl.Member("n1")), ringMember(t, cl.Member("n2"))
	if _, err := (ringOrders{driver}).begin(ctx, "test", "weights", "", func(now []ringShard) ([]ringShard, error) {
		return append(now, ringShard{"c", "c", 1}), nil
	}); err != nil {
		t.Fatal(err)
	}
	d := &ringDriver{carrier: &carrier{m: driver}, b: driver.ring}
	p := &ringPlan{me: "first"}
	if _, err := driver.ring.change(ctx, func(doc *ringDoc) bool { doc.Change.Driver = p.me; return true }); err != nil {
		t.Fatal(err)
	}
	if !driver.keysMove() || holder.keysMove() {
		t.Error("a member is not handed over while it knows that the ring changes")
	}
	stamp, err := d.close(ctx, p, map[string]ringReply{"n2": {Me: holder.ring.me}}, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	holder.succeeds.Store(true)
	if r := holder.ring.obey(ctx, ringQuestion{Still: stamp}); r.Still || r.Why == "" {
		t.Errorf("while clients are handed over: %+v", r)
	}
	holder.succeeds.Store(false)
	if r := holder.ring.obey(ctx, ringQuestion{Still: stamp}); !r.Still {
		t.Errorf("afterwards: %+v", r)
	}
}

// What is told to proxies that people keep is the agreed ring: a shard of the file that was removed must not shift the names and weights of the others.
func TestTheBoardNamesTheAgreedRing(t *testing.T) {
	cl := memstore.New(clock.Real{}, "n1")
	m := ringMember(t, cl.Member("n1"))
	for _, d := range m.deploy.Units() {
		m.units = append(m.units, m.newUnit(d, &m.parts))
	}
	gone, stays := m.units[0], m.units[1]
	if label, weight := stays.ringPlace(); label != stays.deploy.Shard || weight != 1 {
		t.Errorf("before anything was agreed: %s, %d", label, weight)
	}
	if _, err := m.ring.change(t.Context(), func(doc *ringDoc) bool {
		doc.Format, doc.Shards = ringFormat, []ringShard{{stays.deploy.Shard, "label", 3}}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if label, weight := stays.ringPlace(); label != "label" || weight != 3 {
		t.Errorf("the shard that stays: %s, %d", label, weight)
	}
	if _, weight := gone.ringPlace(); weight != 0 {
		t.Errorf("the shard that was removed has weight %d", weight)
	}
}
