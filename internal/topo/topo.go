// SPDX-License-Identifier: Apache-2.0

// Package topo is the vocabulary of Redoubt: what a shard is, what has been agreed about it and what was seen of it.
//
// It is not a place for decisions (failover, converge) or for I/O. Its invariant: every value is plain data that can
// be copied, compared, encoded and saved as a test case. It has no goroutines.
package topo

import (
	"strconv"
	"strings"
	"time"
)

// NodeID is the stable identity of one data node. Addresses change; the id never does.
type NodeID string

// Epoch grows with every change of primary and with every fencing. Zero means "never assigned".
type Epoch uint64

// Phase says what everybody has to do for a shard at its present epoch.
type Phase string

// The phases of a shard, in the order in which a failover passes through them.
const (
	PhaseNew       Phase = "new"       // never had a primary; nodes are frozen and wait for bootstrap
	PhaseServing   Phase = "serving"   // Primary may accept writes while its lease is good; the others follow it
	PhaseDraining  Phase = "draining"  // a switchover: proxies park, Primary fences itself and reports its final offset
	PhaseFencing   Phase = "fencing"   // nobody may write; every node freezes and reports its position
	PhasePromoting Phase = "promoting" // Elected, and nobody else, promotes; no proxy sends anything yet
)

// Durability is what an acknowledged write means.
type Durability string

// The durability modes of a shard.
const (
	Async      Durability = "async"       // acknowledged by the primary alone; bounded loss is possible
	Quorum     Durability = "quorum"      // acknowledged after AckReplicas replicas hold it
	QuorumDisk Durability = "quorum+disk" // acknowledged after it is on the disks of the primary and of AckReplicas replicas
)

// Waits reports whether a write waits for replicas before it is acknowledged.
func (d Durability) Waits() bool { return d == Quorum || d == QuorumDisk }

// OnDisk reports whether it waits for disks, too.
func (d Durability) OnDisk() bool { return d == QuorumDisk }

// DiskState says whether a server can be believed about what is on its disk (WAITAOF).
type DiskState string

// The states of a server's append-only file. A server that reports none has an agent that does not know this yet.
const (
	DiskUnknown DiskState = ""
	DiskUnable  DiskState = "unable" // Sighting.NoDisk says why, and what to do
	DiskAble    DiskState = "able"   // it has what it takes, and does not sync every write at the moment
	DiskSynced  DiskState = "synced" // it syncs every write
)

// Node is one data node in a shard's roster.
type Node struct {
	ID       NodeID `json:"id"`
	Host     string `json:"host,omitempty"`      // failure domain; empty means its own
	Zone     string `json:"zone,omitempty"`      // of the machine: reads prefer their own; empty: unknown
	Addr     string `json:"addr"`                // host:port at which the other nodes and the proxies reach its server
	Priority int    `json:"priority"`            // smaller is preferred among equals
	BusPort  int    `json:"bus_port,omitempty"`  // mode cluster: where the servers reach each other; 0: BusAbove the port of Addr
	ServerID string `json:"server_id,omitempty"` // mode cluster: its id there, if that does not follow from the names
}

// BusAbove is how far the port of a server's bus is above its own, unless something else is said: as servers have it.
const BusAbove = 10_000

// Bus is the port at which the other servers of a cluster reach this one; 0: its address has no such port.
func (n Node) Bus() int {
	if n.BusPort != 0 {
		return n.BusPort
	}
	port, err := strconv.Atoi(n.Addr[strings.LastIndexByte(n.Addr, ':')+1:])
	if err != nil || port <= 0 || port+BusAbove > 65535 {
		return 0
	}
	return port + BusAbove
}

// Spec is what the operator wants of a shard. It lives in the shard's document and changes by compare-and-swap.
type Spec struct {
	Deployment  string     `json:"deployment"`
	Nodes       []Node     `json:"nodes"` // sorted by ID
	Durability  Durability `json:"durability"`
	AckReplicas int        `json:"ack_replicas"` // k: replicas that must hold a write before it is acknowledged
	Timing      Timing     `json:"timing"`
	MaxLoss     Loss       `json:"max_loss,omitzero"`    // async only
	MinCopies   int        `json:"min_copies,omitempty"` // quorum with two nodes: 1 lets the primary go on alone; otherwise it does not
}

