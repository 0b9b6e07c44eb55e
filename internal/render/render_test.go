// SPDX-License-Identifier: Apache-2.0

package render

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord/memstore"
	"redoubt/internal/event"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

const source = `# made for {{.Member}}
pool:
  servers:
{{- range .Shards}}
   - {{.Latest.Addr}}:{{.Weight}} {{.RingName}}{{if not .Serving}} down{{end}}
{{- end}}
`

// rig is a board over a store in memory, and a place for files.
type rig struct {
	t       *testing.T
	cluster *memstore.Cluster
	store   *memstore.Store
	board   *view.Board
	dir     string

	mu     sync.Mutex
	events []event.Event
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, cluster: memstore.New(nil, "m1", "m2"), dir: t.TempDir()}
	r.store = r.cluster.Member("m1")
	v := view.New(r.store, clock.Real{}, topo.KeyShard+"mymaster-0", slog.New(slog.DiscardHandler))
	var err error
	if r.board, err = view.NewBoard(view.BoardOptions{Deployment: "mymaster", Mode: "ring", Parts: []view.Part{{ID: "mymaster-0", View: v, Ring: func() (string, int) { return "alpha", 3 }}}, Beats: r.store, Clock: clock.Real{}}); err != nil {
		t.Fatal(err)
	}
	r.start(v.Run)
	r.start(r.board.Run)
	r.put("source", source)
	return r
}

// start runs a part until the test ends, or end is called.
func (r *rig) start(part func(context.Context) error) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = part(ctx) }()
	end = func() { cancel(); <-done }
	r.t.Cleanup(end)
	return end
}

func (r *rig) primary(epoch topo.Epoch, id topo.NodeID, phase topo.Phase) {
	r.t.Helper()
	s := topo.Shard{
		Format: topo.Format, ID: "mymaster-0",
		Spec: topo.Spec{Deployment: "mymaster", Durability: topo.Async, Timing: topo.LANTiming(), Nodes: []topo.Node{{ID: "n1", Addr: "10.0.0.1:6101"}, {ID: "n2", Addr: "10.0.0.2:6102"}}},
		Assigned: topo.Assigned{Epoch: epoch, Phase: phase, Primary: id, RunID: "r" + string(id),
			History: []topo.HistoryEntry{{Epoch: epoch, ReplID: "aa", Node: id}}},
	}
	doc, _ := r.cluster.Doc(topo.KeyShard + s.ID)
	if _, err := r.store.Swap(r.t.Context(), topo.KeyShard+s.ID, s.Encode(), doc.Rev); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) put(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(name string) string {
	b, _ := os.ReadFile(r.path(name))
	return string(b)
}

func (r *rig) await(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not %s; the target is %q, loaded %q", what, r.read("target"), r.read("loaded"))
		}
	}
}

