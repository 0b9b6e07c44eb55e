// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hosts are three machines made of network namespaces on one bridge; the test itself is a fourth.
type hosts struct {
	t      *testing.T
	d      *deployment
	prefix string
	net    string // 10.x.y.
	cut    int    // host that is isolated; 0: none
}

func (h *hosts) addr(i int) string { return fmt.Sprintf("%s%d", h.net, i) }

func (h *hosts) ns(i int) string { return fmt.Sprintf("%s-%d", h.prefix, i) }

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// upHosts starts one member with its server in each of three namespaces.
func upHosts(t *testing.T) *hosts {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := os.Getpid() % 60_000
	h := &hosts{t: t, prefix: fmt.Sprintf("rd%d", n), net: fmt.Sprintf("10.%d.%d.", 100+n/250%100, n%250)}
	h.d = &deployment{t: t, bin: binary(t), dir: t.TempDir(), api: func() string { return h.addr(h.cut%3+1) + ":7379" }}
	sw := h.prefix + "-sw"
	if out, err := exec.Command("ip", "netns", "add", sw).CombinedOutput(); err != nil {
		t.Skipf("no network namespaces here: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", sw).Run() })
	ip(t, "-n", sw, "link", "add", "br0", "type", "bridge")
	ip(t, "-n", sw, "link", "set", "br0", "up")
	attach := func(far string, farNS []string, i int) {
		near := fmt.Sprintf("p%d", i)
		ip(t, append([]string{"link", "add", near, "netns", sw, "type", "veth", "peer", "name", far}, farNS...)...)
		ip(t, "-n", sw, "link", "set", near, "master", "br0", "up")
	}
	for i := 1; i <= 3; i++ {
		ns := h.ns(i)
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		attach("eth0", []string{"netns", ns}, i)
		ip(t, "-n", ns, "addr", "add", h.addr(i)+"/24", "dev", "eth0")
		ip(t, "-n", ns, "link", "set", "eth0", "up")
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	attach(h.prefix+"c", nil, 4)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", h.prefix+"c").Run() })
	ip(t, "addr", "add", h.addr(100)+"/24", "dev", h.prefix+"c")
	ip(t, "link", "set", h.prefix+"c", "up")
	for i := 1; i <= 3; i++ {
		h.startMember(i)
	}
	return h
}

func (h *hosts) startMember(i int) {
	h.t.Helper()
	dir := filepath.Join(h.d.dir, fmt.Sprintf("member-%d", i))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	file := filepath.Join(dir, "redoubt.yaml")
	if err := os.WriteFile(file, []byte(h.config(i)), 0o600); err != nil {
		h.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "redoubt.log"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("ip", "netns", "exec", h.ns(i), h.d.bin, "run", "-c", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if h.t.Failed() && i == 1 {
			h.d.showLogs()
		}
		_ = cmd.Process.Signal(syscall.SIGINT) // `ip netns exec` becomes the program; its server stops with it
		done := make(chan struct{})
		go func() { defer close(done); _ = cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		h.killServer(i)
	})
}

// killServer ends a server that outlived its agent: found by its working directory, which is ours alone.
func (h *hosts) killServer(i int) {
	out, _ := exec.Command("ip", "netns", "pids", h.ns(i)).Output()
	for _, pid := range strings.Fields(string(out)) {
		_ = exec.Command("kill", "-9", pid).Run()
	}
}

func (h *hosts) config(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "member: {id: n%d, dir: data, host: %s}\nstore:\n  members:\n", i, h.addr(i))
	for j := 1; j <= 3; j++ {
		fmt.Fprintf(&b, "    - {id: n%d, addr: \"%s:7380\"}\n", j, h.addr(j))
	}
	b.WriteString("deployments:\n  - name: mymaster\n    nodes:\n")
	for j := 1; j <= 3; j++ {
		fmt.Fprintf(&b, "      - {id: n%d, host: h%d, addr: \"%s:6479\"}\n", j, j, h.addr(j))
	}
	fmt.Fprintf(&b, "    node: {id: n%d}\nproxy: {listen: \"%s:6379\"}\nsentinel: {listen: \"%s:26379\"}\napi: {listen: \"%s:7379\"}\n", i, h.addr(i), h.addr(i), h.addr(i))
	return b.String()
}

// isolate drops everything to and from a host but its own loopback.
func (h *hosts) isolate(i int) {
	h.t.Helper()
	for _, rule := range [][]string{{"-I", "INPUT", "-i", "eth0", "-j", "DROP"}, {"-I", "OUTPUT", "-o", "eth0", "-j", "DROP"}} {
		ip(h.t, append([]string{"netns", "exec", h.ns(i), "iptables"}, rule...)...)
	}
}

func (h *hosts) heal() {
	h.t.Helper()
	if h.cut > 0 {
		ip(h.t, "netns", "exec", h.ns(h.cut), "iptables", "-F")
	}
	h.cut = 0
}

// TestPartitionOfPrimaryAndController isolates the host that holds both; clients on the majority's side go on.
func TestPartitionOfPrimaryAndController(t *testing.T) {
	h := upHosts(t)
	d := h.d
	pick := func(s status) string {
		if s.primary() != s.Controller {
			if out, err := d.run("switchover", "--to", s.Controller, "--yes"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			s = d.waitHealthy(30 * time.Second)
		}
		if s.primary() != s.Controller {
			t.Fatalf("primary %s, controller %s", s.primary(), s.Controller)
		}
		i := int(s.primary()[1] - '0')
		return h.addr(i%3+1) + ":6379"
	}
	outages, v := repeat(t, d, roundsOr(2), 20*time.Second, pick, func(s status) (time.Time, func()) {
		now, err := d.status() // pick may have moved the primary
		if err != nil {
			t.Fatal(err)
		}
		h.cut = int(now.primary()[1] - '0')
		at := time.Now()
		h.isolate(h.cut)
		return at, h.heal
	})
	figures(t, "isolation of the host of primary and controller", outages, v)
	requireNothingLost(t, v)
	slices.Sort(outages)
	if worst := outages[len(outages)-1]; worst > 5*time.Second {
		t.Errorf("worst outage %s", worst)
	}
}
