// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// fleet is a cluster of real servers, driven by a test instead of by agents.
type fleet struct {
	shards [][]*Node
	keys   []string // one key of each shard
	layout ClusterLayout
	dirs   map[string]string // by node id
	change func(*Options)
	mu     sync.Mutex // guards layout
}

// plan lays out shards of so many nodes, on free ports; the first node of each shard is its primary.
func plan(t testing.TB, shards, nodes int) *fleet {
	t.Helper()
	f := &fleet{layout: ClusterLayout{Agreed: true, Slots: map[string][][2]int{}}, dirs: map[string]string{}}
	uid := ports.Addr(t) // nobody else has it
	for s := range shards {
		name := fmt.Sprintf("s%d", s+1)
		id := slots.Derived(uid, name)
		f.layout.Slots[id] = [][2]int{{s * 16384 / shards, (s+1)*16384/shards - 1}}
		for i := range nodes {
			n := ClusterNode{ID: slots.Derived(uid, name, fmt.Sprint(i)), ShardID: id, Addr: ports.Addr(t), BusPort: portOf(ports.Addr(t)), Primary: i == 0}
			f.layout.Nodes = append(f.layout.Nodes, n)
			f.dirs[n.ID] = t.TempDir()
		}
	}
	return f
}

func (f *fleet) agreed() ClusterLayout {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.layout
	l.Nodes = slices.Clone(l.Nodes)
	for i := range l.Nodes {
		l.Nodes[i].Primary = l.Agreed && l.Nodes[i].Primary
	}
	return l
}

// hermit is the seat of a cluster of one node.
func hermit(addr, bus string) *ClusterSeat {
	port, _ := strconv.Atoi(bus)
	n := ClusterNode{ID: slots.Derived(addr, "n"), ShardID: slots.Derived(addr), Addr: addr, BusPort: port, Primary: true}
	l := ClusterLayout{Agreed: true, Nodes: []ClusterNode{n}, Slots: map[string][][2]int{n.ShardID: {{0, 16383}}}}
	return &ClusterSeat{ID: n.ID, ShardID: n.ShardID, BusPort: port, Layout: func() ClusterLayout { return l }}
}

// options are those of the i-th node of a shard.
func (f *fleet) options(t testing.TB, n ClusterNode) Options {
	o := Options{
		Addr: n.Addr, Dir: f.dirs[n.ID], Binary: serverBinary(t), Persistence: PersistNone,
		Cluster: &ClusterSeat{ID: n.ID, ShardID: n.ShardID, BusPort: n.BusPort, Layout: f.agreed},
	}
	if f.change != nil {
		f.change(&o)
	}
	return o
}

// boot starts all servers and leaves them closed.
func (f *fleet) boot(t testing.TB) {
	t.Helper()
	perShard := len(f.layout.Nodes) / len(f.layout.Slots)
	for i, n := range f.layout.Nodes {
		if i%perShard == 0 {
			f.shards = append(f.shards, nil)
		}
		last := len(f.shards) - 1
		f.shards[last] = append(f.shards[last], f.start(t, n))
	}
	for s := range f.shards {
		f.keys = append(f.keys, keyIn(slots.SetOf(f.layout.Slots[f.layout.Nodes[s*perShard].ShardID]...)))
	}
}

func (f *fleet) start(t testing.TB, n ClusterNode) *Node {
	t.Helper()
	node, err := Managed(within(t, 10*time.Second), f.options(t, n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = node.Kill(within(t, 5*time.Second))
		_ = node.Close()
	})
	return node
}

// cluster starts a cluster that serves: the first node of each shard is its primary.
func cluster(t testing.TB, shards, nodes int, change func(*Options)) *fleet {
	t.Helper()
	f := plan(t, shards, nodes)
	f.change = change
	f.found(t)
	return f
}

// found starts the servers, and has them serve.
func (f *fleet) found(t testing.TB) {
	t.Helper()
	f.boot(t)
	for _, shard := range f.shards {
		crown(t, shard[0])
	}
	for _, shard := range f.shards {
		for _, r := range shard[1:] {
			join(t, r, shard[0])
		}
	}
	for _, shard := range f.shards {
		see(t, shard[0], "a cluster that serves", func(redis.Observation) bool {
			return strings.Contains(inside(t, shard[0], "CLUSTER", "INFO").text, clusterState+":ok")
		})
	}
}

