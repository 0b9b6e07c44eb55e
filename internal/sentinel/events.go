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
func (s *Server) follow(ctx context.Context) {
	var primary topo.NodeID
	var epoch topo.Epoch
	for {
		next := s.o.View.Next()
		if snap := s.o.View.Load(); snap != nil && snap.Shard.Assigned.Phase == topo.PhaseServing {
			a := snap.Shard.Assigned
			if a.Primary != primary || a.Epoch != epoch {
				if primary != "" {
					s.announce(snap.Shard, primary)
				}
				primary, epoch = a.Primary, a.Epoch
				if node, ok := snap.Shard.Spec.Node(primary); ok {
					s.last.Store(&node.Addr)
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
func (s *Server) announce(shard topo.Shard, old topo.NodeID) {
	a := shard.Assigned
	if s.o.Mode == ModeProxy || a.Primary == old {
		s.hub.publish("+new-epoch", fmt.Sprint(a.Epoch)) // no address changed
		return
	}
	_, voters := s.usable()
	for _, m := range switchEvents(s.o.Name, shard, old, voters/2+1) {
		s.hub.publish(m.channel, m.payload)
	}
}

// switchEvents are the events of one switch, in the order in which Sentinels publish them, so that every library finds
// the one that it waits for (and the alias +replica-reconf-done, for which go-redis waits).
func switchEvents(name string, shard topo.Shard, old topo.NodeID, quorum int) []message {
	a := shard.Assigned
	address := func(id topo.NodeID) string {
		n, _ := shard.Spec.Node(id)
		ip, port := split(n.Addr)
		return ip + " " + port
	}
	was, is := address(old), address(a.Primary)
	master := fmt.Sprintf("master %s %s", name, was)
	slave := func(id topo.NodeID, of string) string {
		n, _ := shard.Spec.Node(id)
		return fmt.Sprintf("slave %s %s @ %s %s", n.Addr, address(id), name, of)
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
func (s *Server) announceMembers(old, now *reports) {
	p, ok := s.primary()
	if !ok {
		return
	}
	known := map[string]bool{}
	for _, m := range old.Members {
		known[m.ID+" "+m.SentinelAddr] = true
	}
	for _, m := range now.Members {
		if m.SentinelAddr != "" && m.ID != s.o.Member && !known[m.ID+" "+m.SentinelAddr] {
			id := identity("sentinel", s.o.Name, m.ID)
			ip, port := split(m.SentinelAddr)
			s.hub.publish("+sentinel", fmt.Sprintf("sentinel %s %s %s @ %s %s %s", id, ip, port, s.o.Name, p.ip, p.port))
		}
	}
}
