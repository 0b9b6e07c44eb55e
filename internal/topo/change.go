// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ChangeKind says what a change of the specification does.
type ChangeKind string

// The changes that take more than one step. What weakens a shard needs none: the document says so, and then proxies read it.
const (
	ChangeAck    ChangeKind = "ack"    // durability or AckReplicas become stronger
	ChangeRejoin ChangeKind = "rejoin" // a set of one takes its replicas back
	ChangeAdd    ChangeKind = "add"    // a node joins the roster
	ChangeRemove ChangeKind = "remove" // a node leaves it
)

// Change is a change of the specification that is under way (SAFETY A7). Until it is done elections go by the specification as
// it is, while proxies acknowledge by the stronger of the two.
type Change struct {
	ID          uint64     `json:"id"` // = Assigned.Rule when it began
	Kind        ChangeKind `json:"kind"`
	Durability  Durability `json:"durability,omitempty"`   // ack
	AckReplicas int        `json:"ack_replicas,omitempty"` // ack
	Node        Node       `json:"node,omitzero"`          // add; remove: its id
	Via         NodeID     `json:"via,omitempty"`          // add: whom it follows until it is in the roster, because replicas of replicas do not count
	Direct      bool       `json:"direct,omitempty"`       // add: it can follow nobody but the primary: a member of a cluster
	Cut         bool       `json:"cut,omitempty"`          // remove: it is frozen, so that the barrier may begin
	Void        bool       `json:"void,omitempty"`         // add: taken back; it ends when nobody counts the node
	Epoch       Epoch      `json:"epoch"`                  // in which it began
	By          string     `json:"by,omitempty"`
}

// String says what the change does.
func (c Change) String() string {
	switch c.Kind {
	case ChangeAck:
		return fmt.Sprintf("to durability %s with %d acknowledging replicas", c.Durability, c.AckReplicas)
	case ChangeRejoin:
		return "back to more than one copy"
	}
	return string(c.Kind) + " " + string(c.Node.ID)
}

// Apply returns the specification after the change.
func (c Change) Apply(s Spec) Spec {
	s.Nodes = slices.Clone(s.Nodes)
	switch c.Kind {
	case ChangeAck:
		s.Durability, s.AckReplicas, s.MaxLoss = c.Durability, c.AckReplicas, Loss{}
	case ChangeAdd:
		s.Nodes = append(s.Nodes, c.Node)
		slices.SortFunc(s.Nodes, func(x, y Node) int { return strings.Compare(string(x.ID), string(y.ID)) })
	case ChangeRemove:
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n Node) bool { return n.ID == c.Node.ID })
	}
	return s
}

// Validate returns what is wrong with the change of that specification; nil when it is sound.
func (c Change) Validate(s Spec) error {
	_, known := s.Node(c.Node.ID)
	switch {
	case c.Kind == ChangeAdd && known:
		return fmt.Errorf("node %s is in the roster already", c.Node.ID)
	case c.Kind == ChangeRemove && !known:
		return fmt.Errorf("node %s is not in the roster", c.Node.ID)
	case c.Kind != ChangeAck && c.Kind != ChangeRejoin && c.Kind != ChangeAdd && c.Kind != ChangeRemove:
		return fmt.Errorf("unknown change %q", c.Kind)
	}
	return errors.Join(c.Apply(s).Validate()...)
}

// Replicas returns how many replicas must hold a write before it is acknowledged, by the specification alone.
func (s Spec) Replicas() int {
	if s.Durability.Waits() {
		return s.AckReplicas
	}
	return 0
}

// MayShrink reports whether the primary may acknowledge alone when its only replica is gone.
func (s Spec) MayShrink() bool {
	return s.Durability.Waits() && len(s.Nodes) == 2 && s.MinCopies == 1
}

// Agreed returns how many replicas must hold a write for elections to find it: what is promised now.
func (s Shard) Agreed() int {
	if s.Assigned.Alone != "" && s.Spec.MinCopies < 2 {
		return 0
	}
	return s.Spec.Replicas()
}

// Acks returns how many replicas must hold a write before a proxy acknowledges it: what is promised now, or what a change that
// is under way will promise, whichever is more (SAFETY A7).
func (s Shard) Acks() int {
	n := s.Agreed()
	c := s.Assigned.Change
	switch {
	case c == nil:
	case c.Kind == ChangeAck:
		n = max(n, c.Apply(s.Spec).Replicas())
	case c.Kind == ChangeRejoin:
		n = s.Spec.Replicas()
	}
	return n
}

// OnDisk reports whether a proxy acknowledges a write only when it is on the disks of the primary and of Acks replicas: because
// that is promised now, or because a change that is under way will promise it (SAFETY A7). A primary that goes on alone waits for
// its own disk.
func (s Shard) OnDisk() bool {
	c := s.Assigned.Change
	return s.Spec.Durability.OnDisk() || c != nil && c.Kind == ChangeAck && c.Durability.OnDisk()
}

// Withdraw takes a change back. A node that replicates from the primary already has to stand still first: its word would count
// under a stronger rule that comes later.
func (a *Assigned) Withdraw() {
	if c := a.Change; c.Kind == ChangeAdd && c.Via == a.Primary {
		c.Void, c.Epoch = true, a.Epoch
		return
	}
	a.Change = nil
}

// Begin makes the change the one that is under way and gives it a number. Connections of proxies carry the number of the rule
// that everything behind it was sent under.
func (a *Assigned) Begin(c Change) {
	a.Rule++
	c.ID, c.Epoch = a.Rule, a.Epoch
	a.Change = &c
}
