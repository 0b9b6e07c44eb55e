// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// rig is a face with a store in memory.
type rig struct {
	t       *testing.T
	cluster *memstore.Cluster
	store   *memstore.Store
	server  *Server
	client  *Client
}

func shard() topo.Shard {
	return topo.Shard{
		Format: topo.Format, ID: "mymaster-0",
		Spec: topo.Spec{
			Deployment: "mymaster", Durability: topo.Quorum, AckReplicas: 1, Timing: topo.LANTiming(),
			Nodes: []topo.Node{{ID: "n1", Host: "h1", Addr: "127.0.0.1:6101"}, {ID: "n2", Host: "h2", Addr: "127.0.0.1:6102"}, {ID: "n3", Host: "h3", Addr: "127.0.0.1:6103"}},
		},
		Assigned: topo.Assigned{
			Secret: "only for agents",
			Epoch:  4, Phase: topo.PhaseServing, Primary: "n1", RunID: "r1", History: []topo.HistoryEntry{{Epoch: 4, ReplID: "aa", Start: 1}},
			Enrolled: map[topo.NodeID]string{"n1": "r1", "n2": "r2"},
		},
	}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigWith(t, func(*Options) {})
}

func newRigWith(t *testing.T, edit func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, cluster: memstore.New(nil, "m1", "m2", "m3")}
	r.store = r.cluster.Member("m1")
	v := view.New(r.store, clock.Real{}, topo.KeyShard+"mymaster-0", slog.New(slog.DiscardHandler))
	o := Options{Listen: "127.0.0.1:0", Version: "1.2.3", Member: "m1", Clock: clock.Real{}, Shards: []Shard{{ID: "mymaster-0", Store: r.store, View: v}}}
	edit(&o)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.server, r.client = s, NewClient("127.0.0.1:1", s.Addr()) // nobody listens at the first address
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = v.Run(ctx); done <- struct{}{} }()
	go func() { _ = s.Run(ctx); done <- struct{}{} }()
	t.Cleanup(func() { r.client.Close(); cancel(); <-done; <-done })
	if _, err := r.store.Campaign(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// set writes the document.
func (r *rig) set(s topo.Shard) {
	r.t.Helper()
	key := topo.KeyShard + s.ID
	doc, _ := r.cluster.Doc(key)
	if _, err := r.store.Swap(r.t.Context(), key, s.Encode(), doc.Rev); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) get() topo.Shard {
	r.t.Helper()
	doc, _ := r.cluster.Doc(topo.KeyShard + "mymaster-0")
	s, err := topo.DecodeShard(doc.Value)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) report(name string, v any) {
	r.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.store.Send(r.t.Context(), name, b, time.Minute); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) refused(err error, status int, code string) {
	r.t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Status != status || e.Code != code {
		r.t.Errorf("error %#v, want status %d code %s", err, status, code)
	}
}

func TestStatusKeepsItsContract(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	r.report(topo.BeatNode+"n1", topo.Sighting{Node: "n1", Health: topo.HealthUp, Role: topo.RolePrimary, RunID: "r1", PID: 11, AgentPID: 12, Pos: topo.Position{ReplID: "aa", Offset: 500}})
	r.report(topo.BeatNode+"n2", topo.Sighting{Node: "n2", Health: topo.HealthUp, Role: topo.RoleReplica, RunID: "r2", LinkUp: true, Whole: true, Pos: topo.Position{ReplID: "aa", Offset: 460}})
	r.report(topo.BeatMember+"m1", topo.MemberReport{ID: "m1", PID: 12, ProxyAddr: "127.0.0.1:6379", ReadonlyAddr: "127.0.0.1:6389", SentinelAddr: "127.0.0.1:26379"})
	resp, err := http.Get("http://" + r.server.Addr() + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var st struct {
		Controller  string
		Deployments []struct {
			Name   string
			Shards []struct {
				ID, Phase, Primary string
				Epoch              int
				Nodes              []struct {
					ID, Host, Addr, Role, State string
					PID                         int
					AgentPID                    int `json:"agent_pid"`
					Offset                      int64
					Lag                         *int64
				}
			}
			Proxies []struct {
				Addr         string
				ReadonlyAddr string `json:"readonly_addr"`
				PID          int
			}
		}
		Sentinels []struct{ Addr string }
		Problems  []string
	}
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	d := st.Deployments[0]
	s := d.Shards[0]
	n1, n2, n3 := s.Nodes[0], s.Nodes[1], s.Nodes[2]
	if st.Controller != "m1" || d.Name != "mymaster" || s.ID != "mymaster-0" || s.Epoch != 4 || s.Phase != "serving" || s.Primary != "n1" {
		t.Errorf("status %+v", st)
	}
	if n1.Role != "primary" || n1.PID != 11 || n1.AgentPID != 12 || n1.Offset != 500 || *n1.Lag != 0 || n1.State != "serving" || n1.Host != "h1" || n1.Addr != "127.0.0.1:6101" {
		t.Errorf("primary %+v", n1)
	}
	if n2.State != "following" || *n2.Lag != 40 {
		t.Errorf("replica %+v", n2)
	}
	if n3.State != "no-report" || n3.Lag != nil {
		t.Errorf("silent node %+v", n3)
	}
	if d.Proxies[0].Addr != "127.0.0.1:6379" || d.Proxies[0].ReadonlyAddr != "127.0.0.1:6389" || d.Proxies[0].PID != 12 || st.Sentinels[0].Addr != "127.0.0.1:26379" {
		t.Errorf("faces %+v %+v", d.Proxies, st.Sentinels)
	}
	all := strings.Join(st.Problems, "\n")
	for _, want := range []string{"node n3 is no-report", "member m2", "1 enrolled nodes besides the primary, 2 are needed"} {
		if !strings.Contains(all, want) {
			t.Errorf("problems lack %q:\n%s", want, all)
		}
	}
}

func TestStatusAnswersWhileTheStoreDoesNot(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	for r.server.known()[0].View.Load() == nil {
		<-r.server.known()[0].View.Next()
	}
	r.cluster.Outage(true)
	st, err := r.server.known()[0].gather.facts(t.Context()).status(), error(nil)
	if err != nil || !st.Stale || st.Deployments[0].Shards[0].Primary != "n1" || !strings.Contains(strings.Join(st.Problems, "\n"), "the store does not answer") {
		t.Errorf("status %+v %v", st, err)
	}
	_, err = r.client.Submit(t.Context(), IntentRequest{Kind: topo.IntentSwitchover})
	r.refused(err, 503, "unavailable")
}

func TestAnIntentIsRecordedAwaitedAndAnswered(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	in, err := r.client.Submit(t.Context(), IntentRequest{Kind: topo.IntentSwitchover, To: "n2", By: "me"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.get().Assigned.Intent; got == nil || *got != in || got.Budget.D() != BudgetDefault {
		t.Fatalf("recorded %+v, answered %+v", got, in)
	}
	_, err = r.client.Submit(t.Context(), IntentRequest{Kind: topo.IntentSwitchover})
	r.refused(err, 409, "pending")
	if _, err := r.client.Submit(t.Context(), IntentRequest{ID: in.ID, Kind: topo.IntentSwitchover, To: "n2"}); err != nil {
		t.Errorf("the same request again: %v", err)
	}
	done := make(chan IntentStatus, 1)
	go func() {
		st, err := r.client.Await(t.Context(), in.ID)
		if err != nil {
			t.Error(err)
		}
		done <- st
	}()
	select {
	case st := <-done:
		t.Fatalf("answered before there was an outcome: %+v", st)
	case <-time.After(100 * time.Millisecond):
	}
	s := r.get()
	s.Assigned.Intent, s.Assigned.Outcome, s.Assigned.Primary = nil, &topo.Outcome{ID: in.ID, OK: true, Why: "promoted n2"}, "n2"
	r.set(s)
	st := <-done
	if st.State != StateDone || !st.Outcome.OK || st.Primary != "n2" {
		t.Errorf("outcome %+v", st)
	}
	_, err = r.client.Await(t.Context(), "0123")
	r.refused(err, 404, "unknown-intent")
}

func TestImpossibleOrdersAreRefusedWithAReason(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name   string
		change func(*topo.Shard)
		req    IntentRequest
		status int
		code   string
	}{
		{"unknown node", nil, IntentRequest{Kind: "switchover", To: "n9"}, 404, "unknown-node"},
		{"already primary", nil, IntentRequest{Kind: "switchover", To: "n1"}, 409, "already-primary"},
		{"unknown kind", nil, IntentRequest{Kind: "restart"}, 400, "bad-request"},
		{"lossy switchover", nil, IntentRequest{Kind: "switchover", AcceptDataLoss: true}, 400, "bad-request"},
		{"endless budget", nil, IntentRequest{Kind: "switchover", Budget: topo.Duration(time.Hour)}, 400, "bad-request"},
		{"never served", func(s *topo.Shard) { s.Assigned = topo.Assigned{Phase: topo.PhaseNew} }, IntentRequest{Kind: "failover"}, 409, "no-primary"},
		{"not serving", func(s *topo.Shard) { s.Assigned.Phase = topo.PhaseFencing }, IntentRequest{Kind: "switchover"}, 409, "busy"},
	} {
		s := shard()
		if c.change != nil {
			c.change(&s)
		}
		r.set(s)
		_, err := r.client.Submit(t.Context(), c.req)
		t.Log(c.name, err)
		r.refused(err, c.status, c.code)
		if r.get().Assigned.Intent != nil {
			t.Errorf("%s: an intent was recorded", c.name)
		}
	}
	s := shard()
	s.Assigned.Phase = topo.PhaseFencing
	r.set(s)
	if _, err := r.client.Submit(t.Context(), IntentRequest{Kind: topo.IntentFailover, AcceptDataLoss: true}); err != nil {
		t.Errorf("a lossy failover must be accepted while fencing: %v", err)
	}
}

func TestASwapOfUnknownOutcomeIsNotRepeatedBlindly(t *testing.T) {
	for _, applied := range []bool{true, false} {
		r := newRig(t)
		r.set(shard())
		r.cluster.NextSwapUnsure(applied)
		in, err := r.client.Submit(t.Context(), IntentRequest{Kind: topo.IntentSwitchover})
		if err != nil {
			t.Fatalf("applied %v: %v", applied, err)
		}
		doc, _ := r.cluster.Doc(topo.KeyShard + "mymaster-0")
		if got := r.get().Assigned.Intent; got == nil || got.ID != in.ID || doc.Rev != 2 {
			t.Errorf("applied %v: intent %+v at revision %d, want revision 2", applied, got, doc.Rev)
		}
	}
}

// racing lets somebody else write before each of the first n swaps.
type racing struct {
	coord.Docs
	left int
	bump func()
}

func (d *racing) Swap(ctx context.Context, key string, v []byte, old coord.Rev) (coord.Rev, error) {
	if d.left > 0 {
		d.left--
		d.bump()
	}
	return d.Docs.Swap(ctx, key, v, old)
}

func TestConflictsAreRetriedWithinABound(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	bump := func() { s := r.get(); s.Assigned.Term++; r.set(s) }
	o := NewOrders(&racing{Docs: r.store, left: swapTries - 1, bump: bump}, "mymaster-0")
	if err := o.Pause(t.Context(), &topo.Pause{By: "me"}); err != nil {
		t.Errorf("after %d conflicts: %v", swapTries-1, err)
	}
	o = NewOrders(&racing{Docs: r.store, left: swapTries, bump: bump}, "mymaster-0")
	r.refused(o.Pause(t.Context(), nil), 409, "conflict")
	if p := r.get().Assigned.Paused; p == nil || p.By != "me" {
		t.Errorf("paused %+v", p)
	}
}

func TestPauseAndResumeAreRecorded(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	if err := r.client.Pause(t.Context(), topo.Pause{By: "me", Reason: "maintenance"}); err != nil {
		t.Fatal(err)
	}
	st, err := r.client.Status(t.Context())
	if err != nil || st.Deployments[0].Shards[0].Paused == nil || !strings.Contains(strings.Join(st.Problems, "\n"), "paused by me: maintenance") {
		t.Errorf("status %+v %v", st, err)
	}
	if err := r.client.Resume(t.Context()); err != nil || r.get().Assigned.Paused != nil {
		t.Errorf("resume: %v", err)
	}
}

func TestExplainHistoryAndStateAreServed(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	_, err := r.client.Explain(t.Context())
	r.refused(err, 503, "no-report")
	want := topo.ControllerReport{Member: "m1", Rule: "steady", Why: "all is well", Traces: []topo.Trace{{Rule: "steady", Matched: true, Reached: true}}}
	r.report(topo.BeatController+"mymaster-0", want)
	if got, err := r.client.Explain(t.Context()); err != nil || got.Rule != "steady" || len(got.Traces) != 1 {
		t.Errorf("explain %+v %v", got, err)
	}
	if got, err := r.client.History(t.Context()); err != nil || got.Events == nil || len(got.Events) != 0 {
		t.Errorf("empty history %+v %v", got, err)
	}
	b, err := json.Marshal(topo.Timeline{Format: topo.Format, Events: []topo.TimelineEvent{{Epoch: 4, Rule: "record"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Swap(t.Context(), topo.KeyTimeline+"mymaster-0", b, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := r.client.History(t.Context()); err != nil || len(got.Events) != 1 {
		t.Errorf("history %+v %v", got, err)
	}
	r.report(topo.BeatNode+"n1", topo.Sighting{Node: "n1", RunID: "r1"})
	if got, err := r.client.State(t.Context()); err != nil || got.Shard.Assigned.Epoch != 4 || got.Shard.Assigned.Secret != "" || got.Sightings["n1"].RunID != "r1" {
		t.Errorf("state %+v %v", got, err)
	}
}

func TestEventsCarryEachNewDocument(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.server.Addr()+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	await := func(kind, holding string) {
		t.Helper()
		event := ""
		for lines.Scan() {
			if k, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				event = k
			}
			if strings.Contains(lines.Text(), string(shard().Assigned.Secret)) {
				t.Fatalf("the stream shows the replication secret: %s", lines.Text())
			}
			if event == kind && strings.Contains(lines.Text(), holding) {
				return
			}
		}
		t.Fatalf("the stream ended before %s with %s: %v", kind, holding, lines.Err())
	}
	await("document", `"epoch":4`)
	await("status", `"phase":"serving"`)
	s := r.get()
	s.Assigned.Epoch, s.Assigned.Phase = 5, topo.PhaseFencing
	r.set(s)
	await("document", `"epoch":5`)
	await("status", `"phase":"fencing"`)
}

func TestHealthMetricsAndDashboardAreServed(t *testing.T) {
	r := newRig(t)
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + r.server.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, _ := get("/healthz"); code != 503 {
		t.Errorf("healthz before anything is agreed: %d", code)
	}
	r.set(shard())
	r.report(topo.BeatNode+"n1", topo.Sighting{Node: "n1", Health: topo.HealthUp, Role: topo.RolePrimary, RunID: "r1", Pos: topo.Position{Offset: 500}})
	deadline := time.Now().Add(10 * time.Second)
	for code := 0; code != 200; code, _ = get("/healthz") {
		if time.Now().After(deadline) {
			t.Fatal("healthz never answers 200")
		}
	}
	_, text := get("/metrics")
	for _, want := range []string{
		`redoubt_shard_epoch{deployment="mymaster",shard="mymaster-0"} 4`, `redoubt_shard_phase{deployment="mymaster",shard="mymaster-0",phase="serving"} 1`,
		`redoubt_node_offset_bytes{deployment="mymaster",shard="mymaster-0",node="n1"} 500`, `redoubt_node_primary{deployment="mymaster",shard="mymaster-0",node="n1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("metrics lack %s:\n%s", want, text)
		}
	}
	if code, page := get("/"); code != 200 || !strings.Contains(page, "/v1/events") {
		t.Errorf("dashboard: %d", code)
	}
	if code, _ := get("/nothing"); code != 404 {
		t.Errorf("unknown page: %d", code)
	}
}

func TestAForeignWebPageCannotGiveOrders(t *testing.T) {
	r := newRig(t)
	r.set(shard())
	req, err := http.NewRequest(http.MethodPost, "http://"+r.server.Addr()+"/v1/pause", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || r.get().Assigned.Paused != nil {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestAClientSaysWhenNobodyAnswers(t *testing.T) {
	_, err := NewClient("127.0.0.1:1", "127.0.0.1:2").Status(t.Context())
	if !errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), "127.0.0.1:1, 127.0.0.1:2") {
		t.Errorf("error %v", err)
	}
}