// keep starts to keep a file, with what the test changes about it.
func (r *rig) keep(change func(*File)) (*Renderer, func()) {
	r.t.Helper()
	f := File{Source: r.path("source"), Target: r.path("target"), Reload: "cat $FILE >> " + r.path("loaded"), Timeout: 10 * time.Second}
	if change != nil {
		change(&f)
	}
	k, err := New(Options{
		Files: []File{f}, Member: "m1", Board: r.board, Dir: r.path("state"), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler),
		Events: func(e event.Event) { r.mu.Lock(); defer r.mu.Unlock(); r.events = append(r.events, e) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return k, r.start(k.Run)
}

const one, two = "# made for m1\npool:\n  servers:\n   - 10.0.0.1:6101:3 alpha\n", "# made for m1\npool:\n  servers:\n   - 10.0.0.2:6102:3 alpha\n"

func TestATextIsWrittenAndLoadedOncePerChange(t *testing.T) {
	r := newRig(t)
	r.put("target", "by hand\n")
	if err := os.Chmod(r.path("target"), 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(r.path("target"), 1234, 1235); err != nil {
			t.Fatal(err)
		}
	}
	r.primary(1, "n1", topo.PhaseServing)
	r.await("known", func() bool { return r.board.Look().Serving }) // or it would say for a moment that nobody serves
	k, end := r.keep(nil)
	r.await("loaded", func() bool { return r.read("loaded") == one })
	if r.read("target") != one {
		t.Errorf("target %q", r.read("target"))
	}
	info, err := os.Stat(r.path("target"))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	if s := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && (s.Uid != 1234 || s.Gid != 1235) {
		t.Errorf("owner %d:%d", s.Uid, s.Gid)
	}
	r.primary(2, "n1", topo.PhaseServing) // another document, the same text
	r.primary(3, "n2", topo.PhaseServing)
	r.await("loaded again", func() bool { return strings.HasSuffix(r.read("loaded"), two) })
	if r.read("loaded") != one+two && !strings.Contains(r.read("loaded"), "down") { // without a lease for a moment it says so
		t.Errorf("loaded %q", r.read("loaded"))
	}
	r.await("counted", func() bool { return k.States()[0].Loads >= 2 })
	end()
	before := r.read("loaded")
	r.keep(nil) // a new process finds everything in place
	r.primary(4, "n1", topo.PhaseServing)
	r.await("loaded by the next process", func() bool { return strings.HasSuffix(r.read("loaded"), one) })
	if after := strings.TrimPrefix(r.read("loaded"), before); strings.HasPrefix(after, two) {
		t.Errorf("loaded once more without a change: %q", after)
	}
	if s := k.States()[0]; s.Loads < 2 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	left, err := filepath.Glob(r.path(".*redoubt"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatTheCheckRefusesIsNotPutInPlace(t *testing.T) {
	r := newRig(t)
	r.put("target", "good\n")
	k, _ := r.keep(func(f *File) { f.Check = "echo looked at it; ! grep -q 6101 $FILE" })
	r.primary(1, "n1", topo.PhaseServing)
	r.await("refused", func() bool { return strings.Contains(k.States()[0].Error, "looked at it") })
	if r.read("target") != "good\n" || r.read("loaded") != "" {
		t.Errorf("target %q, loaded %q", r.read("target"), r.read("loaded"))
	}
	r.await("told", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.events) > 0 && r.events[0].Kind == "template" && strings.Contains(r.events[0].Text, "check command")
	})
	if s := k.States()[0]; s.Fails > 2 { // the text with a lease, and the one without
		t.Errorf("tried in a loop: %+v", s)
	}
	r.primary(2, "n2", topo.PhaseServing)
	r.await("accepted", func() bool { return r.read("target") == two && k.States()[0].Error == "" })
}

func TestALoadThatFailedIsOwedToTheNextProcess(t *testing.T) {
	r := newRig(t)
	k, end := r.keep(func(f *File) { f.Reload = "exit 3" })
	r.primary(1, "n1", topo.PhaseServing)
	r.await("failed", func() bool { return strings.Contains(k.States()[0].Error, "exit status 3") && r.read("target") == one })
	end()
	_, end = r.keep(nil)
	r.await("loaded", func() bool {
		left, err := filepath.Glob(r.path("state/*"))
		return r.read("loaded") == one && err == nil && len(left) == 0
	})
	end()
}

func TestACommandThatHangsIsEndedWithItsChildren(t *testing.T) {
	r := newRig(t)
	k, _ := r.keep(func(f *File) {
		f.Check, f.Timeout = "echo $$ > "+r.path("group")+"; sleep 100 & sleep 100", 100*time.Millisecond
	})
	r.primary(1, "n1", topo.PhaseServing)
	r.await("ended", func() bool { return strings.Contains(k.States()[0].Error, "did not end within") })
	if r.read("target") != "" {
		t.Errorf("target %q", r.read("target"))
	}
	var group int
	for _, c := range strings.TrimSpace(r.read("group")) {
		group = group*10 + int(c-'0')
	}
	r.await("all gone", func() bool { return group > 1 && syscall.Kill(-group, 0) != nil })
}

func TestALinkStaysALink(t *testing.T) {
	r := newRig(t)
	r.put("real", "old")
	if err := os.Symlink(r.path("real"), r.path("target")); err != nil {
		t.Fatal(err)
	}
	r.keep(func(f *File) { f.Mode = 0o604 })
	r.primary(1, "n1", topo.PhaseServing)
	r.await("written", func() bool { return r.read("real") == one })
	if l, err := os.Readlink(r.path("target")); err != nil || l != r.path("real") {
		t.Errorf("link %q %v", l, err)
	}
	if info, err := os.Stat(r.path("real")); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
}

func TestAnUnusableTemplateIsToldAtOnceOrWhenItMatters(t *testing.T) {
	r := newRig(t)
	r.put("broken", "{{range .Shards}}")
	if _, err := New(Options{Files: []File{{Source: r.path("broken"), Target: r.path("x")}}, Board: r.board, Dir: r.path("state"), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v", err)
	}
	r.put("source", "{{(index .Shards 0).Primary.Addr}}")
	r.put("target", "old")
	k, _ := r.keep(nil)
	r.primary(1, "n1", topo.PhaseFencing)
	r.await("refused", func() bool { return k.States()[0].Error != "" })
	if r.read("target") != "old" {
		t.Errorf("target %q", r.read("target"))
	}
	r.primary(2, "n1", topo.PhaseServing)
	r.await("written", func() bool { return r.read("target") == "10.0.0.1:6101" })
}

func TestATopologyThatDoesNotRestIsNotLoadedInALoop(t *testing.T) {
	k := &keeper{}
	for i := range burst {
		if d := k.pause(time.Duration(i)); d != 0 {
			t.Fatalf("attempt %d waits %s", i, d)
		}
	}
	if d := k.pause(burst); d <= 0 || d > burstTime+time.Second {
		t.Errorf("one more waits %s", d)
	}
	if d := k.pause(burstTime + time.Second); d != 0 {
		t.Errorf("a minute later it waits %s", d)
	}
}

// TestTheExamplesOfTheGuide: each renders with a primary and without one, to what its program reads.
func TestTheExamplesOfTheGuide(t *testing.T) {
	n1, n2 := view.Place{ID: "n1", Host: "10.0.0.1", Port: 6101, Addr: "10.0.0.1:6101"}, view.Place{ID: "n2", Host: "10.0.0.2", Port: 6102, Addr: "10.0.0.2:6102"}
	p := view.Picture{Deployment: "mymaster", Mode: "ring", Shards: []view.ShardPicture{
		{Name: "s1", RingName: "alpha", Weight: 2, Primary: &n1, Latest: &n1, Replicas: []view.Place{n2}},
		{Name: "s2", RingName: "beta", Weight: 1, Latest: &n2, Replicas: []view.Place{n1}}, // between two primaries
	}, Proxies: []view.Place{{ID: "m1", Host: "10.0.0.9", Port: 6379, Addr: "10.0.0.9:6379"}}}
	for file, want := range map[string]string{
		"nutcracker.yml.tmpl": "  servers:\n    - 10.0.0.1:6101:2 alpha\n    - 10.0.0.2:6102:1 beta\n",
		"haproxy.cfg.tmpl":    "listen primary\n  bind 127.0.0.1:6379\n  server n1 10.0.0.1:6101\n\nlisten replicas\n  bind 127.0.0.1:6380\n  server n2 10.0.0.2:6102\n  server n1 10.0.0.1:6101\n",
		"envoy-eds.yaml.tmpl": "    cluster_name: redis-primary\n    endpoints:\n      - lb_endpoints:\n          - endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 6101}}}\n",
	} {
		k := &keeper{File: File{Source: filepath.Join("..", "..", "docs", "guide", "templates", file)}}
		text, err := k.text(p)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v\n%s\nlacks\n%s", file, err, text, want)
		}
	}
}