// crown promotes a server, for as long as it takes.
func crown(t testing.TB, n *Node) topo.Position {
	t.Helper()
	e := electedOf(see(t, n, "a frozen server", func(o redis.Observation) bool { return isUp(o) && o.Frozen }))
	pos, err := crownAt(within(t, 10*time.Second), n, e)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func crownAt(ctx context.Context, n *Node, e topo.Elected) (topo.Position, error) {
	for {
		pos, err := n.Promote(ctx, e, tenure())
		if err == nil || ctx.Err() != nil {
			return pos, err
		}
	}
}

// join makes r follow p, and waits for the link. As an agent it tells it so again for as long as there is none.
func join(t testing.TB, r, p *Node) redis.Observation {
	t.Helper()
	see(t, r, "an answer", isUp)
	ctx := within(t, 20*time.Second)
	var last error
	follow := func() { last = r.Follow(ctx, p.addr, tenure()) }
	follow()
	told := time.Now()
	o := lookUntil(ctx, r, func(o redis.Observation) bool {
		linked := o.LinkUp && o.Whole && o.Following == p.addr
		if !linked && time.Since(told) > 100*time.Millisecond {
			follow()
			told = time.Now()
		}
		return linked
	})
	if !o.LinkUp || !o.Whole || o.Following != p.addr {
		t.Fatalf("never saw the link; the last order: %v; last look: %+v%s", last, o, lastWords(r))
	}
	return o
}

// keyIn finds a key of one of these slots.
func keyIn(s slots.Set) string {
	for i := 0; ; i++ {
		if k := fmt.Sprintf("k%d", i); s.Has(int(crc16(k)) % 16384) {
			return k
		}
	}
}

// crc16 is the cluster's hash (XMODEM), one bit at a time.
func crc16(s string) (crc uint16) {
	for _, b := range []byte(s) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// put writes a value, for as long as it takes.
func put(t testing.TB, n *Node, key, value string) {
	t.Helper()
	c := client(t, n.addr, "")
	ctx := within(t, 10*time.Second)
	for {
		reps, err := c.do(ctx, []string{"SET", key, value})
		if err != nil {
			t.Fatal(err)
		}
		if err = reps[0].err(); err == nil {
			return
		}
		if ctx.Err() != nil || !isCode(err, "CLUSTERDOWN") {
			t.Fatalf("SET %s: %v", key, err)
		}
	}
}

// inside asks a server by its socket, as the agent does.
func inside(t testing.TB, n *Node, args ...string) reply {
	t.Helper()
	c, err := dial(within(t, 2*time.Second), n.own, authCommand(n.adminLogin()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	return must(t, c, args...)
}

func refusesTCP(n *Node) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	nc, err := connect(ctx, n.addr)
	if err == nil {
		_ = nc.Close()
	}
	return err != nil
}

func TestAClusterBootsClosedAndServesWhenItIsTold(t *testing.T) {
	t.Parallel()
	f := plan(t, 3, 2)
	f.boot(t)
	for _, shard := range f.shards {
		for _, n := range shard {
			o := see(t, n, "a frozen server", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
			if o.Role != topo.RoleReplica || o.Following != "" || len(o.Settings) > 0 || len(o.Problems) > 0 {
				t.Errorf("%s after its start: %+v", n.addr, o)
			}
			if !refusesTCP(n) {
				t.Errorf("%s can be connected to before anybody allowed it", n.addr)
			}
		}
	}
	for s, shard := range f.shards {
		crown(t, shard[0])
		put(t, shard[0], f.keys[s], "1")
	}
	for s, shard := range f.shards {
		join(t, shard[1], shard[0])
		caughtUp(t, shard[1], shard[0])
		if o := see(t, shard[1], "the replica", isUp); o.Keys != 1 || o.Frozen || o.Role != topo.RoleReplica {
			t.Errorf("replica of shard %d: %+v", s, o)
		}
		o := see(t, shard[0], "the primary", isUp)
		if o.Role != topo.RolePrimary || !slices.Equal(o.Replicas, []string{shard[1].addr}) {
			t.Errorf("primary of shard %d: %+v", s, o)
		}
	}
}

func TestAReplicaTakesOverAndTheFormerPrimaryFollowsIt(t *testing.T) {
	t.Parallel()
	f := cluster(t, 3, 2, nil)
	p, r := f.shards[1][0], f.shards[1][1]
	put(t, p, f.keys[1], "1")
	caughtUp(t, r, p)
	if err := p.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	final := see(t, p, "the fenced primary", func(o redis.Observation) bool { return o.Frozen })
	o := see(t, r, "the candidate drained", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
	began := time.Now()
	pos, err := r.Promote(within(t, time.Second), electedOf(o), tenure())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("promotion took %s", time.Since(began))
	if pos.ReplID2 != final.Pos.ReplID || pos.Offset2 != final.Pos.Offset+1 {
		t.Fatalf("promoted from %+v to %+v", final.Pos, pos)
	}
	put(t, r, f.keys[1], "2")
	t.Logf("first write after %s", time.Since(began))
	if o := join(t, p, r); o.Frozen {
		t.Fatalf("the former primary: %+v", o)
	}
	t.Logf("former primary follows after %s", time.Since(began))
	caughtUp(t, p, r)
	for _, other := range []*Node{f.shards[0][0], f.shards[2][0]} {
		c := client(t, other.addr, "")
		see(t, other, "the new owner", func(redis.Observation) bool {
			return strings.Contains(run(t, c, "GET", f.keys[1]).text, r.addr)
		})
	}
	if stats := inside(t, r, "INFO", "stats").text; !strings.Contains(stats, "sync_full:0") || !strings.Contains(stats, "sync_partial_ok:1") {
		t.Error("the former primary did not resync partially")
	}
}