// Loss bounds what an asynchronous deployment can lose with its primary: acknowledged writes that no replica holds may be
// at most so old, and so many bytes. Zero: no bound.
type Loss struct {
	Time  Duration `json:"time,omitempty"`
	Bytes int64    `json:"bytes,omitempty"`
}

// HistoryEntry records that the history named ReplID began at offset Start, as a continuation of epoch Parent.
type HistoryEntry struct {
	Epoch  Epoch  `json:"epoch"`
	ReplID string `json:"replid"`
	Start  int64  `json:"start"`
	Parent Epoch  `json:"parent"` // effective epoch of the position that was elected; 0 for the first history
	Node   NodeID `json:"node"`   // who served it
}

// Elected names the one server process, and the exact position, that may be promoted in PhasePromoting (SAFETY A6).
type Elected struct {
	Node   NodeID `json:"node"`
	RunID  string `json:"run_id"`
	ReplID string `json:"replid"`
	Offset int64  `json:"offset"`
	Parent Epoch  `json:"parent"`          // effective epoch of that position
	Anew   bool   `json:"anew,omitempty"`  // all others have forgotten: once it serves, it alone is enrolled
	Lossy  string `json:"lossy,omitempty"` // why this choice may have lost writes; empty when it cannot have
}

// IntentKind is what an operator asked for.
type IntentKind string

// The operator intents that a shard's document can carry.
const (
	IntentSwitchover IntentKind = "switchover" // planned, polite, loses nothing
	IntentFailover   IntentKind = "failover"   // treat the primary as lost now
)

// Intent is an operator's pending request. At most one is pending for a shard.
type Intent struct {
	ID             string     `json:"id"`
	Kind           IntentKind `json:"kind"`
	To             NodeID     `json:"to,omitempty"` // empty: the best candidate
	By             string     `json:"by,omitempty"`
	Budget         Duration   `json:"budget"` // a switchover that takes longer is abandoned
	AcceptDataLoss bool       `json:"accept_data_loss,omitempty"`
}

// Outcome is what became of the last intent.
type Outcome struct {
	ID  string `json:"id"`
	OK  bool   `json:"ok"`
	Why string `json:"why"`
}

