// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"

	"redoubt/internal/topo"
)

// NodeRequest asks for a data node to join the roster.
type NodeRequest struct {
	topo.Node
	Move bool   `json:"move,omitempty"` // it is in the roster already, and has another address now
	By   string `json:"by,omitempty"`
}

// MoveNode writes down another address of a node. Its server listens there by now, or will; it follows nobody at its old one.
func (o *Orders) MoveNode(ctx context.Context, r NodeRequest) error {
	return o.change(ctx, func(s *topo.Shard) (bool, error) {
		i := slices.IndexFunc(s.Spec.Nodes, func(n topo.Node) bool { return n.ID == r.ID })
		switch {
		case i < 0:
			return false, &Error{http.StatusNotFound, "unknown-node", fmt.Sprintf("there is no node %q in the roster: redoubt node add", r.ID)}
		case s.Spec.Nodes[i].Addr == r.Addr && s.Spec.Nodes[i].BusPort == r.BusPort:
			return false, nil
		case r.ID == s.Assigned.Primary:
			return false, refuse("is-primary", "%s is the primary: redoubt switchover first", r.ID)
		}
		if err := changeable(*s); err != nil {
			return false, err
		}
		if err := free(*s, r); err != nil {
			return false, err
		}
		s.Spec.Nodes = slices.Clone(s.Spec.Nodes)
		s.Spec.Nodes[i].Addr, s.Spec.Nodes[i].BusPort = r.Addr, r.BusPort
		return true, nil
	})
}

// free refuses an address that is another node's.
func free(s topo.Shard, r NodeRequest) error {
	for _, n := range s.Spec.Nodes {
		if n.Addr == r.Addr && n.ID != r.ID {
			return refuse("address-taken", "%s is the address of node %s", r.Addr, n.ID)
		}
	}
	return nil
}

// AddNode begins to take a node into the roster. For one that is about to leave it takes that back.
func (o *Orders) AddNode(ctx context.Context, r NodeRequest) error {
	if r.ID == "" || r.Addr == "" {
		return &Error{http.StatusBadRequest, "bad-request", "a node needs an id and an address: start its member first, or name the address"}
	}
	if o.cluster {
		if err := joinable(r.Node); err != nil {
			return err
		}
	}
	if r.Move {
		return o.MoveNode(ctx, r)
	}
	return o.change(ctx, func(s *topo.Shard) (bool, error) {
		a := &s.Assigned
		c := a.Change
		_, known := s.Spec.Node(r.ID)
		switch {
		case c != nil && c.Kind == topo.ChangeAdd && c.Node == r.Node && !c.Void:
			return false, nil // by an earlier try
		case c != nil && c.Kind == topo.ChangeRemove && c.Node.ID == r.ID:
			a.Change = nil
			return true, nil
		case known:
			return false, nil
		}
		if err := changeable(*s); err != nil {
			return false, err
		}
		if err := free(*s, r); err != nil {
			return false, err
		}
		a.Begin(topo.Change{Kind: topo.ChangeAdd, Node: r.Node, Direct: o.cluster, By: r.By})
		return true, nil
	})
}

// joinable refuses what no server of a cluster can be.
func joinable(n topo.Node) error {
	host, _, err := net.SplitHostPort(n.Addr)
	switch {
	case err != nil || net.ParseIP(host) == nil:
		return &Error{http.StatusBadRequest, "bad-request", fmt.Sprintf("%s: the servers of a cluster tell each other IP addresses and ports: name it so", n.Addr)}
	case n.Bus() == 0:
		return &Error{http.StatusBadRequest, "bad-request", fmt.Sprintf("%s: %d above its port is no port: name the port of its bus", n.Addr, topo.BusAbove)}
	}
	return nil
}

