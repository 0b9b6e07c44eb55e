// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"redoubt/test/kubeapi"
)

// The kinds of stores that a run can have.
const (
	raft       = "raft"
	etcd       = "etcd"
	consul     = "consul"
	kubernetes = "kubernetes"
)

func stores() []string { return []string{raft, etcd, consul, kubernetes} }

// envConsul names the program of Consul; `make consul` builds it.
const envConsul = "REDOUBT_TEST_CONSUL"

// program is what a store outside needs to run; empty: nothing.
func program(store string) (string, error) {
	switch store {
	case raft:
		return "", nil
	case etcd:
		return exec.LookPath("etcd")
	case consul:
		name := os.Getenv(envConsul)
		if name == "" {
			name = "consul"
		}
		bin, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("%w: `make consul` builds one, and %s names it", err, envConsul)
		}
		return filepath.Abs(bin)
	case kubernetes:
		bin, ok := kubeapi.Program()
		if !ok {
			return "", fmt.Errorf("there is no kube-apiserver: `make kube-apiserver` builds one, or %s names it", kubeapi.EnvServer)
		}
		_, err := exec.LookPath("etcd")
		return bin, err
	}
	return "", fmt.Errorf("store %q: give %s", store, strings.Join(stores(), ", "))
}

// startStore runs one node of the store outside on each host. They reserve more than the bounded disks have, so they lie beside them.
func (m *members) startStore() error {
	bin, err := program(m.r.o.store)
	if err != nil || bin == "" {
		return err
	}
	m.keeps = make([][]*process, m.r.o.hosts)
	for i := 1; i <= m.r.o.hosts; i++ {
		switch m.r.o.store {
		case etcd:
			m.keep(i, fmt.Sprintf("e%d", i), bin, m.etcd(i)...)
		case consul:
			m.keep(i, fmt.Sprintf("c%d", i), bin, m.consul(i)...)
		case kubernetes:
			args, err := m.apiServer(i)
			if err != nil {
				return err
			}
			m.keep(i, fmt.Sprintf("e%d", i), etcd, m.etcd(i)...)
			m.keep(i, fmt.Sprintf("k%d", i), bin, args...)
		}
	}
	return m.awaitFiles()
}

// awaitFiles waits until each API server has made the certificate that members trust; without it they end, and say so.
func (m *members) awaitFiles() error {
	if m.r.o.store != kubernetes {
		return nil
	}
	for i, end := 1, time.Now().Add(startWithin); i <= m.r.o.hosts; {
		if _, err := os.Stat(m.certificate(i)); err == nil {
			i++
			continue
		}
		if time.Now().After(end) || m.ctx.Err() != nil {
			return fmt.Errorf("the API server of host %d makes no certificate: see %s", i, m.logFile(fmt.Sprintf("k%d", i)))
		}
		wait(m.ctx, 50*time.Millisecond)
	}
	return nil
}

func (m *members) certificate(i int) string { return filepath.Join(m.kubeDir(i), "apiserver.crt") }

// keep supervises one process of the store on a host.
func (m *members) keep(i int, name, bin string, args ...string) {
	m.keeps[i-1] = append(m.keeps[i-1], supervise(m.ctx, m.r.history, name, m.logFile(name), func() *exec.Cmd { return m.inHost(i, bin, args...) }))
}

func (m *members) etcd(i int) []string {
	var peers []string
	for j := 1; j <= m.r.o.hosts; j++ {
		peers = append(peers, fmt.Sprintf("e%d=http://%s:2380", j, m.net.Addr(j)))
	}
	name, addr := fmt.Sprintf("e%d", i), m.net.Addr(i)
	return []string{"--name", name, "--data-dir", filepath.Join(m.r.dir, name), "--initial-cluster", strings.Join(peers, ","),
		"--listen-client-urls", "http://" + addr + ":2379", "--advertise-client-urls", "http://" + addr + ":2379",
		"--listen-peer-urls", "http://" + addr + ":2380", "--initial-advertise-peer-urls", "http://" + addr + ":2380",
		"--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "warn"}
}

// consul is a server of Consul, with the times that are for servers on one network.
func (m *members) consul(i int) []string {
	name, addr := fmt.Sprintf("c%d", i), m.net.Addr(i)
	args := []string{"agent", "-server", "-node", name, "-bootstrap-expect", fmt.Sprint(m.r.o.hosts), "-bind", addr, "-client", addr,
		"-data-dir", filepath.Join(m.r.dir, name), "-log-level", "warn", "-disable-host-node-id", "-retry-interval", "1s",
		"-hcl", "performance { raft_multiplier = 1 } ports { grpc = -1 grpc_tls = -1 dns = -1 serf_wan = -1 }"}
	for j := 1; j <= m.r.o.hosts; j++ {
		args = append(args, "-retry-join", m.net.Addr(j))
	}
	return args
}

// adminToken is what members show to the API servers.
const adminToken = "a-token-of-chaos"

func (m *members) kubeDir(i int) string { return filepath.Join(m.r.dir, fmt.Sprintf("k%d", i)) }

// apiServer is a real one over the etcd of its host, as control planes are built that have several machines. It serves that host.
func (m *members) apiServer(i int) ([]string, error) {
	dir, key, tokens, addr := m.kubeDir(i), filepath.Join(m.kubeDir(1), "sa.key"), filepath.Join(m.kubeDir(1), "tokens.csv"), m.net.Addr(i)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if i == 1 { // one key and one list for all
		pair, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(pair)})
		err = errors.Join(os.WriteFile(key, text, 0o600), os.WriteFile(tokens, []byte(adminToken+",admin,1,system:masters\n"), 0o600))
		if err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(adminToken), 0o600); err != nil {
		return nil, err
	}
	return []string{"--etcd-servers", "http://" + addr + ":2379", "--bind-address", addr, "--advertise-address", addr, "--secure-port", "6443",
		"--cert-dir", dir, "--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key, "--service-account-signing-key-file", key,
		"--token-auth-file", tokens, "--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16", "--disable-admission-plugins", "ServiceAccount"}, nil
}

// storeConfig is the section of a member's file that says where the agreed state lives.
func (m *members) storeConfig(i int) string {
	var b strings.Builder
	b.WriteString("store:\n")
	switch m.r.o.store {
	case etcd, consul:
		fmt.Fprintf(&b, "  kind: %s\n  endpoints:\n", m.r.o.store)
		for j := 1; j <= m.r.o.hosts; j++ {
			fmt.Fprintf(&b, "    - http://%s:%d\n", m.net.Addr(j), map[string]int{etcd: 2379, consul: 8500}[m.r.o.store])
		}
	case kubernetes:
		b.WriteString("  kind: kubernetes\n")
		fmt.Fprintf(&b, "kubernetes: {api: \"https://%s:6443\", namespace: default, token-file: %q, ca: %q}\n", m.net.Addr(i),
			filepath.Join(m.kubeDir(i), "token"), m.certificate(i))
	default:
		b.WriteString("  members:\n")
		for j := 1; j <= m.r.o.hosts; j++ {
			fmt.Fprintf(&b, "    - {id: n%d, addr: \"%s:7380\"}\n", j, m.net.Addr(j))
		}
	}
	return b.String()
}

// storePort is where the nodes of the store talk to each other, and to members elsewhere.
func (m *members) storePort() string {
	switch m.r.o.store {
	case consul:
		return "8300:8500"
	case raft:
		return "7380"
	}
	return "2379:2380"
}
