// SPDX-License-Identifier: Apache-2.0

package view

import (
	"cmp"
	"context"
	"errors"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// The bounds of what a board believes.
const (
	boardLook    = 50 * time.Millisecond   // how late the end of a lease is noticed by those who wait for changes
	boardRead    = 200 * time.Millisecond  // how often the reports are read
	boardNode    = 1200 * time.Millisecond // a node whose agent has not reported for so long is not shown as a replica
	boardMember  = 2500 * time.Millisecond // a member that has not reported for so long is not shown
	boardForget  = time.Minute             // then a report is dropped
	boardReports = 4096                    // most reports that are kept
)

// Part is one shard that a board shows.
type Part struct {
	ID    string // among all that the store knows
	Name  string // within the deployment; empty: ID
	View  *View
	Slots func() string                    // mode cluster; nil: none
	Ring  func() (name string, weight int) // its place in a ring, for proxies that people keep; nil: none
	gone  bool
}

// BoardOptions are what a board needs.
type BoardOptions struct {
	Deployment string
	Mode       string
	Parts      []Part
	Beats      coord.Beats // those of all shards
	Clock      clock.Clock
}

// Board is what faces may tell the world about a deployment: who is primary, as far as this process's own leased knowledge goes,
// who serves reads, and where the proxies are. Its invariant: a primary is named only while the shard serves and this process's
// lease of that tenure is good, so between two primaries there is a moment without one. Look and Next are safe for concurrent
// use. Goroutines: Run's, one for each shard, and one that reads the reports.
type Board struct {
	o BoardOptions

	reading sync.Mutex // held by who reads the reports
	mu      sync.Mutex // guards what follows
	parts   []Part     // replaced, never changed
	grown   chan struct{}
	heard   map[string]told
	readAt  time.Duration                   // uptime of the latest read of the reports; zero: none
	nodes   map[string]map[topo.NodeID]Seen // by shard, "" where there is one; replaced, never changed
	members []topo.MemberReport             // replaced, never changed
	last    Picture                         // that changes were announced of
	changed chan struct{}
}

// told is a report, and the uptime at which it was made.
type told struct {
	body []byte
	at   time.Duration
}

// Picture is what may be announced about a deployment at one moment.
type Picture struct {
	Deployment      string         `json:"deployment"`
	Mode            string         `json:"mode"`
	Serving         bool           `json:"serving"` // every shard has a primary
	Shards          []ShardPicture `json:"shards"`
	Proxies         []Place        `json:"proxies"` // read-write
	ReadonlyProxies []Place        `json:"readonly_proxies"`
	Sentinels       []Place        `json:"sentinels"`
	Nameservers     []Place        `json:"nameservers"`
	Known           bool           `json:"known"` // every shard's document was seen
}

// ShardPicture is what may be announced about one shard.
type ShardPicture struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Epoch    topo.Epoch `json:"epoch"`
	Phase    topo.Phase `json:"phase"`
	Serving  bool       `json:"serving"`
	Primary  *Place     `json:"primary"`  // nil: nobody may be named now
	Latest   *Place     `json:"latest"`   // who serves, or served last; for files that need a name at all times
	Replicas []Place    `json:"replicas"` // that serve reads, by id
	Nodes    []Place    `json:"nodes"`    // the roster, by id
	Slots    string     `json:"slots,omitempty"`
	RingName string     `json:"ring_name,omitempty"`
	Weight   int        `json:"weight,omitempty"`
}

// Place is where something listens.
type Place struct {
	ID   string `json:"id"` // of the node or member
	Host string `json:"host"`
	Port int    `json:"port"`
	Addr string `json:"addr"` // host:port
	Zone string `json:"zone,omitempty"`
}

func place(id, addr, zone string) (Place, bool) {
	host, port, err := net.SplitHostPort(addr)
	n, bad := strconv.Atoi(port)
	return Place{ID: id, Host: host, Port: n, Addr: addr, Zone: zone}, err == nil && bad == nil && host != ""
}

