// SPDX-License-Identifier: Apache-2.0

package topo

// Names of the reports (coord.Beats) and documents that members exchange.
const (
	BeatNode       = "node/"       // + node id: a Sighting
	BeatMember     = "member/"     // + member id: a MemberReport
	BeatController = "controller/" // + shard id: a ControllerReport
	BeatSalvage    = "salvage/"    // + member id: its latest Salvage descriptions, as a list
	BeatCluster    = "cluster/"    // + member id: a ClusterBook
	KeyShard       = "shard/"      // + shard id: a Shard
	KeyTimeline    = "timeline/"   // + shard id: a Timeline
	KeySlots       = "slots/"      // + deployment: mode cluster: which shard has which slots
	KeyRing        = "ring/"       // + deployment: mode ring: which shards have a part in it, once that was changed
	KeyShards      = "shards/"     // + deployment: mode cluster: shards that came after it was created
	KeyReshard     = "reshard/"    // + deployment: mode cluster: how slots are being moved
	KeyAdopted     = "adopted/"    // + deployment: mode cluster: an Adopted
	KeyAdoption    = "adoption/"   // + deployment: an Adoption
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
	DNSAddr      string `json:"dns_addr,omitempty"`
	ChecksAddr   string `json:"checks_addr,omitempty"` // of the port for load balancers and monitors
	StoreAddr    string `json:"store_addr,omitempty"`

	Adoption        AdoptionState `json:"adoption,omitempty"`         // what this member does, where the deployment begins on order
	AdoptionProblem string        `json:"adoption_problem,omitempty"` // what is in the way of it
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

// ClusterBook is what the servers of one member say about their cluster.
type ClusterBook struct {
	Member   string           `json:"member"`
	Servers  int              `json:"servers"` // that this member looks after
	Findings []ClusterFinding `json:"findings"`
}

// ClusterFinding is one thing about a cluster that is not as it should be.
type ClusterFinding struct {
	Server string `json:"server"` // that sees it: shard and node
	Name   string `json:"name"`
	Text   string `json:"text"`
	Does   string `json:"does,omitempty"`   // what is done about it without anybody
	Person string `json:"person,omitempty"` // what a person has to do
}

// Adopted says what a cluster was like that was there before, so that it can be handed back.
type Adopted struct {
	Format   int                    `json:"format"`
	Servers  map[string]FoundServer `json:"servers"`            // by their ids
	Released *Pause                 `json:"released,omitempty"` // it was handed back: who did it, and why; nobody touches the servers any more
}

// FoundServer is what one server of an adopted cluster was like.
type FoundServer struct {
	Addr     string            `json:"addr"`
	Settings map[string]string `json:"settings"`
	Auth     bool              `json:"auth"` // its masterauth was the deployment's password
}
