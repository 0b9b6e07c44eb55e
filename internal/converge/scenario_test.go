// SPDX-License-Identifier: Apache-2.0

package converge

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"redoubt/internal/topo"
)

// TestScenarios plays the stories in testdata: one agent, n1, in a shard of three.
//
//	order epoch=5 phase=serving primary=n1 run=r1 [elected=A:100] [pushed]   the agreed document; pushed: not read yet
//	none                                                                     no document is known
//	self [promised=5] [now=10s] [lease=11s] [insync=5]                       the agent
//	server [health=up] [role=replica] [run=r1] [frozen] [following=n2:1] [link] [partial] [at=A:100] [problem=…]
//	next                                                                     the one next thing to do
//	explain                                                                  every rule and what settled it
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		in := Input{Self: "n1", Now: 10 * time.Second, LeaseEnd: 11 * time.Second}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			a := args{d}
			switch d.Cmd {
			case "order":
				in.Shard, in.Read = order(t, a), !a.has("pushed")
			case "none":
				in.Shard = nil
			case "self":
				in.Promised = topo.Epoch(a.num(t, "promised", int64(in.Promised)))
				in.Memory.InSync = topo.Epoch(a.num(t, "insync", int64(in.Memory.InSync)))
				in.Now, in.LeaseEnd = a.dur(t, "now", in.Now), a.dur(t, "lease", in.LeaseEnd)
			case "server":
				in.Seen = server(t, a)
			case "next":
				in.Memory = Remember(in.Memory, in)
				o := Next(in)
				out := fmt.Sprintf("%s: %s\n", o.Rule, o.Why)
				if o.Do != Nothing {
					out += "=> " + string(o.Do)
					switch o.Do {
					case Promise:
						out += fmt.Sprintf(" %d", o.Epoch)
					case Follow, CheckSync:
						out += " " + o.Addr
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

func order(t *testing.T, a args) *topo.Shard {
	s := &topo.Shard{Format: topo.Format, ID: "story/0", Spec: topo.Spec{Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming()}}
	for i := 1; i <= 3; i++ {
		id := fmt.Sprintf("n%d", i)
		s.Spec.Nodes = append(s.Spec.Nodes, topo.Node{ID: topo.NodeID(id), Addr: id + ":1"})
	}
	s.Assigned = topo.Assigned{
		Epoch: topo.Epoch(a.num(t, "epoch", 0)), Phase: topo.Phase(a.str("phase", "serving")), Primary: topo.NodeID(a.str("primary", "")), RunID: a.str("run", ""),
		History: []topo.HistoryEntry{{Epoch: 1, ReplID: "A"}},
	}
	if v := a.str("elected", ""); v != "" {
		id, off, _ := strings.Cut(v, ":")
		n, _ := strconv.ParseInt(off, 10, 64)
		s.Assigned.Elected = &topo.Elected{Node: s.Assigned.Primary, RunID: s.Assigned.RunID, ReplID: id, Offset: n}
	}
	return s
}

func server(t *testing.T, a args) topo.Sighting {
	s := topo.Sighting{Health: topo.Health(a.str("health", "up")), Frozen: a.has("frozen"), Following: a.str("following", ""), LinkUp: a.has("link"), Whole: !a.has("partial")}
	if s.Health == topo.HealthUp {
		s.Role = topo.Role(a.str("role", "replica"))
		s.RunID = a.str("run", "r1")
	}
	if v := a.str("at", ""); v != "" {
		id, off, _ := strings.Cut(v, ":")
		n, err := strconv.ParseInt(off, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s.Pos = topo.Position{ReplID: id, Offset: n}
	}
	if p := a.str("problem", ""); p != "" {
		s.Problems = []string{p}
	}
	return s
}

type args struct{ d *datadriven.TestData }

func (a args) has(key string) bool {
	for _, arg := range a.d.CmdArgs {
		if arg.Key == key {
			return true
		}
	}
	return false
}

func (a args) str(key, def string) string {
	for _, arg := range a.d.CmdArgs {
		if arg.Key == key && len(arg.Vals) > 0 {
			return strings.Join(arg.Vals, ",")
		}
	}
	return def
}

func (a args) num(t *testing.T, key string, def int64) int64 {
	v := a.str(key, "")
	if v == "" {
		return def
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (a args) dur(t *testing.T, key string, def time.Duration) time.Duration {
	v := a.str(key, "")
	if v == "" {
		return def
	}
	n, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
