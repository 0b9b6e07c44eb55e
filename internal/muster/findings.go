// SPDX-License-Identifier: Apache-2.0

package muster

import (
	"fmt"
	"slices"
	"strings"

	slotmap "redoubt/internal/slots"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Name   string `json:"name"`             // ghost, unknown-server, open-slot, …
	Text   string `json:"text"`             // what was found
	Does   string `json:"does,omitempty"`   // what is done about it without anybody
	Person string `json:"person,omitempty"` // what a person has to do; empty: nothing
}

// String is one sentence.
func (f Finding) String() string {
	s := f.Name + ": " + f.Text
	if f.Does != "" {
		s += "; " + f.Does
	}
	if f.Person != "" {
		s += ": " + f.Person
	}
	return s
}

// Findings says what is wrong with the cluster as one server sees it. An oddity of a moment, as in the middle of a failover, shows
// up in it too: what counts is what stays.
func Findings(s Scene) []Finding {
	self, ok := s.View.Self()
	if !ok || !s.belongs() {
		return nil
	}
	out := s.membership(self)
	out = append(out, s.ownership(self)...)
	out = append(out, s.marks(self)...)
	out = append(out, s.replicas()...)
	if s.Down {
		f := Finding{Name: "cluster-down", Text: "it answers CLUSTERDOWN", Person: "bring the servers of the other shards back: most of their primaries are out of its reach"}
		if s.served() {
			f.Does, f.Person = "the primaries of all shards are there, and its node-timeout is lowered until it serves", ""
		}
		out = append(out, f)
	}
	return out
}

func (s Scene) membership(self slotmap.Node) []Finding {
	var out []Finding
	for _, n := range s.strangers() {
		f := Finding{Name: "ghost", Text: fmt.Sprintf("it knows %.8s at %s (%s), which is in no roster", n.ID, n.Addr(), state(n)), Does: "it is forgotten on every server, again and again"}
		if n.Slots != (slotmap.Set{}) {
			f = Finding{Name: "unknown-server", Text: fmt.Sprintf("%.8s at %s has slots %s and is in no roster", n.ID, n.Addr(), n.Slots), Person: "find out whose it is; nothing is done to a server with slots"}
		}
		out = append(out, f)
	}
	for _, m := range s.Roster {
		n, known := s.View.ByID(m.ID)
		switch {
		case m.ID == self.ID:
		case !known && !m.Up:
			out = append(out, Finding{Name: "unmet", Text: "it does not know " + m.Name + ", which is not there", Does: "they meet when it is back"})
		case !known:
			out = append(out, Finding{Name: "unmet", Text: "it does not know " + m.Name, Does: "they are introduced"})
		case elsewhere(n, m) && n.Linked && m.Up:
			out = append(out, Finding{Name: "other-address", Text: fmt.Sprintf("it reaches %s at %s, and the roster says %s", m.Name, n.Addr(), m.Addr), Person: "make the server announce what the roster says (cluster-announce-ip, -port, -bus-port), or correct the roster"})
		case elsewhere(n, m) || n.NoAddr:
			out = append(out, Finding{Name: "moved", Text: fmt.Sprintf("it knows %s at %s, and it is at %s", m.Name, n.Addr(), m.Addr), Does: "they are introduced again once it is there"})
		case !n.Linked && m.Up:
			out = append(out, Finding{Name: "unlinked", Text: "its bus has no connection to " + m.Name, Person: fmt.Sprintf("let the servers reach each other's bus (port %d)", m.BusPort)})
		}
	}
	return out
}

func state(n slotmap.Node) string {
	var words []string
	for _, w := range []struct {
		is   bool
		word string
	}{{n.NoAddr, "no address"}, {n.Fail, "failed"}, {n.Replica, "a replica"}, {n.Primary, "a primary without slots"}} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ", ")
}

