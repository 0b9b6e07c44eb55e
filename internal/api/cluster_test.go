// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
)

// TestWhatAClusterCannotDoIsRefused: before anything is written.
func TestWhatAClusterCannotDoIsRefused(t *testing.T) {
	o := NewOrders(memstore.New(clock.Real{}, "m1").Member("m1"), "big-a")
	o.cluster = true
	quorum := topo.Quorum
	for name, err := range map[string]error{
		"durability": o.Set(t.Context(), Settings{Durability: &quorum}),
		"max-loss":   o.Set(t.Context(), Settings{MaxLoss: &topo.Loss{Time: topo.Duration(time.Second)}}),
		"node add":   o.AddNode(t.Context(), NodeRequest{Node: topo.Node{ID: "n9", Addr: "127.0.0.1:1"}}),
		"node":       o.RemoveNode(t.Context(), "n1", "somebody"),
	} {
		var e *Error
		if !errors.As(err, &e) || e.Code != "not-in-cluster" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
