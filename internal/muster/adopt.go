// SPDX-License-Identifier: Apache-2.0

package muster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	slotmap "redoubt/internal/slots"
)

// Server is one server of a cluster that is to be adopted, as it was found.
type Server struct {
	Addr     string // at which it was asked
	Version  string
	Number   int // Redis-compatible: major × 100 + minor
	LinkUp   bool
	Loading  bool
	Down     bool
	NoSync   bool   // its default user may not replicate
	NoIP     bool   // what it announces is no IP address
	Auth     string // masterauth
	AuthUser string // masteruser
	View     slotmap.Nodes
}

// self is the server's own line in its view.
func (s Server) self() slotmap.Node {
	n, _ := s.View.Self()
	return n
}

// Shard is a primary of a cluster and its replicas.
type Shard struct {
	Primary  slotmap.Node
	Replicas []slotmap.Node // in order of address
}

// clusterSince is the oldest version that can be adopted: 7.0.
const clusterSince = 700

// Adoptable says everything that speaks against taking a cluster over as it is; nil: nothing does. password is the deployment's.
func Adoptable(servers []Server, password string) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if len(servers) == 0 {
		return []string{"no server answers"}
	}
	asked := map[string]bool{}
	for _, s := range servers {
		asked[s.self().ID] = true
	}
	first := servers[0]
	for _, s := range servers {
		for _, text := range s.unfit(password) {
			say("%s: %s", s.Addr, text)
		}
		for _, n := range s.View {
			switch {
			case n.Handshake:
				say("%s: it is meeting %s: wait until they know each other", s.Addr, n.Addr())
			case !asked[n.ID]:
				say("%s: it knows %.8s at %s, which does not answer: bring it back, or CLUSTER FORGET it on every server", s.Addr, n.ID, n.Addr())
			case n.Fail || n.Suspected || !n.Linked && !n.Myself:
				say("%s: it does not reach %s", s.Addr, n.Addr())
			}
		}
		if text := disagreement(first.View, s.View); text != "" {
			say("%s and %s do not agree: %s", first.Addr, s.Addr, text)
		}
	}
	if missing := all().Minus(first.View.Assigned()); missing != (slotmap.Set{}) {
		say("nobody has slots %s", missing)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// all is every slot.
func all() slotmap.Set { return slotmap.SetOf([2]int{0, slotmap.Count - 1}) }

// unfit says what is wrong with one server.
func (s Server) unfit(password string) []string {
	var out []string
	self := s.self()
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(s.Number < clusterSince, "%s is too old: Redis 7.0 or Valkey 7.2 is needed", s.Version)
	add(s.Loading, "it is loading or copying its data: wait")
	add(s.Down, "it answers CLUSTERDOWN")
	add(self.Replica && !s.LinkUp, "its link to its primary is down")
	add(self.Primary && self.Slots == (slotmap.Set{}), "it is a primary without slots: give it some, make it a replica, or remove it from the cluster")
	add(len(self.Importing)+len(self.Migrating) > 0, "%d slots are marked as moving: finish that first", len(self.Importing)+len(self.Migrating))
	add(s.NoSync, "its default user may not replicate (psync, sync): give that back first")
	add(s.Auth != password, "its masterauth is not the password of the deployment: set it on every server, so that replicas can log in whoever is primary")
	add(s.AuthUser != "", "its masteruser is %s: replicas have to log in as the default user", s.AuthUser)
	add(s.NoIP, "it announces %q, which is no IP address", self.Host)
	return out
}

// disagreement says what two views do not have in common; empty: nothing that matters.
func disagreement(a, b slotmap.Nodes) string {
	for _, x := range a {
		y, known := b.ByID(x.ID)
		switch {
		case !known:
			return fmt.Sprintf("only one of them knows %s", x.Addr())
		case x.Slots != y.Slots:
			return fmt.Sprintf("%s has slots %s by one, and %s by the other", x.Addr(), orNone(x.Slots), orNone(y.Slots))
		case x.Of != y.Of:
			return fmt.Sprintf("whom %s follows", x.Addr())
		}
	}
	if len(a) != len(b) {
		return fmt.Sprintf("one knows %d servers, the other %d", len(a), len(b))
	}
	return ""
}

func orNone(s slotmap.Set) string {
	if s == (slotmap.Set{}) {
		return "none"
	}
	return s.String()
}

// Shards are the shards of a cluster, in the order of their first slots. The view is one that all agree on.
func Shards(view slotmap.Nodes) []Shard {
	var out []Shard
	for _, p := range view {
		if p.Slots == (slotmap.Set{}) {
			continue
		}
		s := Shard{Primary: p}
		for _, r := range view {
			if r.Of == p.ID {
				s.Replicas = append(s.Replicas, r)
			}
		}
		slices.SortFunc(s.Replicas, func(a, b slotmap.Node) int { return strings.Compare(a.Addr(), b.Addr()) })
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Shard) int {
		return cmp.Compare(a.Primary.Slots.Ranges()[0][0], b.Primary.Slots.Ranges()[0][0])
	})
	return out
}