// NewBoard returns a board. Without Run it shows reports only after Refresh.
func NewBoard(o BoardOptions) (*Board, error) {
	if len(o.Parts) == 0 || o.Beats == nil || o.Clock == nil {
		return nil, errors.New("view: a board needs Parts, Beats and Clock")
	}
	o.Parts = slices.Clone(o.Parts)
	for i, p := range o.Parts {
		if p.Name == "" {
			o.Parts[i].Name = p.ID
		}
	}
	return &Board{o: o, parts: o.Parts, grown: make(chan struct{}, 1), heard: map[string]told{}, changed: make(chan struct{})}, nil
}

// Add shows one shard more from now on.
func (b *Board) Add(p Part) {
	p.Name = cmp.Or(p.Name, p.ID)
	b.mu.Lock()
	b.parts = append(slices.Clone(b.parts), p)
	b.mu.Unlock()
	nudge(b.grown)
}

// Remove shows a shard no more.
func (b *Board) Remove(id string) {
	b.mu.Lock()
	b.parts = slices.Clone(b.parts)
	for i := range b.parts {
		b.parts[i].gone = b.parts[i].gone || b.parts[i].ID == id
	}
	b.mu.Unlock()
	nudge(b.grown)
}

// Next returns a channel that is closed at the next change of the picture, while Run runs. Take the channel first, then Look.
func (b *Board) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Deployment is the name of what is shown.
func (b *Board) Deployment() string { return b.o.Deployment }

// Refresh reads the reports, unless they were read a moment ago.
func (b *Board) Refresh(ctx context.Context) error {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	recent := b.readAt > 0 && b.o.Clock.Uptime()-b.readAt < boardRead
	b.mu.Unlock()
	if recent {
		return nil
	}
	return b.read(ctx)
}

func (b *Board) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	beats, err := b.o.Beats.All(ctx)
	if err != nil {
		return err
	}
	now := b.o.Clock.Uptime()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readAt = now
	for name, beat := range beats { // a controller that has just begun knows nobody: what was heard before counts on
		if old, ok := b.heard[name]; (ok || len(b.heard) < boardReports) && old.at <= now-beat.Age {
			b.heard[name] = told{beat.Body, now - beat.Age}
		}
	}
	for name, t := range b.heard {
		if now-t.at > boardForget {
			delete(b.heard, name)
		}
	}
	b.decode()
	return nil
}

// decode turns what was heard into what is shown. A report that is older than a node's, or a member's, may be at the time of the
// latest read is left out; while the store does not answer, what was known last is shown. Callers hold b.mu.
func (b *Board) decode() {
	shards, members := map[string]map[string]coord.Beat{}, map[string]coord.Beat{}
	for name, t := range b.heard {
		age := b.readAt - t.at
		node, shard, _ := strings.Cut(name, "@") // without a shard's name where there is one shard
		switch {
		case strings.HasPrefix(name, topo.BeatMember) && age <= boardMember:
			members[name] = coord.Beat{Body: t.body, Age: age}
		case strings.HasPrefix(name, topo.BeatNode) && age <= boardNode:
			if shards[shard] == nil {
				shards[shard] = map[string]coord.Beat{}
			}
			shards[shard][node] = coord.Beat{Body: t.body, Age: age}
		}
	}
	b.members, b.nodes = DecodeReports(members).Members, map[string]map[topo.NodeID]Seen{}
	for shard, beats := range shards {
		b.nodes[shard] = DecodeReports(beats).Nodes
	}
}

// Look returns what may be announced now.
func (b *Board) Look() Picture {
	p := Picture{Deployment: b.o.Deployment, Mode: b.o.Mode, Serving: true, Known: true, Shards: []ShardPicture{}}
	b.mu.Lock()
	nodes, members, parts := b.nodes, b.members, b.parts
	b.mu.Unlock()
	for _, part := range parts {
		if part.gone {
			continue
		}
		seen, ok := nodes[part.ID]
		if !ok && len(parts) == 1 {
			seen = nodes[""]
		}
		s, known := part.look(seen, b.o.Clock.Uptime())
		p.Serving, p.Known = p.Serving && s.Serving, p.Known && known
		p.Shards = append(p.Shards, s)
	}
	p.Proxies, p.ReadonlyProxies, p.Sentinels, p.Nameservers = []Place{}, []Place{}, []Place{}, []Place{}
	for _, m := range members {
		for _, x := range []struct {
			to   *[]Place
			addr string
		}{{&p.Proxies, m.ProxyAddr}, {&p.ReadonlyProxies, m.ReadonlyAddr}, {&p.Sentinels, m.SentinelAddr}, {&p.Nameservers, m.DNSAddr}} {
			if at, ok := place(m.ID, x.addr, ""); ok {
				*x.to = append(*x.to, at)
			}
		}
	}
	return p
}

