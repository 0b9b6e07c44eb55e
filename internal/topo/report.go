// SPDX-License-Identifier: Apache-2.0

package topo

// Names of the reports (coord.Beats) and documents that members exchange.
const (
	BeatNode       = "node/"       // + node id: a Sighting
	BeatMember     = "member/"     // + member id: a MemberReport
	BeatController = "controller/" // + shard id: a ControllerReport
	BeatSalvage    = "salvage/"    // + member id: its latest Salvage descriptions, as a list
	KeyShard       = "shard/"      // + shard id: a Shard
	KeyTimeline    = "timeline/"   // + shard id: a Timeline
	KeySlots       = "slots/"      // + deployment: mode cluster: which shard has which slots
)

// MemberReport says where one member's process and its faces are.
type MemberReport struct {
	ID           string `json:"id"`
	PID          int    `json:"pid"`
	Version      string `json:"version"`
	StartedMS    int64  `json:"started_ms"` // wall clock, Unix ms
	ProxyAddr    string `json:"proxy_addr,omitempty"`
	ReadonlyAddr string `json:"readonly_addr,omitempty"`
	SentinelAddr string `json:"sentinel_addr,omitempty"`
	APIAddr      string `json:"api_addr,omitempty"`
	StoreAddr    string `json:"store_addr,omitempty"`
}

// ControllerReport is what the controller last thought about a shard.
type ControllerReport struct {
	Member string  `json:"member"`
	Rule   string  `json:"rule"`
	Why    string  `json:"why"`
	Traces []Trace `json:"traces"`
}

// Trace is one rule of a decision: whether it matched, and the fact that settled it.
type Trace struct {
	Rule    string `json:"rule"`
	Matched bool   `json:"matched"`
	Reached bool   `json:"reached"` // false: an earlier rule matched first
	Why     string `json:"why"`
}

// Timeline is the bounded record of what was decided for a shard, oldest first.
type Timeline struct {
	Format int             `json:"format"`
	Events []TimelineEvent `json:"events"`
}

// TimelineMax bounds a timeline; older events are dropped.
const TimelineMax = 400

// TimelineEvent is one change of a shard's document.
type TimelineEvent struct {
	AtMS    int64  `json:"at_ms"` // wall clock of the controller, Unix ms
	Member  string `json:"member"`
	Epoch   Epoch  `json:"epoch"`
	Phase   Phase  `json:"phase"`
	Primary NodeID `json:"primary,omitempty"`
	Rule    string `json:"rule"`
	Why     string `json:"why"`
}
