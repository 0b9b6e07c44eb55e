// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// Adoption is what the face needs of a deployment that begins on order.
type Adoption struct {
	Docs       coord.Docs
	Deployment string
	Spec       topo.Spec
}

// AdoptionOrder asks for a state of the adoption. Armed needs to know who was found serving.
type AdoptionOrder struct {
	State topo.AdoptionState `json:"state"`
	Found topo.Found         `json:"found,omitzero"`
	By    string             `json:"by,omitempty"`
}

// AdoptionStatus is what is agreed, and what the members do.
type AdoptionStatus struct {
	topo.Adoption
	Primary topo.NodeID      `json:"primary,omitempty"` // as agreed; nobody while waiting
	Members []AdoptionMember `json:"members"`
}

// adoptionQuiet is when a member that has not reported, which it does once a second, does not count as there.
const adoptionQuiet = 2500 * time.Millisecond

// AdoptionMember is what one member does.
type AdoptionMember struct {
	ID      string             `json:"id"`
	State   topo.AdoptionState `json:"state"`
	Problem string             `json:"problem,omitempty"`
}

var errNotOnOrder = &Error{http.StatusConflict, "not-on-order", "this deployment does not begin on order: its members keep its servers since they started"}

// getAdoption answers GET /v1/adoption.
func (s *Server) getAdoption(ctx context.Context) (AdoptionStatus, error) {
	st := AdoptionStatus{Members: []AdoptionMember{}}
	if s.o.Adoption == nil {
		return st, errNotOnOrder
	}
	now, _, err := s.adoption(ctx)
	if err != nil {
		return st, err
	}
	st.Adoption = now
	if shard, _, err := s.known()[0].orders.read(ctx); err == nil && now.State != topo.AdoptionWaiting {
		st.Primary = shard.Assigned.Primary
	}
	beats, err := s.known()[0].gather.beats(ctx)
	if err != nil {
		return st, err
	}
	maps.DeleteFunc(beats, func(_ string, b coord.Beat) bool { return b.Age > adoptionQuiet })
	for _, m := range view.DecodeReports(beats).Members {
		st.Members = append(st.Members, AdoptionMember{m.ID, m.Adoption, m.AdoptionProblem})
	}
	return st, nil
}

// postAdoption carries out POST /v1/adoption. It can be repeated.
func (s *Server) postAdoption(w http.ResponseWriter, r *http.Request) {
	var o AdoptionOrder
	if err := decode(w, r, &o); err != nil {
		reply(w, nil, err)
		return
	}
	if o.By == "" {
		o.By = "api " + r.RemoteAddr
	}
	err := s.order(r.Context(), o)
	if err == nil {
		s.o.Log.Info("adoption", "state", o.State, "by", o.By)
	}
	reply(w, topo.Adoption{State: o.State, By: o.By}, err)
}

func (s *Server) order(ctx context.Context, o AdoptionOrder) error {
	if s.o.Adoption == nil {
		return errNotOnOrder
	}
	now, rev, err := s.adoption(ctx)
	if err != nil || now.State == o.State {
		return err
	}
	p := s.known()[0]
	defer p.gather.noteOrder()
	switch {
	case o.State == topo.AdoptionArmed:
		err = s.adopt(ctx, o.Found)
	case o.State == topo.AdoptionReleased && now.State == topo.AdoptionArmed:
		err = p.orders.Pause(ctx, &topo.Pause{By: o.By, Reason: "the servers are handed back"})
	default:
		return &Error{http.StatusConflict, "bad-state", fmt.Sprintf("the adoption is %s: it cannot become %q", now.State, o.State)}
	}
	if err != nil {
		return err
	}
	_, err = s.o.Adoption.Docs.Swap(ctx, topo.KeyAdoption+s.o.Adoption.Deployment, topo.Adoption{State: o.State, By: o.By}.Encode(), rev)
	if errors.Is(err, coord.ErrConflict) {
		return refuse("conflict", "somebody else has changed the adoption at the same time: look at it, and try again")
	}
	return err
}

// adopt writes the shard's document. It comes before the order to the members, so that no agent begins without it.
func (s *Server) adopt(ctx context.Context, f topo.Found) error {
	if _, known := s.o.Adoption.Spec.Node(f.Node); !known || f.RunID == "" || f.ReplID == "" {
		return &Error{http.StatusBadRequest, "bad-request", fmt.Sprintf("found: name a node of the roster, its run id and its replication id, not %+v", f)}
	}
	p := s.known()[0]
	shard, rev, err := p.orders.read(ctx)
	if errors.Is(err, coord.ErrNotFound) {
		shard, rev, err = topo.Shard{Format: topo.Format, ID: p.ID, Spec: s.o.Adoption.Spec}, 0, nil
	}
	if err != nil {
		return err
	}
	shard.Assigned = shard.Assigned.Adopt(f)
	if errs := shard.Validate(); len(errs) > 0 {
		return fmt.Errorf("adopt %s: %w", p.ID, errors.Join(errs...))
	}
	if _, err := p.Store.Swap(ctx, topo.KeyShard+p.ID, shard.Encode(), rev); err != nil {
		return fmt.Errorf("adopt %s: %w", p.ID, err)
	}
	return nil
}

func (s *Server) adoption(ctx context.Context) (topo.Adoption, coord.Rev, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	doc, err := s.o.Adoption.Docs.Get(ctx, topo.KeyAdoption+s.o.Adoption.Deployment)
	if errors.Is(err, coord.ErrNotFound) {
		return topo.Adoption{State: topo.AdoptionWaiting}, 0, nil
	}
	if err != nil {
		return topo.Adoption{}, 0, fmt.Errorf("read the adoption: %w", err)
	}
	a, err := topo.DecodeAdoption(doc.Value)
	return a, doc.Rev, err
}

// Adoption returns what is agreed about a deployment that begins on order.
func (c *Client) Adoption(ctx context.Context) (AdoptionStatus, error) {
	var st AdoptionStatus
	return st, c.do(ctx, http.MethodGet, "/v1/adoption", nil, &st)
}

// OrderAdoption asks for a state of it.
func (c *Client) OrderAdoption(ctx context.Context, o AdoptionOrder) error {
	return c.do(ctx, http.MethodPost, "/v1/adoption", o, nil)
}
