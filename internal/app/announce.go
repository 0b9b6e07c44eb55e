// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"redoubt/internal/address"
	"redoubt/internal/api"
	"redoubt/internal/consul"
	"redoubt/internal/nameserver"
	"redoubt/internal/render"
	"redoubt/internal/view"
)

// openBoard makes what the announcing faces show.
func (m *member) openBoard() error {
	var parts []view.Part
	for _, u := range m.units {
		parts = append(parts, m.boardPart(u))
	}
	b, err := view.NewBoard(view.BoardOptions{Deployment: m.deploy.Name, Mode: m.deploy.Mode, Parts: parts, Beats: m.store, Clock: m.clock})
	if err != nil {
		return fmt.Errorf("set up what is announced: %w", err)
	}
	for _, u := range m.all() {
		if !slices.Contains(m.units, u) {
			b.Add(m.boardPart(u))
		}
	}
	m.board = b
	return nil
}

func (m *member) boardPart(u *unit) view.Part {
	p := view.Part{ID: u.deploy.ID(), Name: u.deploy.Shard, View: u.view, Ring: u.ringPlace}
	if m.slots != nil {
		p.Slots = u.slotsText
	}
	return p
}

// ringPlace is the shard's label and weight in the ring that is agreed, or in that of the member's file as long as nothing else is. Where
// there is no ring it is as if it were one of equals.
func (u *unit) ringPlace() (label string, weight int) {
	if u.member.deploy.Mode != "ring" {
		return cmp.Or(u.deploy.Shard, u.deploy.ID()), 1
	}
	shards := u.ringOfFile()
	if u.ring != nil {
		if doc, _, known, _ := u.ring.get(); known && len(doc.Shards) > 0 {
			shards = doc.Shards
		}
	}
	for _, s := range shards {
		if s.Name == u.deploy.Shard {
			return s.Label, int(s.Weight)
		}
	}
	return u.deploy.Shard, 0 // it has no keys yet, or none any more
}

// startDiscovery starts the faces that announce what the board shows, where the configuration asks for any.
func (m *member) startDiscovery() error {
	c := m.o.Config
	m.names = nil
	m.rendered, m.consul, m.address = nil, nil, nil
	if err := m.startAddress(); err != nil {
		return err
	}
	if c.DNS.Listen == "" && len(c.Templates) == 0 && c.Consul.Address == "" {
		return nil
	}
	m.parts.start("board", m.board.Run)
	if err := m.startNames(); err != nil {
		return err
	}
	if err := m.startTemplates(); err != nil {
		return err
	}
	return m.startConsul()
}

// addressStatus is what the status shows of the floating address; nil: there is none.
func (m *member) addressStatus() *api.AddressStatus {
	if m.address == nil {
		return nil
	}
	doc, fresh := m.address.Agreed()
	c := m.o.Config.Address
	a := &api.AddressStatus{IP: c.IP, Interface: c.Interface, Epoch: doc.Epoch, Why: doc.Why, Stale: !fresh}
	switch doc.Phase {
	case address.PhaseHeld:
		a.Holder = doc.Holder
	case address.PhaseMoving:
		a.Leaving = doc.Holder
	}
	return a
}

// startAddress starts what keeps the floating address. The timing is that of the first shard.
func (m *member) startAddress() error {
	c := m.o.Config.Address
	prefix, err := c.Prefix()
	if err != nil || !prefix.IsValid() {
		return err
	}
	timing := m.units[0].deploy.Spec().Timing
	a, err := address.New(address.Options{
		Name: m.deploy.Name, Address: prefix, Interface: c.Interface, Member: m.o.Config.Member.ID, Store: m.store, Command: m.o.HoldCommand, Healthy: m.proxies,
		Lease: timing.Lease.D(), Margin: timing.Margin.D(), Silence: timing.Silence.D(), Clock: m.clock, Log: m.log, Events: m.event,
	})
	if err != nil {
		return err
	}
	m.address = a
	m.parts.start("address", a.Run)
	return nil
}

// proxies reports whether this member should have clients sent to its proxy.
func (m *member) proxies() (bool, string) {
	for _, u := range m.all() {
		if u.proxy == nil {
			return false, "it has no proxy"
		}
		if !u.view.Load().Fresh(m.clock.Uptime()) {
			return false, "the store does not answer it"
		}
	}
	return true, ""
}

