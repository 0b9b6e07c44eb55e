// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"slices"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// Status is the fixed contract for scripts: fields are added, never renamed or removed, while Format stays the same.
type Status struct {
	Format      int                `json:"format"` // 1
	At          time.Time          `json:"at"`
	Member      string             `json:"member"`     // who answered
	Version     string             `json:"version"`    // of that member
	Controller  string             `json:"controller"` // member id; "" when there is none
	Stale       bool               `json:"stale"`      // the store did not answer: this is what the member knew last
	Deployments []DeploymentStatus `json:"deployments"`
	Sentinels   []FaceStatus       `json:"sentinels"`
	Members     []MemberStatus     `json:"members"`
	Store       *coord.Health      `json:"store,omitempty"`   // as the member that answered sees a store outside; absent with the embedded one
	Address     *AddressStatus     `json:"address,omitempty"` // the floating address; absent where there is none
	Problems    []string           `json:"problems"`          // what an operator should know, one sentence each
}

// DeploymentStatus is one deployment.
type DeploymentStatus struct {
	Name        string          `json:"name"`
	Mode        string          `json:"mode"`
	Durability  topo.Durability `json:"durability"`
	AckReplicas int             `json:"ack_replicas"`
	MaxLoss     topo.Loss       `json:"max_loss,omitzero"`    // async: the dial
	MinCopies   int             `json:"min_copies,omitempty"` // quorum with two nodes
	Shards      []ShardStatus   `json:"shards"`
	Proxies     []ProxyStatus   `json:"proxies"`
}

// ShardStatus is one shard. Epoch, Phase and Primary are what was agreed; Nodes are what was reported.
type ShardStatus struct {
	ID        string        `json:"id"`
	Epoch     topo.Epoch    `json:"epoch"`
	Phase     topo.Phase    `json:"phase"`
	Primary   topo.NodeID   `json:"primary"`          // node id; meaningful as "who may write" in phase serving only
	Reason    string        `json:"reason,omitempty"` // rule that led to this phase, and its sentence
	Why       string        `json:"why,omitempty"`
	Witnesses int           `json:"witnesses"` // enrolled nodes that an election needs
	Paused    *topo.Pause   `json:"paused,omitempty"`
	Intent    *topo.Intent  `json:"intent,omitempty"`
	Outcome   *topo.Outcome `json:"outcome,omitempty"`
	Change    *ChangeStatus `json:"change,omitempty"` // of durability, ack-replicas or the roster, under way
	Copies    int           `json:"copies"`           // nodes that hold a write at least when it is acknowledged
	Alone     topo.NodeID   `json:"alone,omitempty"`  // the one node that has every acknowledged write
	Nodes     []NodeStatus  `json:"nodes"`
	Slots     string        `json:"slots,omitempty"`      // mode cluster: ranges between commas
	PledgedBy []topo.NodeID `json:"pledged_by,omitempty"` // the store is away, and the primary goes on because these promised not to freeze
}

// NodeStatus is one data node, as its agent reported it last.
type NodeStatus struct {
	ID       topo.NodeID `json:"id"`
	Host     string      `json:"host"`
	Addr     string      `json:"addr"`
	Role     topo.Role   `json:"role"`      // what the server says it is; "" when unknown
	PID      int         `json:"pid"`       // of the server; 0 when it does not run or is not ours to see
	AgentPID int         `json:"agent_pid"` // of the Redoubt process beside it; 0 when it does not report
	Offset   int64       `json:"offset"`    // replication offset, bytes
	Lag      *int64      `json:"lag"`       // bytes behind the primary; null when unknown
	State    string      `json:"state"`     // one of the State… words
	Enrolled bool        `json:"enrolled"`  // its position counts in an election
	Frozen   bool        `json:"frozen"`
	Fenced   bool        `json:"fenced"`
	RunID    string      `json:"run_id,omitempty"`
	Keys     int64       `json:"keys"`
	Version  string      `json:"server_version,omitempty"`
	AgeMS    int64       `json:"age_ms"` // since the report arrived
	Problems []string    `json:"problems,omitempty"`
}

