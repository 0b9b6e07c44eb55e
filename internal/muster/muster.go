// SPDX-License-Identifier: Apache-2.0

// Package muster decides what each server of a cluster has to be told so that exactly the agreed servers know each other: whom to
// meet, whom to forget, which marks of dead slot moves to take away. It also says in words what is wrong with a cluster, and who has
// to do something about it.
//
// It is not for roles: who is primary, and who follows whom, is agreed for each shard, and carried out by its agents. Nor does it give
// slots to anybody. Its invariant: nothing is forgotten that has slots, nor anything while it is not certain who belongs to the
// cluster; and whatever is told may be told twice. No goroutines.
package muster

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	slotmap "redoubt/internal/slots"
)

// Member is a server that is agreed to be of the cluster: one in the roster of a shard, or one that is about to join it.
type Member struct {
	ID      string // its id in the cluster
	Name    string // for people: shard and node
	ShardID string
	Addr    string // host:port as it is announced
	BusPort int
	Host    string // failure domain; empty: its own
	Primary bool   // of its shard, as agreed
	Up      bool   // its agent has seen it a moment ago, so that whoever answers at the address is this server
}

// Scene is what one server sees of its cluster, beside what is agreed about it.
type Scene struct {
	Now    time.Duration
	Roster []Member
	// Whole: the roster names every server that is agreed to be of the cluster, as of a moment ago. Only then is anybody else a
	// stranger.
	Whole bool
	Slots map[string]slotmap.Set // shard id → what is agreed that it serves; no entry: not known
	// Moving are the slots that are on their way between shards, by agreement: their marks belong to whoever moves them. Nil: not
	// known, and no mark is touched.
	Moving *slotmap.Set
	View   slotmap.Nodes // CLUSTER NODES of the server that is asked
	Down   bool          // it answers CLUSTERDOWN
	// Spreads: whom it forgets, all who know it forget, too (Redis 7.2 and later, Valkey).
	Spreads bool
	Hasty   bool           // its node-timeout is lowered (Hurry)
	Copies  map[int]Copies // of the slots that it has marks of
	Memory  Memory
}

// Copies says where keys of a slot are that has a mark.
type Copies struct {
	Known bool // all primaries were asked
	Here  int  // on the server that is asked
	Other int  // on primaries that do not own the slot, this one left out
}

// Memory is what is remembered between two looks at a server: since when each oddity has been there.
type Memory struct {
	Strangers map[string]time.Duration // by id
	Marks     map[int]time.Duration    // by slot
	Down      time.Duration            // since when it has answered CLUSTERDOWN; 0: it does not
	Hasty     time.Duration            // since when its node-timeout has been lowered; 0: it is not
	Calmed    time.Duration            // when that was given up in vain; 0: it was not
	Belonged  bool                     // it was of the roster once
}

// The patience of this package.
const (
	StrangerAfter = 3 * time.Second  // so long a stranger is looked at before it is forgotten: news of its joining may be on their way
	MarkAfter     = 10 * time.Second // so long a mark that nobody agreed on is left alone
	HurryMax      = 10 * time.Second // so long a lowered node-timeout may take to help
	HurryRest     = time.Minute      // so long it is left alone when it did not
	DownAfter     = 3 * time.Second  // a primary that has just started answers CLUSTERDOWN for two seconds, and no timeout changes that
)

// Kind is what to tell a server.
type Kind string

// The things that a server can be told.
const (
	Meet   Kind = "meet"   // CLUSTER MEET Host Port BusPort
	Forget Kind = "forget" // CLUSTER FORGET ID
	Stable Kind = "stable" // CLUSTER SETSLOT Slot STABLE
	Hurry  Kind = "hurry"  // lower the node-timeout: it alone keeps the server from serving
	Calm   Kind = "calm"   // put the node-timeout back
)

// Step is one thing to tell the server that was looked at.
type Step struct {
	Do      Kind
	ID      string
	Host    string
	Port    int
	BusPort int
	Slot    int
	Why     string
}

// Remember folds a look into the memory.
func Remember(m Memory, s Scene) Memory {
	next := Memory{Strangers: map[string]time.Duration{}, Marks: map[int]time.Duration{}, Belonged: m.Belonged || s.belongs()}
	since := func(was time.Duration, known bool) time.Duration {
		if known {
			return was
		}
		return s.Now
	}
	for _, n := range s.strangers() {
		was, known := m.Strangers[n.ID]
		next.Strangers[n.ID] = since(was, known)
	}
	self, _ := s.View.Self()
	for _, marks := range []map[int]string{self.Importing, self.Migrating} {
		for slot := range marks {
			was, known := m.Marks[slot]
			next.Marks[slot] = since(was, known)
		}
	}
	if s.Hasty {
		next.Hasty = since(m.Hasty, m.Hasty != 0)
	}
	if s.Down {
		next.Down, next.Calmed = since(m.Down, m.Down != 0), m.Calmed
		if m.Hasty != 0 && !s.Hasty {
			next.Calmed = s.Now
		}
	}
	return next
}

// Next returns what to tell the server now.
func Next(s Scene) []Step {
	self, ok := s.View.Self()
	if !ok {
		return nil
	}
	var steps []Step
	if s.belongs() {
		steps = append(steps, s.meets(self)...)
		steps = append(steps, s.settles(self)...)
	}
	steps = append(steps, s.forgets(self)...)
	return append(steps, s.pace()...)
}

// belongs tells whether the server that is asked is of the cluster.
func (s Scene) belongs() bool {
	self, ok := s.View.Self()
	_, known := s.member(self.ID)
	return ok && known
}

