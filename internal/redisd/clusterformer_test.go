// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
)

// TestAPrimaryWithKeysAndWithoutSlotsIsBroughtIn: it has lost its slots to another shard, and its rank to a server of its own that has
// none either. Nobody's claim demotes it, and CLUSTER REPLICATE refuses a primary that has keys.
func TestAPrimaryWithKeysAndWithoutSlotsIsBroughtIn(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed ", killed), func(t *testing.T) {
			t.Parallel()
			const few = 16 // slots of the first shard: servers of Valkey wait for their replicas with each that they take
			f := plan(t, 2, 2)
			f.change = keepsAll
			first, second := f.layout.Nodes[0].ShardID, f.layout.Nodes[2].ShardID
			f.layout.Slots[first], f.layout.Slots[second] = [][2]int{{0, few - 1}}, [][2]int{{few, slots.Count - 1}}
			f.found(t)
			a, b, c := f.shards[0][0], f.shards[0][1], f.shards[1][0]
			if v := see(t, a, "an answer", isUp).Version; strings.HasPrefix(v, "valkey") {
				t.Skip("a promoted server deletes keys that are not its own, and has its replicas do what it was told then: CLUSTER FAILOVER, at which they crash (9.0.4)")
			}
			put(t, a, f.keys[0], "left over")
			caughtUp(t, b, a)
			f.mu.Lock()
			f.layout.Slots[first], f.layout.Slots[second] = [][2]int{}, [][2]int{{0, slots.Count - 1}}
			f.mu.Unlock()
			inside(t, a, "CLUSTER", "DELSLOTSRANGE", "0", fmt.Sprint(few-1))
			for s := range few {
				inside(t, c, "CLUSTER", "SETSLOT", fmt.Sprint(s), "NODE", c.cluster.ID)
			}
			inside(t, c, "CLUSTER", "BUMPEPOCH")

			see(t, a, "the word of the other shard", func(redis.Observation) bool {
				nodes, _, _ := slots.Parse(inside(t, a, "CLUSTER", "NODES").text)
				other, _ := nodes.ByID(c.cluster.ID)
				return other.Slots == slots.SetOf([2]int{0, slots.Count - 1})
			})
			if err := a.Fence(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := b.Freeze(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			f.succeed(a, b)
			if killed {
				crash(t, a, nil)
			}
			crown(t, b)
			if o := see(t, a, "a frozen server with its data", func(o redis.Observation) bool { return isUp(o) && o.Frozen }); o.Keys != 1 {
				t.Errorf("before it follows: %+v", o)
			}
			if !killed {
				if err := a.Follow(within(t, 10*time.Second), b.addr, tenure()); err == nil {
					t.Error("it was made a replica: this test tests nothing")
				}
				see(t, a, "a frozen replica with its data", func(o redis.Observation) bool { return isUp(o) && o.Frozen && o.Keys == 1 })
			}
			if o := join(t, a, b); o.Keys != 1 {
				t.Errorf("after following: %+v", o)
			}
			if self, _ := conf(t, a).Self(); !self.Replica || self.Of != b.cluster.ID {
				t.Errorf("its nodes.conf: %+v", self)
			}
			see(t, a, "an append-only file that is written", func(o redis.Observation) bool { return !o.AOFBusy })
		})
	}
}

// succeed has it agreed that b is the primary of a's shard.
func (f *fleet) succeed(a, b *Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, n := range f.layout.Nodes {
		if n.ID == a.cluster.ID || n.ID == b.cluster.ID {
			f.layout.Nodes[i].Primary = n.ID == b.cluster.ID
		}
	}
}

