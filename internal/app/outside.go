// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"io"
	"log/slog"

	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/coord/consulstore"
	"redoubt/internal/coord/etcdstore"
	"redoubt/internal/coord/kubestore"
	"redoubt/internal/coord/seat"
)

// openOutside opens a store that other processes keep.
func openOutside(c config.Config, clk clock.Clock, log *slog.Logger) (coord.Store, error) {
	back, err := openBackend(c, log)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	o := seat.Options{ID: c.Member.ID, ListenAddr: c.Store.Listen, AdvertiseAddr: advertised(c), Clock: clk, Log: log}
	if c.Deployments[0].Timing.Profile == "wan" || c.Store.Kind == config.StoreKubernetes { // an API server may take its time
		o.Timing = seat.WANTiming()
	}
	s, err := seat.Open(back, o)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	return s, nil
}

func openBackend(c config.Config, log *slog.Logger) (coord.Backend, error) {
	secure, err := c.Store.TLS.Config()
	if err != nil {
		return nil, err
	}
	password, token, err := c.Store.Secrets()
	if err != nil {
		return nil, err
	}
	root := c.Store.Root(c.Deployments[0].Name)
	if c.Store.Kind == config.StoreKubernetes {
		client, err := openKube(c)
		if err != nil {
			return nil, err
		}
		return kubestore.Open(kubestore.Options{Client: client, Prefix: root, Log: log})
	}
	if c.Store.Kind == config.StoreConsul {
		return consulstore.Open(consulstore.Options{Endpoints: c.Store.Endpoints, Prefix: root, Token: token, TLS: secure, Log: log})
	}
	return etcdstore.Open(etcdstore.Options{Endpoints: c.Store.Endpoints, Prefix: "/" + root, Username: c.Store.Username, Password: password, TLS: secure, Log: log})
}

// health is what is known of a store outside; nil with the embedded one.
func (m *member) health() *coord.Health {
	o, ok := m.store.(coord.Outside)
	if !ok {
		return nil
	}
	h := o.Health()
	return &h
}

// storeMetrics writes the numbers of a store outside.
func (m *member) storeMetrics(w io.Writer) {
	h := m.health()
	if h == nil {
		return
	}
	for _, x := range []struct {
		name, help string
		value      uint64
	}{
		{"redoubt_store_reads_total", "Reads of the store outside by this member.", h.Reads},
		{"redoubt_store_swaps_total", "Writes to the store outside by this member.", h.Swaps},
		{"redoubt_store_failures_total", "Attempts of both that failed.", h.Failures},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n%s %d\n", x.name, x.help, x.name, x.name, x.value)
	}
	fmt.Fprintf(w, "# HELP redoubt_store_endpoint_up 1 when that endpoint of the store outside answered this member last.\n# TYPE redoubt_store_endpoint_up gauge\n")
	for _, e := range h.Endpoints {
		fmt.Fprintf(w, "redoubt_store_endpoint_up{kind=%q,endpoint=%q} %d\n", h.Kind, e.Addr, map[bool]int{true: 1}[e.Up])
	}
}
