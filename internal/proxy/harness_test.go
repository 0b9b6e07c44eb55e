// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/topo"
	"redoubt/internal/view"
	"redoubt/test/ports"
)

// docs is the smallest store: one process, no failures except outage.
type docs struct {
	mu      sync.Mutex
	doc     map[string]coord.Doc
	changed chan struct{}
	outage  bool
}

func newDocs() *docs { return &docs{doc: map[string]coord.Doc{}, changed: make(chan struct{})} }

func (d *docs) Get(_ context.Context, key string) (coord.Doc, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.outage {
		return coord.Doc{}, coord.ErrUnavailable
	}
	doc, ok := d.doc[key]
	if !ok {
		return coord.Doc{}, coord.ErrNotFound
	}
	return doc, nil
}

func (d *docs) Swap(_ context.Context, key string, value []byte, old coord.Rev) (coord.Rev, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.doc[key].Rev != old {
		return 0, coord.ErrConflict
	}
	d.doc[key] = coord.Doc{Key: key, Value: value, Rev: old + 1}
	close(d.changed)
	d.changed = make(chan struct{})
	return old + 1, nil
}

func (d *docs) Watch(ctx context.Context, key string) <-chan coord.Doc {
	out := make(chan coord.Doc)
	go func() {
		defer close(out)
		for last := coord.Rev(0); ; {
			d.mu.Lock()
			doc, changed := d.doc[key], d.changed
			d.mu.Unlock()
			if doc.Rev > last {
				select {
				case out <- doc:
					last = doc.Rev
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (d *docs) setOutage(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.outage = on
}

// node is a real server.
type node struct {
	id   topo.NodeID
	addr string
	cmd  *exec.Cmd
	gone chan struct{}
}

// serverBinary is the server under test: REDOUBT_TEST_SERVER, or redis-server on PATH.
func serverBinary(t testing.TB) string {
	t.Helper()
	bin, err := exec.LookPath(cmp.Or(os.Getenv("REDOUBT_TEST_SERVER"), "redis-server"))
	if err != nil {
		t.Skipf("no server to test with: %v", err)
	}
	return bin
}

func startNode(t testing.TB, id string, args ...string) *node {
	t.Helper()
	bin := serverBinary(t)
	for range 5 {
		port := strconv.Itoa(ports.Free(t))
		n := &node{id: topo.NodeID(id), addr: "127.0.0.1:" + port, gone: make(chan struct{})}
		n.cmd = exec.Command(bin, append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--repl-diskless-sync-delay", "0",
			"--enable-debug-command", "yes", "--logfile", filepath.Join(t.TempDir(), "log"), "--repl-ping-replica-period", "1"}, args...)...)
		n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := n.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _ = n.cmd.Wait(); close(n.gone) }()
		t.Cleanup(func() { _ = n.cmd.Process.Kill(); <-n.gone })
		if until(5*time.Second, func() bool { _, err := n.try("PING"); return err == nil || n.isGone() }) && !n.isGone() {
			return n
		}
	}
	t.Fatal("redis-server did not start")
	return nil
}

func (n *node) isGone() bool {
	select {
	case <-n.gone:
		return true
	default:
		return false
	}
}

// until polls a condition.
func until(limit time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			return ok()
		case <-tick.C:
		}
	}
	return true
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !until(10*time.Second, ok) {
		t.Fatalf("waited 10 s in vain for: %s", what)
	}
}

