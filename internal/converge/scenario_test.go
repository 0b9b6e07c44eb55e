// SPDX-License-Identifier: Apache-2.0

package converge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"redoubt/internal/storytest"
	"redoubt/internal/topo"
)

// TestScenarios plays the stories in testdata: one agent, n1, in a shard of three.
//
//	order epoch=5 phase=serving primary=n1 run=r1 [elected=A:100[:n1]] [history=1:A:0:0,5:B:90:1] [async] [change=…] [pushed] [unaware]   the agreed document, with
//	    histories as epoch:replid:start:parent; pushed: not read yet
//	none                                                                     no document is known
//	self [promised=5] [now=10s] [lease=11s] [insync=5] [salvaged=A:120] [pledged=5:400ms]      the agent; pledged: to
//	    the primary of that epoch, for so long
//	server [health=up] [role=replica] [run=r1] [frozen] [following=n2:1] [link] [partial] [at=A:100] [keys=1] [problem=…]
//	synced A:100                                                             the primary's answer to check-sync
//	next                                                                     the one next thing to do
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		in := Input{Self: "n1", Now: 10 * time.Second, LeaseEnd: 11 * time.Second}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			a := storytest.Args{T: t, D: d}
			switch d.Cmd {
			case "order":
				in.Shard, in.Read, in.Aware = order(a), !a.Has("pushed"), !a.Has("unaware")
			case "none":
				in.Shard = nil
			case "self":
				in.Promised = topo.Epoch(a.Num("promised", int64(in.Promised)))
				in.Memory.InSync = topo.Epoch(a.Num("insync", int64(in.Memory.InSync)))
				if v := a.Str("salvaged", ""); v != "" {
					id, off, _ := strings.Cut(v, ":")
					in.Memory = Salvaged(in.Memory, topo.Position{ReplID: id, Offset: storytest.Num(a.T, off)})
				}
				if v := a.Str("pledged", ""); v != "" {
					epoch, left, _ := strings.Cut(v, ":")
					d, err := time.ParseDuration(left)
					if err != nil {
						t.Fatal(err)
					}
					in.Pledged = Pledge{Epoch: topo.Epoch(storytest.Num(a.T, epoch)), Until: in.Now + d}
				}
				if a.Has("followed") {
					in.Memory.FollowedAt = in.Now - a.Dur("followed", 0).D()
				}
				in.Now, in.LeaseEnd = a.Dur("now", topo.Duration(in.Now)).D(), a.Dur("lease", topo.Duration(in.LeaseEnd)).D()
			case "server":
				in.Seen = server(a)
			case "synced":
				id, off, _ := strings.Cut(d.CmdArgs[0].Key, ":")
				last, _ := in.Shard.Assigned.Latest()
				in.Memory = Synced(in.Memory, in.Shard.Assigned.Epoch, topo.RolePrimary, topo.Position{ReplID: id, Offset: storytest.Num(a.T, off)}, last)
			case "next":
				in.Memory = Remember(in.Memory, in)
				o := Next(in)
				out := fmt.Sprintf("%s: %s\n", o.Rule, o.Why)
				if o.Do != Nothing {
					out += "=> " + string(o.Do)
					switch o.Do {
					case Promise:
						out += fmt.Sprintf(" %d", o.Epoch)
					case Salvage:
						if o.From == FromJournal {
							out += " from its journal"
							break
						}
						out += fmt.Sprintf(" from %d", o.From)
					case Follow, CheckSync:
						out += " " + o.Addr
					case Enforce:
						out += fmt.Sprintf(" law %d with %d replicas, cut %v", o.Law, o.Acks, o.Cut)
						if o.Disk {
							out += ", to disk"
						}
					case Promote:
						out += fmt.Sprintf(" if %s %s %d", o.Expect.RunID, o.Expect.ReplID, o.Expect.Offset)
					}
					out += "\n"
				}
				return out
			default:
				t.Fatalf("unknown command %q", d.Cmd)
			}
			return ""
		})
	})
}

func order(a storytest.Args) *topo.Shard {
	s := &topo.Shard{Format: topo.Format, ID: "story/0", Spec: topo.Spec{Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming()}}
	for i := 1; i <= 3; i++ {
		id := fmt.Sprintf("n%d", i)
		s.Spec.Nodes = append(s.Spec.Nodes, topo.Node{ID: topo.NodeID(id), Addr: id + ":1"})
	}
	s.Assigned = topo.Assigned{
		Epoch: topo.Epoch(a.Num("epoch", 0)), Phase: topo.Phase(a.Str("phase", "serving")), Primary: topo.NodeID(a.Str("primary", "")), RunID: a.Str("run", ""),
		History: []topo.HistoryEntry{{Epoch: 1, ReplID: "A"}},
	}
	if a.Has("async") {
		s.Spec.Durability, s.Spec.AckReplicas = topo.Async, 0
	}
	if v := a.Str("history", ""); v != "" {
		s.Assigned.History = nil
		for h := range strings.SplitSeq(v, ",") {
			f := strings.Split(h, ":")
			s.Assigned.History = append(s.Assigned.History, topo.HistoryEntry{
				Epoch: topo.Epoch(storytest.Num(a.T, f[0])), ReplID: f[1], Start: storytest.Num(a.T, f[2]), Parent: topo.Epoch(storytest.Num(a.T, f[3])),
			})
		}
	}
	if v := a.Str("change", ""); v != "" { // as in internal/failover
		f := strings.Split(v+"::", ":")
		c := topo.Change{Kind: topo.ChangeKind(f[0]), Durability: topo.Quorum, Node: topo.Node{ID: topo.NodeID(f[1]), Addr: f[1] + ":1"}, Cut: f[2] == "cut"}
		switch c.Kind {
		case topo.ChangeAck:
			c.AckReplicas = int(storytest.Num(a.T, f[1]))
		case topo.ChangeAdd:
			c.Via = topo.NodeID(f[2])
			s.Spec.Nodes = s.Spec.Nodes[1:] // n1 joins
		}
		s.Assigned.Begin(c)
	}
	if v := a.Str("elected", ""); v != "" {
		f := strings.Split(v, ":")
		s.Assigned.Elected = &topo.Elected{Node: s.Assigned.Primary, RunID: s.Assigned.RunID, ReplID: f[0], Offset: storytest.Num(a.T, f[1])}
		if len(f) > 2 {
			s.Assigned.Elected.Node = topo.NodeID(f[2])
		}
	}
	return s
}

func server(a storytest.Args) topo.Sighting {
	s := topo.Sighting{Health: topo.Health(a.Str("health", "up")), Frozen: a.Has("frozen"), Following: a.Str("following", ""), LinkUp: a.Has("link"), Whole: !a.Has("partial")}
	s.Keys = a.Num("keys", 0)
	if s.Health == topo.HealthUp {
		s.Role = topo.Role(a.Str("role", "replica"))
		s.RunID = a.Str("run", "r1")
	}
	if v := a.Str("at", ""); v != "" {
		id, off, _ := strings.Cut(v, ":")
		s.Pos = topo.Position{ReplID: id, Offset: storytest.Num(a.T, off)}
	}
	if p := a.Str("problem", ""); p != "" {
		s.Problems = []string{p}
	}
	return s
}
