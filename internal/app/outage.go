// SPDX-License-Identifier: Apache-2.0

package app

import (
	"redoubt/internal/accord"
	"redoubt/internal/coord"
)

// startAccord lets this member take part when the store is away.
func (m *member) startAccord() {
	peers, ok := m.store.(coord.Peers)
	if !ok {
		return
	}
	var node accord.Node // nil, and not a nil pointer in it, without a data node
	if m.agent != nil {
		node = m.agent
	}
	m.accord = accord.New(accord.Options{
		Member: m.o.Config.Member.ID, View: m.view, Clock: m.clock, Peers: peers, Node: node, Log: m.log, Events: m.event,
	})
	m.parts.start("accord", m.accord.Run)
}

// outage says how this member goes on without the store; empty while it answers.
func (m *member) outage() string {
	if m.accord == nil {
		return ""
	}
	return m.accord.Words()
}