func (n *node) try(args ...string) (string, error) {
	c, err := net.DialTimeout("tcp", n.addr, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	w := &wire{c: c, r: bufio.NewReader(c)}
	return w.try(args...)
}

func (n *node) do(t testing.TB, args ...string) string {
	t.Helper()
	v, err := n.try(args...)
	if err != nil {
		t.Fatalf("%s: %v: %v", n.id, args, err)
	}
	return v
}

func (n *node) info(field string) string {
	v, err := n.try("INFO")
	if err != nil {
		return ""
	}
	return infoField([]byte(v), field)
}

// wire is a client that shows replies as they are on the wire.
type wire struct {
	t testing.TB
	c net.Conn
	r *bufio.Reader
}

func dialWire(t testing.TB, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &wire{t: t, c: c, r: bufio.NewReaderSize(c, 64<<10)}
}

func (w *wire) send(args ...string) {
	w.t.Helper()
	if _, err := w.c.Write(resp.AppendCommand(nil, args...)); err != nil {
		w.t.Fatal(err)
	}
}

// next returns the next frame; its payload when it is simple.
func (w *wire) frame() ([]byte, error) {
	var buf []byte
	var s resp.Scanner
	for {
		line, err := w.r.ReadSlice('\n')
		buf = append(buf, line...)
		if err != nil && err != bufio.ErrBufferFull {
			return nil, err
		}
		n, err := s.Next(buf)
		for ; n == 0 && err == nil; n, err = s.Next(buf) {
			missing := s.Missing(len(buf))
			if missing == 1 {
				break
			}
			more := make([]byte, missing)
			if _, err := io.ReadFull(w.r, more); err != nil {
				return nil, err
			}
			buf = append(buf, more...)
		}
		if err != nil {
			return nil, err
		}
		if n > 0 {
			return buf[:n], nil
		}
	}
}

func (w *wire) recv() string {
	w.t.Helper()
	_ = w.c.SetReadDeadline(time.Now().Add(15 * time.Second))
	f, err := w.frame()
	if err != nil {
		w.t.Fatalf("read a reply: %v", err)
	}
	return show(f)
}

func show(f []byte) string {
	if f[0] == '-' {
		return "-" + string(resp.Text(f))
	}
	if t := resp.Text(f); t != nil {
		return string(t)
	}
	return strings.ReplaceAll(string(bytes.TrimSuffix(f, []byte("\r\n"))), "\r\n", " ")
}

func (w *wire) do(args ...string) string {
	w.t.Helper()
	w.send(args...)
	return w.recv()
}

func (w *wire) want(reply string, args ...string) {
	w.t.Helper()
	if got := w.do(args...); got != reply {
		w.t.Fatalf("%v: got %q, want %q", args, got, reply)
	}
}

func (w *wire) try(args ...string) (string, error) {
	if _, err := w.c.Write(resp.AppendCommand(nil, args...)); err != nil {
		return "", err
	}
	f, err := w.frame()
	if err != nil {
		return "", err
	}
	if f[0] == '-' {
		return "", errors.New(string(resp.Text(f)))
	}
	return show(f), nil
}

// shard is a shard whose controller and agents are the test itself.
type shard struct {
	t     testing.TB
	docs  *docs
	nodes []*node
	p     *Proxy
	mu    sync.Mutex
	spec  topo.Shard
	rev   coord.Rev
}

const shardKey = topo.KeyShard + "s"

func newShard(t testing.TB, replicas int, change func(*topo.Spec, *Options)) *shard {
	t.Helper()
	var nodes []*node
	for i := range replicas + 1 {
		nodes = append(nodes, startNode(t, "n"+strconv.Itoa(i)))
	}
	return shardOf(t, nodes, change)
}

// shardOf is a shard of these nodes, the first of which is its primary.
func shardOf(t testing.TB, nodes []*node, change func(*topo.Spec, *Options)) *shard {
	t.Helper()
	s := &shard{t: t, docs: newDocs(), nodes: nodes}
	s.spec = topo.Shard{Format: topo.Format, ID: "s", Spec: topo.Spec{Deployment: "d", Durability: topo.Async, Timing: topo.LANTiming()}}
	for _, n := range s.nodes {
		s.spec.Spec.Nodes = append(s.spec.Spec.Nodes, topo.Node{ID: n.id, Addr: n.addr})
	}
	level := slog.LevelWarn
	if os.Getenv("PROXY_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	o := Options{Clock: clock.Real{}, ID: "p1", Listen: "127.0.0.1:0", Log: log}
	if change != nil {
		change(&s.spec.Spec, &o)
	}
	v := view.New(s.docs, o.Clock, shardKey, log)
	o.View = v
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.p = p
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = v.Run(ctx) })
	wg.Go(func() { _ = p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		stopped := make(chan struct{})
		go func() { wg.Wait(); close(stopped) }()
		select {
		case <-stopped:
		case <-time.After(10 * time.Second):
			t.Error("the proxy did not stop")
			panic("stuck")
		}
	})
	for _, n := range s.nodes[1:] {
		s.follow(n, s.nodes[0])
	}
	for _, n := range s.nodes[1:] {
		waitFor(t, "replica in sync", func() bool { return n.info("master_link_status") == "up" })
	}
	s.inSync(s.nodes[0])
	s.serve(s.nodes[0])
	return s
}

