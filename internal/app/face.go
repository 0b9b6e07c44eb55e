// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/front"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const (
	faceEvery   = 200 * time.Millisecond
	memberQuiet = 2500 * time.Millisecond // a member without a node that has not reported for so long is not shown
	nodeQuiet   = 1200 * time.Millisecond // one whose agents, which report more often, have not
	busShown    = 10_000                  // a proxy has no bus; clients expect its port
)

// clusterFace keeps what cluster-aware clients are told current.
type clusterFace struct {
	m    *member
	addr string // of this member's own proxy
	now  atomic.Pointer[front.Topology]

	heard map[string]heard // by member; run's own
}

// heard is what was heard of one member. A controller that has just begun knows nobody for a moment: what was heard before counts on.
type heard struct {
	proxy string
	node  bool          // it has agents, which report more often
	at    time.Duration // uptime of the youngest report
}

// there reports whether the member is to be shown.
func (h heard) there(now time.Duration) bool {
	if h.node {
		return now-h.at <= nodeQuiet
	}
	return now-h.at <= memberQuiet
}

// run looks at the reports until ctx ends. While they cannot be read, what was known last is shown.
func (f *clusterFace) run(ctx context.Context) error {
	tick := time.NewTicker(faceEvery)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		beats, err := f.m.shared.All(asking)
		cancel()
		if err == nil || f.now.Load() == nil {
			f.now.Store(f.topology(beats))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (f *clusterFace) topology(beats map[string]coord.Beat) *front.Topology {
	if f.m.o.Config.Proxy.ClusterFace == "nodes" {
		return f.ofNodes(beats)
	}
	return f.ofProxies(beats)
}

// listen notes who has reported.
func (f *clusterFace) listen(beats map[string]coord.Beat, now time.Duration) {
	for name, b := range beats {
		node, isNode := strings.CutPrefix(name, topo.BeatNode)
		id, isMember := strings.CutPrefix(name, topo.BeatMember)
		switch {
		case isNode:
			id, _, _ = strings.Cut(node, "@")
		case !isMember:
			continue
		}
		h := f.heard[id]
		h.node, h.at = h.node || isNode, max(h.at, now-b.Age)
		var r topo.MemberReport
		if isMember && json.Unmarshal(b.Body, &r) == nil {
			h.proxy = r.ProxyAddr
		}
		f.heard[id] = h
	}
}

// ofProxies shows the members' proxies, each with an equal part of the slots: any of them serves all.
func (f *clusterFace) ofProxies(beats map[string]coord.Beat) *front.Topology {
	me, uid := f.m.o.Config.Member.ID, f.m.deploy.Cluster.UID
	addrs := map[string]string{me: f.addr}
	now := f.m.clock.Uptime()
	f.listen(beats, now)
	for id, h := range f.heard {
		if id != me && h.proxy != "" && h.there(now) {
			addrs[id] = h.proxy
		}
	}
	var ids []string
	for id := range addrs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	parts := slots.Even(ids...)
	t := &front.Topology{Me: proxyID(uid, me), Epoch: uint64(len(ids))}
	for i, id := range ids {
		bus := 0
		if _, port, err := net.SplitHostPort(addrs[id]); err == nil {
			if n, err := strconv.Atoi(port); err == nil && n+busShown <= 65535 {
				bus = n + busShown
			}
		}
		t.Nodes = append(t.Nodes, front.ClusterNode{
			ID: proxyID(uid, id), ShardID: slots.Derived(uid, "the shard of the proxy", id), Addr: addrs[id], BusPort: bus, Slots: parts.Ranges(i), Epoch: uint64(i + 1),
		})
	}
	return t
}

// proxyID is the id of a member's proxy, for ever.
func proxyID(uid, member string) string { return slots.Derived(uid, "the proxy", member) }

// ofNodes shows the real servers: primaries as they are agreed.
func (f *clusterFace) ofNodes(beats map[string]coord.Beat) *front.Topology {
	uid, t := f.m.deploy.Cluster.UID, &front.Topology{}
	now := f.m.slots.Map()
	for _, u := range f.m.all() {
		snap := u.view.Load()
		if snap == nil || now == nil {
			continue
		}
		shard, primary := u.deploy.ID(), u.agreedPrimary()
		reports, buses := ofShard(beats, shard), map[topo.NodeID]topo.Node{}
		for _, n := range u.roster() {
			buses[n.ID] = n
		}
		t.Epoch = max(t.Epoch, uint64(snap.Shard.Assigned.Epoch))
		for _, n := range snap.Shard.Spec.Nodes {
			seen, known := reports.Nodes[n.ID]
			node := front.ClusterNode{
				ID: u.serverID(n), ShardID: clusterShardID(uid, shard), Addr: n.Addr, BusPort: buses[n.ID].Bus(), Offset: seen.Pos.Offset,
				Epoch: uint64(snap.Shard.Assigned.Epoch), Down: !known || seen.Age > nodeQuiet || seen.Health != topo.HealthUp,
			}
			if string(n.ID) != primary {
				lead, _ := snap.Shard.Spec.Node(topo.NodeID(primary))
				node.Primary = u.serverID(lead)
			} else if i := now.Index(shard); i >= 0 {
				node.Slots = now.Ranges(i)
			}
			if string(n.ID) == f.m.o.Config.Member.ID && t.Me == "" {
				t.Me = node.ID
			}
			t.Nodes = append(t.Nodes, node)
		}
	}
	for _, n := range t.Nodes { // a member without a node answers as the first primary
		if t.Me == "" && n.Primary == "" {
			t.Me = n.ID
		}
	}
	return t
}

// ofShard are the reports about the nodes of one shard.
func ofShard(beats map[string]coord.Beat, shard string) view.Reports {
	mine := map[string]coord.Beat{}
	for name, b := range beats {
		if node, of, ok := strings.Cut(name, "@"); ok && of == shard && strings.HasPrefix(node, topo.BeatNode) {
			mine[node] = b
		}
	}
	return view.DecodeReports(mine)
}
