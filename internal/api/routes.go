// SPDX-License-Identifier: Apache-2.0

package api

import (
	_ "embed"
	"net/http"
)

// openAPI describes every route of the face, in OpenAPI 3.1. A test holds it and the routes together.
//
//go:embed openapi.json
var openAPI []byte

// routes is a ServeMux that remembers what it was told.
type routes struct {
	http.ServeMux
	patterns []string
}

// HandleFunc adds a route.
func (m *routes) HandleFunc(pattern string, h http.HandlerFunc) {
	m.patterns = append(m.patterns, pattern)
	m.ServeMux.HandleFunc(pattern, h)
}

// describe answers with the description of the face.
func (s *Server) describe(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI)
}

// readRoutes adds what gives no order and shows no user's data: load balancers and monitors may reach it from elsewhere.
func (s *Server) readRoutes(m *routes) {
	m.HandleFunc("GET /healthz", s.healthz)
	m.HandleFunc("GET /metrics", s.metrics)
	m.HandleFunc("GET /openapi.json", s.describe)
	m.HandleFunc("GET /v1/topology", s.topology)
	m.HandleFunc("GET /v1/sd/prometheus", s.discoverPrometheus)
	s.checkRoutes(m)
}

// ChecksHandler returns the routes of the port for load balancers and monitors.
func (s *Server) ChecksHandler() http.Handler {
	m := &routes{}
	s.readRoutes(m)
	return m
}
