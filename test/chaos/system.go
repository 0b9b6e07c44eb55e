// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/test/netns"
)

// what can be hit in a host.
const (
	server = "server"
	agent  = "agent"
	both   = "both"
	host   = "host" // everything in it
)

// system is what is put to the test.
type system interface {
	start(ctx context.Context) error
	healthy(ctx context.Context) error  // nil, or what is not well
	primary(ctx context.Context) int    // the host of the primary, 0: not known
	controller(ctx context.Context) int // the host of who decides, 0: not known
	pids(i int, what string) []int
	hold(i int, what string, down bool) // keep what was killed from being started again
	storePort() string                  // where those who decide talk to each other
	serverPorts() string
	switchover(ctx context.Context, to int) error
	client(host, to int) redis.UniversalClient
	stop()
}

// base is what both systems are made of: hosts, bounded disks, supervised processes.
type base struct {
	r         *run
	net       *netns.Net
	freezable bool   // its disks
	clocks    string // the library that lets its servers' clocks be set; empty: there is none
}

// disk is the bounded disk of host i.
func (b *base) disk(i int) string { return filepath.Join(b.r.dir, fmt.Sprintf("disk-%d", i)) }

func (b *base) logFile(name string) string { return filepath.Join(b.r.dir, name+".log") }

func (b *base) up() (err error) {
	if b.net, err = netns.Up(b.r.o.hosts, false); err != nil {
		return err
	}
	if err := b.makeClocks(); err != nil {
		return err
	}
	return b.mountDisks()
}

// inHost is a command in a host, whose servers have a clock of their own.
func (b *base) inHost(i int, name string, args ...string) *exec.Cmd {
	cmd := b.net.Command(i, name, args...)
	cmd.Env = b.clockEnv(i)
	return cmd
}

// dial connects from inside a host.
func (b *base) dial(host int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return b.net.Dial(ctx, host, network, addr)
	}
}

func (b *base) options(host int, addr string) *redis.Options {
	return &redis.Options{Addr: addr, Dialer: b.dial(host), PoolSize: 1, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true}
}

func (b *base) failover(host int, sentinels []string) *redis.Client {
	return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "mymaster", SentinelAddrs: sentinels, Dialer: b.dial(host),
		PoolSize: 1, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true})
}