// TestAFormerPrimaryClaimsNothing: the replica that succeeds it once heard that it did not claim a slot, as while slots are handed over. Its
// claim, when it comes back with its slots, would be believed, and the keys of that slot deleted.
func TestAFormerPrimaryClaimsNothing(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 2, nil)
	a, b := f.shards[0][0], f.shards[0][1]
	put(t, a, f.keys[0], "kept")
	caughtUp(t, b, a)
	slot := fmt.Sprint(int(crc16(f.keys[0])) % slots.Count)
	inside(t, a, "CLUSTER", "DELSLOTS", slot)
	hears(t, b, a)
	inside(t, a, "CLUSTER", "ADDSLOTS", slot)
	caughtUp(t, b, a)

	if err := b.Freeze(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	f.succeed(a, b)
	if err := a.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	crown(t, b)
	f.agree(false) // as when its member begins
	time.AfterFunc(200*time.Millisecond, func() { f.agree(true) })
	crash(t, a, nil)
	see(t, a, "a frozen server", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
	hears(t, b, a)
	stays(t, b, 100*time.Millisecond, "a primary with its key", func(o redis.Observation) bool { return isUp(o) && !o.Frozen && o.Keys == 1 })
	join(t, a, b)
	put(t, b, f.keys[0], "new")
	if self, _ := conf(t, b).Self(); self.Slots != f.slotsOf(b) {
		t.Errorf("its slots are %s", self.Slots)
	}
}

// TestAPrimaryClaimsNoSlotsOfOthers: it comes back with a nodes.conf from before a slot was moved away, as from a copy of its disk. The new
// owner heard once that it did not claim the slot, and would believe the claim.
func TestAPrimaryClaimsNoSlotsOfOthers(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 1, keepsAll)
	a, c := f.shards[0][0], f.shards[1][0]
	put(t, a, f.keys[0], "left over")
	old, err := os.ReadFile(filepath.Join(a.managed.o.Dir, nodesConf))
	if err != nil {
		t.Fatal(err)
	}
	slot := int(crc16(f.keys[0])) % slots.Count
	inside(t, a, "CLUSTER", "DELSLOTS", fmt.Sprint(slot))
	hears(t, c, a)
	inside(t, c, "CLUSTER", "SETSLOT", fmt.Sprint(slot), "NODE", c.cluster.ID)
	inside(t, c, "CLUSTER", "BUMPEPOCH")
	f.mu.Lock()
	f.layout.Slots[a.cluster.ShardID] = slots.SetOf([2]int{0, 8191}).Minus(slots.SetOf([2]int{slot, slot})).Ranges()
	f.layout.Slots[c.cluster.ShardID] = slots.SetOf([2]int{8192, slots.Count - 1}, [2]int{slot, slot}).Ranges()
	f.mu.Unlock()
	put(t, c, f.keys[0], "new")

	crash(t, a, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, nodesConf), old, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	see(t, a, "a frozen server", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
	hears(t, c, a)
	if self, _ := conf(t, c).Self(); self.Slots != f.slotsOf(c) {
		t.Errorf("the slots of the other are %s", self.Slots)
	}
	if got := inside(t, c, "GET", f.keys[0]).text; got != "new" {
		t.Errorf("it has %q", got)
	}
	crown(t, a)
	if self, _ := conf(t, a).Self(); self.Slots != f.slotsOf(a) {
		t.Errorf("its slots are %s", self.Slots)
	}
	see(t, a, "an append-only file that is written", func(o redis.Observation) bool { return !o.AOFBusy })
}

func (f *fleet) agree(known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layout.Agreed = known
}

func (f *fleet) slotsOf(n *Node) slots.Set {
	return slots.SetOf(f.agreed().Slots[n.cluster.ShardID]...)
}

// hears waits until a server was told by another one what that claims now.
func hears(t *testing.T, n, of *Node) {
	t.Helper()
	now := time.Now().UnixMilli()
	see(t, n, "a word of the other", func(redis.Observation) bool {
		nodes, _, _ := slots.Parse(inside(t, n, "CLUSTER", "NODES").text)
		other, _ := nodes.ByID(of.cluster.ID)
		return other.PongReceived > now
	})
}
