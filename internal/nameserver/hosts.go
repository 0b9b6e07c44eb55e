// SPDX-License-Identifier: Apache-2.0

package nameserver

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// The bounds of looking up hosts, where a configuration has names in place of addresses.
const (
	hostsEvery = 10 * time.Second
	hostsWait  = 2 * time.Second
	hostsMax   = 1024
)

// hosts knows the addresses of names. What could not be looked up again stays as it was.
type hosts struct {
	mu    sync.Mutex // guards what follows
	known map[string]lookedUp
}

type lookedUp struct {
	ips []netip.Addr
	at  time.Time
}

func newHosts() *hosts { return &hosts{known: map[string]lookedUp{}} }

// of returns the addresses of a host: its own, or those that were looked up.
func (h *hosts) of(host string) []netip.Addr {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap().WithZone("")}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[host].ips
}

// look looks up the names that were not looked up lately, and forgets those that nobody asks for any more.
func (h *hosts) look(ctx context.Context, names []string) {
	wanted := map[string]bool{}
	for _, name := range names {
		if _, err := netip.ParseAddr(name); err != nil && name != "" && len(wanted) < hostsMax {
			wanted[name] = true
		}
	}
	h.mu.Lock()
	for name := range h.known {
		if !wanted[name] {
			delete(h.known, name)
		}
	}
	for name := range wanted {
		if k, ok := h.known[name]; ok && time.Since(k.at) < hostsEvery {
			delete(wanted, name)
		}
	}
	h.mu.Unlock()
	for name := range wanted {
		asking, cancel := context.WithTimeout(ctx, hostsWait)
		ips, err := net.DefaultResolver.LookupNetIP(asking, "ip", name)
		cancel()
		h.mu.Lock()
		k := h.known[name]
		k.at = time.Now()
		if err == nil {
			k.ips = k.ips[:0:0]
			for _, ip := range ips {
				k.ips = append(k.ips, ip.Unmap())
			}
		}
		h.known[name] = k
		h.mu.Unlock()
	}
}