// Pause stops automatic failovers. What is already under way is finished, and intents are still obeyed.
type Pause struct {
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Assigned is the agreed order for a shard: what every agent and every proxy obeys.
type Assigned struct {
	Term     uint64            `json:"term"` // of the controller that wrote last; fences deposed controllers
	Epoch    Epoch             `json:"epoch"`
	Phase    Phase             `json:"phase"`
	Primary  NodeID            `json:"primary,omitempty"` // who may write (serving), or might still be writing (all other phases)
	RunID    string            `json:"run_id,omitempty"`  // the server process that was promoted for this tenure
	Secret   Secret            `json:"secret,omitempty"`  // what replicas of this tenure's primary must present (SAFETY A7); empty: replication is open
	Reason   string            `json:"reason,omitempty"`  // rule that led to this phase
	Why      string            `json:"why,omitempty"`     // that rule's sentence
	History  []HistoryEntry    `json:"history,omitempty"` // oldest first, bounded by HistoryMax
	Enrolled map[NodeID]string `json:"enrolled,omitempty"`
	Elected  *Elected          `json:"elected,omitempty"`
	Intent   *Intent           `json:"intent,omitempty"`
	Outcome  *Outcome          `json:"outcome,omitempty"`
	Paused   *Pause            `json:"paused,omitempty"`
	Rule     uint64            `json:"rule,omitempty"`   // number of the latest change: proxies' connections carry it
	Change   *Change           `json:"change,omitempty"` // under way
	Alone    NodeID            `json:"alone,omitempty"`  // the set of two has shrunk to this node: it alone has every acknowledged write
	Recent   []int64           `json:"recent,omitempty"` // wall clock (Unix ms) of the latest automatic failovers, for spacing
}

// Secret is a value that only agents may read: printed, it hides itself. Its JSON form is the value, because the document
// has to carry it; Shard.Redacted is the form to show.
type Secret string

// String hides the value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}

// GoString hides the value.
func (s Secret) GoString() string { return s.String() }

// HistoryMax bounds the recorded histories of a shard. A node older than that needs a full resync anyway.
const HistoryMax = 64

// Shard is the one versioned document about a shard. Controllers, agents and proxies meet only in it.
type Shard struct {
	Format   int      `json:"format"`
	ID       string   `json:"id"`
	Spec     Spec     `json:"spec"`
	Assigned Assigned `json:"assigned"`
}

// Redacted returns the document without what only agents may read: the form that is shown to people and programs.
func (s Shard) Redacted() Shard {
	s.Assigned.Secret = ""
	return s
}

// Format is the version of the shard document that this program writes.
const Format = 1

// Health says how one server answers, told apart by name.
type Health string

// The health of a server process, as its agent sees it.
const (
	HealthUnknown     Health = ""
	HealthUp          Health = "up"
	HealthLoading     Health = "loading"     // reads its data set
	HealthBusy        Health = "busy"        // runs a long script or command; the process is alive and working
	HealthStopped     Health = "stopped"     // the process is stopped by a signal (state T) or frozen
	HealthHung        Health = "hung"        // alive but does not answer, and is not busy
	HealthExited      Health = "exited"      // seen to exit by pidfd or parenthood
	HealthDenied      Health = "denied"      // answers, but refuses our credentials
	HealthUnreachable Health = "unreachable" // no connection; the process is out of sight
)

// Role is what a server says it is.
type Role string

// The roles of a server.
const (
	RoleUnknown Role = ""
	RolePrimary Role = "primary"
	RoleReplica Role = "replica"
)

// Position is where a server's data set stands (INFO replication).
type Position struct {
	ReplID  string `json:"replid,omitempty"`
	Offset  int64  `json:"offset"`
	ReplID2 string `json:"replid2,omitempty"` // the history before this server was promoted
	Offset2 int64  `json:"offset2"`           // first offset no longer in ReplID2; -1 when there is none
}

// Sighting is one agent's report about its own node. Sightings are lossy and have a time-to-live; nothing is decided
// by the absence of one alone before its age says so.
type Sighting struct {
	Node       NodeID   `json:"node"`
	AgentStart int64    `json:"agent_start"` // the agent's incarnation: grows with each of its starts, by the wall clock (Unix ns)
	Seq        uint64   `json:"seq"`         // grows with each sighting of one incarnation
	Epoch      Epoch    `json:"epoch"`       // epoch of the document this agent obeyed when it looked
	Phase      Phase    `json:"phase"`
	Promised   Epoch    `json:"promised"` // on disk: never follows or promotes for a lower epoch
	Health     Health   `json:"health"`
	HealthFor  Duration `json:"health_for"` // how long Health has been so
	Role       Role     `json:"role"`
	Frozen     bool     `json:"frozen"` // read back: a replica that follows the dead address
	Fenced     bool     `json:"fenced"` // takes no write and no client that could: frozen with clients cut, or seen to exit
	Whole      bool     `json:"whole"`  // not in the middle of a load or sync, cached primary present: the position is true (SAFETY C3)
	RunID      string   `json:"run_id,omitempty"`
	Pos        Position `json:"pos"`
	Backlog    bool     `json:"backlog"`             // repl_backlog_active: offsets are void without it (SAFETY A3)
	Following  string   `json:"following,omitempty"` // host:port it replicates from
	LinkUp     bool     `json:"link_up"`             // to Following
	InSync     Epoch    `json:"in_sync,omitempty"`   // this run id reached an offset of that epoch's primary that was read after the link came up
	Keys       int64    `json:"keys"`                // in all databases
	Kept       bool     `json:"kept"`                // this process loaded all that the seat ever held (append-only file intact)
	Mark       *Mark    `json:"mark,omitempty"`      // the commit marker in its data, while it is frozen; nil: not read, or a sync may have left a part of its data only
	Settings   []string `json:"settings,omitempty"`  // settings that would make it lie (SAFETY A10)
	Problems   []string `json:"problems,omitempty"`  // named troubles: disk-full, oom, …
	Open       bool     `json:"open,omitempty"`      // its server cannot be told who may replicate: an election must not demand a secret
	Refused    string   `json:"refused,omitempty"`   // why the order of this epoch was not carried out
	Starting   bool     `json:"starting,omitempty"`  // mode cluster: it is to become primary in this epoch, and its server began a moment ago

	Change   uint64   `json:"change,omitempty"`   // that is under way in the document which this agent obeyed when it looked
	Barrier  uint64   `json:"barrier,omitempty"`  // the change for which this process, in this epoch, has seen a barrier acknowledged
	Waits    string   `json:"waits,omitempty"`    // what its part of the change waits for
	Unlinked Duration `json:"unlinked,omitempty"` // for how long a replica's link to the primary has been down

	Disk   DiskState `json:"disk,omitempty"`
	NoDisk string    `json:"no_disk,omitempty"` // DiskUnable: why, and what to do

	Impaired    string   `json:"impaired,omitempty"`     // the problem under which it answers but refuses writes: "disk-full", "no-disk"; empty when there is none
	ImpairedFor Duration `json:"impaired_for,omitempty"` // how long that has been so

	Addr     string `json:"addr,omitempty"`      // where the server listens
	BusPort  int    `json:"bus_port,omitempty"`  // mode cluster: as in Node
	ServerID string `json:"server_id,omitempty"` // likewise
	PID      int    `json:"pid,omitempty"`       // of the server
	AgentPID int    `json:"agent_pid,omitempty"`
	Version  string `json:"version,omitempty"` // of the server
}

// OlderThan reports whether t, of the same node, was made after s: a report that was stuck somewhere must not replace it.
func (s Sighting) OlderThan(t Sighting) bool {
	if s.AgentStart != t.AgentStart {
		return s.AgentStart < t.AgentStart
	}
	return s.Seq < t.Seq
}

// Node returns the roster entry of id.
func (s Spec) Node(id NodeID) (Node, bool) {
	for _, n := range s.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return Node{}, false
}

// Witnesses returns how many frozen, enrolled nodes an election needs: N − k, so that any such set intersects every
// set of holders of an acknowledged write (SAFETY 0). An asynchronous shard needs one.
func (s Spec) Witnesses() int {
	if s.Durability.Waits() {
		return len(s.Nodes) - s.AckReplicas
	}
	return 1
}

// Clone returns a deep copy, so that a decision never changes its input.
func (a Assigned) Clone() Assigned {
	c := a
	c.History = append([]HistoryEntry(nil), a.History...)
	c.Recent = append([]int64(nil), a.Recent...)
	c.Enrolled = make(map[NodeID]string, len(a.Enrolled))
	for id, run := range a.Enrolled {
		c.Enrolled[id] = run
	}
	if a.Elected != nil {
		e := *a.Elected
		c.Elected = &e
	}
	if a.Intent != nil {
		i := *a.Intent
		c.Intent = &i
	}
	if a.Outcome != nil {
		o := *a.Outcome
		c.Outcome = &o
	}
	if a.Paused != nil {
		p := *a.Paused
		c.Paused = &p
	}
	if a.Change != nil {
		x := *a.Change
		c.Change = &x
	}
	return c
}

// Duration is a time.Duration that is written with its unit ("700ms") in documents.
type Duration time.Duration

// D returns the standard library's form.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String returns the duration with its unit.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the duration with its unit.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads a duration with its unit.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}