func (s Scene) member(id string) (Member, bool) {
	i := slices.IndexFunc(s.Roster, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return s.Roster[i], true
}

// strangers are the nodes of the view that nobody agreed on; none while that is not certain.
func (s Scene) strangers() []slotmap.Node {
	if !s.Whole {
		return nil
	}
	var out []slotmap.Node
	for _, n := range s.View {
		if _, known := s.member(n.ID); !known && !n.Myself && !n.Handshake {
			out = append(out, n)
		}
	}
	return out
}

// meets introduces who is not known yet, or is known at another address and does not answer there. Each server is told, not one of
// them: what gossip would spread takes seconds.
func (s Scene) meets(self slotmap.Node) []Step {
	var steps []Step
	for _, m := range s.Roster {
		if m.ID == self.ID || !m.Up {
			continue
		}
		why := ""
		switch n, known := s.View.ByID(m.ID); {
		case !known:
			why = "it does not know " + m.Name
		case n.NoAddr:
			why = "it has no address of " + m.Name
		case elsewhere(n, m) && !n.Linked:
			why = fmt.Sprintf("it knows %s at %s, and it is at %s", m.Name, n.Addr(), m.Addr)
		}
		colon := max(strings.LastIndexByte(m.Addr, ':'), 0)
		host := strings.Trim(m.Addr[:colon], "[]")
		number, err := strconv.Atoi(strings.TrimPrefix(m.Addr[colon:], ":"))
		if why == "" || err != nil || s.introduced(host, number) {
			continue
		}
		steps = append(steps, Step{Do: Meet, ID: m.ID, Host: host, Port: number, BusPort: m.BusPort, Why: why})
	}
	return steps
}

// elsewhere tells whether a node is known at another address than the agreed one.
func elsewhere(n slotmap.Node, m Member) bool {
	return n.Addr() != m.Addr || n.BusPort != m.BusPort
}

// introduced: an introduction to that address is under way.
func (s Scene) introduced(host string, port int) bool {
	return slices.ContainsFunc(s.View, func(n slotmap.Node) bool { return n.Handshake && n.Host == host && n.Port == port })
}

// forgets drops who does not belong here. All servers do so within seconds of each other, and again whenever gossip brings it back:
// a server that has forgotten a node refuses to learn of it by gossip for a minute.
func (s Scene) forgets(self slotmap.Node) []Step {
	var steps []Step
	if s.Whole && !s.belongs() && s.Memory.Belonged { // it has left
		if s.Spreads { // they forget it. It goes on hearing of them, which harms nobody
			return nil
		}
		for _, n := range s.View {
			if !n.Myself && !n.Handshake && n.ID != self.Of {
				steps = append(steps, Step{Do: Forget, ID: n.ID, Why: "this server has left the cluster"})
			}
		}
		return steps
	}
	if !s.belongs() {
		return nil
	}
	for _, n := range s.strangers() {
		since, known := s.Memory.Strangers[n.ID]
		if n.Slots != (slotmap.Set{}) || n.ID == self.Of || !known || s.Now-since < StrangerAfter {
			continue
		}
		steps = append(steps, Step{Do: Forget, ID: n.ID, Why: fmt.Sprintf("nobody agreed on %.8s at %s", n.ID, n.Addr())})
	}
	return steps
}

// settles takes away marks of moves that nobody knows of, where no key can be lost by it.
func (s Scene) settles(self slotmap.Node) []Step {
	var steps []Step
	for _, slot := range s.orphans(self) {
		c := s.Copies[slot]
		if c.Known && c.Other == 0 && (c.Here == 0 || self.Slots.Has(slot)) {
			steps = append(steps, Step{Do: Stable, Slot: slot, Why: fmt.Sprintf("a move of slot %d was begun, and nobody goes on with it; no key of it is anywhere but with its owner", slot)})
		}
	}
	return steps
}

// orphans are the slots with marks that have been there for long and that nobody agreed on. Replicas of Valkey 8.0 and later have those of their
// primary, which speaks for them.
func (s Scene) orphans(self slotmap.Node) []int {
	if s.Moving == nil || self.Of != "" {
		return nil
	}
	var out []int
	for _, marks := range []map[int]string{self.Importing, self.Migrating} {
		for slot := range marks {
			if since, known := s.Memory.Marks[slot]; known && s.Now-since >= MarkAfter && !s.Moving.Has(slot) {
				out = append(out, slot)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// pace shortens the wait of a server that answers CLUSTERDOWN although the primaries of all shards are there: having been without a
// majority it waits for its node-timeout, up to five seconds, before it serves again.
func (s Scene) pace() []Step {
	switch {
	case s.Hasty && !s.Down:
		return []Step{{Do: Calm, Why: "it serves again"}}
	case s.Hasty && s.Memory.Hasty != 0 && s.Now-s.Memory.Hasty > HurryMax:
		return []Step{{Do: Calm, Why: "it does not help"}}
	case s.Memory.Calmed != 0 && s.Now-s.Memory.Calmed < HurryRest:
		return nil
	case !s.Hasty && s.Down && s.Memory.Down != 0 && s.Now-s.Memory.Down >= DownAfter && s.Whole && s.served():
		return []Step{{Do: Hurry, Why: "it answers CLUSTERDOWN, and the primaries of all shards are there"}}
	case s.Hasty && !s.served():
		return []Step{{Do: Calm, Why: "a primary is away"}}
	}
	return nil
}

// served: every shard that has slots has a primary, which is there.
func (s Scene) served() bool {
	for shard, set := range s.Slots {
		if set != (slotmap.Set{}) && !slices.ContainsFunc(s.Roster, func(m Member) bool { return m.ShardID == shard && m.Primary && m.Up }) {
			return false
		}
	}
	return len(s.Slots) > 0
}
