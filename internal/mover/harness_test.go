// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/internal/reshard"
	"redoubt/internal/route"
	"redoubt/test/ports"
)

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// unhurried marks what the quick gate leaves to `make test`.
func unhurried(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("left to make test")
	}
	t.Parallel()
}

// eventually polls until cond holds, and ends the test if it never does.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		if cond() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}

func serverBinary(t testing.TB) string {
	t.Helper()
	for _, name := range []string{os.Getenv("REDOUBT_TEST_SERVER"), "redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	t.Skip("no server to test with")
	return ""
}

// server is one process.
type server struct {
	Node
	port, bus int
	announced int // where other nodes reach the bus
	dir       string
	cmd       *exec.Cmd
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func start(t testing.TB, s *server, more ...string) {
	t.Helper()
	args := append([]string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "no", "--enable-debug-command", "yes",
		"--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-backlog-size", "64mb", "--logfile", filepath.Join(s.dir, "log")}, more...)
	s.cmd = exec.Command(serverBinary(t), args...)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
}

// cluster is some shards of a primary and replicas, started from files that already know everything.
type cluster struct {
	t     testing.TB
	nodes [][]*server // by shard; the first was the primary at the beginning

	gossip sync.RWMutex // what nodes tell each other passes while nobody has it locked

	mu     sync.Mutex
	shards []Shard // as the topology is told to the mover
}

var shardNames = []string{"a", "b", "c", "d"}

// newCluster gives the slots to the first shards in equal parts; the last `empty` get none.
func newCluster(t testing.TB, shards, replicas, empty int) *cluster {
	t.Helper()
	c := &cluster{t: t}
	for i := range shards {
		c.nodes = append(c.nodes, nil)
		for j := range replicas + 1 {
			s := &server{port: ports.Free(t), bus: ports.Free(t), dir: t.TempDir()}
			s.announced = c.relay(s.bus)
			s.ID, s.Addr = fmt.Sprintf("%040x", (i+1)*16+j), fmt.Sprintf("127.0.0.1:%d", s.port)
			c.nodes[i] = append(c.nodes[i], s)
		}
		sh := Shard{ID: shardNames[i], Primary: c.nodes[i][0].Node}
		for _, s := range c.nodes[i][1:] {
			sh.Replicas = append(sh.Replicas, s.Node)
		}
		c.shards = append(c.shards, sh)
	}
	for i := range c.nodes {
		for _, s := range c.nodes[i] {
			c.write(s, shards-empty)
			start(t, s, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(s.bus), "--cluster-announce-bus-port", strconv.Itoa(s.announced), "--cluster-node-timeout", "15000", "--cluster-replica-no-failover", "yes",
				"--cluster-allow-replica-migration", "no", "--cluster-require-full-coverage", "no", "--lazyfree-lazy-server-del", "yes")
		}
	}
	for i := range c.nodes {
		for _, s := range c.nodes[i] {
			eventually(t, "a cluster that serves", func() bool {
				return strings.Contains(c.try(s.Addr, "CLUSTER", "INFO"), "cluster_state:ok") && (s == c.nodes[i][0] || strings.Contains(c.try(s.Addr, "INFO", "replication"), "master_link_status:up"))
			})
		}
	}
	return c
}

// relay carries gossip to a bus while c.gossip lets it.
func (c *cluster) relay(bus int) (port int) {
	port = ports.Free(c.t)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		c.t.Fatal(err)
	}
	var open sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	carry := func(to, from net.Conn) {
		defer open.Done()
		defer to.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			c.gossip.RLock()
			//lint:ignore SA2001 it is waited for, nothing is guarded
			c.gossip.RUnlock()
			if err != nil {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
	}
	open.Add(1)
	go func() {
		defer open.Done()
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", bus))
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			mu.Unlock()
			open.Add(2)
			go carry(in, out)
			go carry(out, in)
		}
	}()
	c.t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, nc := range conns {
			_ = nc.Close()
		}
		mu.Unlock()
		open.Wait()
	})
	return port
}

// write makes the file that a node remembers its cluster by.
func (c *cluster) write(me *server, owners int) {
	var b strings.Builder
	for i := range c.nodes {
		for j, s := range c.nodes[i] {
			flags, of, slots := "master", "-", ""
			if s == me {
				flags = "myself,master"
			}
			if j > 0 {
				flags, of = strings.Replace(flags, "master", "slave", 1), c.nodes[i][0].ID
			} else if i < owners {
				slots = fmt.Sprintf(" %d-%d", i*reshard.SlotCount/owners, (i+1)*reshard.SlotCount/owners-1)
			}
			fmt.Fprintf(&b, "%s 127.0.0.1:%d@%d%s %s %s 0 0 %d connected%s\n", s.ID, s.port, s.announced, c.shardID(i), flags, of, i+1, slots)
		}
	}
	fmt.Fprintf(&b, "vars currentEpoch %d lastVoteEpoch 0\n", len(c.nodes))
	if err := os.WriteFile(filepath.Join(me.dir, "nodes.conf"), []byte(b.String()), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// shardID is what tells servers of Valkey 8 that a replica is of its primary's shard, and is to follow whoever replaces that.
func (c *cluster) shardID(i int) string {
	version, err := exec.Command(serverBinary(c.t), "--version").Output()
	if err != nil || !strings.HasPrefix(string(version), "Valkey") {
		return ""
	}
	return fmt.Sprintf(",,shard-id=%040x", i+1)
}

func (c *cluster) topology() []Shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Shard(nil), c.shards...)
}

func (c *cluster) primary(shard string) Node {
	for _, s := range c.topology() {
		if s.ID == shard {
			return s.Primary
		}
	}
	return Node{}
}

