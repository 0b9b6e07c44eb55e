// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/event"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// checked is a face beside node n1 of a shard, with an agent that has seen what the test says.
type checked struct {
	*rig
	mu   sync.Mutex
	seen topo.Sighting
	at   time.Duration
}

func newChecked(t *testing.T, node topo.NodeID, shards ...string) *checked {
	t.Helper()
	c := &checked{rig: &rig{t: t, cluster: memstore.New(nil, "m1", "m2", "m3")}}
	c.store = c.cluster.Member("m1")
	o := Options{Listen: "127.0.0.1:0", ChecksListen: "127.0.0.1:0", Version: "1.2.3", Member: "m1", Clock: clock.Real{}, Proxy: true, Events: NewFeed()}
	var parts []view.Part
	for _, id := range append([]string{"mymaster-0"}, shards...) {
		v := view.New(c.store, clock.Real{}, topo.KeyShard+id, slog.New(slog.DiscardHandler))
		sh := Shard{ID: id, Name: strings.TrimPrefix(id, "mymaster-"), Store: c.store, View: v, Node: node}
		if node != "" {
			sh.Seen = func() (topo.Sighting, time.Duration, bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.seen, c.at, c.at > 0
			}
		}
		o.Shards = append(o.Shards, sh)
		parts = append(parts, view.Part{ID: id, View: v})
		run(t, v.Run)
	}
	var err error
	if o.Board, err = view.NewBoard(view.BoardOptions{Deployment: "mymaster", Mode: "single", Parts: parts, Beats: c.store, Clock: clock.Real{}}); err != nil {
		t.Fatal(err)
	}
	if c.server, err = New(o); err != nil {
		t.Fatal(err)
	}
	run(t, c.server.Run)
	if _, err := c.store.Campaign(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// sees is what the agent sees from now on, and for some time to come.
func (c *checked) sees(s topo.Sighting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.at = s, clock.Real{}.Uptime()+time.Minute
}

// ask returns the answer to a check, when it is the one that is wanted or the time is over.
func (c *checked) ask(method, path string, want int) (int, string) {
	c.t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		req, err := http.NewRequest(method, "http://"+c.server.ChecksAddr()+path, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			c.t.Fatal(err)
		}
		if resp.StatusCode == want || time.Now().After(end) {
			return resp.StatusCode, string(b)
		}
	}
}

func (c *checked) expect(want string) {
	c.t.Helper()
	for line := range strings.Lines(want) {
		var path string
		var code int
		if _, err := fmt.Sscan(line, &path, &code); err != nil {
			continue
		}
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions} {
			if got, body := c.ask(method, path, code); got != code {
				c.t.Errorf("%s %s: %d, want %d: %s", method, path, got, code, body)
			} else if method != http.MethodGet && body != "" && (code == 200 || code == 503) {
				c.t.Errorf("%s %s has a body: %q", method, path, body)
			}
		}
	}
}

func primarySeen() topo.Sighting {
	return topo.Sighting{Node: "n1", Health: topo.HealthUp, Role: topo.RolePrimary, RunID: "r1", Whole: true}
}

