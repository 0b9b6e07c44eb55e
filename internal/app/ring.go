// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"

	"redoubt/internal/front"
	"redoubt/internal/proxy"
	"redoubt/internal/ring"
)

// loops drive the connections of the front and of all shards' proxies.
type loops struct{ *proxy.Engine }

// Take hands a connection to a loop.
func (l *loops) Take(conn net.Conn, loop int, event func()) (front.Stream, error) {
	return l.Engine.Take(conn, loop, event)
}

// startLoops starts the loops that the shards' proxies share with the front; nothing where there is one shard.
func (m *member) startLoops() error {
	if m.hall == nil || m.o.Config.Proxy.Listen == "" {
		return nil
	}
	e, err := proxy.NewEngine(proxy.DefaultLimits().Loops)
	if err != nil {
		return fmt.Errorf("set up the loops of the proxies: %w", err)
	}
	m.loops = &loops{e}
	m.parts.start("loops", e.Run)
	return nil
}

// engine returns what drives the proxy's connections; nil: its own loops.
func (m *member) engine() *proxy.Engine {
	if m.loops == nil {
		return nil
	}
	return m.loops.Engine
}

// startFront starts what stands in front of the shards' proxies; nothing where there is one shard.
func (m *member) startFront() error {
	c := m.o.Config
	if m.hall == nil || c.Proxy.Listen == "" {
		return nil
	}
	var shards []front.Shard
	for _, u := range m.units {
		shards = append(shards, front.Shard{Name: u.deploy.ID()})
	}
	placed, err := ring.New(m.deploy.RingSpec())
	if err != nil {
		return fmt.Errorf("place keys on the ring: %w", err)
	}
	ln, err := net.Listen("tcp", c.Proxy.Listen)
	if err != nil {
		return fmt.Errorf("open the proxy's port: %w", err)
	}
	f, err := front.New(front.Options{
		Shards: shards, Place: func(key []byte) int { return placed.Shard(key, rand.Uint32()) }, Table: m.units[0].proxy.Table,
		Join: func(shard, loop int, event func()) (front.Stream, error) {
			return m.units[shard].proxy.Join(loop, event)
		},
		Listener: ln, Loops: m.loops, Password: m.deploy.Password, Log: m.log,
		Limits: front.Limits{Clients: c.Proxy.Clients, Query: int(c.Proxy.QueryBytes), Output: int(c.Proxy.OutputBytes)},
	})
	if err != nil {
		_ = ln.Close()
		return fmt.Errorf("set up the front of the shards: %w", err)
	}
	m.front = f
	m.faces.ProxyAddr = m.reach(ln.Addr().String())
	m.parts.start("front", func(ctx context.Context) error {
		for _, u := range m.units { // they have been started
			select {
			case <-u.proxy.Running():
			case <-ctx.Done():
			}
		}
		return f.Run(ctx)
	})
	return nil
}
