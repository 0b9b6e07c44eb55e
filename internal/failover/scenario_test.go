// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"redoubt/internal/storytest"
	"redoubt/internal/topo"
)

// TestScenarios plays the stories in testdata. Each file is one shard whose State is changed by commands:
//
//	shard n=3 [k=1] [min-copies=1] [burst=5] [durability=quorum|quorum+disk|async]    a new shard with nodes n1…, nothing assigned
//	assigned epoch=5 phase=serving primary=n1 run=r1 [enrolled=(n1=r1,n2=r2)] [intent=switchover:n2] [paused] [elected=n2:r2:A:10:1]
//	    [change=ack:2[:disk]|rejoin|add:n4[:n2[:direct]]|remove:n3[:cut]] [alone=n1]
//	history 1:A:0:0:n1 …                          epoch:replid:start:parent:node
//	clock [term=1] [led=10s] [vacant=10s] [phase=10ms] [read-age=(n1=900ms)] [wall=1000]
//	see n1 [age=5ms] [epoch=] [phase=] [health=up] [for=0s] [role=replica] [run=r1] [at=A:100] [from=B:90] [frozen] [fenced] [link] [sync=5] [kept] [keys=3] [mark=5:100|none] [impaired=disk-full impaired-for=11s] [disk=unable|able|synced] …
//	unsee n1                                      nothing is heard from it
//	decide                                        what Decide says; with "apply" its result becomes what is assigned
//	explain                                       the whole list with what settled each rule
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) == ".json" {
			t.Skip("a saved state, not a story")
		}
		w := &story{}
		datadriven.RunTest(t, path, w.run)
	})
}

// TestSavedStatesDecideAsRecorded: a State saved from production is a test case.
func TestSavedStatesDecideAsRecorded(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var saved struct {
			State State  `json:"state"`
			Rule  string `json:"rule"`
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &saved); err != nil {
			t.Fatal(err)
		}
		if got := Decide(saved.State).Rule; got != saved.Rule {
			t.Errorf("%s: rule %s, recorded was %s", f, got, saved.Rule)
		}
	}
}

type story struct{ s State }

