// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"net"
	"net/netip"

	"redoubt/internal/api"
	"redoubt/internal/sentinel"
	"redoubt/internal/topo"
)

// sentinelOptions are what the face that speaks Sentinel's protocol needs.
func (m *member) sentinelOptions(ln net.Listener) sentinel.Options {
	c := m.o.Config
	o := sentinel.Options{
		Listen: c.Sentinel.Listen, Listener: ln, Advertise: m.reach(c.Sentinel.Listen), Masters: m.masters(),
		Member: c.Member.ID, ProxyAddr: m.faces.ProxyAddr, Username: c.Sentinel.Username, Password: c.Sentinel.Password, Resolve: c.Sentinel.Resolve,
		Scripts: sentinel.Scripts{Notification: c.Sentinel.NotificationScript, Reconfig: c.Sentinel.ClientReconfigScript},
		Version: m.o.Version, Clock: m.clock, Log: m.log, Voters: func() int { return int(m.voters.Load()) },
	}
	for _, a := range c.Sentinel.Announce {
		subnet, err := netip.ParsePrefix(a.Clients)
		if err == nil { // the configuration was validated
			o.Announce = append(o.Announce, sentinel.Announce{Clients: subnet.Masked(), Map: a.Map})
		}
	}
	return o
}

// masters are what clients know by name: the deployment, or each shard of a ring whose servers they reach themselves.
func (m *member) masters() []sentinel.Master {
	mode := sentinel.Mode(m.o.Config.Sentinel.Addresses)
	if mode != sentinel.ModeDirect || !m.deploy.Sharded() {
		u := m.units[0]
		return []sentinel.Master{{Name: m.deploy.Name, Mode: mode, View: u.view, Beats: u.store, Failover: u.sentinelFailover}}
	}
	var all []sentinel.Master
	for _, u := range m.units {
		all = append(all, sentinel.Master{Name: u.deploy.ID(), Mode: mode, View: u.view, Beats: u.store, Failover: u.sentinelFailover})
	}
	return all
}

func (u *unit) sentinelFailover(ctx context.Context) error {
	_, err := u.orders.Submit(ctx, api.IntentRequest{Kind: topo.IntentSwitchover, By: "sentinel face of " + u.o.Config.Member.ID})
	return err
}