// inSync waits until the primary counts every replica: a fresh replica gets the stream only after its first ACK.
func (s *shard) inSync(primary *node) {
	live := -1
	for _, n := range s.nodes {
		if !n.isGone() {
			live++
		}
	}
	waitFor(s.t, "all replicas acknowledge", func() bool {
		v, err := primary.try("EVAL", "return redis.call('publish','x','y')", "0")
		return err == nil && v == "0" && strings.Count(primary.do(s.t, "INFO", "replication"), "state=online") == live && s.caughtUp(primary)
	})
}

func (s *shard) caughtUp(primary *node) bool {
	head := primary.info("master_repl_offset")
	for _, n := range s.nodes {
		if n != primary && !n.isGone() && n.info("slave_repl_offset") != head {
			return false
		}
	}
	return true
}

func (s *shard) follow(n, of *node) {
	if n.info("cluster_enabled") == "1" {
		return // it was started as a replica
	}
	host, port, _ := net.SplitHostPort(of.addr)
	n.do(s.t, "REPLICAOF", host, port)
}

func (s *shard) write(change func(*topo.Assigned)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.spec.Assigned.Clone()
	change(&next)
	s.spec.Assigned = next
	rev, err := s.docs.Swap(context.Background(), shardKey, s.spec.Encode(), s.rev)
	if err != nil {
		s.t.Error(err)
	}
	s.rev = rev
}

func (s *shard) serve(n *node) {
	runID, replid := n.info("run_id"), n.info("master_replid")
	s.write(func(a *topo.Assigned) {
		a.Epoch++
		a.Phase, a.Primary, a.RunID, a.Elected = topo.PhaseServing, n.id, runID, nil
		a.History = append(a.History, topo.HistoryEntry{Epoch: a.Epoch, ReplID: replid})
	})
}

func (s *shard) phase(p topo.Phase) { s.write(func(a *topo.Assigned) { a.Phase = p }) }

// switchover does what controller and agents do (SAFETY C1).
func (s *shard) switchover(from, to *node) {
	t := s.t
	s.phase(topo.PhaseDraining)
	waitFor(t, "nothing is on its way", func() bool { return redis.Undrained(from.do(t, "CLIENT", "LIST", "TYPE", "normal")) == 0 })
	c, err := net.Dial("tcp", from.addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	w := &wire{t: t, c: c, r: bufio.NewReader(c)}
	for _, cmd := range [][]string{{"MULTI"}, {"REPLICAOF", "127.0.0.1", "0"}, {"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"},
		{"CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"}, {"EXEC"}} {
		if _, err := w.try(cmd...); err != nil {
			t.Error(cmd, err)
		}
	}
	final := from.info("master_repl_offset")
	waitFor(t, "candidate caught up", func() bool { return to.info("slave_repl_offset") == final })
	to.do(t, "REPLICAOF", "NO", "ONE")
	s.serve(to)
	s.follow(from, to)
	for _, n := range s.nodes {
		if n != from && n != to && !n.isGone() {
			s.follow(n, to)
		}
	}
}

// failover promotes the replica that holds most, after the primary has died.
func (s *shard) failover() {
	dead := s.spec.Assigned.Primary
	s.write(func(a *topo.Assigned) { a.Epoch++; a.Phase = topo.PhaseFencing })
	var to *node
	best := int64(-1)
	for _, n := range s.nodes {
		if n.isGone() || n.id == dead {
			continue
		}
		n.do(s.t, "REPLICAOF", "127.0.0.1", "0")
		if at, _ := strconv.ParseInt(n.info("slave_repl_offset"), 10, 64); at > best {
			best, to = at, n
		}
	}
	to.do(s.t, "REPLICAOF", "NO", "ONE")
	s.serve(to)
	for _, n := range s.nodes {
		if n != to && n.id != dead && !n.isGone() {
			s.follow(n, to)
		}
	}
}

func (s *shard) client() *wire { return dialWire(s.t, s.p.Addr().String()) }

func (n *node) signal(sig syscall.Signal) { _ = n.cmd.Process.Signal(sig) }

type spec = topo.Spec