// The states of a node besides the topo.Health words other than "up".
const (
	StateNoReport  = "no-report" // its agent has not reported lately
	StateServing   = "serving"   // the agreed primary, and it is one
	StateFollowing = "following" // a replica in step with its primary
	StateSyncing   = "syncing"   // a replica that is not in step yet
	StateFrozen    = "frozen"    // read-only, follows nobody
	StateStray     = "stray"     // a primary that nobody agreed on; its agent is about to fence it
)

// ProxyStatus is one member's proxy.
type ProxyStatus struct {
	Member       string `json:"member"`
	Addr         string `json:"addr"`
	ReadonlyAddr string `json:"readonly_addr"`
	PID          int    `json:"pid"`
}

// FaceStatus is one member's Sentinel face.
type FaceStatus struct {
	Member string `json:"member"`
	Addr   string `json:"addr"`
	PID    int    `json:"pid"`
}

// MemberStatus is one member of the store and what it reports about itself.
type MemberStatus struct {
	topo.MemberReport
	Controller bool `json:"controller"`
	Alive      bool `json:"alive"` // reports
}

// facts are all inputs of a status. The functions below compute it without I/O.
type facts struct {
	now        time.Time
	mode       string
	member     string
	version    string
	controller string
	stale      bool
	known      bool // a document was ever seen
	shard      topo.Shard
	reports    view.Reports
	members    []coord.Member
	reportsErr error
	outage     string        // how this member goes on while the store does not answer it
	pledgedBy  []topo.NodeID // who gave the lease that the store does not give
	slots      string        // of a shard of a cluster
	health     *coord.Health // of a store outside
}

func (f facts) status() Status {
	st := Status{
		Format: 1, At: f.now.UTC(), Member: f.member, Version: f.version, Controller: f.controller, Stale: f.stale,
		Deployments: []DeploymentStatus{}, Sentinels: []FaceStatus{}, Members: f.memberStatus(), Store: f.health, Problems: []string{},
	}
	proxies := []ProxyStatus{}
	for _, r := range f.reports.Members {
		if r.ProxyAddr != "" {
			proxies = append(proxies, ProxyStatus{r.ID, r.ProxyAddr, r.ReadonlyAddr, r.PID})
		}
		if r.SentinelAddr != "" {
			st.Sentinels = append(st.Sentinels, FaceStatus{r.ID, r.SentinelAddr, r.PID})
		}
	}
	if f.known {
		s, a := f.shard.Spec, f.shard.Assigned
		sh := ShardStatus{
			ID: f.shard.ID, Epoch: a.Epoch, Phase: a.Phase, Primary: a.Primary, Reason: a.Reason, Why: a.Why,
			Witnesses: s.Witnesses(), Paused: a.Paused, Intent: a.Intent, Outcome: a.Outcome, Nodes: f.nodes(), PledgedBy: f.pledgedBy, Slots: f.slots,
			Change: f.changeStatus(), Copies: f.copies(), Alone: a.Alone,
		}
		if a.Alone != "" {
			sh.Witnesses = 1
		}
		st.Deployments = append(st.Deployments, DeploymentStatus{
			Name: s.Deployment, Mode: f.mode, Durability: s.Durability, AckReplicas: s.AckReplicas, MaxLoss: s.MaxLoss, MinCopies: s.MinCopies,
			Shards: []ShardStatus{sh}, Proxies: proxies,
		})
	}
	st.Problems = append(st.Problems, f.problems(st)...)
	return st
}

func (f facts) memberStatus() []MemberStatus {
	out := []MemberStatus{}
	for _, r := range f.reports.Members {
		out = append(out, MemberStatus{MemberReport: r, Controller: r.ID == f.controller, Alive: true})
	}
	for _, m := range f.members {
		i := slices.IndexFunc(out, func(s MemberStatus) bool { return s.ID == m.ID })
		if i < 0 {
			out = append(out, MemberStatus{MemberReport: topo.MemberReport{ID: m.ID, StoreAddr: m.Addr}, Controller: m.Controller})
		}
	}
	slices.SortFunc(out, func(x, y MemberStatus) int {
		if x.ID < y.ID {
			return -1
		}
		return 1
	})
	return out
}

