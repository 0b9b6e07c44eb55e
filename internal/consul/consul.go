// SPDX-License-Identifier: Apache-2.0

// Package consul announces what is on this member to the Consul agent beside it: its nodes and its proxy as services with the tag of
// their role and a check that ends by itself, and each shard's topology under a key.
//
// It stores nothing that Redoubt goes by, and decides nothing. Its invariant: a primary is published when nobody else is published
// as the primary of that shard, and what is published carries the epoch of the decision; a later epoch is never replaced by an
// earlier one. Goroutines: Run's own.
package consul

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/event"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// The tags of services.
const (
	tagPrimary = "primary"
	tagReplica = "replica"
	tagProxy   = "proxy"
)

const (
	askTime   = 2 * time.Second        // of each request to the agent
	stopTime  = 300 * time.Millisecond // to take everything back at the end: a member that is handed over has no more time
	patience  = 200 * time.Millisecond // with an earlier primary that is about to withdraw itself
	forgotten = "10m"                  // after which Consul drops what nobody has renewed
)

// Options are what the announcer needs. All but Token, TLS, Service, Prefix and Events are required.
type Options struct {
	Address string // of the agent: host:port, or a URL
	Token   string
	TLS     *tls.Config   // nil: as the system has it, for https
	Service string        // default: the deployment's name; the proxies' is this and -proxy
	Prefix  string        // of keys; empty: none are written
	TTL     time.Duration // of the checks
	Member  string
	Board   *view.Board // that runs
	Clock   clock.Clock
	Log     *slog.Logger
	Events  event.Sink
}

// Announcer is the face.
type Announcer struct {
	o     Options
	agent *agent
	told  map[string]service     // what the agent was told, by id
	kept  map[string]shardRecord // what was written under keys, by shard

	changes, failures atomic.Uint64
	broken            bool // the latest round did not work
}

// service is one registration.
type service struct {
	ID, Name, Address string
	Port              int
	Tags              []string
	Meta              map[string]string
	shard             string
	epoch             topo.Epoch
	up                bool // of the check
}

// New returns the announcer.
func New(o Options) (*Announcer, error) {
	if o.Board == nil || o.Clock == nil || o.Log == nil || o.Member == "" || o.TTL <= 0 {
		return nil, errors.New("consul: Board, Clock, Log, Member and TTL are required")
	}
	if o.Service == "" {
		o.Service = o.Board.Deployment()
	}
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	a, err := newAgent(o.Address, o.Token, o.TLS)
	if err != nil {
		return nil, err
	}
	return &Announcer{o: o, agent: a, told: map[string]service{}, kept: map[string]shardRecord{}}, nil
}

// Stats counts changes that were published, and rounds that did not work.
func (a *Announcer) Stats() (changes, failures uint64) { return a.changes.Load(), a.failures.Load() }

// Run announces until ctx ends, and then takes everything back.
func (a *Announcer) Run(ctx context.Context) error {
	defer a.withdraw(ctx)
	tick := time.NewTicker(a.o.TTL / 3)
	defer tick.Stop()
	renew := true
	for {
		next := a.o.Board.Next()
		a.note(a.round(ctx, renew))
		renew = false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		case <-tick.C:
			renew = true
		}
	}
}

func (a *Announcer) note(err error) {
	switch {
	case err != nil:
		a.failures.Add(1)
		if !a.broken {
			a.o.Log.Warn("Consul was not told; it forgets within the time of the checks", "err", err)
			a.o.Events(event.Event{At: a.o.Clock.Now(), Kind: "consul", Text: "Consul was not told: " + err.Error()})
		}
	case a.broken:
		a.o.Log.Info("Consul is told again")
	}
	a.broken = err != nil
}

// round tells the agent what has changed: first what is not any more, then what is. With renew the checks are renewed, too, and what
// the agent has lost is told again.
func (a *Announcer) round(ctx context.Context, renew bool) error {
	p := a.o.Board.Look()
	if !p.Known {
		return nil
	}
	want := a.services(p)
	slices.SortStableFunc(want, func(x, y service) int { return rank(x) - rank(y) })
	var errs []error
	for id := range a.told {
		if !slices.ContainsFunc(want, func(s service) bool { return s.ID == id }) {
			errs = append(errs, a.forget(ctx, id))
		}
	}
	for _, s := range want {
		errs = append(errs, a.tell(ctx, s, renew))
	}
	for _, sh := range p.Shards {
		errs = append(errs, a.write(ctx, sh))
	}
	return errors.Join(errs...)
}

// rank has primaries last: what ends is withdrawn before what begins is published.
func rank(s service) int {
	if slices.Contains(s.Tags, tagPrimary) {
		return 1
	}
	return 0
}

// services are those of this member.
func (a *Announcer) services(p view.Picture) []service {
	var all []service
	for _, sh := range p.Shards {
		for _, n := range sh.Nodes {
			if n.ID != a.o.Member { // a data node has the id of its member
				continue
			}
			s := service{
				ID: "redoubt-" + a.o.Service + "-" + sh.ID + "-" + n.ID, Name: a.o.Service, Address: n.Host, Port: n.Port, Tags: []string{sh.Name},
				Meta: map[string]string{"redoubt": sh.ID, "epoch": strconv.FormatUint(uint64(sh.Epoch), 10), "node": n.ID}, shard: sh.ID, epoch: sh.Epoch,
			}
			switch {
			case sh.Primary != nil && sh.Primary.ID == n.ID:
				s.Tags, s.up = append([]string{tagPrimary}, s.Tags...), true
			case slices.ContainsFunc(sh.Replicas, func(r view.Place) bool { return r.ID == n.ID }):
				s.Tags, s.up = append([]string{tagReplica}, s.Tags...), true
			}
			all = append(all, s)
		}
	}
	for _, at := range p.Proxies {
		if at.ID == a.o.Member {
			all = append(all, service{ID: "redoubt-" + a.o.Service + "-proxy-" + at.ID, Name: a.o.Service + "-proxy", Address: at.Host, Port: at.Port, Tags: []string{tagProxy}, up: p.Serving})
		}
	}
	return all
}

