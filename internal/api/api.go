// SPDX-License-Identifier: Apache-2.0

// Package api is the HTTP face of one member: status, operators' orders, history, metrics, events and the dashboard.
//
// It is not a control plane: it reads what was agreed and reported, and an order is nothing but a compare-and-swap of
// an intent into the shard's document, which the controller then obeys or refuses. Its invariant: whatever it says about
// primaries comes from the document, never from looking at servers. Goroutines: the HTTP server's, all ended by Run.
package api

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/topk"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

//go:embed web/index.html
var web embed.FS

// The bounds of the face. Beyond them a client waits (connections) or is refused (streams, bodies).
const (
	connectionsMax = 256
	streamsMax     = 64
	bodyMax        = 64 << 10
	bodyWait       = 10 * time.Second
	waitMax        = 60 * time.Second
)

// Shard is what the face needs of one shard. Store and View are required.
type Shard struct {
	ID      string
	Name    string      // within the deployment; requests may use it in place of ID
	Store   coord.Store // as the shard sees it
	View    *view.View
	Outage  func() string                                                 // how this member goes on without the store, in words; empty while it answers; nil: nobody knows
	Salvage SalvageFiles                                                  // nil: nothing is kept here
	Load    func(ctx context.Context, d time.Duration) (topk.Load, error) // what clients do here in that time; nil: nobody measures
	Slots   func() string                                                 // mode cluster: what the shard has, like 0-5460,7000; empty: not known; nil: there are no slots

	Node topo.NodeID                                 // on this member; empty: none
	Seen func() (topo.Sighting, time.Duration, bool) // what its agent saw last, and the uptime of that; nil without a node
}

// Options are what the face needs. Listen, Version, Member, Shards and Clock are required.
type Options struct {
	Listen  string
	Version string
	Member  string  // this member's id
	Mode    string  // of the deployment; default "single"
	Shards  []Shard // of the deployment, in its order
	Clock   clock.Clock
	Log     *slog.Logger
	Metrics func(io.Writer) // further lines for /metrics; nil: none
	// Health tells of a store that other processes keep; nil, or nil from it: the members keep it themselves.
	Health  func() *coord.Health
	Address func() *AddressStatus // who holds the floating address; nil, or nil from it: there is none

	Password string // of the deployment: asked for where users' data are read; empty: there is none

	Reshard Resharder // mode cluster; nil: refused

	Board  *view.Board // what may be announced; nil: nothing
	Proxy  bool        // there is a proxy on this member
	Events *Feed       // what happened on this member; nil: not known

	ChecksListen   string       // a second port, for load balancers and monitors: it takes no orders; empty: none
	ChecksListener net.Listener // in place of ChecksListen, as Listener

	Listener net.Listener                               // in place of Listen: one that an earlier process opened
	Upgrade  func(context.Context) (pid int, err error) // hands this member over to a new process; nil: refused
	HandBack func(ctx context.Context, by string) error // leaves an adopted cluster to itself; nil: there is none
	Adoption *Adoption                                  // nil: the deployment does not begin on order
}

// Server is the face. Addr and Handler are safe for concurrent use.
type Server struct {
	o       Options
	parts   atomic.Pointer[[]*part] // one for each shard
	ln      net.Listener
	http    *http.Server
	checks  *checksPort // nil: none
	streams chan struct{}
	began   time.Time
	stop    context.CancelFunc // ends streams and long polls
}

// New listens on o.Listen and returns the face; nothing is answered before Run.
func New(o Options) (*Server, error) {
	if o.Clock == nil || len(o.Shards) == 0 || o.Member == "" {
		return nil, errors.New("api: Clock, Shards and Member are required")
	}
	o.Mode = cmp.Or(o.Mode, "single")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var parts []*part
	for _, sh := range o.Shards {
		p, err := newPart(o, sh)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	ln := o.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("listen for the API on %s: %w", o.Listen, err)
		}
	}
	base, stop := context.WithCancel(context.Background())
	s := &Server{
		o: o, ln: limit(ln, connectionsMax),
		streams: make(chan struct{}, streamsMax), began: o.Clock.Now(), stop: stop,
	}
	s.parts.Store(&parts)
	s.http = &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	if err := s.openChecks(); err != nil {
		stop()
		ln.Close()
		return nil, err
	}
	return s, nil
}

