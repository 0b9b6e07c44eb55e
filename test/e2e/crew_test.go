// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// crew is a deployment whose members the test starts itself, each with `redoubt run -c`, from files written by hand.
type crew struct {
	t       *testing.T
	d       *deployment
	first   int                    // members that the store begins with
	nodes   int                    // data nodes n1, n2, …, each beside the first members
	local   func(id string) string // the node block of a member with a data node
	extra   string                 // further lines of the deployment
	roster  func() string          // its nodes, in place of one for each of the first members
	cluster bool                   // mode cluster, of one shard
	members map[string]*exec.Cmd
	servers map[string]*exec.Cmd // those that the test supervises
}

func newCrew(t *testing.T) *crew {
	t.Helper()
	c := &crew{t: t, first: 3, nodes: 3, members: map[string]*exec.Cmd{}, servers: map[string]*exec.Cmd{}}
	c.local = func(string) string { return "{}" }
	c.d = &deployment{t: t, bin: binary(t), dir: t.TempDir(), base: freeBase(t)}
	c.d.api = func() string {
		var addrs []string
		for i := 1; i <= max(5, c.first); i++ {
			addrs = append(addrs, c.at(30, i))
		}
		return strings.Join(addrs, ",")
	}
	t.Cleanup(c.stop)
	return c
}

// at is an address of member i: 0 its proxy, 30 its API, 40 its store, 100 its server.
func (c *crew) at(kind, i int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.d.base+kind+i-1))
}

func number(t *testing.T, id string) int {
	t.Helper()
	i, err := strconv.Atoi(id[1:])
	if err != nil {
		t.Fatalf("id %q: %v", id, err)
	}
	return i
}

// start runs a member; join is a store address, or empty for one of the first.
func (c *crew) start(id, join string) {
	c.t.Helper()
	dir := filepath.Join(c.d.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	file := filepath.Join(dir, "redoubt.yaml")
	if err := os.WriteFile(file, []byte(c.config(id, join)), 0o600); err != nil {
		c.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "redoubt.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(c.d.bin, "run", "-c", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.members[id] = cmd
}

func (c *crew) config(id, join string) string {
	i := number(c.t, id)
	var b strings.Builder
	fmt.Fprintf(&b, "member: {id: %s, dir: data}\nstore:\n", id)
	if join != "" {
		fmt.Fprintf(&b, "  listen: %q\n  join: %q\n", c.at(40, i), join)
	} else {
		b.WriteString("  members:\n")
		for j := 1; j <= c.first; j++ {
			fmt.Fprintf(&b, "    - {id: n%d, addr: %q}\n", j, c.at(40, j))
		}
	}
	b.WriteString("deployments:\n  - name: mymaster\n" + c.extra)
	if c.roster != nil {
		b.WriteString(c.roster())
	} else {
		if c.cluster {
			b.WriteString("    mode: cluster\n    shards:\n     - name: s1\n       nodes:\n")
		} else {
			b.WriteString("    nodes:\n")
		}
		for j := 1; j <= c.nodes; j++ {
			bus := ""
			if c.cluster {
				bus = fmt.Sprintf(", bus-port: %d", c.d.base+300+j-1)
			}
			fmt.Fprintf(&b, "        - {id: n%d, host: h%d, addr: %q%s}\n", j, j, c.at(100, j), bus)
		}
	}
	if i <= c.nodes {
		b.WriteString("    node: " + c.local(id) + "\n")
	}
	fmt.Fprintf(&b, "proxy: {listen: %q}\napi: {listen: %q}\n", c.at(0, i), c.at(30, i))
	return b.String()
}

// kill ends a member with SIGKILL and reaps it.
func (c *crew) kill(id string) { c.end(c.members, id) }

func (c *crew) end(of map[string]*exec.Cmd, id string) {
	if cmd := of[id]; cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(of, id)
	}
}

// supervise starts a server as systemd or a container runtime would.
func (c *crew) supervise(id string, args ...string) {
	c.t.Helper()
	dir := filepath.Join(c.d.dir, "server-"+id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(c.at(100, number(c.t, id)))
	all := append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--rdbcompression", "no", "--repl-diskless-sync-delay", "0", "--logfile", filepath.Join(dir, "server.log")}, args...)
	cmd := exec.Command("redis-server", all...)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.servers[id] = cmd
}

func (c *crew) killServer(id string) { c.end(c.servers, id) }

// stop ends the members politely, so that managed servers end with them, and then the supervised servers.
func (c *crew) stop() {
	if c.t.Failed() {
		c.d.showLogs()
	}
	for _, cmd := range c.members {
		_ = cmd.Process.Signal(syscall.SIGINT)
	}
	for id, cmd := range c.members {
		done := make(chan struct{})
		go func() { defer close(done); _ = cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			c.t.Errorf("%s did not stop within 20s", id)
			_ = cmd.Process.Kill()
			<-done
		}
	}
	for id := range c.servers {
		c.killServer(id)
	}
	c.endManaged("*")
}

// log returns what a member wrote.
func (c *crew) log(id string) string {
	text, _ := os.ReadFile(filepath.Join(c.d.dir, id, "redoubt.log"))
	return string(text)
}

// data is where the server of a member keeps its data.
func (c *crew) data(id string) string {
	dir := filepath.Join(c.d.dir, id, "data", "redis")
	if c.cluster {
		dir = filepath.Join(dir, "s1")
	}
	return dir
}

// direct is a client of the server of member i.
func (c *crew) direct(i, db int) *redis.Client {
	o := &redis.Options{Addr: c.at(100, i), DB: db, MaxRetries: -1}
	if c.cluster {
		o.OnConnect = func(ctx context.Context, cn *redis.Conn) error { return cn.ReadOnly(ctx).Err() }
	}
	return redis.NewClient(o)
}

// erase removes everything that a member keeps.
func (c *crew) erase(id string) {
	c.t.Helper()
	if err := os.RemoveAll(filepath.Join(c.d.dir, id, "data")); err != nil {
		c.t.Fatal(err)
	}
}

// endManaged ends servers whose member, "*" for any, was killed: each left a record of its process in its data directory.
func (c *crew) endManaged(id string) {
	records, _ := filepath.Glob(filepath.Join(c.d.dir, id, "data", "redis", "redoubt-server.json"))
	ofShards, _ := filepath.Glob(filepath.Join(c.d.dir, id, "data", "redis", "*", "redoubt-server.json"))
	records = append(records, ofShards...)
	for _, r := range records {
		text, _ := os.ReadFile(r)
		_, rest, ok := strings.Cut(string(text), `"pid":`)
		digits := strings.TrimSpace(strings.FieldsFunc(rest+",", func(r rune) bool { return r == ',' || r == '}' })[0])
		pid, err := strconv.Atoi(digits)
		if !ok || err != nil || pid <= 1 {
			continue
		}
		at, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err == nil && strings.HasPrefix(at, c.d.dir) { // nobody else's process that was given the same number
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