// tell registers a service that has changed, or renews its check.
func (a *Announcer) tell(ctx context.Context, s service, renew bool) error {
	old, known := a.told[s.ID]
	if known && reflect.DeepEqual(old, s) {
		if !renew {
			return nil
		}
		lost, err := a.agent.renew(ctx, s, a.status(s))
		if err != nil || !lost {
			return err
		}
	}
	if slices.Contains(s.Tags, tagPrimary) {
		if err := a.clear(ctx, s); err != nil {
			return err
		}
		now := a.services(a.o.Board.Look()) // that took time
		if !slices.ContainsFunc(now, func(x service) bool { return reflect.DeepEqual(x, s) }) {
			return nil // the board has told of it: the next round says what is
		}
	}
	if err := a.agent.register(ctx, s, a.o.TTL); err != nil {
		a.told[s.ID] = service{ID: s.ID, Tags: s.Tags} // Consul may have it: it is told again, or taken back
		return err
	}
	a.told[s.ID] = s
	a.changes.Add(1)
	a.o.Log.Debug("told Consul", "service", s.ID, "tags", s.Tags, "up", s.up)
	return nil
}

func (a *Announcer) status(s service) string {
	if s.up {
		return fmt.Sprintf("as agreed in epoch %d", s.epoch)
	}
	return "neither the primary nor a replica in sync now, or commands wait"
}

// clear has nobody else published as the primary of that shard. Who withdraws itself is waited for, for a moment; who does not is taken
// out of the catalogue: its member may be dead or cut off, and its agent, too. One of a later epoch means that this member is behind.
func (a *Announcer) clear(ctx context.Context, s service) error {
	began := a.o.Clock.Uptime()
	for {
		others, err := a.others(ctx, s)
		if err != nil || len(others) == 0 {
			return err
		}
		if a.o.Clock.Uptime()-began > patience {
			for _, other := range others {
				if err := a.agent.evict(ctx, other); err != nil {
					return err
				}
				a.o.Log.Info("an earlier primary was taken out of Consul's catalogue", "service", other.Service.ID, "epoch", other.Service.Meta["epoch"])
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience / 10):
		}
	}
}

// others are published as the primary of that shard, in an earlier epoch.
func (a *Announcer) others(ctx context.Context, s service) ([]entry, error) {
	all, err := a.agent.find(ctx, s.Name, tagPrimary)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, other := range all {
		if other.Service.ID == s.ID || other.Service.Meta["redoubt"] != s.shard {
			continue
		}
		epoch, err := strconv.ParseUint(other.Service.Meta["epoch"], 10, 64)
		if err == nil && topo.Epoch(epoch) > s.epoch {
			return nil, fmt.Errorf("%s is published as the primary of epoch %d already, this is epoch %d", other.Service.ID, epoch, s.epoch)
		}
		out = append(out, other)
	}
	return out, nil
}

func (a *Announcer) forget(ctx context.Context, id string) error {
	if err := a.agent.deregister(ctx, id); err != nil {
		return err
	}
	delete(a.told, id)
	a.changes.Add(1)
	return nil
}

// withdraw takes back what this member has published: primaries first.
func (a *Announcer) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	var all []service
	for _, s := range a.told {
		all = append(all, s)
	}
	slices.SortFunc(all, func(x, y service) int { return rank(y) - rank(x) })
	for _, s := range all {
		if err := a.forget(ctx, s.ID); err != nil {
			a.o.Log.Warn("what was published in Consul was not taken back; it ends with its check", "service", s.ID, "err", err)
			return
		}
	}
}

// shardRecord is what stands under a shard's key.
type shardRecord struct {
	Format   int          `json:"format"`
	Epoch    topo.Epoch   `json:"epoch"`
	Phase    topo.Phase   `json:"phase"`
	Primary  *view.Place  `json:"primary"`
	Replicas []view.Place `json:"replicas"`
	Member   string       `json:"member"` // who wrote it
}

// write brings the shard's key up to date: the primary's member does, and who was it withdraws.
func (a *Announcer) write(ctx context.Context, sh view.ShardPicture) error {
	if a.o.Prefix == "" {
		return nil
	}
	mine := sh.Primary != nil && sh.Primary.ID == a.o.Member
	old, wrote := a.kept[sh.ID]
	r := shardRecord{Format: 1, Epoch: sh.Epoch, Phase: sh.Phase, Primary: sh.Primary, Replicas: sh.Replicas, Member: a.o.Member}
	switch {
	case !mine && (!wrote || old.Primary == nil):
		return nil // not ours to say
	case mine && wrote && reflect.DeepEqual(old, r):
		return nil
	case !mine:
		r.Primary, r.Replicas = nil, []view.Place{}
	}
	later, err := a.agent.put(ctx, a.o.Prefix+"/"+a.o.Service+"/"+sh.ID, r)
	if err != nil {
		return err
	}
	if later && !mine {
		r.Primary = nil // somebody else has said more
	} else if later {
		return fmt.Errorf("the topology of %s in Consul is of a later epoch than %d", sh.ID, sh.Epoch)
	}
	a.kept[sh.ID] = r
	return nil
}