// RemoveNode begins to take a node out of the roster. For one that is about to join it takes that back.
func (o *Orders) RemoveNode(ctx context.Context, id topo.NodeID, by string) error {
	return o.change(ctx, func(s *topo.Shard) (bool, error) {
		a := &s.Assigned
		c := a.Change
		node, known := s.Spec.Node(id)
		switch {
		case c != nil && c.Kind == topo.ChangeRemove && c.Node.ID == id:
			return false, nil
		case c != nil && c.Kind == topo.ChangeAdd && c.Node.ID == id:
			a.Withdraw()
			return true, nil
		case !known:
			return false, &Error{http.StatusNotFound, "unknown-node", fmt.Sprintf("there is no node %q in the roster", id)}
		}
		if err := removable(*s, node); err != nil {
			return false, err
		}
		a.Begin(topo.Change{Kind: topo.ChangeRemove, Node: node, By: by})
		return true, nil
	})
}

// changeable refuses a change of the roster in words.
func changeable(s topo.Shard) error {
	switch a := s.Assigned; {
	case a.Phase != topo.PhaseServing:
		return refuse("busy", "the shard is %s: the roster changes while a primary serves; try again when there is one", a.Phase)
	case a.Change != nil:
		return refuse("pending", "another change is under way (%s): wait for it", a.Change)
	}
	return nil
}

func removable(s topo.Shard, n topo.Node) error {
	if err := changeable(s); err != nil {
		return err
	}
	left := len(s.Spec.Nodes) - 1
	switch a := s.Assigned; {
	case n.ID == a.Primary:
		return refuse("is-primary", "%s is the primary: redoubt switchover first", n.ID)
	case s.Spec.Durability.Waits() && left <= s.Spec.AckReplicas:
		return refuse("too-few", "%d nodes would be left, and %d replicas must acknowledge: lower that first (redoubt set ack-replicas=%d), or add a node first", left, s.Spec.AckReplicas, max(1, left-1))
	case a.Alone != "":
		return refuse("alone", "%s has the only copy that is certain: wait until the shard is back to more than one", a.Alone)
	}
	return nil
}

func (s *Server) postNode(w http.ResponseWriter, r *http.Request) {
	var req NodeRequest
	if err := decode(w, r, &req); err != nil {
		reply(w, nil, err)
		return
	}
	if req.By == "" {
		req.By = "api " + r.RemoteAddr
	}
	p, err := s.one(r)
	if err != nil {
		reply(w, nil, err)
		return
	}
	if reports, err := p.gather.reports(r.Context()); err == nil { // its agent knows what is not said
		seen := reports.Nodes[req.ID]
		req.Addr = cmp.Or(req.Addr, seen.Addr)
		if req.Addr == seen.Addr {
			req.BusPort, req.ServerID = cmp.Or(req.BusPort, seen.BusPort), cmp.Or(req.ServerID, seen.ServerID)
		}
	}
	err = p.orders.AddNode(r.Context(), req)
	p.gather.noteOrder()
	switch {
	case err != nil:
	case req.Move:
		s.o.Log.Info("a node has another address", "shard", p.ID, "node", req.ID, "addr", req.Addr, "by", req.By)
	default:
		s.o.Log.Info("a node is to join", "shard", p.ID, "node", req.ID, "addr", req.Addr, "by", req.By)
	}
	reply(w, req, err)
}

func (s *Server) deleteNode(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	p, err := s.one(r)
	if err == nil {
		err = p.orders.RemoveNode(r.Context(), topo.NodeID(id), "api "+r.RemoteAddr)
		p.gather.noteOrder()
	}
	if err == nil {
		s.o.Log.Info("a node is to leave", "shard", p.ID, "node", id, "by", r.RemoteAddr)
	}
	reply(w, struct{}{}, err)
}

// AddNode begins to take a node into the roster.
func (c *Client) AddNode(ctx context.Context, n NodeRequest) error {
	return c.do(ctx, http.MethodPost, "/v1/nodes", n, nil)
}

// RemoveNode begins to take a node out of the roster.
func (c *Client) RemoveNode(ctx context.Context, id topo.NodeID) error {
	return c.do(ctx, http.MethodDelete, "/v1/nodes/"+url.PathEscape(string(id)), nil, nil)
}
