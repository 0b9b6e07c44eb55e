// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"net/http"
	"net/url"

	"redoubt/internal/reshard"
	"redoubt/internal/topo"
)

// Resharder moves slots between the shards of a cluster. Its methods are safe for concurrent use; the errors are *Error for a refusal.
type Resharder interface {
	Plan(ctx context.Context, r ReshardRequest) (ReshardPlan, error)
	Start(ctx context.Context, r ReshardRequest) (ReshardStatus, error)
	Status(ctx context.Context) (ReshardStatus, error)
	// Wish asks a move that is under way to go on, to stand still, or to end where it is.
	Wish(ctx context.Context, w reshard.Wish) (ReshardStatus, error)
	// AddShard makes a shard known that has no slots yet: its servers are started by their members, and join the cluster.
	AddShard(ctx context.Context, s ShardSpec) error
	// RemoveShard has the others get what a shard has, and takes it out then: its servers are stopped by their members.
	RemoveShard(ctx context.Context, name, by string) error
}

// ShardSpec is a shard that is to come.
type ShardSpec struct {
	Name  string      `json:"name"`
	Nodes []ShardNode `json:"nodes"`

	Weight int    `json:"weight,omitempty"` // mode ring: its part of the keys, beside those of the others; default 1
	By     string `json:"by,omitempty"`
}

// ShardNode is a node of it. Its id is that of the member on whose machine it is.
type ShardNode struct {
	ID       string `json:"id"`
	Host     string `json:"host,omitempty"`
	Zone     string `json:"zone,omitempty"`
	Addr     string `json:"addr"`
	BusPort  int    `json:"bus_port,omitempty"` // default: 10000 above the port
	Priority int    `json:"priority,omitempty"`
}

// ReshardRequest asks for slots to be moved so that each shard has its part.
type ReshardRequest struct {
	Weights        map[string]float64 `json:"weights,omitempty"` // by shard; those that are not named keep theirs, which is 1 at first
	Measure        reshard.Measure    `json:"measure,omitempty"` // default: slots
	Batch          int                `json:"batch,omitempty"`   // most slots that are handed over together; default 32
	KeysPerSecond  float64            `json:"keys_per_second,omitempty"`
	BytesPerSecond float64            `json:"bytes_per_second,omitempty"`
	Stall          topo.Duration      `json:"stall,omitempty"` // how long one request to a server may take; default 2ms
	Force          bool               `json:"force,omitempty"`
	By             string             `json:"by,omitempty"`

	Look  topo.Duration `json:"look,omitempty"`  // how long operations are measured; default 5s
	Rates *SlotRates    `json:"rates,omitempty"` // operations that were measured for a plan; default: they are measured
}

// ReshardPlan is what would be moved.
type ReshardPlan struct {
	Text  string         `json:"text"`
	Slots int            `json:"slots"`
	Moves []reshard.Move `json:"moves"` // one for each pair of shards
	Rates *SlotRates     `json:"rates,omitempty"`
}

// The states of moving slots.
const (
	ReshardNone      = "none"
	ReshardRunning   = "running"
	ReshardPaused    = "paused"
	ReshardDone      = "done"
	ReshardCancelled = "cancelled"
	ReshardHalted    = "halted" // a person is needed
)

// ReshardStatus is how far moving slots has come.
type ReshardStatus struct {
	State     string        `json:"state"`
	Why       string        `json:"why,omitempty"`
	By        string        `json:"by,omitempty"`
	Slots     int           `json:"slots"` // that were to be moved
	Moved     int           `json:"moved"`
	Keys      int64         `json:"keys"` // copied, each time counted
	Bytes     int64         `json:"bytes"`
	KeysRate  float64       `json:"keys_per_second"`
	Stops     int           `json:"stops"`             // hand-overs
	Longest   topo.Duration `json:"longest_stop"`      // of the clients of one batch
	Median    topo.Duration `json:"median_stop"`       // rounded up
	P95       topo.Duration `json:"p95_stop"`          // likewise
	Left      topo.Duration `json:"left,omitempty"`    // estimated
	Now       string        `json:"now,omitempty"`     // the batch that is on its way
	Trouble   string        `json:"trouble,omitempty"` // why it does not go on at the moment
	Leaving   []string      `json:"leaving,omitempty"` // shards that are removed when they are empty
	StartedMS int64         `json:"started_ms,omitempty"`
	EndedMS   int64         `json:"ended_ms,omitempty"`

	What    string   `json:"what,omitempty"`    // mode ring: what changes, in words
	Stage   string   `json:"stage,omitempty"`   // mode ring: copying, closing, settling, undoing, done, cancelled
	OfKeys  int64    `json:"of_keys,omitempty"` // mode ring: keys of the shards that give some away
	Removed int64    `json:"removed,omitempty"` // mode ring: keys that were taken from their former shards
	Without []string `json:"without,omitempty"` // mode ring: members that did not answer in the hand-over
}

