// SPDX-License-Identifier: Apache-2.0

package app

import (
	"redoubt/internal/accord"
	"redoubt/internal/coord"
)

// startAccord lets this member take part when the store is away.
func (u *unit) startAccord() {
	peers, ok := u.store.(coord.Peers)
	if !ok {
		return
	}
	var node accord.Node // nil, and not a nil pointer in it, without a data node
	if u.agent != nil {
		node = u.agent
	}
	a := accord.New(accord.Options{
		Member: u.o.Config.Member.ID, View: u.view, Clock: u.clock, Peers: peers, Node: node, Log: u.log, Events: u.event,
		Ring: u.ringStamp,
	})
	u.accord.Store(a)
	u.start("accord", a.Run)
}

// outage says how this member goes on without the store; empty while it answers.
func (u *unit) outage() string {
	a := u.accord.Load()
	if a == nil {
		return ""
	}
	return a.Words()
}
