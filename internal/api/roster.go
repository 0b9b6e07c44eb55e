// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"redoubt/internal/topo"
)

// NodeRequest asks for a data node to join the roster.
type NodeRequest struct {
	topo.Node
	By string `json:"by,omitempty"`
}

// AddNode begins to take a node into the roster. For one that is about to leave it takes that back.
func (o *Orders) AddNode(ctx context.Context, r NodeRequest) error {
	if r.ID == "" || r.Addr == "" {
		return &Error{http.StatusBadRequest, "bad-request", "a node needs an id and an address: start its member first, or name the address"}
	}
	if o.cluster {
		return rosterOfCluster()
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
		for _, n := range s.Spec.Nodes {
			if n.Addr == r.Addr {
				return false, refuse("address-taken", "%s is the address of node %s", r.Addr, n.ID)
			}
		}
		a.Begin(topo.Change{Kind: topo.ChangeAdd, Node: r.Node, By: r.By})
		return true, nil
	})
}

func rosterOfCluster() error {
	return refuse("not-in-cluster", "nodes do not join or leave in this version of mode cluster")
}

// RemoveNode begins to take a node out of the roster. For one that is about to join it takes that back.
func (o *Orders) RemoveNode(ctx context.Context, id topo.NodeID, by string) error {
	if o.cluster {
		return rosterOfCluster()
	}
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
	if req.Addr == "" { // its agent knows
		if reports, err := p.gather.reports(r.Context()); err == nil {
			req.Addr = reports.Nodes[req.ID].Addr
		}
	}
	err = p.orders.AddNode(r.Context(), req)
	p.gather.noteOrder()
	if err == nil {
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
