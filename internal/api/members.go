// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// MemberList is who holds the agreed state.
type MemberList struct {
	Members  []StoreMember `json:"members"`  // sorted by id
	Majority int           `json:"majority"` // how many of them must be alive for anything to be agreed
	Store    string        `json:"store"`    // raft, where they keep the agreed state, or what keeps it: etcd, consul
}

// StoreMember is one member of the store.
type StoreMember struct {
	coord.Member
	Alive bool        `json:"alive"`          // it reports
	Node  topo.NodeID `json:"node,omitempty"` // the data node beside it; empty for an arbiter
}

// needed is how many of n members must be alive.
func (l MemberList) needed(n int) int {
	if l.Store != raft && l.Store != "" { // any one may decide
		return 1
	}
	return n/2 + 1
}

// raft is the store that the members keep themselves.
const raft = "raft"

// Removal says what a membership without that member is like. The error is *Error when it must not be removed: a running
// data node would lose its agent, or the members that are left could agree on nothing.
func (l MemberList) Removal(id string) (left, majority, alive int, err error) {
	i := slices.IndexFunc(l.Members, func(m StoreMember) bool { return m.ID == id })
	if i < 0 {
		ids := make([]string, 0, len(l.Members))
		for _, m := range l.Members {
			ids = append(ids, m.ID)
		}
		return 0, 0, 0, &Error{http.StatusNotFound, "unknown-member", fmt.Sprintf("there is no member %q; there are %s", id, strings.Join(ids, ", "))}
	}
	left = len(l.Members) - 1
	majority = l.needed(left)
	for j, m := range l.Members {
		if j != i && m.Alive {
			alive++
		}
	}
	switch m := l.Members[i]; {
	case left == 0:
		err = refuse("last-member", "%s is the last member: stop it instead", id)
	case m.Node != "" && m.Alive:
		err = refuse("data-node", "%s runs beside data node %s, which would lose its agent: stop that member first, and let it join again afterwards", id, m.Node)
	case alive < majority:
		err = refuse("no-majority", "%d of the %d members that would be left are known to be alive and %d are needed: start more of them first, or try again in a second if the controller has just moved", alive, left, majority)
	}
	return left, majority, alive, err
}

// reportPatience is how long members may take to report to a new controller, which knows of none at first.
const (
	reportPatience = 2 * time.Second
	reportLook     = 50 * time.Millisecond
)

// listMembers waits a moment for the reports of those without which there would be no answer.
func (s *Server) listMembers(ctx context.Context) (MemberList, coord.Members, error) {
	look := time.NewTicker(reportLook)
	defer look.Stop()
	for begun := time.Now(); ; {
		l, store, err := s.membersNow(ctx)
		alive := 0
		for _, m := range l.Members {
			if m.Alive {
				alive++
			}
		}
		if err != nil || alive >= l.Majority || time.Since(begun) > reportPatience {
			return l, store, err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return l, store, ctx.Err()
		}
	}
}

func (s *Server) membersNow(ctx context.Context) (MemberList, coord.Members, error) {
	l := MemberList{Members: []StoreMember{}, Store: raft}
	if s.o.Health != nil {
		if h := s.o.Health(); h != nil {
			l.Store = h.Kind
		}
	}
	store, ok := s.known()[0].Store.(coord.Members)
	if !ok {
		return l, nil, &Error{http.StatusNotImplemented, "not-here", "this store keeps its members itself: use its own tools"}
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	all, err := store.Members(ctx)
	if err != nil {
		return l, nil, err
	}
	reports, err := s.known()[0].gather.reports(ctx)
	if err != nil {
		return l, nil, err
	}
	var rosters []topo.Spec
	for _, p := range s.known() {
		switch shard, err := p.gather.document(ctx); {
		case err == nil:
			rosters = append(rosters, shard.Spec)
		case !errors.Is(err, coord.ErrNotFound):
			return l, nil, err
		}
	}
	for _, m := range all {
		e := StoreMember{Member: m, Alive: slices.ContainsFunc(reports.Members, func(r topo.MemberReport) bool { return r.ID == m.ID })}
		for _, roster := range rosters {
			if n, ok := roster.Node(topo.NodeID(m.ID)); ok { // a data node has the id of its member
				e.Node = n.ID
			}
		}
		l.Members = append(l.Members, e)
	}
	slices.SortFunc(l.Members, func(x, y StoreMember) int { return strings.Compare(x.ID, y.ID) })
	l.Majority = l.needed(len(l.Members))
	return l, store, nil
}

func (s *Server) getMembers(w http.ResponseWriter, r *http.Request) {
	l, _, err := s.listMembers(r.Context())
	reply(w, l, err)
}

func (s *Server) deleteMember(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	l, store, err := s.listMembers(r.Context())
	if err == nil {
		_, _, _, err = l.Removal(id)
	}
	if err == nil {
		err = store.RemoveMember(r.Context(), id)
	}
	if err == nil {
		s.o.Log.Info("member removed", "member", id, "by", r.RemoteAddr)
	}
	reply(w, struct{}{}, err)
}

// Members lists the members of the store.
func (c *Client) Members(ctx context.Context) (MemberList, error) {
	var l MemberList
	return l, c.do(ctx, http.MethodGet, "/v1/members", nil, &l)
}

// RemoveMember takes a member out of the store. It does not stop that member's process.
func (c *Client) RemoveMember(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/members/"+url.PathEscape(id), nil, nil)
}