// say runs one command at a server or Sentinel of host i, from inside that host.
func (b *base) say(ctx context.Context, i int, port string, f func(ctx context.Context, c *redis.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c := redis.NewClient(b.options(i, b.net.Addr(i)+":"+port))
	defer c.Close()
	return f(ctx, c)
}

// called are the processes in host i of a program, by the name that the kernel knows.
func (b *base) called(i int, name string) []int {
	return slices.DeleteFunc(b.net.PIDs(i), func(pid int) bool {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err != nil || strings.TrimSpace(string(comm)) != name
	})
}

// members is Redoubt: a member with its server on each host.
type members struct {
	base
	procs []*process   // of host i at i-1
	keeps [][]*process // the same: those of a store outside, none with the embedded one
	ctx   context.Context
	end   context.CancelFunc
}

func (m *members) start(ctx context.Context) error {
	if err := m.up(); err != nil {
		return err
	}
	m.ctx, m.end = context.WithCancel(ctx)
	if err := m.startStore(); err != nil {
		return err
	}
	for i := 1; i <= m.r.o.hosts; i++ {
		file := filepath.Join(m.r.dir, fmt.Sprintf("n%d.yaml", i))
		if err := os.WriteFile(file, []byte(m.config(i)), 0o600); err != nil {
			return err
		}
		name := fmt.Sprintf("n%d", i)
		m.procs = append(m.procs, supervise(m.ctx, m.r.history, name, m.logFile(name), func() *exec.Cmd {
			return m.inHost(i, m.r.o.bin, "run", "-c", file)
		}))
	}
	return nil
}

func (m *members) config(i int) string {
	var b strings.Builder
	at := func(j, port int) string { return fmt.Sprintf("%s:%d", m.net.Addr(j), port) }
	fmt.Fprintf(&b, "member: {id: n%d, dir: %q, host: %s}\n%s", i, filepath.Join(m.disk(i), "data"), m.net.Addr(i), m.storeConfig(i))
	durability, addresses := "quorum", "proxy"
	if m.r.o.mode == "async" {
		durability = "async"
	}
	if m.r.o.mode == "direct" {
		addresses = "direct"
	}
	fmt.Fprintf(&b, "deployments:\n  - name: mymaster\n    durability: %s\n    retry: %s\n", durability, m.r.o.retry)
	if m.r.o.maxLoss > 0 {
		fmt.Fprintf(&b, "    max-loss: {time: %s}\n", m.r.o.maxLoss)
	}
	if m.r.o.cluster {
		m.shardsOf(&b)
	} else {
		b.WriteString("    nodes:\n")
		for j := 1; j <= m.r.o.hosts; j++ {
			fmt.Fprintf(&b, "      - {id: n%d, host: h%d, addr: %q}\n", j, j, at(j, 6479))
		}
	}
	fmt.Fprintf(&b, "    node: {id: n%d, persistence: %s}\n", i, m.r.persistence)
	fmt.Fprintf(&b, "proxy: {listen: %q, reads: %s}\nsentinel: {listen: %q, addresses: %s}\napi: {listen: %q}\n",
		at(i, 6379), m.r.reads, at(i, 26379), addresses, at(i, 7379))
	return b.String()
}

// status is `redoubt status --json`, as far as the harness uses it.
type status struct {
	Controller  string `json:"controller"`
	Stale       bool   `json:"stale"`
	Deployments []struct {
		Shards []struct {
			Epoch   uint64 `json:"epoch"`
			Phase   string `json:"phase"`
			Primary string `json:"primary"`
			Reason  string `json:"reason"`
			Why     string `json:"why"`
			Nodes   []struct {
				ID       string   `json:"id"`
				State    string   `json:"state"`
				Enrolled bool     `json:"enrolled"`
				PID      int      `json:"pid"`
				Problems []string `json:"problems"`
			} `json:"nodes"`
		} `json:"shards"`
	} `json:"deployments"`
}

// ask gets something from the API of host i, from inside that host.
func (m *members) ask(ctx context.Context, i int, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DialContext: m.dial(i), DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.net.Addr(i)+":7379"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// status asks the hosts in turn until one answers that the agreed state can be read.
func (m *members) status(ctx context.Context) (status, error) {
	errs := []error{errors.New("no member knows the agreed state")}
	for i := 1; i <= m.r.o.hosts; i++ {
		var s status
		err := m.ask(ctx, i, "/v1/status", &s)
		if err == nil && !s.Stale && len(s.Deployments) > 0 && len(s.Deployments[0].Shards) > m.ours() {
			return s, nil
		}
		errs = append(errs, err)
	}
	return status{}, errors.Join(errs...)
}

func (m *members) healthy(ctx context.Context) error {
	s, err := m.status(ctx)
	if err != nil {
		return err
	}
	for _, sh := range s.Deployments[0].Shards {
		if sh.Phase != "serving" || s.Controller == "" {
			return fmt.Errorf("phase %s, controller %q: %s: %s", sh.Phase, s.Controller, sh.Reason, sh.Why)
		}
		for _, n := range sh.Nodes {
			if !n.Enrolled || n.State != "serving" && n.State != "following" {
				return fmt.Errorf("%s is %s, enrolled %v %v", n.ID, n.State, n.Enrolled, n.Problems)
			}
		}
	}
	return nil
}

func hostOf(id string) int {
	i := 0
	_, _ = fmt.Sscanf(id, "n%d", &i) // no id: no host
	return i
}

func (m *members) primary(ctx context.Context) int {
	s, err := m.status(ctx)
	if err != nil {
		return 0
	}
	return hostOf(s.Deployments[0].Shards[m.ours()].Primary)
}

func (m *members) controller(ctx context.Context) int {
	s, err := m.status(ctx)
	if err != nil {
		return 0
	}
	return hostOf(s.Controller)
}

func (m *members) pids(i int, what string) []int {
	var out []int
	if what == host {
		return m.net.PIDs(i) // the guard, too
	}
	if what == agent || what == both {
		if pid := m.procs[i-1].id(); pid > 0 {
			out = append(out, pid)
		}
	}
	if what == server || what == both {
		out = append(out, m.serving(i)...)
	}
	return out
}

// hold: servers are their agent's to start.
func (m *members) hold(i int, what string, down bool) {
	if what != server {
		m.procs[i-1].hold(down)
	}
	if what == host && len(m.keeps) > 0 {
		for _, p := range m.keeps[i-1] {
			p.hold(down)
		}
	}
}

func (m *members) serverPorts() string { return strconv.Itoa(6479 + m.ours()) }

func (m *members) switchover(ctx context.Context, to int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	args := []string{"netns", "exec", m.net.Name(to), m.r.o.bin, "switchover", "--yes", "--to", fmt.Sprintf("n%d", to), "--api", m.net.Addr(to) + ":7379"}
	if m.r.o.cluster {
		args = append(args, "--shard", fmt.Sprintf("mymaster-s%d", m.ours()+1))
	}
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

func (m *members) client(host, to int) redis.UniversalClient {
	if m.r.o.mode == "direct" {
		return m.failover(host, []string{m.net.Addr(to) + ":26379"})
	}
	c := redis.NewClient(m.options(host, m.net.Addr(to)+":6379"))
	if m.r.o.cluster {
		return inSlot{c}
	}
	return c
}

func (m *members) stop() {
	if m.end == nil {
		return
	}
	m.end()
	for _, of := range append(m.keeps, m.procs) {
		for _, p := range of {
			<-p.done
		}
	}
}
