// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"redoubt/internal/topo"
)

// Settings are what may change while a shard runs. A field that is nil stays as it is.
type Settings struct {
	MaxLoss     *topo.Loss       `json:"max_loss,omitempty"` // both bounds; zero: none
	Durability  *topo.Durability `json:"durability,omitempty"`
	AckReplicas *int             `json:"ack_replicas,omitempty"`
	MinCopies   *int             `json:"min_copies,omitempty"`
	By          string           `json:"by,omitempty"`
}

// Set changes settings of the shard. What weakens the promise holds at once: proxies read it. What strengthens it becomes a
// change that is under way until the promise is true (SAFETY A7). The error is *Error for a refusal: nothing was changed then.
func (o *Orders) Set(ctx context.Context, want Settings) error {
	return o.change(ctx, func(s *topo.Shard) (bool, error) {
		next := want.wanted(s.Spec)
		if want.AckReplicas != nil && !next.Durability.Waits() {
			return false, refuse("refused", "ack-replicas is for durability quorum and quorum+disk: set one of them as well")
		}
		if errs := next.Validate(); len(errs) > 0 {
			return false, &Error{Status: http.StatusConflict, Code: "refused", Message: errors.Join(errs...).Error()}
		}
		strength, err := want.strength(s, &next)
		changed := strength || next.MaxLoss != s.Spec.MaxLoss || next.MinCopies != s.Spec.MinCopies
		s.Spec = next
		return changed, err
	})
}

// strength brings about the durability and the number of replicas that next asks for, and reports whether anything is new.
// What has to wait is taken out of next and becomes a change.
func (want Settings) strength(s *topo.Shard, next *topo.Spec) (bool, error) {
	a := &s.Assigned
	if want.Durability == nil && want.AckReplicas == nil {
		return false, nil
	}
	c := a.Change
	switch asked := next.Replicas(); {
	case c != nil && c.Kind == topo.ChangeAck && c.AckReplicas == asked && c.Durability == next.Durability:
		next.Durability, next.AckReplicas, next.MaxLoss = s.Spec.Durability, s.Spec.AckReplicas, s.Spec.MaxLoss
		return false, nil // under way, by an earlier try
	case c == nil && asked == s.Spec.Replicas() && next.Durability == s.Spec.Durability:
		return false, nil
	case a.Phase != topo.PhaseServing:
		return false, refuse("busy", "the shard is %s: durability and ack-replicas change while a primary serves; try again when there is one", a.Phase)
	case c != nil && c.Kind != topo.ChangeAck:
		return false, refuse("pending", "another change is under way (%s): wait for it", c)
	case asked > s.Spec.Replicas() || next.Durability.OnDisk() && !s.Spec.Durability.OnDisk():
		a.Begin(topo.Change{Kind: topo.ChangeAck, Durability: next.Durability, AckReplicas: asked, By: want.By})
		next.Durability, next.AckReplicas, next.MaxLoss = s.Spec.Durability, s.Spec.AckReplicas, s.Spec.MaxLoss
		return true, nil
	}
	a.Change = nil // what was to become stronger is not to any more
	if next.Durability == topo.Async {
		a.Alone = ""
	}
	return true, nil
}

// wanted is the specification as it is asked for.
func (want Settings) wanted(s topo.Spec) topo.Spec {
	next := s
	if want.MaxLoss != nil {
		next.MaxLoss = *want.MaxLoss
	}
	if want.MinCopies != nil {
		next.MinCopies = *want.MinCopies
	}
	if want.Durability != nil && *want.Durability != s.Durability {
		switch next.Durability = *want.Durability; {
		case !next.Durability.Waits():
			next.AckReplicas = 0
		case !s.Durability.Waits():
			next.AckReplicas, next.MaxLoss = max(1, len(s.Nodes)/2), topo.Loss{}
		}
	}
	if want.AckReplicas != nil {
		next.AckReplicas = *want.AckReplicas
	}
	return next
}

func (s *Server) set(w http.ResponseWriter, r *http.Request) {
	var want Settings
	if err := decode(w, r, &want); err != nil {
		reply(w, nil, err)
		return
	}
	if want.By == "" {
		want.By = "api " + r.RemoteAddr
	}
	err := s.each(r, func(p *part) error {
		if err := p.provideDisk(r.Context(), want); err != nil {
			return err
		}
		return p.orders.Set(r.Context(), want)
	})
	if err == nil {
		s.o.Log.Info("settings changed", "shard", r.URL.Query().Get("shard"), "by", want.By, "durability", said(want.Durability), "ack-replicas", said(want.AckReplicas),
			"min-copies", said(want.MinCopies), "max-loss", said(want.MaxLoss))
	}
	reply(w, want, err)
}

// provideDisk refuses a promise about disks that a node of the roster cannot keep.
func (s *part) provideDisk(ctx context.Context, want Settings) error {
	if want.Durability == nil || !want.Durability.OnDisk() {
		return nil
	}
	v := s.View.Load()
	if v == nil {
		return refuse("busy", "nothing has been agreed about the shard yet")
	}
	if v.Shard.Spec.Durability.OnDisk() {
		return nil
	}
	reports, err := s.gather.reports(ctx)
	if err != nil {
		return refuse("busy", "the reports of the nodes cannot be read: %v", err)
	}
	for _, n := range v.Shard.Spec.Nodes {
		switch r, ok := reports.Nodes[n.ID]; {
		case !ok || r.Age > v.Shard.Spec.Timing.Silence.D():
			return refuse("refused", "quorum+disk needs every node, and %s does not report: start it first", n.ID)
		case r.Disk == topo.DiskUnable:
			return refuse("refused", "quorum+disk is not possible with %s: %s", n.ID, r.NoDisk)
		case r.Disk == topo.DiskUnknown:
			return refuse("refused", "the agent of %s does not say whether its server can confirm what is on its disk: is the server up, and its member of this version?", n.ID)
		}
	}
	return nil
}

func said[T any](v *T) string {
	if v == nil {
		return "as it was"
	}
	return fmt.Sprint(*v)
}

// Set changes settings of the shard.
func (c *Client) Set(ctx context.Context, want Settings) error {
	return c.do(ctx, http.MethodPost, "/v1/settings", want, nil)
}
