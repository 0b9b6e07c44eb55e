// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

const (
	seedEvery   = 200 * time.Millisecond
	reportEvery = time.Second
	reportTTL   = 5 * time.Second
	movedEvery  = 100 * time.Millisecond
	votersEvery = 5 * time.Second
)

// seed creates the shard's document if nobody has yet. It ends when the document exists; until then the store may not
// even have a majority, because the other members are still starting.
func (u *unit) seed(ctx context.Context, key string) error {
	if u.slots != nil { // nobody is promoted before it is known what for
		if err := u.slots.await(ctx); err != nil {
			return err
		}
	}
	s := topo.Shard{Format: topo.Format, ID: u.deploy.ID(), Spec: u.deploy.Spec(), Assigned: topo.Assigned{Phase: topo.PhaseNew}}
	tick := time.NewTicker(seedEvery)
	defer tick.Stop()
	for {
		done, err := u.plant(ctx, key, s)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// plant tries once and reports whether the document exists.
func (u *unit) plant(ctx context.Context, key string, s topo.Shard) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	doc, err := u.store.Get(ctx, key)
	if errors.Is(err, coord.ErrNotFound) && adopts(u.member.deploy) {
		if s.Assigned, err = u.inherit(ctx); err != nil {
			if errors.Is(err, errElsewhere) {
				return false, nil
			}
			u.log.Info("the cluster is not taken over yet", "why", err)
			return false, nil
		}
		err = coord.ErrNotFound
	}
	if errors.Is(err, coord.ErrNotFound) {
		if _, err = u.store.Swap(ctx, key, s.Encode(), 0); err == nil {
			u.log.Info("created the shard", "shard", s.ID, "nodes", len(s.Spec.Nodes), "durability", s.Spec.Durability)
		}
		return err == nil, nil // a conflict or an unknown outcome: look again
	}
	if err != nil {
		return false, nil // no majority yet
	}
	agreed, err := topo.DecodeShard(doc.Value)
	if err != nil {
		return false, fmt.Errorf("the agreed document of this shard cannot be used: %w", err)
	}
	if !reflect.DeepEqual(agreed.Spec, s.Spec) {
		u.log.Warn("the configuration file differs from what was agreed when the shard was created; what was agreed holds",
			"file", fmt.Sprintf("%+v", s.Spec), "agreed", fmt.Sprintf("%+v", agreed.Spec))
	}
	return true, nil
}

// stay ends with an error when the store goes on without this member: nothing here would be in agreement any more.
func (m *member) stay(ctx context.Context, gone leaver) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-gone.Removed():
		if w, ok := gone.(interface{ Why() string }); ok {
			return errors.New(w.Why())
		}
		return fmt.Errorf("member %s was removed, or lost its store directory: make sure that it is removed (`redoubt member list`), empty %s, and start it with store: {join: ADDRESS} in place of store.members",
			m.o.Config.Member.ID, filepath.Join(m.o.Config.Member.Dir, "store"))
	}
}

// report tells the controller, and through it everybody, where this member's faces are: once a second, and at once when
// the controller moved, because a new one knows nothing.
func (m *member) report(ctx context.Context) error {
	tick := time.NewTicker(movedEvery)
	defer tick.Stop()
	told, due, state := "", 0, topo.AdoptionState("")
	for n := 0; ; n++ {
		if to := m.store.Controller(); n >= due || to != told || m.deploy.OnOrder() && m.custody.is() != state {
			state = m.custody.is()
			body, err := json.Marshal(m.described())
			if err != nil {
				return fmt.Errorf("encode the member's report: %w", err)
			}
			m.send(ctx, body)
			told, due = to, n+int(reportEvery/movedEvery)
		}
		if n%int(votersEvery/movedEvery) == 0 {
			m.countVoters(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (m *member) send(ctx context.Context, body []byte) {
	ctx, cancel := context.WithTimeout(ctx, reportEvery)
	defer cancel()
	if err := m.store.Send(ctx, topo.BeatMember+m.faces.ID, body, reportTTL); err != nil {
		m.log.Debug("send the member's report", "err", err)
	}
}

func (m *member) countVoters(ctx context.Context) {
	ms, ok := m.store.(coord.Members)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reportEvery)
	defer cancel()
	if all, err := ms.Members(ctx); err == nil && len(all) > 0 {
		m.voters.Store(int64(len(all)))
	}
}

// metrics adds the proxies' numbers to the API's.
func (m *member) metrics(w io.Writer) {
	m.storeMetrics(w)
	m.discoveryMetrics(w)
	said := map[string]bool{}
	for _, u := range m.all() {
		if u.proxy != nil {
			u.metrics(w, said)
		}
	}
}

// metrics writes the numbers of the shard's proxy; in a ring each has the label of its shard. said holds the names that were
// explained.
func (u *unit) metrics(w io.Writer, said map[string]bool) {
	s := u.proxy.Stats()
	age, bytes, held := u.proxy.Loss()
	label := ""
	if u.deploy.Shard != "" {
		label = fmt.Sprintf("{shard=%q}", u.deploy.ID())
	}
	for _, x := range []struct {
		name, kind, help string
		value            float64
	}{
		{"redoubt_proxy_clients", "gauge", "Client connections.", float64(s.Clients)},
		{"redoubt_proxy_pinned", "gauge", "Client connections with an upstream of their own.", float64(s.Pinned)},
		{"redoubt_proxy_in_flight", "gauge", "Commands sent and not answered.", float64(s.InFlight)},
		{"redoubt_proxy_parked", "gauge", "Commands held without a primary.", float64(s.Parked)},
		{"redoubt_proxy_parked_bytes", "gauge", "Their bytes.", float64(s.ParkedBytes)},
		{"redoubt_proxy_commands_total", "counter", "Commands taken from clients.", float64(s.Commands)},
		{"redoubt_proxy_parked_total", "counter", "Commands that were held.", float64(s.WasParked)},
		{"redoubt_proxy_resent_total", "counter", "Commands sent again, which was safe.", float64(s.Resent)},
		{"redoubt_proxy_unknown_total", "counter", "Commands answered with an unknown outcome.", float64(s.Unknown)},
		{"redoubt_proxy_retry_replayed_total", "counter", "Writes in doubt that had not run and were sent again (retry: exact).", float64(s.Replayed)},
		{"redoubt_proxy_retry_applied_total", "counter", "Writes in doubt that had run (retry: exact).", float64(s.Applied)},
		{"redoubt_proxy_refused_total", "counter", "Commands refused because a parking limit or max-loss was reached.", float64(s.Refused)},
		{"redoubt_proxy_unreplicated_seconds", "gauge", "Age of the oldest acknowledged write that no replica is known to hold (max-loss).", age.Seconds()},
		{"redoubt_proxy_unreplicated_bytes", "gauge", "Bytes of acknowledged writes that no replica is known to hold (max-loss).", float64(bytes)},
		{"redoubt_proxy_writes_held", "gauge", "1 while writes are held because of max-loss.", map[bool]float64{true: 1}[held]},
	} {
		if !said[x.name] {
			said[x.name] = true
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", x.name, x.help, x.name, x.kind)
		}
		fmt.Fprintf(w, "%s%s %g\n", x.name, label, x.value)
	}
}
