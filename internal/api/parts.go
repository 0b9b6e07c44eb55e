// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
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

// one returns the shard that a request names with ?shard=ID; where there is only one, nobody need name it.
func (s *Server) one(r *http.Request) (*part, error) {
	id := r.URL.Query().Get("shard")
	if id == "" && len(s.parts) == 1 {
		return s.parts[0], nil
	}
	ids := make([]string, 0, len(s.parts))
	for _, p := range s.parts {
		if p.ID == id {
			return p, nil
		}
		ids = append(ids, p.ID)
	}
	if id == "" {
		return nil, &Error{http.StatusBadRequest, "which-shard", fmt.Sprintf("name the shard (--shard, or ?shard= in a request): there are %s", strings.Join(ids, ", "))}
	}
	return nil, &Error{http.StatusNotFound, "unknown-shard", fmt.Sprintf("there is no shard %q; there are %s", id, strings.Join(ids, ", "))}
}

// each gives an order to the shard that a request names, or to all. What was done when it fails stays done: it can be repeated.
func (s *Server) each(r *http.Request, order func(*part) error) error {
	if r.URL.Query().Get("shard") != "" || len(s.parts) == 1 {
		p, err := s.one(r)
		if err != nil {
			return err
		}
		defer p.gather.noteOrder()
		return order(p)
	}
	for _, p := range s.parts {
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
	all := make([]Status, 0, len(s.parts))
	for _, p := range s.parts {
		st, err := p.gather.status(ctx)
		if err != nil {
			return st, err
		}
		all = append(all, st)
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return s.merged(all), nil
}

// merged puts the statuses of several shards together. A problem that not all of them have gets the name of its shard.
func (s *Server) merged(all []Status) Status {
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
				sum.Problems = append(sum.Problems, s.parts[i].ID+": "+problem)
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
	for _, p := range s.parts {
		more, err := p.gather.salvaged(ctx)
		if err != nil {
			return l, err
		}
		l.Files = append(l.Files, more.Files...)
	}
	slices.SortStableFunc(l.Files, older)
	return l, nil
}
