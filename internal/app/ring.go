// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"net"

	"redoubt/internal/front"
)

// startFront starts what stands in front of the shards' proxies; nothing where there is one shard.
func (m *member) startFront() error {
	c := m.o.Config
	if m.hall == nil || c.Proxy.Listen == "" {
		return nil
	}
	var shards []front.Shard
	for _, u := range m.units {
		p := u.proxy
		shards = append(shards, front.Shard{Name: u.deploy.ID(), Dial: func(ctx context.Context) (net.Conn, error) { return p.Attach(ctx) }})
	}
	placed, err := newPlacement(m.deploy.RingSpec())
	if err != nil {
		return fmt.Errorf("place keys on the ring: %w", err)
	}
	ln, err := net.Listen("tcp", c.Proxy.Listen)
	if err != nil {
		return fmt.Errorf("open the proxy's port: %w", err)
	}
	f, err := front.New(front.Options{
		Shards: shards, Place: placed.shard, Table: m.units[0].proxy.Table,
		Listener: ln, Password: m.deploy.Password, Log: m.log,
		Limits: front.Limits{Clients: c.Proxy.Clients, Query: int(c.Proxy.QueryBytes), Output: int(c.Proxy.OutputBytes)},
	})
	if err != nil {
		_ = ln.Close()
		return fmt.Errorf("set up the front of the shards: %w", err)
	}
	m.front = f
	m.faces.ProxyAddr = m.reach(ln.Addr().String())
	m.parts.start("front", f.Run)
	if after := m.deploy.Ring.EjectAfter.D(); after > 0 {
		m.parts.start("ejection", func(ctx context.Context) error { return m.eject(ctx, placed, after) })
	}
	return nil
}
