// SPDX-License-Identifier: Apache-2.0

// Package consultest is the part of a Consul agent's HTTP API that announcing uses, in memory, for tests: services with checks that
// end by themselves, the catalogue, and keys with compare-and-swap. It is no Consul: one agent, no anti-entropy, no tokens.
// Invariant: a check that was not renewed within its time is critical. No goroutines but the test server's.
package consultest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Service is one instance.
type Service struct {
	ID, Name, Address string
	Port              int
	Tags              []string
	Meta              map[string]string
	Passing           bool
}

type kept struct {
	Service
	ttl   time.Duration
	until time.Time
	up    bool
}

type value struct {
	index uint64
	body  []byte
}

// Agent is a fake agent. Its methods are safe for concurrent use.
type Agent struct {
	server *httptest.Server

	mu       sync.Mutex // guards what follows
	services map[string]kept
	keys     map[string]value
	index    uint64
	refuse   bool
}

// New starts a fake agent; Close ends it.
func New() *Agent {
	a := &Agent{services: map[string]kept{}, keys: map[string]value{}}
	m := http.NewServeMux()
	m.HandleFunc("PUT /v1/agent/service/register", a.register)
	m.HandleFunc("PUT /v1/agent/service/deregister/{id}", a.deregister)
	m.HandleFunc("PUT /v1/agent/check/{verb}/{id}", a.check)
	m.HandleFunc("PUT /v1/catalog/deregister", a.evict)
	m.HandleFunc("GET /v1/health/service/{name}", a.health)
	m.HandleFunc("GET /v1/kv/{key...}", a.get)
	m.HandleFunc("PUT /v1/kv/{key...}", a.put)
	a.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.refuse {
			http.Error(w, "no cluster leader", http.StatusInternalServerError)
			return
		}
		m.ServeHTTP(w, r)
	}))
	return a
}

// Close ends the agent.
func (a *Agent) Close() { a.server.Close() }

// Addr is where it listens.
func (a *Agent) Addr() string { return strings.TrimPrefix(a.server.URL, "http://") }

// Refuse has every request fail, as an agent without servers does.
func (a *Agent) Refuse(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = on
}

// Forget drops everything, as an agent that lost its directory does.
func (a *Agent) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.services = map[string]kept{}
}

// Put registers an instance by hand.
func (a *Agent) Put(s Service, ttl time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.services[s.ID] = kept{s, ttl, time.Now().Add(ttl), s.Passing}
}

// Find returns the instances of a service that pass, with that tag.
func (a *Agent) Find(name, tag string) []Service {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Service
	for _, k := range a.services {
		if s := k.now(); s.Name == name && s.Passing && slices.Contains(s.Tags, tag) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(x, y Service) int { return strings.Compare(x.ID, y.ID) })
	return out
}

// Key returns what stands under a key.
func (a *Agent) Key(key string) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys[key].body
}

func (k kept) now() Service {
	k.Passing = k.up && time.Now().Before(k.until)
	return k.Service
}

func (a *Agent) register(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Service
		Check struct{ TTL, Status string }
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ttl, err := time.ParseDuration(in.Check.TTL)
	if err != nil || in.Name == "" {
		http.Error(w, "no name or TTL", http.StatusBadRequest)
		return
	}
	a.services[in.ID] = kept{in.Service, ttl, time.Now().Add(ttl), in.Check.Status == "passing"}
}

func (a *Agent) deregister(w http.ResponseWriter, r *http.Request) {
	if _, ok := a.services[r.PathValue("id")]; !ok {
		http.Error(w, "Unknown service ID", http.StatusNotFound)
		return
	}
	delete(a.services, r.PathValue("id"))
}

func (a *Agent) check(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimPrefix(r.PathValue("id"), "service:")
	k, ok := a.services[id]
	if !ok {
		http.Error(w, "Unknown check ID", http.StatusNotFound)
		return
	}
	k.up, k.until = r.PathValue("verb") == "pass", time.Now().Add(k.ttl)
	a.services[id] = k
}

func (a *Agent) evict(w http.ResponseWriter, r *http.Request) {
	var in struct{ Node, ServiceID string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Node != "fake" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	delete(a.services, in.ServiceID)
	_, _ = io.WriteString(w, "true")
}

func (a *Agent) health(w http.ResponseWriter, r *http.Request) {
	type entry struct {
		Node    struct{ Node string }
		Service Service
	}
	all := []entry{}
	for _, k := range a.services {
		if s := k.now(); s.Name == r.PathValue("name") && slices.Contains(s.Tags, r.URL.Query().Get("tag")) && (s.Passing || !r.URL.Query().Has("passing")) {
			e := entry{Service: s}
			e.Node.Node = "fake"
			all = append(all, e)
		}
	}
	_ = json.NewEncoder(w).Encode(all)
}

func (a *Agent) get(w http.ResponseWriter, r *http.Request) {
	v, ok := a.keys[r.PathValue("key")]
	if !ok {
		http.Error(w, "", http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode([]any{map[string]any{"ModifyIndex": v.index, "Value": v.body}})
}

func (a *Agent) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	index, bad := strconv.ParseUint(r.URL.Query().Get("cas"), 10, 64)
	if err != nil || bad != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	if a.keys[r.PathValue("key")].index != index {
		_, _ = io.WriteString(w, "false")
		return
	}
	a.index++
	a.keys[r.PathValue("key")] = value{a.index, body}
	_, _ = io.WriteString(w, "true")
}
