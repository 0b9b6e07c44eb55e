// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"redoubt/internal/topo"
)

// part is one shard of the deployment.
type part struct {
	Shard
	orders *Orders
	gather *gatherer
}

func newPart(o Options, sh Shard) (*part, error) {
	if sh.ID == "" || sh.Store == nil || sh.View == nil {
		return nil, errors.New("api: each shard needs an ID, a Store and a View")
	}
	if sh.Outage == nil {
		sh.Outage = func() string { return "" }
	}
	p := &part{Shard: sh, orders: NewOrders(sh.Store, sh.ID), gather: newGatherer(o, sh)}
	p.orders.cluster = sh.Slots != nil
	return p, nil
}

// known are the shards that there are now.
func (s *Server) known() []*part { return *s.parts.Load() }

// SetShards says which shards there are from now on. Those that were known are not begun anew. It is not for several goroutines at once.
func (s *Server) SetShards(shards []Shard) error {
	var next []*part
	for _, sh := range shards {
		if i := slices.IndexFunc(s.known(), func(p *part) bool { return p.ID == sh.ID }); i >= 0 {
			next = append(next, s.known()[i])
			continue
		}
		p, err := newPart(s.o, sh)
		if err != nil {
			return err
		}
		next = append(next, p)
	}
	s.parts.Store(&next)
	return nil
}

// one returns the shard that a request names with ?shard=ID; where there is only one, nobody need name it.
func (s *Server) one(r *http.Request) (*part, error) {
	id := r.URL.Query().Get("shard")
	if id == "" && len(s.known()) == 1 {
		return s.known()[0], nil
	}
	ids := make([]string, 0, len(s.known()))
	for _, p := range s.known() {
		if p.ID == id {
			return p, nil
		}
		ids = append(ids, p.ID)
	}
	for _, p := range s.known() {
		if id != "" && p.Name == id {
			return p, nil
		}
	}
	if id == "" {
		return nil, &Error{http.StatusBadRequest, "which-shard", fmt.Sprintf("name the shard (--shard, or ?shard= in a request): there are %s", strings.Join(ids, ", "))}
	}
	return nil, &Error{http.StatusNotFound, "unknown-shard", fmt.Sprintf("there is no shard %q; there are %s", id, strings.Join(ids, ", "))}
}

// each gives an order to the shard that a request names, or to all. What was done when it fails stays done: it can be repeated.
func (s *Server) each(r *http.Request, order func(*part) error) error {
	if r.URL.Query().Get("shard") != "" || len(s.known()) == 1 {
		p, err := s.one(r)
		if err != nil {
			return err
		}
		defer p.gather.noteOrder()
		return order(p)
	}
	for _, p := range s.known() {
		err := order(p)
		p.gather.noteOrder()
		if err != nil {
			e := *asError(err)
			e.Message = p.ID + ": " + e.Message
			return &e
		}
	}
	return nil
}

// ofOne serves what read returns about one shard.
func ofOne[T any](s *Server, read func(*gatherer, context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := s.one(r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		v, err := read(p.gather, r.Context())
		reply(w, v, err)
	}
}

// status is that of all shards.
func (s *Server) status(ctx context.Context) (Status, error) {
	st, err := s.statusOfAll(ctx)
	if err == nil {
		st = s.withAddress(st)
	}
	if s.o.Adoption == nil || err != nil {
		return st, err
	}
	if now, _, err := s.adoption(ctx); err == nil && now.State != topo.AdoptionArmed {
		st.Problems = append(slices.Clone(st.Problems), fmt.Sprintf("the servers are not Redoubt's: the adoption is %s (redoubt adopt --take-over)", now.State))
	}
	return st, nil
}

func (s *Server) statusOfAll(ctx context.Context) (Status, error) {
	parts := s.known()
	all := make([]Status, 0, len(parts))
	for _, p := range parts {
		st, err := p.gather.status(ctx)
		if err != nil {
			return st, err
		}
		all = append(all, st)
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return merged(all, parts), nil
}

// merged puts the statuses of several shards together. A problem that not all of them have gets the name of its shard.
func merged(all []Status, parts []*part) Status {
	sum := all[0]
	sum.Deployments, sum.Problems = nil, nil
	common := func(problem string) bool {
		return !slices.ContainsFunc(all, func(st Status) bool { return !slices.Contains(st.Problems, problem) })
	}
	for i, st := range all {
		sum.Stale = sum.Stale || st.Stale
		for _, d := range st.Deployments {
			if len(sum.Deployments) == 0 {
				d.Shards = slices.Clone(d.Shards)
				sum.Deployments = append(sum.Deployments, d)
				continue
			}
			sum.Deployments[0].Shards = append(sum.Deployments[0].Shards, d.Shards...)
		}
		for _, problem := range st.Problems {
			switch {
			case !common(problem):
				sum.Problems = append(sum.Problems, parts[i].ID+": "+problem)
			case i == 0:
				sum.Problems = append(sum.Problems, problem)
			}
		}
	}
	if sum.Deployments == nil {
		sum.Deployments = []DeploymentStatus{}
	}
	if sum.Problems == nil {
		sum.Problems = []string{}
	}
	return sum
}

// salvaged lists what was discarded in all shards, the oldest first.
func (s *Server) salvaged(ctx context.Context) (SalvageList, error) {
	l := SalvageList{Files: []SalvageFile{}}
	for _, p := range s.known() {
		more, err := p.gather.salvaged(ctx)
		if err != nil {
			return l, err
		}
		l.Files = append(l.Files, more.Files...)
	}
	slices.SortStableFunc(l.Files, older)
	return l, nil
}
