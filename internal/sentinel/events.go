// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"fmt"

	"redoubt/internal/topo"
)

// message is one published event: its channel is its name.
type message struct{ channel, payload string }

// follow publishes what a switch means to Sentinel's subscribers, once the view says that the new primary serves.
func (m *master) follow(ctx context.Context) {
	var primary topo.NodeID
	var epoch topo.Epoch
	for {
		next := m.View.Next()
		if snap := m.View.Load(); snap != nil && snap.Shard.Assigned.Phase == topo.PhaseServing {
			a := snap.Shard.Assigned
			if a.Primary != primary || a.Epoch != epoch {
				if primary != "" {
					m.announce(snap.Shard, primary)
				}
				primary, epoch = a.Primary, a.Epoch
				if node, ok := snap.Shard.Spec.Node(primary); ok {
					m.last.Store(&node.Addr)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-next:
		}
	}
}

// announce publishes one change of epoch in which old was the primary before.
func (m *master) announce(shard topo.Shard, old topo.NodeID) {
	a := shard.Assigned
	if m.Mode == ModeProxy || a.Primary == old {
		m.s.tellAll(func(tell) []message { return []message{{"+new-epoch", fmt.Sprint(a.Epoch)}} }) // no address changed
		return
	}
	_, voters := m.usable()
	m.s.tellAll(func(t tell) []message { return switchEvents(t, m.Name, shard, old, voters/2+1) })
	was, _ := shard.Spec.Node(old)
	is, _ := shard.Spec.Node(a.Primary)
	m.s.scripts.reconfigured(m.Name, m.leads(shard, a.Primary), m.s.tell(nil), was.Addr, is.Addr)
}

// tellAll publishes events, to each client with the addresses that it is told, and to the notification script.
func (s *Server) tellAll(events func(tell) []message) {
	s.hub.publish(s, events)
	for _, e := range events(s.tell(nil)) {
		s.scripts.notify(e)
	}
}

// leads reports whether this member stands for the Sentinel that led the failover: the one beside the new primary. Whoever it is, it has to
// be the same one in the eyes of all.
func (m *master) leads(shard topo.Shard, primary topo.NodeID) bool {
	return string(primary) == m.s.o.Member
}

// switchEvents are the events of one switch, in the order in which Sentinels publish them, so that every library finds
// the one that it waits for (and the alias +replica-reconf-done, for which go-redis waits).
func switchEvents(t tell, name string, shard topo.Shard, old topo.NodeID, quorum int) []message {
	a := shard.Assigned
	address := func(id topo.NodeID) string {
		n, _ := shard.Spec.Node(id)
		return t.pair(n.Addr)
	}
	was, is := address(old), address(a.Primary)
	master := fmt.Sprintf("master %s %s", name, was)
	slave := func(id topo.NodeID, of string) string {
		n, _ := shard.Spec.Node(id)
		return fmt.Sprintf("slave %s %s @ %s %s", t.addr(n.Addr), address(id), name, of)
	}
	promoted := slave(a.Primary, was)
	out := []message{
		{"+sdown", master}, {"+odown", fmt.Sprintf("%s #quorum %d/%d", master, quorum, quorum)}, {"+new-epoch", fmt.Sprint(a.Epoch)},
		{"+try-failover", master}, {"+elected-leader", master}, {"+failover-state-select-slave", master},
		{"+selected-slave", promoted}, {"+failover-state-send-slaveof-noone", promoted}, {"+failover-state-wait-promotion", promoted},
		{"+promoted-slave", promoted}, {"+failover-state-reconf-slaves", master},
	}
	for _, n := range shard.Spec.Nodes {
		if n.ID != old && n.ID != a.Primary {
			r := slave(n.ID, was)
			out = append(out, message{"+slave-reconf-sent", r}, message{"+slave-reconf-inprog", r}, message{"+slave-reconf-done", r}, message{"+replica-reconf-done", r})
		}
	}
	out = append(out, message{"+failover-end", master}, message{"+switch-master", fmt.Sprintf("%s %s %s", name, was, is)})
	for _, n := range shard.Spec.Nodes {
		if n.ID != a.Primary {
			out = append(out, message{"+slave", slave(n.ID, is)})
		}
	}
	return append(out, message{"-odown", fmt.Sprintf("master %s %s", name, is)}, message{"-sdown", fmt.Sprintf("master %s %s", name, is)},
		message{"+convert-to-slave", slave(old, is)})
}

// announceMembers publishes members that appeared since the last look.
func (m *master) announceMembers(old, now *reports) {
	p, ok := m.primary()
	if !ok {
		return
	}
	known := map[string]bool{}
	for _, r := range old.Members {
		known[r.ID+" "+r.SentinelAddr] = true
	}
	for _, r := range now.Members {
		if r.SentinelAddr != "" && r.ID != m.s.o.Member && !known[r.ID+" "+r.SentinelAddr] {
			id := m.s.idOf(r.ID)
			m.s.tellAll(func(t tell) []message {
				return []message{{"+sentinel", fmt.Sprintf("sentinel %s %s @ %s %s", id, t.pair(r.SentinelAddr), m.Name, t.pair(p.addr))}}
			})
		}
	}
}
