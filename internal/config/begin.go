// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
)

// OnOrder reports whether the members leave the servers alone until they are told to take them over.
func (d Deployment) OnOrder() bool { return d.Begin == "on-order" }

// validate checks what only the face that speaks Sentinel's protocol needs.
func (s Sentinel) validate(f *findings) {
	if s.Username != "" && s.Password == "" {
		f.add("sentinel.username", "needs sentinel.password too")
	}
	for _, p := range []struct{ path, program string }{{"sentinel.notification-script", s.NotificationScript}, {"sentinel.client-reconfig-script", s.ClientReconfigScript}} {
		if p.program != "" && !filepath.IsAbs(p.program) {
			f.add(p.path, "%q: write the absolute path of a program", p.program)
		}
	}
	for i, a := range s.Announce {
		path := fmt.Sprintf("sentinel.announce[%d]", i)
		if _, err := netip.ParsePrefix(a.Clients); err != nil {
			f.add(path+".clients", "%q is not a subnet: write for example 192.168.0.0/16", a.Clients)
		}
		for from, to := range a.Map {
			_, _, one := net.SplitHostPort(from)
			_, _, other := net.SplitHostPort(to)
			if (one == nil) != (other == nil) || from == "" || to == "" {
				f.add(path+".map", "%q to %q: map host:port to host:port, or a host to a host", from, to)
			}
		}
	}
}

// validateBegin refuses what cannot wait: a server that Redoubt starts has nobody else who keeps it.
func (d Deployment) validateBegin(f *findings, path string) {
	f.oneOf(path+".begin", d.Begin, "at-once", "on-order")
	if !d.OnOrder() {
		return
	}
	if d.Mode != "single" {
		f.add(path+".begin", "on-order is for mode single in this version: use at-once")
	}
	if d.Node != nil && d.Node.Kind != "attached" {
		f.add(path+".begin", "on-order is for servers that somebody else starts: use at-once, or kind: attached")
	}
}
