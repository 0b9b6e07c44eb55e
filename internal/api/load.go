// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt/internal/topk"
	"redoubt/internal/topo"
)

// ShardLoad is what clients did with one shard, through all members that could be asked.
type ShardLoad struct {
	Shard string `json:"shard"`
	topk.Load
}

// LoadReport is what clients do, shard by shard.
type LoadReport struct {
	Shards  []ShardLoad `json:"shards"`
	Members []string    `json:"members"` // who measured
	Missing []string    `json:"missing"` // who could not be asked, and why
}

const (
	loadDefault = 3 * time.Second
	loadGrace   = 3 * time.Second // for an answer to come
)

// getLoad measures for some time what clients do: here, and at the other members unless ?here is set. It tells keys: where the deployment has a
// password, that is asked for.
func (s *Server) getLoad(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	d := loadDefault
	if text := q.Get("for"); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil || d <= 0 {
			reply(w, nil, &Error{http.StatusBadRequest, "bad-request", fmt.Sprintf("for=%q: use a duration with its unit, at most %s", text, waitMax)})
			return
		}
		d = min(d, waitMax)
	}
	_, given, _ := r.BasicAuth()
	if subtle.ConstantTimeCompare([]byte(given), []byte(s.o.Password)) != 1 {
		reply(w, nil, &Error{http.StatusUnauthorized, "password", "keys are data: the password of the deployment is needed (it is taken from REDISCLI_AUTH)"})
		return
	}
	if shard := q.Get("shard"); shard != "" {
		if _, err := s.one(r); err != nil {
			reply(w, nil, err)
			return
		}
	}
	var reports []LoadReport
	if q.Get("here") != "" {
		reports = []LoadReport{s.loadHere(r.Context(), d, q.Get("shard"))}
	} else {
		reports = s.loads(r.Context(), d, q.Get("shard"))
	}
	rep := joinLoads(reports)
	if len(rep.Members) == 0 {
		reply(w, nil, &Error{http.StatusServiceUnavailable, "no-load", "nobody could measure: " + strings.Join(rep.Missing, "; ")})
		return
	}
	reply(w, rep, nil)
}

// loadHere measures at this member, all shards at once.
func (s *Server) loadHere(ctx context.Context, d time.Duration, shard string) LoadReport {
	rep := LoadReport{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, p := range s.known() {
		if p.Load == nil || shard != "" && p.ID != shard {
			continue
		}
		all.Go(func() {
			l, err := p.Load(ctx, d)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				rep.Missing = append(rep.Missing, fmt.Sprintf("%s, shard %s: %v", s.o.Member, p.ID, err))
				return
			}
			rep.Shards = append(rep.Shards, ShardLoad{p.ID, l})
		})
	}
	all.Wait()
	if len(rep.Shards) > 0 {
		rep.Members = []string{s.o.Member}
	}
	return rep
}

// loads measures at all members that report.
func (s *Server) loads(ctx context.Context, d time.Duration, shard string) []LoadReport {
	others, err := s.otherFaces(ctx)
	reports := make([]LoadReport, len(others)+1)
	if err != nil {
		reports[0].Missing = []string{"the other members: " + err.Error()}
	}
	var all sync.WaitGroup
	all.Go(func() {
		here := s.loadHere(ctx, d, shard)
		here.Missing = append(here.Missing, reports[0].Missing...)
		reports[0] = here
	})
	for i, m := range others {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, d+loadGrace)
			defer cancel()
			c := NewClient(m.APIAddr)
			defer c.Close()
			c.About(shard)
			rep, err := c.load(ctx, d, s.o.Password, "&here=true")
			if err == nil && !slices.Contains(rep.Members, m.ID) { // another one's address leads to this one
				err = errors.New("its API cannot be reached from here")
				rep = LoadReport{}
			}
			if err != nil {
				rep.Missing = append(rep.Missing, fmt.Sprintf("%s (%s): %v", m.ID, cmp.Or(m.APIAddr, "no API"), err))
			}
			reports[i+1] = rep
		})
	}
	all.Wait()
	return reports
}

// otherFaces are the other members that report, and have a proxy.
func (s *Server) otherFaces(ctx context.Context) (all []topo.MemberReport, err error) {
	beats, err := s.known()[0].gather.beats(ctx)
	for name, b := range beats {
		var m topo.MemberReport
		if strings.HasPrefix(name, topo.BeatMember) && json.Unmarshal(b.Body, &m) == nil && m.ID != s.o.Member && m.ProxyAddr != "" {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b topo.MemberReport) int { return strings.Compare(a.ID, b.ID) })
	return all, err
}

// joinLoads adds up what several members have seen.
func joinLoads(reports []LoadReport) LoadReport {
	sum := LoadReport{Shards: []ShardLoad{}, Members: []string{}, Missing: []string{}}
	byShard := map[string][]topk.Load{}
	for _, r := range reports {
		sum.Members, sum.Missing = append(sum.Members, r.Members...), append(sum.Missing, r.Missing...)
		for _, l := range r.Shards {
			byShard[l.Shard] = append(byShard[l.Shard], l.Load)
		}
	}
	for shard, loads := range byShard {
		sum.Shards = append(sum.Shards, ShardLoad{shard, topk.Join(loads...)})
	}
	slices.SortFunc(sum.Shards, func(a, b ShardLoad) int { return strings.Compare(a.Shard, b.Shard) })
	return sum
}

// Load measures for some time what clients do, at all members.
func (c *Client) Load(ctx context.Context, d time.Duration, password string) (LoadReport, error) {
	return c.load(ctx, d, password, "")
}

func (c *Client) load(ctx context.Context, d time.Duration, password, more string) (LoadReport, error) {
	var rep LoadReport
	path := "/v1/load?for=" + url.QueryEscape(strconv.FormatInt(d.Milliseconds(), 10)+"ms") + more
	return rep, c.doAs(ctx, password, http.MethodGet, path, nil, &rep)
}