// replicas looks after who would be elected next.
func (s Scene) replicas() []Finding {
	var out []Finding
	primary := map[string]Member{}
	for _, m := range s.Roster {
		if m.Primary {
			primary[m.ShardID] = m
		}
	}
	for _, p := range s.Roster {
		if !p.Primary {
			continue
		}
		others, up := 0, 0
		for _, m := range s.Roster {
			if m.ShardID != p.ShardID || m.ID == p.ID {
				continue
			}
			others++
			if m.Up {
				up++
			}
		}
		if others > 0 && up == 0 {
			out = append(out, Finding{Name: "no-replica", Text: "no replica of " + p.Name + " is there", Person: "bring one back, or add a node (redoubt node add): until then nobody can take over"})
		}
	}
	for _, n := range s.View {
		m, known := s.member(n.ID)
		if p, led := primary[m.ShardID]; known && led && n.Replica && n.Of != p.ID && n.ID != p.ID {
			out = append(out, Finding{Name: "follows-other", Text: m.Name + " does not follow " + p.Name + ", by its view", Does: "its agent has it follow"})
		}
	}
	return out
}

// ownership compares who has which slots, and ties of epochs.
func (s Scene) ownership(self slotmap.Node) []Finding {
	var out []Finding
	shardOf := map[string]string{}
	names := map[string]string{}
	for _, m := range s.Roster {
		shardOf[m.ID], names[m.ID] = m.ShardID, m.Name
	}
	has := map[string]slotmap.Set{}
	epochs := map[uint64]string{}
	for _, n := range s.View {
		if n.Slots == (slotmap.Set{}) {
			continue
		}
		has[shardOf[n.ID]] = has[shardOf[n.ID]].Or(n.Slots)
		if other, tied := epochs[n.Epoch]; tied {
			out = append(out, Finding{Name: "epoch-tie", Text: fmt.Sprintf("%s and %s have the same epoch %d", names[other], names[n.ID], n.Epoch), Does: "the servers mend it by themselves within a second"})
		}
		epochs[n.Epoch] = n.ID
	}
	shards := make([]string, 0, len(s.Slots))
	for shard := range s.Slots {
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	for _, shard := range shards {
		missing := s.Slots[shard].Minus(has[shard])
		if missing == (slotmap.Set{}) {
			continue
		}
		f := Finding{Name: "slots-differ", Text: fmt.Sprintf("by its view slots %s are not with the shard of %s", missing, s.shardName(shard)), Does: "gossip brings it, and until then it is not promoted"}
		if unowned := missing.Minus(s.View.Assigned()); unowned != (slotmap.Set{}) {
			f = Finding{Name: "slots-unowned", Text: fmt.Sprintf("by its view nobody has slots %s", unowned), Does: "the next primary of their shard takes them: `redoubt switchover` begins it"}
		}
		out = append(out, f)
	}
	return out
}

// shardName is some member of it, for people.
func (s Scene) shardName(shard string) string {
	for _, m := range s.Roster {
		if m.ShardID == shard {
			return m.Name
		}
	}
	return "an unknown shard"
}

// marks says what is known of moves that nobody goes on with.
func (s Scene) marks(self slotmap.Node) []Finding {
	var out []Finding
	for _, slot := range s.orphans(self) {
		c := s.Copies[slot]
		f := Finding{Name: "open-slot", Text: fmt.Sprintf("slot %d is marked as moving, and nobody goes on with it", slot), Does: "the mark is taken away"}
		switch {
		case !c.Known:
			f.Does = "it is taken away once all primaries were asked for keys of it"
		case c.Other > 0 || c.Here > 0 && !self.Slots.Has(slot):
			f.Does = ""
			f.Person = fmt.Sprintf("%d keys of it are not with its owner, and may be newer or older than what that has: finish the move with the tool that began it, while nobody writes these keys", c.Other+c.stray(self.Slots.Has(slot)))
		}
		out = append(out, f)
	}
	return out
}

// stray counts the keys here if this is not where they belong.
func (c Copies) stray(owner bool) int {
	if owner {
		return 0
	}
	return c.Here
}