// Addr returns where the face listens.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// File returns a copy of the listening socket, for another process. The caller closes it.
func (s *Server) File() (*os.File, error) { return fileOf(s.ln) }

// Run serves until ctx ends and returns when every request has ended.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.ln) }()
	defer s.checks.run(s.o.Log)()
	var err error
	select {
	case err = <-served:
		s.stop()
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	s.stop()
	grace, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(grace) != nil {
		s.http.Close()
	}
	<-served
	return ctx.Err()
}

// Handler returns the routes, for tests and for embedding.
func (s *Server) Handler() http.Handler {
	// A web page that somebody visits must not be able to give orders here.
	return http.NewCrossOriginProtection().Handler(s.routes())
}

func (s *Server) routes() *routes {
	m := &routes{}
	s.readRoutes(m)
	m.HandleFunc("GET /{$}", s.page)
	m.HandleFunc("GET /readyz", s.readyz)
	m.HandleFunc("GET /v1/status", answers(s.status))
	m.HandleFunc("GET /v1/explain", ofOne(s, (*gatherer).report))
	m.HandleFunc("GET /v1/history", ofOne(s, (*gatherer).timeline))
	m.HandleFunc("GET /v1/state", ofOne(s, (*gatherer).state))
	m.HandleFunc("GET /v1/events", s.events)
	m.HandleFunc("POST /v1/intents", s.postIntent)
	m.HandleFunc("GET /v1/intents/{id}", s.getIntent)
	m.HandleFunc("GET /v1/members", s.getMembers)
	m.HandleFunc("DELETE /v1/members/{id}", s.deleteMember)
	m.HandleFunc("GET /v1/load", s.getLoad)
	m.HandleFunc("GET /v1/salvage", answers(s.salvaged))
	m.HandleFunc("GET /v1/salvage/{id}", s.getSalvage)
	m.HandleFunc("POST /v1/salvage/{id}/replayed", s.postReplayed)
	m.HandleFunc("POST /v1/pause", s.pause)
	m.HandleFunc("POST /v1/settings", s.set)
	m.HandleFunc("POST /v1/nodes", s.postNode)
	m.HandleFunc("DELETE /v1/nodes/{id}", s.deleteNode)
	m.HandleFunc("POST /v1/resume", s.resume)
	m.HandleFunc("POST /v1/shards", s.postShard)
	m.HandleFunc("DELETE /v1/shards/{name}", s.deleteShard)
	m.HandleFunc("GET /v1/reshard", s.getReshard)
	m.HandleFunc("POST /v1/reshard", s.postReshard)
	m.HandleFunc("POST /v1/reshard/plan", s.planReshard)
	m.HandleFunc("POST /v1/reshard/{wish}", s.wishReshard)
	m.HandleFunc("POST /v1/upgrade", s.upgrade)
	m.HandleFunc("POST /v1/hand-back", s.handBack)
	m.HandleFunc("GET /v1/cluster", s.clusterCheck)
	m.HandleFunc("GET /v1/adoption", answers(s.getAdoption))
	m.HandleFunc("POST /v1/adoption", s.postAdoption)
	return m
}

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	body, err := web.ReadFile("web/index.html")
	if err != nil {
		panic("api: the dashboard is not embedded: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body)
}

// healthz answers 200 when this member knows what was agreed, 503 otherwise. It says nothing about the shard.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	for _, p := range s.known() {
		snap := p.View.Load()
		if snap == nil {
			http.Error(w, "no agreed state yet", http.StatusServiceUnavailable)
			return
		}
		if !snap.Fresh(s.o.Clock.Uptime()) {
			http.Error(w, "the agreed state could not be confirmed lately: the store has no majority that this member can reach", http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ok")
}

// answers serves what read returns.
func answers[T any](read func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := read(r.Context())
		reply(w, v, err)
	}
}

func (s *Server) postIntent(w http.ResponseWriter, r *http.Request) {
	var req IntentRequest
	if err := decode(w, r, &req); err != nil {
		reply(w, nil, err)
		return
	}
	if req.By == "" {
		req.By = "api " + r.RemoteAddr
	}
	p, err := s.one(r)
	var in topo.Intent
	if err == nil {
		in, err = p.orders.Submit(r.Context(), req)
		p.gather.noteOrder()
	}
	if err == nil {
		s.o.Log.Info("intent accepted", "shard", p.ID, "intent", in.ID, "kind", in.Kind, "to", in.To, "by", in.By)
	}
	reply(w, in, err)
}

func (s *Server) getIntent(w http.ResponseWriter, r *http.Request) {
	wait := time.Duration(0)
	if q := r.URL.Query().Get("wait"); q != "" {
		d, err := time.ParseDuration(q)
		if err != nil || d < 0 {
			reply(w, nil, &Error{Status: http.StatusBadRequest, Code: "bad-request", Message: fmt.Sprintf("wait=%q: use a duration with its unit, at most %s", q, waitMax)})
			return
		}
		wait = min(d, waitMax)
	}
	p, err := s.holder(r, r.PathValue("id"))
	var st IntentStatus
	if err == nil {
		st, err = p.awaitIntent(r.Context(), r.PathValue("id"), wait)
	}
	reply(w, st, err)
}

// holder returns the shard that knows an intent.
func (s *Server) holder(r *http.Request, id string) (*part, error) {
	p, err := s.one(r)
	if err == nil || r.URL.Query().Get("shard") != "" {
		return p, err
	}
	for _, p := range s.known() {
		if _, err = p.orders.Lookup(r.Context(), id); err == nil {
			return p, nil
		}
	}
	return nil, err
}

// awaitIntent is the long poll: the view's pushes wake it, the document decides.
func (s *part) awaitIntent(ctx context.Context, id string, wait time.Duration) (IntentStatus, error) {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for {
		next := s.View.Next()
		st, err := s.orders.Lookup(ctx, id)
		if err != nil || st.State != StatePending {
			return st, err
		}
		rev := st.rev
		for moved := false; !moved; {
			select {
			case <-ctx.Done():
				return st, ctx.Err()
			case <-deadline.C:
				return st, nil
			case <-next:
				next = s.View.Next()
				snap := s.View.Load()
				moved = snap != nil && snap.Rev > rev
			}
		}
	}
}

func (s *Server) pause(w http.ResponseWriter, r *http.Request) {
	p := topo.Pause{}
	if err := decode(w, r, &p); err != nil {
		reply(w, nil, err)
		return
	}
	if p.By == "" {
		p.By = "api " + r.RemoteAddr
	}
	err := s.each(r, func(of *part) error { return of.orders.Pause(r.Context(), &p) })
	reply(w, p, err)
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request) {
	err := s.each(r, func(p *part) error { return p.orders.Pause(r.Context(), nil) })
	reply(w, struct{}{}, err)
}

// decode reads a JSON body strictly; an empty one leaves v as it is.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	rc := http.NewResponseController(w) // a server-wide ReadTimeout would also end streams and long polls
	if err := rc.SetReadDeadline(time.Now().Add(bodyWait)); err != nil {
		return fmt.Errorf("bound the time for the request's body: %w", err)
	}
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return &Error{Status: http.StatusBadRequest, Code: "bad-request", Message: "the body is not understood: " + err.Error()}
	}
	return nil
}

// reply writes v, or err in the one form that clients know.
func reply(w http.ResponseWriter, v any, err error) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if err != nil {
		e := asError(err)
		w.WriteHeader(e.Status)
		_ = json.NewEncoder(w).Encode(map[string]*Error{"error": e})
		return
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

// Error is what a request that was not carried out is answered with.
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`    // fixed words, for scripts
	Message string `json:"message"` // for people: what happened and what to do
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, coord.ErrUnsure):
		return &Error{http.StatusGatewayTimeout, "unsure", "it is unknown whether that was recorded: look at the status before trying again"}
	case errors.Is(err, coord.ErrUnavailable), errors.Is(err, coord.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		return &Error{http.StatusServiceUnavailable, "unavailable", "the store does not answer this member: it has no majority, or cannot be reached from here. Start more of its members, or ask another member"}
	case errors.Is(err, coord.ErrNotFound):
		return &Error{http.StatusNotFound, "not-found", "nothing is recorded under that name yet"}
	}
	return &Error{http.StatusInternalServerError, "internal", err.Error()}
}
