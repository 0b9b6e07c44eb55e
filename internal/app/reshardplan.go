// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/mover"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// orders of moving slots, as the API takes them.
type reshardOrders struct{ m *member }

func refused(code, format string, args ...any) error {
	return &api.Error{Status: http.StatusConflict, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Plan implements api.Resharder.
func (r reshardOrders) Plan(ctx context.Context, req api.ReshardRequest) (api.ReshardPlan, error) {
	p, _, err := r.plan(ctx, req)
	if err != nil {
		return api.ReshardPlan{}, err
	}
	return api.ReshardPlan{Text: p.String(), Slots: p.Moved(), Moves: p.Moves(reshard.SlotCount)}, nil
}

// plan makes the plan, and says which weights it goes by.
func (r reshardOrders) plan(ctx context.Context, req api.ReshardRequest) (reshard.Plan, map[string]float64, error) {
	m := r.m
	now, _ := m.slots.latest()
	if now == nil {
		return reshard.Plan{}, nil, refused("busy", "it is not known yet which shard has which slots")
	}
	weights := map[string]float64{}
	if j, _, _ := m.jobs.get(); j != nil {
		maps.Copy(weights, j.Weights)
	}
	q := reshard.Request{Measure: cmp.Or(req.Measure, reshard.BySlots)}
	known := map[string]string{} // by what an operator may call it
	index := map[string]int{}
	list, _ := m.roster.get()
	for _, u := range m.all() {
		id := u.deploy.ID()
		if list.removed(m.deploy.Name, id) {
			continue
		}
		known[id], known[u.deploy.Shard] = id, id
		index[id] = len(q.Shards)
		q.Shards = append(q.Shards, reshard.Shard{ID: id, Zone: u.primaryZone(), Weight: 1})
	}
	for name, w := range req.Weights {
		id, ok := known[name]
		if !ok || w < 0 || math.IsNaN(w) || math.IsInf(w, 0) {
			return reshard.Plan{}, nil, refused("bad-weight", "weight %s=%v: name a shard of the deployment, and a number of 0 or more", name, w)
		}
		if w > 0 && list.leaves(m.deploy.Name, id) {
			return reshard.Plan{}, nil, refused("leaving", "shard %s is to be removed: redoubt reshard cancel keeps it", id)
		}
		weights[id] = w
	}
	for i, s := range q.Shards {
		if w, ok := weights[s.ID]; ok {
			q.Shards[i].Weight = w
		}
		if list.leaves(m.deploy.Name, s.ID) {
			q.Shards[i].Weight = 0
		}
	}
	names := now.Shards()
	for s := range slots.Count {
		q.Owner[s] = -1
		if i := now.Shard(s); i >= 0 {
			if at, ok := index[names[i]]; ok {
				q.Owner[s] = at
			}
		}
	}
	if q.Measure != reshard.BySlots {
		cost, err := r.cost(ctx, req, q)
		if err != nil {
			return reshard.Plan{}, nil, err
		}
		q.Cost = cost
	}
	p, err := reshard.Balance(q)
	if err != nil {
		return p, nil, refused("refused", "%v", err)
	}
	return p, weights, nil
}

// cost weighs all slots at their primaries; operations have been measured.
func (r reshardOrders) cost(ctx context.Context, req api.ReshardRequest, q reshard.Request) ([]float64, error) {
	if q.Measure != reshard.ByBytes {
		if rates := req.Rates.All(); rates != nil && q.Measure == reshard.ByOperations {
			return rates, nil
		}
		return nil, refused("bad-request", "balance by slots, by bytes, or by operations that were measured")
	}
	cost := make([]float64, slots.Count)
	var login [][]string
	if r.m.deploy.Password != "" {
		login = [][]string{{"AUTH", r.m.deploy.Password}}
	}
	for i, s := range q.Shards {
		u := r.m.unitOf(s.ID)
		if u == nil {
			return nil, refused("busy", "shard %s has just left: say it again", s.ID)
		}
		var mine []int
		for s, o := range q.Owner {
			if o == i {
				mine = append(mine, s)
			}
		}
		snap := u.view.Load()
		if snap == nil || snap.Shard.Assigned.Phase != topo.PhaseServing {
			return nil, refused("busy", "shard %s has no primary now: its slots cannot be weighed", u.deploy.ID())
		}
		n, ok := snap.Shard.Spec.Node(snap.Shard.Assigned.Primary)
		if !ok {
			return nil, refused("busy", "shard %s has no primary now: its slots cannot be weighed", u.deploy.ID())
		}
		if err := mover.WeighSlots(ctx, n.Addr, login, mine, cost); err != nil {
			return nil, fmt.Errorf("weigh the slots of shard %s: %w", u.deploy.ID(), err)
		}
	}
	return cost, nil
}

// primaryZone is where the shard's primary is; empty: nothing says so.
func (u *unit) primaryZone() string {
	primary := u.agreedPrimary()
	for _, n := range u.roster() {
		if string(n.ID) == primary {
			return n.Zone
		}
	}
	return ""
}

// Start implements api.Resharder.
func (r reshardOrders) Start(ctx context.Context, req api.ReshardRequest) (api.ReshardStatus, error) {
	return r.start(ctx, req, cause{})
}

// cause is what a job is for, where that is more than its plan.
type cause struct {
	came    []string // shards that are given their part by themselves
	leaving string   // a shard that is to be removed
}

// start begins a job.
func (r reshardOrders) start(ctx context.Context, req api.ReshardRequest, why cause) (api.ReshardStatus, error) {
	switch {
	case r.m.handedBack():
		return api.ReshardStatus{}, refused("handed-back", "the cluster was handed back: use redis-cli --cluster")
	case req.Batch < 0 || req.Batch > batchMost:
		return api.ReshardStatus{}, refused("bad-request", "batch %d: use 1 to %d slots", req.Batch, batchMost)
	case req.KeysPerSecond < 0 || req.BytesPerSecond < 0 || req.Stall < 0:
		return api.ReshardStatus{}, refused("bad-request", "a rate must not be negative")
	}
	p, weights, err := r.plan(ctx, req)
	if err == nil {
		err = r.m.noOpenSlots(ctx)
	}
	if err != nil {
		return api.ReshardStatus{}, err
	}
	stall := req.Stall.D()
	if stall == 0 {
		stall = stallDefault
	}
	j, err := r.m.changeJob(ctx, func(was *job) (*job, error) {
		if was.active() {
			return nil, refused("busy", "slots are being moved already: redoubt reshard status; cancel that first")
		}
		next := &job{
			N: 1, By: req.By, Leaving: why.leaving, Secret: newMoverSecret(), Weights: weights, Measure: p.Measure, Batch: cmp.Or(req.Batch, batchDefault), Force: req.Force,
			Rate:  reshard.Rate{KeysPerSecond: req.KeysPerSecond, BytesPerSecond: req.BytesPerSecond, Stall: stall},
			State: api.ReshardRunning, Slots: p.Moved(), StartedMS: r.m.clock.Now().UnixMilli(),
		}
		if was != nil {
			next.N, next.Came = was.N+1, was.Came
		}
		next.Came = slices.Concat(next.Came, why.came)
		for _, mv := range p.Moves(reshard.SlotCount) {
			next.Todo = append(next.Todo, leg{mv.From, mv.To, slotsText(mv.Slots)})
		}
		return next, nil
	})
	if err != nil {
		return api.ReshardStatus{}, err
	}
	return r.status(j), nil
}

// Status implements api.Resharder.
func (r reshardOrders) Status(ctx context.Context) (api.ReshardStatus, error) {
	j, err := r.m.readJob(ctx)
	if err != nil {
		return api.ReshardStatus{}, err
	}
	return r.status(j), nil
}

func (r reshardOrders) status(j *job) api.ReshardStatus {
	list, _ := r.m.roster.get()
	var leaving []string
	for _, l := range list.Leaving {
		leaving = append(leaving, r.m.deploy.Name+"-"+l.Name)
	}
	if j == nil {
		return api.ReshardStatus{State: api.ReshardNone, Leaving: leaving}
	}
	st := api.ReshardStatus{
		Leaving: leaving,
		State:   j.State, Why: j.Why, By: j.By, Slots: j.Slots, Moved: j.Moved, Keys: j.Keys, Bytes: j.Bytes, Stops: j.Stops, Longest: j.Longest, Median: topo.Duration(j.stopsWithin(0.5)), P95: topo.Duration(j.stopsWithin(0.95)),
		StartedMS: j.StartedMS, EndedMS: j.EndedMS,
	}
	if j.Took > 0 {
		st.KeysRate = float64(j.Keys) / j.Took.D().Seconds()
	}
	if !j.active() {
		return st
	}
	if j.Wish == reshard.Pause {
		st.State = api.ReshardPaused
	}
	if since := r.m.clock.Now().UnixMilli() - j.StartedMS; j.Moved > 0 && since > 0 {
		st.Left = topo.Duration(time.Duration(since) * time.Millisecond * time.Duration(j.Slots-j.Moved) / time.Duration(j.Moved))
	}
	now, _ := r.m.slots.latest()
	if moves, err := movesOf(now); err == nil {
		var texts []string
		for _, mv := range moves {
			texts = append(texts, mv.String())
		}
		st.Now = strings.Join(texts, "; ")
	}
	r.m.jobs.mu.Lock()
	st.Trouble = r.m.jobs.trouble
	r.m.jobs.mu.Unlock()
	return st
}

// Wish implements api.Resharder.
func (r reshardOrders) Wish(ctx context.Context, w reshard.Wish) (api.ReshardStatus, error) {
	j, err := r.m.changeJob(ctx, func(j *job) (*job, error) {
		if !j.active() {
			return nil, refused("nothing", "no slots are being moved")
		}
		if j.Wish == w || j.Wish == reshard.Cancel {
			return nil, nil
		}
		j.Wish = w
		return j, nil
	})
	if err != nil {
		return api.ReshardStatus{}, err
	}
	return r.status(j), nil
}
