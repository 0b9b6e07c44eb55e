// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"net"

	"redoubt/internal/front"
	"redoubt/internal/proxy"
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
	ln, err := m.inherited.listener("front", c.Proxy.Listen)
	if err == nil && ln == nil {
		ln, err = net.Listen("tcp", c.Proxy.Listen)
	}
	if err != nil {
		return fmt.Errorf("open the proxy's port: %w", err)
	}
	o := front.Options{
		Shards: shards, Table: m.units[0].proxy.Table, Listener: ln, Loops: m.loops, Password: m.deploy.Password, Log: m.log,
		Join: func(shard, loop int, event func()) (front.Stream, error) {
			return m.opened()[shard].proxy.Join(loop, event)
		},
		Rejoin: func(shard, loop int, event func(), record []byte, file int) (front.Stream, error) {
			return m.opened()[shard].proxy.Rejoin(loop, event, record, file)
		},
		FirstID: m.firstID,
		Limits:  front.Limits{Clients: c.Proxy.Clients, Query: int(c.Proxy.QueryBytes), Output: int(c.Proxy.OutputBytes)},
	}
	var face *clusterFace
	var placed *placement
	if m.slots != nil {
		o.Cluster = &front.Cluster{Map: m.slots.Routes}
		if c.Proxy.ClusterFace != "off" {
			face = &clusterFace{m: m, heard: map[string]heard{}, addr: m.reach(ln.Addr().String())}
			o.Cluster.Face = face.now.Load
		}
	} else if m.ring != nil {
		o.Ring = m.ring.now.Load
	} else {
		if placed, err = newPlacement(m.deploy.RingSpec()); err != nil {
			_ = ln.Close()
			return fmt.Errorf("place keys on the ring: %w", err)
		}
		o.Place = placed.shard
	}
	f, err := front.New(o)
	if err != nil {
		_ = ln.Close()
		return fmt.Errorf("set up the front of the shards: %w", err)
	}
	m.front = f
	m.holder.Store(f)
	m.faces.ProxyAddr = m.reach(ln.Addr().String())
	m.parts.start("front", func(ctx context.Context) error {
		for _, u := range m.units { // they have been started
			select {
			case <-u.proxy.Running():
			case <-ctx.Done():
			}
		}
		if err := m.awaitPlaces(ctx); err != nil {
			_ = ln.Close()
			return err
		}
		return f.Run(ctx)
	})
	if face != nil {
		m.parts.start("cluster face", face.run)
	}
	if after := m.deploy.Ring.EjectAfter.D(); after > 0 && placed != nil {
		m.parts.start("ejection", func(ctx context.Context) error { return m.eject(ctx, placed, after) })
	}
	return nil
}

// awaitPlaces waits until it is known where keys are: who comes earlier waits at the port.
func (m *member) awaitPlaces(ctx context.Context) error {
	switch {
	case m.slots != nil:
		return m.awaitShards(ctx)
	case m.ring != nil:
		return m.ring.await(ctx)
	}
	return nil
}
