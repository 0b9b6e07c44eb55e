// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"redoubt/internal/topo"
)

// Settings are what may change while a shard runs. A field that is nil stays as it is.
type Settings struct {
	MaxLoss *topo.Loss `json:"max_loss,omitempty"` // both bounds; zero: none
}

// Set changes settings of the shard. The error is *Error for a refusal: nothing was changed then.
func (o *Orders) Set(ctx context.Context, want Settings) error {
	return o.change(ctx, func(s *topo.Shard) (bool, error) {
		next := s.Spec
		if want.MaxLoss != nil {
			next.MaxLoss = *want.MaxLoss
		}
		if err := next.MaxLoss.Validate(next.Durability); err != nil {
			return false, &Error{Status: http.StatusConflict, Code: "refused", Message: err.Error()}
		}
		if next.MaxLoss == s.Spec.MaxLoss {
			return false, nil
		}
		s.Spec = next
		return true, nil
	})
}

func (s *Server) set(w http.ResponseWriter, r *http.Request) {
	var want Settings
	if err := decode(w, r, &want); err != nil {
		reply(w, nil, err)
		return
	}
	reply(w, want, s.orders.Set(r.Context(), want))
}

// Set changes settings of the shard.
func (c *Client) Set(ctx context.Context, want Settings) error {
	return c.do(ctx, http.MethodPost, "/v1/settings", want, nil)
}
