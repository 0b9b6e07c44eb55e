// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"

	"redoubt/internal/front"
	"redoubt/internal/proxy"
)

// Giving away the clients, at the end of a hand-over (ADR 0016, 0050).

// giveClients hands over client by client. Those that cannot be given away in time are disconnected when this process ends.
func (m *member) giveClients(ctx context.Context, h *heir) error {
	if m.units[0].proxy == nil {
		notify(m.log, fmt.Sprintf("MAINPID=%d", h.cmd.Process.Pid))
		return h.send(whatDone, struct{}{})
	}
	if err := m.giveLore(h); err != nil {
		return err
	}
	began := m.clock.Uptime()
	ctx, cancel := context.WithTimeout(ctx, m.o.Config.Proxy.UpgradeDrain.D())
	defer cancel()
	hurried := make(chan struct{})
	defer func() { <-hurried }()
	go func() { // ends with ctx
		defer close(hurried)
		select {
		case <-ctx.Done():
		case mode := <-m.o.Stop: // whoever asks this process means the member
			_ = h.cmd.Process.Signal(mode.signal())
			cancel()
		case _, more := <-h.frames:
			if !more {
				cancel()
			}
		}
	}()
	leave := m.leaveProxy
	if m.front != nil {
		leave = m.leaveFront
	}
	given, left, err := leave(ctx, h)
	cancel()
	if err == nil {
		err = h.send(whatDone, struct{}{})
	}
	if err != nil {
		return err
	}
	m.units[0].proxy.GaveAway()
	notify(m.log, fmt.Sprintf("MAINPID=%d", h.cmd.Process.Pid))
	m.log.Info("clients were handed over", "given", given, "left", left, "took", m.clock.Uptime()-began)
	return nil
}

// giveLore tells what clients have loaded.
func (m *member) giveLore(h *heir) error {
	if m.front == nil {
		for _, s := range m.units[0].proxy.Scripts() {
			if err := h.send(whatScript, s); err != nil {
				return err
			}
		}
		return nil
	}
	scripts, functions := m.front.Lore()
	all := lores("", false, scripts)
	all = append(all, lores("", true, functions)...)
	for _, u := range m.all() {
		if u.proxy != nil {
			all = append(all, lores(u.deploy.ID(), false, u.proxy.Scripts())...)
		}
	}
	for _, l := range all {
		if err := h.send(whatLore, l); err != nil {
			return err
		}
	}
	return nil
}

// lore is a script, or functions, that clients have loaded.
type lore struct {
	Shard     string `json:"shard,omitempty"` // whose proxy knows it; empty: the front
	Functions bool   `json:"functions,omitempty"`
	Body      []byte `json:"body"`
}

func lores(shard string, functions bool, bodies [][]byte) []lore {
	var all []lore
	for _, b := range bodies {
		all = append(all, lore{shard, functions, b})
	}
	return all
}

// leaveProxy gives away the clients of the one proxy.
func (m *member) leaveProxy(ctx context.Context, h *heir) (given, left int, err error) {
	left, err = m.units[0].proxy.Leave(ctx, func(g proxy.Given) error {
		body, err := g.Record.Encode()
		if err != nil {
			return err
		}
		if len(body) > hatchFrameMax {
			return proxy.ErrTooLarge
		}
		given++
		if g.Upstream >= 0 {
			return h.send(whatClient, jsonText(body), g.Client, g.Upstream)
		}
		return h.send(whatClient, jsonText(body), g.Client)
	})
	return given, left, err
}

// leaveFront gives away the clients of the front, with what they have at the shards' proxies.
func (m *member) leaveFront(ctx context.Context, h *heir) (given, left int, err error) {
	proxies := func(do func(*proxy.Proxy)) {
		for _, u := range m.all() {
			if u.proxy != nil {
				do(u.proxy)
			}
		}
	}
	left, err = m.front.Leave(ctx, front.Farewell{
		Give: func(g front.Given) error {
			body, err := g.Record.Encode()
			if err != nil {
				return err
			}
			files := slices.DeleteFunc(append([]int{g.Client}, g.Shards...), func(fd int) bool { return fd < 0 })
			if len(body) > hatchFrameMax || len(files) > hatchFilesMax {
				return front.ErrTooLarge
			}
			given++
			return h.send(whatFront, jsonText(body), files...)
		},
		Free: func() { proxies((*proxy.Proxy).FreeBlocked) },
		Linger: func() { // clients have asked each shard: one tells them
			m.all()[0].proxy.SayMoving(ctx)
		},
	})
	return given, left, err
}

// endServing ends what is left of the clients of several shards. The new process answers for this one when a ring changes, as soon as it has hung up: so
// nothing may be on its way to a server from here then.
func (m *member) endServing() {
	if m.front == nil {
		return
	}
	m.parts.stop(m.log, "front", "proxy")
	for _, u := range m.opened()[len(m.units):] {
		u.parts.stop(m.log, "proxy")
	}
}

// jsonText is encoded already.
type jsonText []byte

// MarshalJSON implements json.Marshaler.
func (t jsonText) MarshalJSON() ([]byte, error) { return t, nil }