func TestChecksAnswerForTheMembersOwnNode(t *testing.T) {
	c := newChecked(t, "n1")
	c.expect("/primary 503\n/replica 503\n/health 503\n/proxy 503\n/readiness 503")
	c.set(shard())
	c.sees(primarySeen())
	c.expect("/primary 200\n/master 200\n/leader 200\n/read-write 200\n/replica 503\n/read-only 200\n/healthy 200\n/health 200\n/liveness 200\n/readiness 200\n/proxy 200\n/shards/mymaster-0/primary 200\n/shards/0/primary 200\n/primary?shard=s9 404")

	s := shard()
	s.Assigned.Epoch, s.Assigned.Primary, s.Assigned.RunID = 6, "n2", "r2"
	c.set(s)
	c.expect("/primary 503\n/replica 503\n/proxy 200") // demoted, and not in sync yet
	c.sees(topo.Sighting{Node: "n1", Health: topo.HealthUp, Role: topo.RoleReplica, RunID: "r1", Whole: true, LinkUp: true, InSync: 6, Pos: topo.Position{ReplID: "bb", Offset: 90}})
	c.expect("/primary 503\n/replica 200\n/read-only 200\n/readiness 200")

	c.expect("/replica?lag=1kb 503\n/replica?lag=much 400")
	c.report(topo.BeatNode+"n2", topo.Sighting{Node: "n2", Health: topo.HealthUp, Role: topo.RolePrimary, RunID: "r2", Pos: topo.Position{ReplID: "bb", Offset: 5000}})
	c.report(topo.BeatNode+"n1", topo.Sighting{Node: "n1", Health: topo.HealthUp, Role: topo.RoleReplica, RunID: "r1", Pos: topo.Position{ReplID: "bb", Offset: 90}})
	c.expect("/replica?lag=16KB 200\n/replica?lag=1kb 503")

	s.Assigned.Epoch, s.Assigned.Phase = 7, topo.PhaseFencing
	c.set(s)
	c.expect("/primary 503\n/replica 200\n/proxy 503")
	c.sees(topo.Sighting{Node: "n1", Health: topo.HealthLoading, Role: topo.RoleReplica})
	c.expect("/replica 503\n/health 503\n/liveness 200\n/readiness 503")
}

func TestAServerThatIsNotTheAgreedProcessIsNoPrimary(t *testing.T) {
	c := newChecked(t, "n1")
	c.set(shard())
	seen := primarySeen()
	c.sees(seen)
	c.expect("/primary 200")
	seen.RunID = "another"
	c.sees(seen)
	c.expect("/primary 503")
	seen = primarySeen()
	seen.Health = topo.HealthExited
	c.sees(seen)
	c.expect("/primary 503\n/healthy 503")
	c.mu.Lock()
	c.seen, c.at = primarySeen(), clock.Real{}.Uptime()-lookAlive-time.Second // the agent is stuck
	c.mu.Unlock()
	c.expect("/primary 503\n/liveness 503")
}

func TestNoPrimaryBeyondTheLease(t *testing.T) {
	c := newChecked(t, "n1")
	s := shard()
	s.Assigned.History[0].Node = "n1"
	c.set(s)
	c.sees(primarySeen())
	c.expect("/primary 200")
	c.cluster.Cut("m1")
	lease := topo.LANTiming().Lease.D()
	began := clock.Real{}.Uptime()
	c.expect("/primary 503")
	snap := c.server.known()[0].View.Load()
	if _, body := c.ask(http.MethodGet, "/primary", 503); !strings.Contains(body, "lease") {
		t.Errorf("the reason is %s", body)
	}
	took := clock.Real{}.Uptime() - began
	if took > lease+time.Second || snap.ReadStart > began+time.Second {
		t.Errorf("the lease is %s, 200 was answered for %s", lease, took)
	}
	_, body := c.ask(http.MethodGet, "/v1/topology", 200)
	var p view.Picture
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Serving || p.Shards[0].Primary != nil || p.Shards[0].Latest == nil {
		t.Errorf("announced without a lease: %v %s", err, body)
	}
}

func TestChecksOfSeveralShards(t *testing.T) {
	c := newChecked(t, "n1", "mymaster-s2")
	s := shard()
	c.set(s)
	s.ID = "mymaster-s2"
	s.Assigned.Primary, s.Assigned.RunID = "n2", "r2"
	c.set(s)
	c.sees(primarySeen())
	c.expect("/primary 400\n/primary?shard=0 200\n/primary?shard=s2 503\n/shards/s2/primary 503\n/shards/mymaster-0/primary 200\n/health 200\n/proxy 200\n/readiness 503")
}

func TestAMemberWithoutANode(t *testing.T) {
	c := newChecked(t, "")
	c.set(shard())
	c.expect("/proxy 200\n/primary 503\n/replica 503\n/health 503\n/liveness 200\n/readiness 200")
}

