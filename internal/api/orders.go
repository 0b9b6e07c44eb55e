// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// BudgetDefault is how long a switchover may take when nobody says otherwise, and BudgetMax the most one may ask for.
const (
	BudgetDefault = 5 * time.Second
	BudgetMax     = 5 * time.Minute
)

// swapTries bounds the repetitions of one order's compare-and-swap; ErrConflict of the store is returned then.
const swapTries = 20

// IntentRequest is an operator's order.
type IntentRequest struct {
	ID             string          `json:"id,omitempty"` // makes a repetition of the request harmless; default: random
	Kind           topo.IntentKind `json:"kind"`
	To             topo.NodeID     `json:"to,omitempty"`
	AcceptDataLoss bool            `json:"accept_data_loss,omitempty"`
	Budget         topo.Duration   `json:"budget,omitempty"`
	By             string          `json:"by,omitempty"`
}

// The states of an intent.
const (
	StatePending = "pending"
	StateDone    = "done"
)

// IntentStatus is what became of an order.
type IntentStatus struct {
	ID      string        `json:"id"`
	State   string        `json:"state"`
	Outcome *topo.Outcome `json:"outcome,omitempty"` // in state done
	Intent  *topo.Intent  `json:"intent,omitempty"`  // in state pending
	Phase   topo.Phase    `json:"phase"`
	Epoch   topo.Epoch    `json:"epoch"`
	Primary topo.NodeID   `json:"primary,omitempty"`
	Why     string        `json:"why,omitempty"`

	rev coord.Rev
}

// Orders writes operators' orders into a shard's document. It is safe for concurrent use and needs nothing of a Server,
// so that the Sentinel face and a stopping member use it too.
type Orders struct {
	docs    coord.Docs
	key     string
	cluster bool // the shard is one of a cluster
}

// NewOrders returns the orders for the shard with that id.
func NewOrders(docs coord.Docs, shard string) *Orders {
	return &Orders{docs: docs, key: topo.KeyShard + shard}
}

func refuse(code, format string, args ...any) *Error {
	return &Error{Status: http.StatusConflict, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Submit records an intent after checking what can be checked at once. The error is *Error for a refusal: nothing was
// recorded then.
func (o *Orders) Submit(ctx context.Context, r IntentRequest) (topo.Intent, error) {
	in, err := r.intent()
	if err != nil {
		return topo.Intent{}, err
	}
	err = o.change(ctx, func(s *topo.Shard) (bool, error) {
		a := &s.Assigned
		if a.Intent != nil && a.Intent.ID == in.ID || a.Outcome != nil && a.Outcome.ID == in.ID {
			return false, nil // recorded by an earlier try whose outcome was unknown
		}
		if err := possible(*s, in); err != nil {
			return false, err
		}
		a.Intent = &in
		return true, nil
	})
	return in, err
}

func (r IntentRequest) intent() (topo.Intent, error) {
	bad := func(format string, args ...any) (topo.Intent, error) {
		return topo.Intent{}, &Error{Status: http.StatusBadRequest, Code: "bad-request", Message: fmt.Sprintf(format, args...)}
	}
	in := topo.Intent{ID: r.ID, Kind: r.Kind, To: r.To, By: r.By, Budget: r.Budget, AcceptDataLoss: r.AcceptDataLoss}
	if in.Kind != topo.IntentSwitchover && in.Kind != topo.IntentFailover {
		return bad("kind %q: use %s or %s", in.Kind, topo.IntentSwitchover, topo.IntentFailover)
	}
	if in.AcceptDataLoss && in.Kind == topo.IntentSwitchover {
		return bad("a switchover never loses data: accept_data_loss belongs to a failover")
	}
	if in.Budget == 0 {
		in.Budget = topo.Duration(BudgetDefault)
	}
	if in.Budget < 0 || in.Budget.D() > BudgetMax {
		return bad("budget %s: use more than 0 and at most %s", in.Budget, BudgetMax)
	}
	if len(in.ID) > 64 || len(in.By) > 200 {
		return bad("id or by is too long")
	}
	if in.ID == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails, by its contract
		in.ID = hex.EncodeToString(b[:])
	}
	return in, nil
}

// possible refuses what cannot succeed, in words; the controller checks again when it acts.
func possible(s topo.Shard, in topo.Intent) error {
	a := s.Assigned
	if p := a.Intent; p != nil {
		return refuse("pending", "%s %s by %s is still pending: wait for it, or see `redoubt status`", p.Kind, p.ID, p.By)
	}
	if in.To != "" {
		if _, ok := s.Spec.Node(in.To); !ok {
			ids := make([]string, 0, len(s.Spec.Nodes))
			for _, n := range s.Spec.Nodes {
				ids = append(ids, string(n.ID))
			}
			return &Error{http.StatusNotFound, "unknown-node", fmt.Sprintf("there is no node %q; there are %v", in.To, ids)}
		}
		if in.To == a.Primary && a.Phase == topo.PhaseServing {
			return refuse("already-primary", "%s is the primary already", in.To)
		}
	}
	switch {
	case a.Phase == topo.PhaseNew:
		return refuse("no-primary", "the shard never had a primary yet: see `redoubt explain`")
	case in.Kind == topo.IntentSwitchover && a.Phase != topo.PhaseServing:
		return refuse("busy", "the shard is %s (%s): a switchover needs a serving primary; try again when there is one", a.Phase, a.Why)
	case in.Kind == topo.IntentSwitchover && len(s.Spec.Nodes) < 2:
		return refuse("no-candidate", "the shard has one node only: there is nothing to switch over to")
	}
	return nil
}

// Lookup says what became of an intent, as of a linearizable read.
func (o *Orders) Lookup(ctx context.Context, id string) (IntentStatus, error) {
	s, rev, err := o.read(ctx)
	if err != nil {
		return IntentStatus{}, err
	}
	a := s.Assigned
	st := IntentStatus{ID: id, Phase: a.Phase, Epoch: a.Epoch, Primary: a.Primary, Why: a.Why, rev: rev}
	switch {
	case a.Intent != nil && a.Intent.ID == id:
		st.State, st.Intent = StatePending, a.Intent
	case a.Outcome != nil && a.Outcome.ID == id:
		st.State, st.Outcome = StateDone, a.Outcome
	default:
		return st, &Error{http.StatusNotFound, "unknown-intent", fmt.Sprintf("intent %s is neither pending nor the last one that ended: see `redoubt history`", id)}
	}
	return st, nil
}

// Await polls Lookup until the intent has ended or ctx does. Members that have a Server use its long poll instead.
func (o *Orders) Await(ctx context.Context, id string) (IntentStatus, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := o.Lookup(ctx, id)
		var e *Error
		if errors.As(err, &e) || err == nil && st.State != StatePending {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, ctx.Err()
		case <-tick.C:
		}
	}
}