func (c *cluster) connect(addr string) *link {
	c.t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		c.t.Fatal(err)
	}
	l := &link{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), addr: addr}
	c.t.Cleanup(l.close)
	return l
}

// try asks one question of a server that may not be there.
func (c *cluster) try(addr string, args ...string) string {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err.Error()
	}
	l := &link{nc: nc, r: bufio.NewReader(nc), addr: addr}
	defer l.close()
	rep, err := l.ask(within(c.t, 10*time.Second), args...)
	if err != nil {
		return err.Error()
	}
	return text(rep)
}

func text(r reply) string {
	switch {
	case r.null:
		return "nil"
	case r.kind == ':':
		return strconv.FormatInt(r.num, 10)
	case r.kind == '*':
		var out []string
		for _, it := range r.items {
			out = append(out, text(it))
		}
		return "[" + strings.Join(out, " ") + "]"
	}
	return string(r.body)
}

func (c *cluster) count(addr string, slots []int) int64 {
	c.t.Helper()
	var n int64
	for _, s := range slots {
		v, err := strconv.ParseInt(c.try(addr, "CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(s)), 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		n += v
	}
	return n
}

// promote makes the first replica of a shard its primary, as a failover would: the primary is killed first.
func (c *cluster) promote(shard string, given ...int) {
	c.t.Helper()
	i := strings.Index("abcd", shard)
	c.mu.Lock()
	defer c.mu.Unlock()
	sh := &c.shards[i]
	for _, s := range c.nodes[i] {
		if s.ID == sh.Primary.ID {
			s.kill()
		}
	}
	next := sh.Replicas[0]
	begun := time.Now()
	eventually(c.t, "the replica knows what its shard has given away", func() bool { // or it would take that back, and its owner delete it
		for _, slot := range given {
			if strings.Contains(c.try(next.Addr, "GET", tagOf(slot)), "MOVED "+strconv.Itoa(slot)+" "+sh.Primary.Addr) {
				return false
			}
		}
		return true
	})
	if len(given) > 0 {
		c.t.Logf("the replica knew after %s", time.Since(begun).Round(time.Millisecond))
	}
	if got := c.try(next.Addr, "CLUSTER", "FAILOVER", "TAKEOVER"); got != "OK" {
		c.t.Fatalf("takeover: %s", got)
	}
	eventually(c.t, "a new primary", func() bool { return strings.Contains(c.try(next.Addr, "INFO", "replication"), "role:master") })
	sh.Absent = append(sh.Absent, sh.Primary)
	sh.Primary, sh.Replicas = next, sh.Replicas[1:]
}

// slotOf is the slot of a key: CRC16 of it, or of what stands between its first braces.
func slotOf(key []byte) int {
	if _, after, ok := strings.Cut(string(key), "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			key = []byte(tag)
		}
	}
	crc := uint16(0)
	for _, b := range key {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % reshard.SlotCount)
}

// tagOf is a short tag of a slot.
func tagOf(slot int) string {
	for i := 0; ; i++ {
		if tag := strconv.Itoa(i); slotOf([]byte(tag)) == slot {
			return "{" + tag + "}"
		}
	}
}

func keysBy(table *route.Table) func([][]byte, []int) ([]int, bool) {
	return func(args [][]byte, dst []int) ([]int, bool) {
		row := table.Lookup(args[0])
		return row.Keys(args, dst), row.Name != ""
	}
}

// gate stands between clients and the cluster, and is the Parker: it knows who has each slot, counts commands under way, and measures
// how long clients had to wait.
type gate struct {
	mu     sync.Mutex
	turn   *sync.Cond
	owner  map[int]string
	parked map[int]time.Time
	under  map[int]int
	waits  []time.Duration
	busy   int // so many times, commands are still under way
	parks  int
}

func newGate(owner func(slot int) string) *gate {
	g := &gate{owner: map[int]string{}, parked: map[int]time.Time{}, under: map[int]int{}}
	g.turn = sync.NewCond(&g.mu)
	for s := range reshard.SlotCount {
		g.owner[s] = owner(s)
	}
	return g
}

func (g *gate) enter(slot int) (shard string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.parked[slot].IsZero() {
		g.turn.Wait()
	}
	g.under[slot]++
	return g.owner[slot]
}

func (g *gate) leave(slot int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.under[slot]--; g.under[slot] == 0 {
		g.turn.Broadcast()
	}
}

func (g *gate) Park(_ context.Context, slots []int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range slots {
		if g.parked[s].IsZero() {
			g.parked[s] = time.Now()
		}
	}
	for _, s := range slots {
		for g.under[s] > 0 {
			g.turn.Wait()
		}
	}
	if g.parks++; g.parks <= g.busy {
		return ErrUnderWay
	}
	return nil
}

func (g *gate) Flow(_ context.Context, slots []int, owner string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range slots {
		if at := g.parked[s]; !at.IsZero() {
			g.waits = append(g.waits, time.Since(at))
		}
		delete(g.parked, s)
		g.owner[s] = owner
	}
	g.turn.Broadcast()
	return nil
}

// shelf is what is stored.
type shelf struct {
	mu     sync.Mutex
	stored reshard.Move
	wish   reshard.Wish
}

func (s *shelf) store(_ context.Context, m reshard.Move) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored = m
	return nil
}

func (c *cluster) options(g *gate, s *shelf) Options {
	return Options{Name: "test", Shards: c.topology, Slot: slotOf, Keys: keysBy(route.Builtin()), Parker: g, Store: s.store, Replicas: 1,
		Wish: func() reshard.Wish { s.mu.Lock(); defer s.mu.Unlock(); return s.wish }}
}

func (c *cluster) mover(o Options) *Mover {
	c.t.Helper()
	m, err := New(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(m.Close)
	return m
}
