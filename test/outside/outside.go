// SPDX-License-Identifier: Apache-2.0

// Package outside runs real stores outside (etcd, Consul) for tests: one to three processes on free ports, in a directory
// of their own, that can be killed, stopped and started again.
//
// It is not part of the product. Its invariant: what it started is gone when the test ends, and it ends nothing else.
// Goroutines: one for each process, which waits for its end.
package outside

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Cluster is a running store.
type Cluster struct {
	Kind      string   // etcd, consul
	Endpoints []string // http://host:port
	t         testing.TB
	nodes     []*node
	secure    string // consul: https://host:port of the first
}

type node struct {
	name  string
	argv  []string
	ready string // URL that answers 200 when the node serves
	log   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// startTime bounds how long a store may take to serve.
const startTime = 20 * time.Second

// Ports returns free ports of the loopback.
func Ports(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at once at the end, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// Etcd starts n nodes of etcd with further arguments, which may ask for TLS; the test is skipped where etcd is not installed.
func Etcd(t testing.TB, n int, args ...string) *Cluster {
	t.Helper()
	bin := os.Getenv("REDOUBT_TEST_ETCD")
	if bin == "" {
		var err error
		if bin, err = exec.LookPath("etcd"); err != nil {
			t.Skip("etcd is not installed: scripts/deps.sh stores")
		}
	}
	dir, ports, scheme := t.TempDir(), Ports(t, 3*n), "http"
	if slices.Contains(args, "--cert-file") {
		scheme = "https"
	}
	c := &Cluster{Kind: "etcd", t: t}
	var peers []string
	for i := range n {
		peers = append(peers, fmt.Sprintf("e%d=http://127.0.0.1:%d", i+1, ports[n+i]))
	}
	for i := range n {
		url, health := fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[i]), fmt.Sprintf("http://127.0.0.1:%d", ports[2*n+i])
		peer := fmt.Sprintf("http://127.0.0.1:%d", ports[n+i])
		c.Endpoints = append(c.Endpoints, url)
		name := fmt.Sprintf("e%d", i+1)
		c.nodes = append(c.nodes, &node{name: name, ready: health + "/health", log: filepath.Join(dir, name+".log"), argv: append([]string{bin,
			"--name", name, "--data-dir", filepath.Join(dir, name), "--listen-client-urls", url, "--advertise-client-urls", url,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(peers, ","),
			"--listen-metrics-urls", health, "--logger", "zap", "--log-level", "warn"}, args...)})
	}
	c.run()
	return c
}

// Consul starts n servers of Consul; the test is skipped where none was built.
func Consul(t testing.TB, n int) *Cluster { return consul(t, n, "") }

// ConsulWithTLS starts one server that wants certificates of an authority and a token, of which this one may do everything.
func ConsulWithTLS(t testing.TB, a *Authority, management string) *Cluster {
	t.Helper()
	cert, key := a.Issue(t, "consul", time.Hour)
	c := consul(t, 1, fmt.Sprintf("acl { enabled = true\n default_policy = \"deny\"\n tokens { initial_management = %q\n agent = %q } }\n"+
		"tls { defaults { ca_file = %q\n cert_file = %q\n key_file = %q }\n https { verify_incoming = true } }\n", management, management, a.CA, cert, key))
	c.Endpoints = []string{c.secure}
	return c
}

// consul starts n servers with further lines in their configuration.
func consul(t testing.TB, n int, more string) *Cluster {
	t.Helper()
	bin := os.Getenv("REDOUBT_TEST_CONSUL")
	if bin == "" {
		var err error
		if bin, err = exec.LookPath("consul"); err != nil {
			t.Skip("there is no consul: make consul, and set REDOUBT_TEST_CONSUL to where bin/consul is")
		}
	}
	dir, ports := t.TempDir(), Ports(t, 5*n)
	c := &Cluster{Kind: "consul", t: t}
	var join []string
	for i := range n {
		join = append(join, "-retry-join", fmt.Sprintf("127.0.0.1:%d", ports[5*i+1]))
	}
	for i := range n {
		p, name := ports[5*i:], fmt.Sprintf("c%d", i+1)
		url := fmt.Sprintf("http://127.0.0.1:%d", p[0])
		c.Endpoints = append(c.Endpoints, url)
		secure := -1
		if more != "" {
			secure, c.secure = p[4], fmt.Sprintf("https://127.0.0.1:%d", p[4])
		}
		hcl := fmt.Sprintf("performance { raft_multiplier = 1 }\nports { http = %d\n https = %d\n serf_lan = %d\n serf_wan = %d\n server = %d\n grpc = -1\n grpc_tls = -1\n dns = -1 }\n", p[0], secure, p[1], p[2], p[3]) + more
		file := filepath.Join(dir, name+".hcl")
		if err := os.WriteFile(file, []byte(hcl), 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, &node{name: name, ready: url + "/v1/kv/?keys&consistent", log: filepath.Join(dir, name+".log"), argv: append([]string{bin, "agent", "-server", "-node", name, "-bootstrap-expect", fmt.Sprint(n),
			"-bind", "127.0.0.1", "-client", "127.0.0.1", "-data-dir", filepath.Join(dir, name), "-config-file", file, "-log-level", "warn", "-disable-host-node-id", "-retry-interval", "1s"}, join...)})
	}
	c.run()
	return c
}

func (c *Cluster) run() {
	c.t.Helper()
	c.t.Cleanup(func() {
		for i := range c.nodes {
			c.Kill(i)
			if log, err := os.ReadFile(c.nodes[i].log); err == nil && c.t.Failed() {
				c.t.Logf("--- %s\n%s", c.nodes[i].name, log[max(0, len(log)-600):])
			}
		}
	})
	for i := range c.nodes {
		c.launch(i)
	}
	for i := range c.nodes {
		c.Await(i)
	}
}

func (c *Cluster) launch(i int) {
	c.t.Helper()
	n := c.nodes[i]
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(n.argv[0], n.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan struct{})
	n.cmd, n.ended = cmd, ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
}

// Await waits until a node serves, which takes a majority.
func (c *Cluster) Await(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.nodes[i].ready, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK || c.Kind == "consul" && (resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusForbidden) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("%s does not serve within %s", c.nodes[i].name, startTime)
		}
	}
}

// Kill ends a node as a power cut would.
func (c *Cluster) Kill(i int) {
	n := c.nodes[i]
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	<-n.ended
	n.cmd = nil
}

// Start starts a node that was killed; it does not wait for it.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	c.launch(i)
}

// Stop freezes a node; the kernel still takes what is sent to it.
func (c *Cluster) Stop(i int) { c.signal(i, syscall.SIGSTOP) }

// Continue lets it go on.
func (c *Cluster) Continue(i int) { c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, sig syscall.Signal) {
	c.t.Helper()
	if err := c.nodes[i].cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}

// Size is the number of nodes.
func (c *Cluster) Size() int { return len(c.nodes) }
