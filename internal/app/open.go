// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"redoubt/internal/clock"
	"redoubt/internal/config"
	"redoubt/internal/coord"
	"redoubt/internal/coord/raftstore"
	"redoubt/internal/redisd"
)

// openStore opens the store that the configuration names.
func openStore(ctx context.Context, c config.Config, clk clock.Clock, log *slog.Logger) (coord.Store, error) {
	if c.Store.Outside() {
		return openOutside(c, clk, log)
	}
	o := raftstore.Options{
		ID: c.Member.ID, ListenAddr: c.Store.Listen, AdvertiseAddr: advertised(c), Dir: filepath.Join(c.Member.Dir, "store"),
		Join: c.Store.Join, Clock: clk, Log: log,
	}
	for _, m := range c.Store.Members {
		o.Bootstrap = append(o.Bootstrap, coord.Member{ID: m.ID, Addr: m.Addr})
	}
	if c.Deployments[0].Timing.Profile == "wan" {
		o.Timing = raftstore.WANTiming()
	}
	s, err := raftstore.Open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	return s, nil
}

// advertised is where the other members reach the store's port: as their lists say, or at the member's host.
func advertised(c config.Config) string {
	for _, m := range c.Store.Members {
		if m.ID == c.Member.ID {
			return m.Addr
		}
	}
	host, port, err := net.SplitHostPort(c.Store.Listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort(c.Member.Host, port)
	}
	return c.Store.Listen
}

// openNode starts or finds the server beside this member.
func openNode(ctx context.Context, o Options, d config.Unit, seat *redisd.ClusterSeat, mover func() string, dir string, clk clock.Clock, log *slog.Logger) (localNode, error) {
	local := d.Node
	addr := d.LocalAddr()
	if local.Kind == "attached" {
		n, err := redisd.Attached(redisd.AttachOptions{
			Addr: addr, Username: local.Username, Password: d.Password, PIDFile: local.PIDFile,
			StateDir: dir, Cluster: seat, Log: log, Clock: clk,
		})
		if err != nil {
			return nil, err
		}
		return n, nil
	}
	n, err := redisd.Managed(ctx, redisd.Options{
		Addr: addr, Dir: local.Dir, Binary: local.Binary, Directives: local.Directives, Password: d.Password,
		Persistence: redisd.Persistence(local.Persistence), SyncAlways: d.Durability.OnDisk(), Cluster: seat, Mover: mover, GuardCommand: o.GuardCommand, Log: log, Clock: clk,
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}
