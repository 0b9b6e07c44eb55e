// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/test/netns"
)

// hosts are three machines made of network namespaces on one bridge; the test itself is a fourth.
type hosts struct {
	*netns.Net
	t   *testing.T
	d   *deployment
	cut int // host that is isolated; 0: none

	more func(i int, text string) string // changes the file of a member; nil: nothing
}

// upHosts starts one member with its server in each of three namespaces.
func upHosts(t *testing.T) *hosts { return upHostsWith(t, nil) }

func upHostsWith(t *testing.T, more func(h *hosts, i int, text string) string) *hosts {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	net, err := netns.Up(3, true)
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	t.Cleanup(func() {
		if err := net.Down(); err != nil {
			t.Error(err)
		}
	})
	h := &hosts{Net: net, t: t}
	if more != nil {
		h.more = func(i int, text string) string { return more(h, i, text) }
	}
	h.d = &deployment{t: t, bin: binary(t), dir: t.TempDir(), api: func() string { return h.Addr(h.cut%3+1) + ":7379" }}
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
	text := h.config(i)
	if h.more != nil {
		text = h.more(i, text)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "redoubt.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.Command(i, h.d.bin, "run", "-c", file)
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
		for _, pid := range h.PIDs(i) { // a server that outlived its agent
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
}

func (h *hosts) config(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "member: {id: n%d, dir: data, host: %s}\nstore:\n  members:\n", i, h.Addr(i))
	for j := 1; j <= 3; j++ {
		fmt.Fprintf(&b, "    - {id: n%d, addr: \"%s:7380\"}\n", j, h.Addr(j))
	}
	b.WriteString("deployments:\n  - name: mymaster\n    nodes:\n")
	for j := 1; j <= 3; j++ {
		fmt.Fprintf(&b, "      - {id: n%d, host: h%d, addr: \"%s:6479\"}\n", j, j, h.Addr(j))
	}
	fmt.Fprintf(&b, "    node: {id: n%d}\nproxy: {listen: \"%s:6379\"}\nsentinel: {listen: \"%s:26379\"}\napi: {listen: \"%s:7379\"}\n", i, h.Addr(i), h.Addr(i), h.Addr(i))
	return b.String()
}

func (h *hosts) heal() {
	h.t.Helper()
	if h.cut > 0 {
		if err := h.Heal(h.cut); err != nil {
			h.t.Fatal(err)
		}
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
		return h.Addr(i%3+1) + ":6379"
	}
	outages, v := repeat(t, d, roundsOr(2), 20*time.Second, pick, func(s status) (time.Time, func()) {
		now, err := d.status() // pick may have moved the primary
		if err != nil {
			t.Fatal(err)
		}
		h.cut = int(now.primary()[1] - '0')
		at := time.Now()
		if err := h.Isolate(h.cut); err != nil {
			t.Fatal(err)
		}
		return at, h.heal
	})
	figures(t, "isolation of the host of primary and controller", outages, v)
	requireNothingLost(t, v)
	slices.Sort(outages)
	if worst := outages[len(outages)-1]; worst > 5*time.Second {
		t.Errorf("worst outage %s", worst)
	}
}