// resharder returns who moves slots, or a refusal.
func (s *Server) resharder() (Resharder, error) {
	if s.o.Reshard == nil {
		return nil, refuse("no-slots", "only mode cluster, and mode ring without eject-after, can move keys between shards; this deployment has mode %s", s.o.Mode)
	}
	return s.o.Reshard, nil
}

func (s *Server) getReshard(w http.ResponseWriter, r *http.Request) {
	m, err := s.resharder()
	var st ReshardStatus
	if err == nil {
		st, err = m.Status(r.Context())
	}
	reply(w, st, err)
}

func (s *Server) planReshard(w http.ResponseWriter, r *http.Request) {
	var req ReshardRequest
	err := decode(w, r, &req)
	var m Resharder
	if err == nil {
		m, err = s.resharder()
	}
	note := ""
	if err == nil {
		note, err = s.measure(r.Context(), &req)
	}
	var p ReshardPlan
	if err == nil {
		p, err = m.Plan(r.Context(), req)
	}
	if p.Rates = req.Rates; note != "" {
		p.Text += note + "\n"
	}
	reply(w, p, err)
}

func (s *Server) postReshard(w http.ResponseWriter, r *http.Request) {
	var req ReshardRequest
	err := decode(w, r, &req)
	var m Resharder
	if err == nil {
		m, err = s.resharder()
	}
	if req.By == "" {
		req.By = "api " + r.RemoteAddr
	}
	if err == nil {
		_, err = s.measure(r.Context(), &req)
	}
	var st ReshardStatus
	if err == nil {
		st, err = m.Start(r.Context(), req)
	}
	if err == nil {
		s.o.Log.Info("slots are to move", "slots", st.Slots, "by", req.By)
	}
	reply(w, st, err)
}

func (s *Server) wishReshard(w http.ResponseWriter, r *http.Request) {
	wishes := map[string]reshard.Wish{"pause": reshard.Pause, "resume": reshard.GoOn, "cancel": reshard.Cancel}
	wish, known := wishes[r.PathValue("wish")]
	m, err := s.resharder()
	if err == nil && !known {
		err = &Error{http.StatusNotFound, "unknown-wish", "use pause, resume or cancel"}
	}
	var st ReshardStatus
	if err == nil {
		st, err = m.Wish(r.Context(), wish)
	}
	if err == nil {
		s.o.Log.Info("moving slots: an order", "order", r.PathValue("wish"), "by", r.RemoteAddr)
	}
	reply(w, st, err)
}

func (s *Server) postShard(w http.ResponseWriter, r *http.Request) {
	var spec ShardSpec
	err := decode(w, r, &spec)
	var m Resharder
	if err == nil {
		m, err = s.resharder()
	}
	if err == nil {
		err = m.AddShard(r.Context(), spec)
	}
	if err == nil {
		s.o.Log.Info("a shard is to come", "shard", spec.Name, "nodes", len(spec.Nodes), "by", r.RemoteAddr)
	}
	reply(w, spec, err)
}

func (s *Server) deleteShard(w http.ResponseWriter, r *http.Request) {
	m, err := s.resharder()
	by := cmp.Or(r.URL.Query().Get("by"), "api "+r.RemoteAddr)
	if err == nil {
		err = m.RemoveShard(r.Context(), r.PathValue("name"), by)
	}
	reply(w, struct{}{}, err)
}

// AddShard makes a shard known.
func (c *Client) AddShard(ctx context.Context, s ShardSpec) error {
	return c.do(ctx, http.MethodPost, "/v1/shards", s, nil)
}

// RemoveShard has a shard emptied and removed; by says who wants it.
func (c *Client) RemoveShard(ctx context.Context, name, by string) error {
	return c.do(ctx, http.MethodDelete, "/v1/shards/"+url.PathEscape(name)+"?by="+url.QueryEscape(by), nil, nil)
}

// PlanReshard returns what would be moved.
func (c *Client) PlanReshard(ctx context.Context, r ReshardRequest) (ReshardPlan, error) {
	var p ReshardPlan
	return p, c.do(ctx, http.MethodPost, "/v1/reshard/plan", r, &p)
}

// Reshard begins to move slots.
func (c *Client) Reshard(ctx context.Context, r ReshardRequest) (ReshardStatus, error) {
	var st ReshardStatus
	return st, c.do(ctx, http.MethodPost, "/v1/reshard", r, &st)
}

// ReshardStatus returns how far it has come.
func (c *Client) ReshardStatus(ctx context.Context) (ReshardStatus, error) {
	var st ReshardStatus
	return st, c.do(ctx, http.MethodGet, "/v1/reshard", nil, &st)
}

// WishReshard gives an order about it: pause, resume or cancel.
func (c *Client) WishReshard(ctx context.Context, order string) (ReshardStatus, error) {
	var st ReshardStatus
	return st, c.do(ctx, http.MethodPost, "/v1/reshard/"+order, struct{}{}, &st)
}