func (w *story) run(t *testing.T, d *datadriven.TestData) string {
	a := storytest.Args{T: t, D: d}
	switch d.Cmd {
	case "shard":
		w.shard(a)
	case "assigned":
		w.assigned(a)
	case "history":
		w.s.Shard.Assigned.History = nil
		for _, arg := range d.CmdArgs {
			f := strings.Split(arg.Key, ":")
			w.s.Shard.Assigned.History = append(w.s.Shard.Assigned.History, topo.HistoryEntry{
				Epoch: topo.Epoch(storytest.Num(t, f[0])), ReplID: f[1], Start: storytest.Num(t, f[2]), Parent: topo.Epoch(storytest.Num(t, f[3])), Node: topo.NodeID(f[4]),
			})
		}
	case "clock":
		w.clock(a)
	case "see":
		w.see(a)
	case "unsee":
		for _, arg := range d.CmdArgs {
			delete(w.s.Sightings, topo.NodeID(arg.Key))
		}
	case "decide":
		return w.decide(a.Has("apply"))
	case "explain":
		var b strings.Builder
		for _, tr := range Explain(w.s) {
			mark := " "
			if tr.Matched {
				mark = "*"
			}
			if !tr.Reached {
				mark += "(not reached)"
			}
			fmt.Fprintf(&b, "%s %s: %s\n", mark, tr.Rule, tr.Why)
		}
		return b.String()
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
	return ""
}

func (w *story) shard(a storytest.Args) {
	n := int(a.Num("n", 3))
	spec := topo.Spec{Deployment: "story", Durability: topo.Durability(a.Str("durability", "quorum")), Timing: topo.LANTiming()}
	spec.Timing.Burst, spec.MinCopies = int(a.Num("burst", 5)), int(a.Num("min-copies", 0))
	spec.Timing.Lease, spec.Timing.Silence = topo.Duration(700*time.Millisecond), topo.Duration(600*time.Millisecond) // the stories were told with these
	if spec.Durability.Waits() {
		spec.AckReplicas = int(a.Num("k", int64(n/2)))
	}
	for i := range n {
		id := topo.NodeID(fmt.Sprintf("n%d", i+1))
		spec.Nodes = append(spec.Nodes, topo.Node{ID: id, Addr: string(id) + ":6379"})
	}
	w.s = State{Term: 1, LedFor: topo.Duration(10 * time.Second), Nonce: "nonce", Sightings: map[topo.NodeID]Seen{}, ReadAge: map[topo.NodeID]topo.Duration{}}
	w.s.Shard = topo.Shard{Format: topo.Format, ID: "story/0", Spec: spec, Assigned: topo.Assigned{Term: 1, Phase: topo.PhaseNew}}
}

func (w *story) assigned(a storytest.Args) {
	as := &w.s.Shard.Assigned
	as.Epoch = topo.Epoch(a.Num("epoch", int64(as.Epoch)))
	as.Phase = topo.Phase(a.Str("phase", string(as.Phase)))
	as.Primary = topo.NodeID(a.Str("primary", string(as.Primary)))
	as.RunID = a.Str("run", as.RunID)
	as.Secret = topo.Secret(a.Str("secret", string(as.Secret)))
	if as.Enrolled == nil || a.Has("enrolled") {
		as.Enrolled = map[topo.NodeID]string{}
	}
	for _, v := range a.List("enrolled") {
		id, run, _ := strings.Cut(v, "=")
		as.Enrolled[topo.NodeID(id)] = run
	}
	if v := a.Str("intent", ""); v != "" {
		f := strings.Split(v+"::", ":")
		as.Intent = &topo.Intent{ID: "i1", Kind: topo.IntentKind(f[0]), To: topo.NodeID(f[1]), By: "ops", Budget: topo.Duration(2 * time.Second), AcceptDataLoss: f[2] == "lossy"}
	}
	as.Alone = topo.NodeID(a.Str("alone", ""))
	if v := a.Str("change", ""); v != "" {
		f := strings.Split(v+":::", ":")
		c := topo.Change{Kind: topo.ChangeKind(f[0]), By: "ops"}
		switch c.Kind {
		case topo.ChangeAck:
			c.Durability, c.AckReplicas = topo.Quorum, int(storytest.Num(a.T, f[1]))
			if f[2] == "disk" {
				c.Durability = topo.QuorumDisk
			}
		case topo.ChangeAdd, topo.ChangeRemove:
			c.Node, c.Cut = topo.Node{ID: topo.NodeID(f[1]), Addr: f[1] + ":6379"}, f[2] == "cut"
			if c.Kind == topo.ChangeAdd {
				c.Via, c.Direct = topo.NodeID(f[2]), f[3] == "direct"
			}
		}
		as.Begin(c)
	}
	as.Paused = nil
	if a.Has("paused") {
		as.Paused = &topo.Pause{By: "ops"}
	}
	if v := a.Str("elected", ""); v != "" {
		f := strings.Split(v, ":")
		as.Elected = &topo.Elected{Node: topo.NodeID(f[0]), RunID: f[1]}
		if len(f) > 4 {
			as.Elected.ReplID, as.Elected.Offset, as.Elected.Parent = f[2], storytest.Num(a.T, f[3]), topo.Epoch(storytest.Num(a.T, f[4]))
		}
	}
	for _, v := range a.List("recent") {
		as.Recent = append(as.Recent, storytest.Num(a.T, v))
	}
}

func (w *story) clock(a storytest.Args) {
	w.s.Term = uint64(a.Num("term", int64(w.s.Term)))
	w.s.LedFor = a.Dur("led", w.s.LedFor)
	w.s.PhaseFor = a.Dur("phase", w.s.PhaseFor)
	w.s.VacantFor = a.Dur("vacant", w.s.VacantFor)
	w.s.WallMS = a.Num("wall", w.s.WallMS)
	for _, v := range a.List("read-age") {
		id, age, _ := strings.Cut(v, "=")
		w.s.ReadAge[topo.NodeID(id)] = storytest.Dur(a.T, age)
	}
}

func (w *story) see(a storytest.Args) {
	as := w.s.Shard.Assigned
	id := topo.NodeID(a.D.CmdArgs[0].Key)
	s := Seen{Age: a.Dur("age", topo.Duration(5*time.Millisecond))}
	s.Node = id
	s.Epoch = topo.Epoch(a.Num("epoch", int64(as.Epoch)))
	s.Phase = topo.Phase(a.Str("phase", string(as.Phase)))
	s.Health = topo.Health(a.Str("health", "up"))
	s.HealthFor = a.Dur("for", 0)
	s.Role = topo.Role(a.Str("role", "replica"))
	s.RunID = a.Str("run", "r"+strings.TrimPrefix(string(id), "n"))
	s.Whole = !a.Has("partial")
	s.Backlog = !a.Has("no-backlog")
	s.Frozen, s.Fenced, s.LinkUp, s.Kept = a.Has("frozen"), a.Has("fenced") || a.Has("frozen"), a.Has("link"), a.Has("kept")
	s.Promised = topo.Epoch(a.Num("promised", int64(s.Epoch)))
	s.InSync = topo.Epoch(a.Num("sync", 0))
	s.Keys = a.Num("keys", 0)
	s.Refused = a.Str("refused", "")
	s.Starting = a.Has("starting")
	s.Open = a.Has("open")
	s.Settings = a.List("settings")
	s.Change, s.Barrier, s.Unlinked = uint64(a.Num("change", 0)), uint64(a.Num("barrier", 0)), a.Dur("unlinked", 0)
	s.Disk, s.NoDisk = topo.DiskState(a.Str("disk", "")), a.Str("no-disk", "")
	s.Impaired, s.ImpairedFor = a.Str("impaired", ""), a.Dur("impaired-for", 0)
	if f := strings.Split(a.Str("mark", ""), ":"); len(f) == 2 { // "none" is one that was read and is not there
		s.Mark = &topo.Mark{Epoch: topo.Epoch(storytest.Num(a.T, f[0])), Offset: storytest.Num(a.T, f[1])}
	} else if f[0] == "none" {
		s.Mark = &topo.Mark{}
	}
	if f := strings.Split(a.Str("at", ""), ":"); len(f) == 2 {
		s.Pos.ReplID, s.Pos.Offset, s.Pos.Offset2 = f[0], storytest.Num(a.T, f[1]), -1
	}
	if f := strings.Split(a.Str("from", ""), ":"); len(f) == 2 {
		s.Pos.ReplID2, s.Pos.Offset2 = f[0], storytest.Num(a.T, f[1])
	}
	w.s.Sightings[id] = s
}

func (w *story) decide(apply bool) string {
	d := Decide(w.s)
	out := fmt.Sprintf("%s: %s\n", d.Rule, d.Why)
	if d.Recheck > 0 {
		out += fmt.Sprintf("recheck in %s\n", d.Recheck)
	}
	if d.Next == nil {
		return out
	}
	n := d.Next
	out += fmt.Sprintf("=> epoch %d %s %s run=%s", n.Epoch, n.Phase, n.Primary, n.RunID)
	if e := n.Elected; e != nil {
		out += fmt.Sprintf(" elected=%s:%s:%s:%d:%d", e.Node, e.RunID, e.ReplID, e.Offset, e.Parent)
		if e.Lossy != "" {
			out += fmt.Sprintf(" lossy=%q", e.Lossy)
		}
	}
	if i := n.Intent; i != nil && w.s.Shard.Assigned.Intent == nil {
		out += fmt.Sprintf(" intent=%s:%s:%s by=%q budget=%s", i.ID, i.Kind, i.To, i.By, i.Budget)
	}
	if o := n.Outcome; o != nil {
		out += fmt.Sprintf(" outcome=%v:%q", o.OK, o.Why)
	}
	if was := w.s.Shard.Assigned.Secret; n.Secret != was {
		out += fmt.Sprintf(" secret %q to %q", string(was), string(n.Secret))
	}
	out += "\n"
	if len(n.History) != len(w.s.Shard.Assigned.History) {
		out += fmt.Sprintf("   history += %+v\n", n.History[len(n.History)-1])
	}
	if fmt.Sprint(n.Enrolled) != fmt.Sprint(w.s.Shard.Assigned.Enrolled) {
		out += fmt.Sprintf("   enrolled %v\n", n.Enrolled)
	}
	out += w.changes(d)
	if apply {
		w.s.Shard.Assigned = *n
		if d.Spec != nil {
			w.s.Shard.Spec = *d.Spec
		}
	}
	return out
}

// changes tells what becomes of the specification.
func (w *story) changes(d Decision) string {
	was, out := w.s.Shard.Assigned, ""
	if fmt.Sprint(d.Next.Change) != fmt.Sprint(was.Change) || d.Next.Change != nil && *d.Next.Change != *was.Change {
		out += "   change "
		if c := d.Next.Change; c == nil {
			out += "none\n"
		} else {
			out += fmt.Sprintf("%d: %s, via %q, cut %v\n", c.ID, c, string(c.Via), c.Cut)
		}
	}
	if d.Next.Alone != was.Alone {
		out += fmt.Sprintf("   alone %q\n", string(d.Next.Alone))
	}
	if s := d.Spec; s != nil {
		out += fmt.Sprintf("   %s k=%d nodes", s.Durability, s.AckReplicas)
		for _, n := range s.Nodes {
			out += " " + string(n.ID)
		}
		out += "\n"
	}
	return out
}
