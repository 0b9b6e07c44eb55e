// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"encoding/json"
	"net/http"
)

// topology answers with what may be announced now.
func (s *Server) topology(w http.ResponseWriter, r *http.Request) {
	if s.o.Board == nil {
		reply(w, nil, &Error{http.StatusNotImplemented, "not-here", "this member announces nothing"})
		return
	}
	_ = s.o.Board.Refresh(r.Context()) // without the reports the primaries are known all the same
	reply(w, s.o.Board.Look(), nil)
}

// targetGroup is an entry of Prometheus' HTTP service discovery.
type targetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// discoverPrometheus lists where the members' metrics are, in the form that Prometheus' http_sd_configs takes. While the store
// does not answer it is an error: Prometheus keeps the list that it had.
func (s *Server) discoverPrometheus(w http.ResponseWriter, r *http.Request) {
	reports, err := s.known()[0].gather.reports(r.Context())
	if err != nil {
		reply(w, nil, err)
		return
	}
	deployment := ""
	if snap := s.known()[0].View.Load(); snap != nil {
		deployment = snap.Shard.Spec.Deployment
	}
	groups := []targetGroup{}
	for _, m := range reports.Members {
		if addr := cmp.Or(m.ChecksAddr, m.APIAddr); addr != "" {
			groups = append(groups, targetGroup{[]string{addr}, map[string]string{"member": m.ID, "deployment": deployment, "__metrics_path__": "/metrics"}})
		}
	}
	w.Header().Set("Content-Type", "application/json") // Prometheus takes nothing else
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(groups)
}
