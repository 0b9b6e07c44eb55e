// SPDX-License-Identifier: Apache-2.0

package view

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
)

// Reports is what agents and members said lately, for those who show it.
type Reports struct {
	Nodes   map[topo.NodeID]Seen
	Members []topo.MemberReport // sorted by id
}

// Seen is an agent's report, and how old it was when it was read.
type Seen struct {
	topo.Sighting
	Age time.Duration
}

// DecodeReports reads the store's reports. One that is not usable counts as not made.
func DecodeReports(beats map[string]coord.Beat) Reports {
	r := Reports{Nodes: map[topo.NodeID]Seen{}}
	for name, b := range beats {
		if id, ok := strings.CutPrefix(name, topo.BeatNode); ok {
			s := Seen{Age: b.Age}
			if json.Unmarshal(b.Body, &s.Sighting) == nil {
				r.Nodes[topo.NodeID(id)] = s
			}
		}
		if strings.HasPrefix(name, topo.BeatMember) {
			var m topo.MemberReport
			if json.Unmarshal(b.Body, &m) == nil {
				r.Members = append(r.Members, m)
			}
		}
	}
	slices.SortFunc(r.Members, func(x, y topo.MemberReport) int { return strings.Compare(x.ID, y.ID) })
	return r
}