func (f facts) nodes() []NodeStatus {
	out := make([]NodeStatus, 0, len(f.shard.Spec.Nodes))
	a := f.shard.Assigned
	primary, primaryKnown := f.reports.Nodes[a.Primary]
	for _, n := range f.shard.Spec.Nodes {
		st := NodeStatus{ID: n.ID, Host: n.Host, Addr: n.Addr, State: StateNoReport}
		if s, ok := f.reports.Nodes[n.ID]; ok {
			st.Role, st.PID, st.AgentPID, st.Offset = s.Role, s.PID, s.AgentPID, s.Pos.Offset
			st.Frozen, st.Fenced, st.RunID, st.Keys, st.Version = s.Frozen, s.Fenced, s.RunID, s.Keys, s.Version
			st.AgeMS = s.Age.Milliseconds()
			st.Enrolled = s.RunID != "" && a.Enrolled[n.ID] == s.RunID
			st.State = f.nodeState(n.ID, s)
			st.Problems = append(append(st.Problems, s.Problems...), s.Settings...)
			if s.Refused != "" {
				st.Problems = append(st.Problems, "refused the order of this epoch: "+s.Refused)
			}
			if primaryKnown && s.RunID != "" && s.Pos.ReplID == primary.Pos.ReplID {
				lag := max(primary.Pos.Offset-s.Pos.Offset, 0)
				st.Lag = &lag
			}
		}
		out = append(out, st)
	}
	return out
}

func (f facts) nodeState(id topo.NodeID, s view.Seen) string {
	a := f.shard.Assigned
	switch {
	case s.Health == topo.HealthUnknown:
		return "unknown"
	case s.Health != topo.HealthUp:
		return string(s.Health)
	case s.Frozen:
		return StateFrozen
	case s.Role == topo.RolePrimary && a.Primary == id && (a.Phase == topo.PhaseServing || a.Phase == topo.PhaseDraining):
		return StateServing
	case s.Role == topo.RolePrimary && a.Phase == topo.PhasePromoting && a.Primary == id:
		return string(topo.PhasePromoting)
	case s.Role == topo.RolePrimary:
		return StateStray
	case s.LinkUp && s.Whole:
		return StateFollowing
	}
	return StateSyncing
}

// problems says in words what an operator should know now.
func (f facts) problems(st Status) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if f.stale {
		say("the store does not answer this member: it has no majority, or this member is cut off; what is shown was known last")
		if f.outage != "" {
			say("%s", f.outage)
		}
	} else if f.controller == "" {
		say("no controller is known: nobody can decide a failover")
	}
	if f.health != nil {
		for _, e := range f.health.Endpoints {
			if !e.Up {
				say("%s at %s does not answer member %s: %s", f.health.Kind, e.Addr, f.member, e.Err)
			}
		}
	}
	if !f.known {
		say("nothing has been agreed about the shard yet")
		return out
	}
	if f.reportsErr != nil {
		say("the reports could not be read: %v", f.reportsErr)
	}
	for _, m := range st.Members {
		if !m.Alive && f.reportsErr == nil {
			say("member %s (store %s) does not report", m.ID, m.StoreAddr)
		}
	}
	a, sh := f.shard.Assigned, st.Deployments[0].Shards[0]
	if a.Phase != topo.PhaseServing {
		say("shard %s is %s, not serving: %s", f.shard.ID, a.Phase, a.Why)
	}
	if a.Paused != nil {
		say("automatic failovers are paused by %s: %s", a.Paused.By, a.Paused.Reason)
	}
	f.changeProblems(say)
	enrolled := 0
	for _, n := range sh.Nodes {
		if n.Enrolled && n.State != StateNoReport {
			enrolled++
		}
		serves := a.Phase == topo.PhaseServing
		switch {
		case serves && n.ID == a.Primary && (n.State == StateFrozen || n.State == StateSyncing || n.State == StateFollowing):
			say("node %s is the agreed primary, but it is %s: the shard takes no writes", n.ID, n.State)
		case n.State == StateServing, n.State == StateFollowing:
		case serves, n.State != StateFrozen && n.State != StateSyncing:
			say("node %s is %s", n.ID, n.State)
		}
		for _, p := range n.Problems {
			say("node %s: %s", n.ID, p)
		}
	}
	if f.shard.Spec.Durability.Waits() && a.Phase == topo.PhaseServing && f.reportsErr == nil && enrolled-1 < sh.Witnesses {
		say("%d enrolled nodes besides the primary, %d are needed to elect another one: the next failure would have to wait", max(enrolled-1, 0), sh.Witnesses)
	}
	return out
}