// Pause stops automatic failovers; nil lets them go on. Both are idempotent.
func (o *Orders) Pause(ctx context.Context, p *topo.Pause) error {
	return o.change(ctx, func(s *topo.Shard) (bool, error) {
		old := s.Assigned.Paused
		if p == nil && old == nil || p != nil && old != nil && *p == *old {
			return false, nil
		}
		s.Assigned.Paused = p
		return true, nil
	})
}

func (o *Orders) read(ctx context.Context) (topo.Shard, coord.Rev, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	doc, err := o.docs.Get(ctx, o.key)
	if err != nil {
		return topo.Shard{}, 0, fmt.Errorf("read %s: %w", o.key, err)
	}
	s, err := topo.DecodeShard(doc.Value)
	return s, doc.Rev, err
}

// change applies edit to the document. It re-reads after a conflict and after an unknown outcome; edit must recognise
// its own work and return false then.
func (o *Orders) change(ctx context.Context, edit func(*topo.Shard) (bool, error)) error {
	var last error
	for range swapTries {
		s, rev, err := o.read(ctx)
		if err != nil {
			return errors.Join(err, last)
		}
		s.Assigned = s.Assigned.Clone()
		write, err := edit(&s)
		if err != nil || !write {
			return err
		}
		if errs := s.Validate(); len(errs) > 0 {
			return fmt.Errorf("change %s: %w", o.key, errors.Join(errs...))
		}
		_, err = o.docs.Swap(ctx, o.key, s.Encode(), rev)
		if err == nil {
			return nil
		}
		last = fmt.Errorf("change %s: %w", o.key, err)
		if !errors.Is(err, coord.ErrConflict) && !errors.Is(err, coord.ErrUnsure) {
			return last
		}
		if ctx.Err() != nil {
			break
		}
	}
	if errors.Is(last, coord.ErrConflict) && !slices.Contains([]error{context.Canceled, context.DeadlineExceeded}, ctx.Err()) {
		return refuse("conflict", "the document changed %d times in a row while this was being recorded: try again", swapTries)
	}
	return last
}
