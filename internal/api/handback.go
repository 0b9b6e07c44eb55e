// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
)

// HandBackRequest asks that an adopted cluster be left to itself again.
type HandBackRequest struct {
	By string `json:"by,omitempty"`
}

func (s *Server) handBack(w http.ResponseWriter, r *http.Request) {
	var req HandBackRequest
	if err := decode(w, r, &req); err != nil {
		reply(w, nil, err)
		return
	}
	if req.By == "" {
		req.By = "api " + r.RemoteAddr
	}
	if s.o.HandBack == nil {
		reply(w, nil, refuse("not-adopted", "there is no cluster here that could be handed back"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitMax)
	defer cancel()
	if err := s.o.HandBack(ctx, req.By); err != nil {
		reply(w, nil, refuse("not-handed-back", "%s", err))
		return
	}
	reply(w, struct{}{}, nil)
}

// HandBack leaves an adopted cluster to itself again, and returns when its servers are as they were.
func (c *Client) HandBack(ctx context.Context, by string) error {
	return c.do(ctx, http.MethodPost, "/v1/hand-back", HandBackRequest{By: by}, nil)
}
