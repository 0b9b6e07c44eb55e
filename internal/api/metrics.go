// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"strings"

	"redoubt/internal/topo"
)

// exposition writes the Prometheus text format, version 0.0.4.
type exposition struct{ bytes.Buffer }

func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one line; labels are name, value, name, value…
func (e *exposition) sample(name string, value float64, labels ...string) {
	e.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := ","
		if i == 0 {
			sep = "{"
		}
		escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(labels[i+1])
		fmt.Fprintf(e, `%s%s="%s"`, sep, labels[i], escaped)
	}
	if len(labels) > 0 {
		e.WriteByte('}')
	}
	e.WriteByte(' ')
	e.WriteString(strconv.FormatFloat(value, 'g', -1, 64))
	e.WriteByte('\n')
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	st, err := s.status(r.Context())
	if err != nil {
		reply(w, nil, err)
		return
	}
	var e exposition
	e.family("redoubt_info", "gauge", "This member and its version.")
	e.sample("redoubt_info", 1, "member", s.o.Member, "version", s.o.Version)
	e.family("redoubt_start_time_seconds", "gauge", "Unix time at which this member started.")
	e.sample("redoubt_start_time_seconds", float64(s.began.UnixMilli())/1000)
	e.family("redoubt_goroutines", "gauge", "Goroutines of this member.")
	e.sample("redoubt_goroutines", float64(runtime.NumGoroutine()))
	e.family("redoubt_controller", "gauge", "1 on the member that decides.")
	e.sample("redoubt_controller", flag(st.Controller == s.o.Member))
	e.family("redoubt_store_stale", "gauge", "1 while the store does not answer this member.")
	e.sample("redoubt_store_stale", flag(st.Stale))
	e.family("redoubt_problems", "gauge", "Problems that status lists.")
	e.sample("redoubt_problems", float64(len(st.Problems)))
	for _, d := range st.Deployments {
		e.shards(d.Name, d.Shards)
	}
	if s.o.Metrics != nil {
		s.o.Metrics(&e)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(e.Bytes())
}

// shards writes what is known of the shards, family by family.
func (e *exposition) shards(deployment string, all []ShardStatus) {
	of := func(sh ShardStatus, more ...string) []string {
		return append([]string{"deployment", deployment, "shard", sh.ID}, more...)
	}
	for _, f := range []struct {
		name, kind, help string
		value            func(ShardStatus) float64
	}{
		{"redoubt_shard_epoch", "counter", "Grows with every change of primary.", func(sh ShardStatus) float64 { return float64(sh.Epoch) }},
		{"redoubt_shard_pledged", "gauge", "1 while the store is away and the primary goes on by the pledges of the other nodes.", func(sh ShardStatus) float64 { return flag(len(sh.PledgedBy) > 0) }},
		{"redoubt_shard_copies", "gauge", "Nodes that hold a write at least when it is acknowledged.", func(sh ShardStatus) float64 { return float64(sh.Copies) }},
		{"redoubt_shard_alone", "gauge", "1 while one node alone has every acknowledged write of a shard with quorum.", func(sh ShardStatus) float64 { return flag(sh.Alone != "") }},
		{"redoubt_shard_changing", "gauge", "1 while durability, ack-replicas or the roster change.", func(sh ShardStatus) float64 { return flag(sh.Change != nil) }},
		{"redoubt_shard_paused", "gauge", "1 while automatic failovers are paused.", func(sh ShardStatus) float64 { return flag(sh.Paused != nil) }},
	} {
		e.family(f.name, f.kind, f.help)
		for _, sh := range all {
			e.sample(f.name, f.value(sh), of(sh)...)
		}
	}
	e.family("redoubt_shard_phase", "gauge", "1 for the phase that the shard is in.")
	for _, sh := range all {
		for _, p := range []topo.Phase{topo.PhaseNew, topo.PhaseServing, topo.PhaseDraining, topo.PhaseFencing, topo.PhasePromoting} {
			e.sample("redoubt_shard_phase", flag(sh.Phase == p), of(sh, "phase", string(p))...)
		}
	}
	e.nodes(all, of)
}

// nodes writes what is known of the shards' nodes.
func (e *exposition) nodes(all []ShardStatus, of func(ShardStatus, ...string) []string) {
	for _, f := range []struct {
		name, help string
		value      func(ShardStatus, NodeStatus) (float64, bool)
	}{
		{"redoubt_node_up", "1 when the server answers as it should.", func(_ ShardStatus, n NodeStatus) (float64, bool) {
			return flag(n.State == StateServing || n.State == StateFollowing || n.State == StateSyncing || n.State == StateFrozen), true
		}},
		{"redoubt_node_primary", "1 on the agreed primary of a serving shard.", func(sh ShardStatus, n NodeStatus) (float64, bool) {
			return flag(n.State == StateServing && n.ID == sh.Primary), true
		}},
		{"redoubt_node_enrolled", "1 when the node's position counts in an election.", func(_ ShardStatus, n NodeStatus) (float64, bool) { return flag(n.Enrolled), true }},
		{"redoubt_node_offset_bytes", "Replication offset.", func(_ ShardStatus, n NodeStatus) (float64, bool) { return float64(n.Offset), true }},
		{"redoubt_node_keys", "Keys in all databases.", func(_ ShardStatus, n NodeStatus) (float64, bool) { return float64(n.Keys), true }},
		{"redoubt_node_report_age_seconds", "Since the node's agent reported.", func(_ ShardStatus, n NodeStatus) (float64, bool) { return float64(n.AgeMS) / 1000, true }},
		{"redoubt_node_lag_bytes", "Bytes behind the primary; absent when unknown.", func(_ ShardStatus, n NodeStatus) (float64, bool) {
			if n.Lag == nil {
				return 0, false
			}
			return float64(*n.Lag), true
		}},
	} {
		e.family(f.name, "gauge", f.help)
		for _, sh := range all {
			for _, n := range sh.Nodes {
				if v, known := f.value(sh, n); known {
					e.sample(f.name, v, of(sh, "node", string(n.ID))...)
				}
			}
		}
	}
}