func (m *member) startConsul() error {
	c := m.o.Config.Consul
	if c.Address == "" {
		return nil
	}
	token, err := c.Secret()
	if err != nil {
		return fmt.Errorf("tell Consul: token-file: %w", err)
	}
	secure, err := c.TLS.Config()
	if err != nil {
		return fmt.Errorf("tell Consul: %w", err)
	}
	a, err := consul.New(consul.Options{
		Address: c.Address, Token: token, TLS: secure, Service: c.Service, Prefix: c.KeyPrefix, TTL: c.TTL.D(), Member: m.o.Config.Member.ID,
		Board: m.board, Clock: m.clock, Log: m.log, Events: m.event,
	})
	if err != nil {
		return err
	}
	m.consul = a
	m.parts.start("consul", a.Run)
	return nil
}

func (m *member) startNames() error {
	c := m.o.Config
	if c.DNS.Listen == "" {
		return nil
	}
	n, err := nameserver.New(nameserver.Options{
		Listen: c.DNS.Listen, Zone: c.DNS.Zone, TTL: c.DNS.TTL.D(), Host: c.Member.Host, Member: c.Member.ID, Board: m.board, Clock: m.clock, Log: m.log,
	})
	if err != nil {
		return err
	}
	m.names = n
	m.faces.DNSAddr = m.reach(n.Addr())
	m.parts.start("dns", n.Run)
	return nil
}

func (m *member) startTemplates() error {
	var files []render.File
	for _, t := range m.o.Config.Templates {
		mode, err := t.Perm()
		if err != nil {
			return fmt.Errorf("set up the templates: mode: %w", err)
		}
		files = append(files, render.File{Source: t.Source, Target: t.Target, Check: t.Check, Reload: t.Reload, Mode: mode, Timeout: t.Timeout.D()})
	}
	if len(files) == 0 {
		return nil
	}
	r, err := render.New(render.Options{
		Files: files, Member: m.o.Config.Member.ID, Board: m.board, Dir: filepath.Join(m.o.Config.Member.Dir, "templates"), Clock: m.clock, Log: m.log, Events: m.event,
	})
	if err != nil {
		return fmt.Errorf("set up the templates: %w", err)
	}
	m.rendered = r
	m.parts.start("templates", r.Run)
	return nil
}

// discoveryMetrics adds the numbers of the announcing faces.
func (m *member) discoveryMetrics(w io.Writer) {
	if m.rendered != nil {
		all := m.rendered.States()
		for _, x := range []struct {
			name, kind, help string
			value            func(render.State) float64
		}{
			{"redoubt_template_loads_total", "counter", "Texts that were put in place and loaded.", func(s render.State) float64 { return float64(s.Loads) }},
			{"redoubt_template_failures_total", "counter", "Attempts that did not work.", func(s render.State) float64 { return float64(s.Fails) }},
			{"redoubt_template_failing", "gauge", "1 while the latest attempt did not work.", func(s render.State) float64 { return map[bool]float64{true: 1}[s.Error != ""] }},
		} {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", x.name, x.help, x.name, x.kind)
			for _, s := range all {
				fmt.Fprintf(w, "%s{target=%q} %g\n", x.name, s.Target, x.value(s))
			}
		}
	}
	if m.address != nil {
		here, moves := m.address.Holding()
		fmt.Fprintf(w, "# HELP redoubt_address_held 1 on the member that holds the floating address.\n# TYPE redoubt_address_held gauge\nredoubt_address_held %d\n", map[bool]int{true: 1}[here])
		fmt.Fprintf(w, "# HELP redoubt_address_moves_total How often the floating address came to this member or left it.\n# TYPE redoubt_address_moves_total counter\nredoubt_address_moves_total %d\n", moves)
	}
	if m.consul != nil {
		changes, failures := m.consul.Stats()
		fmt.Fprintf(w, "# HELP redoubt_consul_changes_total Changes that Consul was told.\n# TYPE redoubt_consul_changes_total counter\nredoubt_consul_changes_total %d\n", changes)
		fmt.Fprintf(w, "# HELP redoubt_consul_failures_total Rounds in which Consul could not be told all.\n# TYPE redoubt_consul_failures_total counter\nredoubt_consul_failures_total %d\n", failures)
	}
	if m.names == nil {
		return
	}
	answers, empty, refused := m.names.Stats()
	fmt.Fprintf(w, "# HELP redoubt_dns_questions_total DNS questions, by what they were answered with.\n# TYPE redoubt_dns_questions_total counter\n")
	fmt.Fprintf(w, "redoubt_dns_questions_total{answer=\"records\"} %d\nredoubt_dns_questions_total{answer=\"none\"} %d\nredoubt_dns_questions_total{answer=\"error\"} %d\n", answers, empty, refused)
}