func TestThePortForChecksTakesNoOrders(t *testing.T) {
	c := newChecked(t, "n1")
	c.set(shard())
	for _, path := range []string{"/v1/pause", "/v1/intents", "/v1/upgrade"} {
		resp, err := http.Post("http://"+c.server.ChecksAddr()+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if c.get().Assigned.Paused != nil {
		t.Error("paused")
	}
}

func TestTheDescriptionAndTheRoutesAreTheSame(t *testing.T) {
	c := newChecked(t, "n1")
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%q: %v", doc.OpenAPI, err)
	}
	var described, served []string
	for path, methods := range doc.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	for _, pattern := range c.server.routes().patterns {
		served = append(served, strings.TrimSuffix(pattern, "{$}"))
	}
	slices.Sort(described)
	slices.Sort(served)
	for _, d := range described {
		if _, ok := slices.BinarySearch(served, d); !ok {
			t.Errorf("openapi.json describes %s, which is not served", d)
		}
	}
	for _, s := range served {
		if _, ok := slices.BinarySearch(described, s); !ok {
			t.Errorf("openapi.json does not describe %s", s)
		}
	}
	rec := httptest.NewRecorder()
	c.server.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	if rec.Code != 200 || rec.Body.String() != string(openAPI) {
		t.Errorf("/openapi.json: %d", rec.Code)
	}
	for ref := range strings.SplitSeq(string(openAPI), `"$ref": "#`) {
		path, _, ok := strings.Cut(ref, `"`)
		if !ok || !strings.HasPrefix(path, "/components/") {
			continue
		}
		var at any
		_ = json.Unmarshal(openAPI, &at)
		for _, key := range strings.Split(path, "/")[1:] {
			m, _ := at.(map[string]any)
			at = m[key]
		}
		if at == nil {
			t.Errorf("openapi.json refers to %s, which is not there", path)
		}
	}
}

func TestPrometheusFindsTheMembers(t *testing.T) {
	c := newChecked(t, "n1")
	c.set(shard())
	c.report(topo.BeatMember+"m1", topo.MemberReport{ID: "m1", APIAddr: "127.0.0.1:7379", ChecksAddr: "10.0.0.1:8008"})
	c.report(topo.BeatMember+"m2", topo.MemberReport{ID: "m2", APIAddr: "10.0.0.2:7379"})
	_, body := c.ask(http.MethodGet, "/v1/sd/prometheus", 200)
	var groups []struct {
		Targets []string
		Labels  map[string]string
	}
	if err := json.Unmarshal([]byte(body), &groups); err != nil || len(groups) != 2 || groups[0].Targets[0] != "10.0.0.1:8008" || groups[1].Targets[0] != "10.0.0.2:7379" || groups[1].Labels["member"] != "m2" {
		t.Errorf("%v %s", err, body)
	}
}

func TestEventsAreResumed(t *testing.T) {
	c := newChecked(t, "n1")
	c.set(shard())
	feed := c.server.o.Events
	follow := func(last string, until string) (ids []string, texts string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.server.Addr()+"/v1/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Last-Event-ID", last)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				ids = append(ids, id)
			}
			if strings.Contains(lines.Text(), `"kind":"test"`) {
				texts += lines.Text()
			}
			if strings.Contains(texts, until) {
				return ids, texts
			}
		}
		t.Fatalf("the stream ended before %s", until)
		return nil, ""
	}
	for i := range feedMax + 10 {
		feed.Note(event.Event{Kind: "test", Text: fmt.Sprintf("no %d.", i)})
	}
	ids, all := follow("another-7", fmt.Sprintf("no %d.", feedMax+9))
	if strings.Contains(all, "no 9.") || !strings.Contains(all, "no 10.") || len(ids) != feedMax {
		t.Errorf("%d events; the oldest ten must have given way", len(ids))
	}
	_, some := follow(ids[len(ids)-3], fmt.Sprintf("no %d.", feedMax+9))
	if strings.Contains(some, fmt.Sprintf("no %d.", feedMax+7)) || !strings.Contains(some, fmt.Sprintf("no %d.", feedMax+8)) {
		t.Errorf("resumed with %s", some)
	}
}

// run runs a part until the test ends.
func run(t *testing.T, part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = part(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}