// look is what may be announced of the shard at now.
func (part Part) look(reported map[topo.NodeID]Seen, now time.Duration) (ShardPicture, bool) {
	s := ShardPicture{ID: part.ID, Name: part.Name, Replicas: []Place{}, Nodes: []Place{}}
	if part.Ring != nil {
		s.RingName, s.Weight = part.Ring()
	}
	if part.Slots != nil {
		s.Slots = part.Slots()
	}
	snap := part.View.Load()
	if snap == nil {
		return s, false
	}
	a := snap.Shard.Assigned
	s.Epoch, s.Phase = a.Epoch, a.Phase
	latest, _ := a.Latest()
	for _, n := range snap.Shard.Spec.Nodes {
		at, ok := place(string(n.ID), n.Addr, n.Zone)
		if !ok {
			continue
		}
		s.Nodes = append(s.Nodes, at)
		if n.ID == latest.Node {
			s.Latest = &at
		}
		if snap.MayName(n.ID, now) {
			s.Primary, s.Serving = &at, true
		} else if seen, ok := reported[n.ID]; ok && snap.MayRead(seen.Sighting) {
			s.Replicas = append(s.Replicas, at)
		}
	}
	return s, true
}

// MayName reports whether id may be named as the primary at now: the shard serves with it, and the lease is good, by whoever's word.
func (s *Snapshot) MayName(id topo.NodeID, now time.Duration) bool {
	a := s.Shard.Assigned
	return a.Phase == topo.PhaseServing && a.Primary == id && s.Leased(now)
}

// MayRead reports whether a node of which this was seen serves reads as a replica. While the shard serves it has to be in sync with
// the present primary; between two primaries, to have whole data.
func (s *Snapshot) MayRead(seen topo.Sighting) bool {
	a := s.Shard.Assigned
	up := seen.Health == topo.HealthUp && seen.Role == topo.RoleReplica && seen.Whole
	if a.Phase == topo.PhaseServing {
		return up && a.Primary != seen.Node && seen.LinkUp && !seen.Frozen && seen.InSync == a.Epoch
	}
	return up && a.Phase != topo.PhaseNew && a.Primary != seen.Node
}

// Run announces changes until ctx ends.
func (b *Board) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan struct{}, 1)
	watched := 0
	watch := func() {
		b.mu.Lock()
		parts := b.parts
		b.mu.Unlock()
		for _, part := range parts[watched:] {
			all.Go(func() { part.View.Revisions(ctx, news) })
		}
		watched = len(parts)
	}
	all.Go(func() { b.readLoop(ctx, news) })
	tick := time.NewTicker(boardLook)
	defer tick.Stop()
	for {
		watch()
		p := b.Look()
		b.mu.Lock()
		if !reflect.DeepEqual(p, b.last) {
			b.last = p
			close(b.changed)
			b.changed = make(chan struct{})
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		case <-b.grown:
		case <-tick.C:
		}
	}
}

func (b *Board) readLoop(ctx context.Context, news chan<- struct{}) {
	tick := time.NewTicker(boardRead)
	defer tick.Stop()
	for {
		if b.Refresh(ctx) == nil {
			nudge(news)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Revisions tells news of each new revision, or the first lease of one, until ctx ends. That a lease was renewed is no news.
func (v *View) Revisions(ctx context.Context, news chan<- struct{}) {
	var known coord.Rev
	leased := false
	for {
		next := v.Next()
		if s := v.Load(); s != nil && (s.Rev != known || !leased && s.LeaseStart() > 0) {
			known, leased = s.Rev, s.LeaseStart() > 0
			nudge(news)
		}
		select {
		case <-ctx.Done():
			return
		case <-next:
		}
	}
}
