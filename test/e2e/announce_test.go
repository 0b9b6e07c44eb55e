// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/consul/consultest"
	"redoubt/test/ports"
)

// TestATwemproxyIsKept: the example of the guide is rendered again on a failover and a switchover, the real nutcracker accepts and
// loads it, once for each, and its clients write to the new primary.
func TestATwemproxyIsKept(t *testing.T) {
	if _, err := exec.LookPath("nutcracker"); err != nil {
		t.Skip("nutcracker is not installed")
	}
	d := up(t)
	dir := t.TempDir()
	front := ports.Addr(t)
	example, err := os.ReadFile("../../docs/guide/templates/nutcracker.yml.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"nutcracker.yml.tmpl": strings.Replace(string(example), "127.0.0.1:22121", front, 1),
		"load": fmt.Sprintf(`#!/bin/sh
cd %s
if [ -f pid ]; then
  old=$(cat pid)
  kill $old
  while grep -q '^State:.[^Z]' /proc/$old/status 2>/dev/null; do sleep 0.005; done
fi
echo loaded >> loads
exec nutcracker -d -c $FILE -p %s/pid -s %d -o %s/log
`, dir, dir, ports.Free(t), dir),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(filepath.Join(dir, "pid")); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	d.edit(func(i int, text string) string {
		if i != 0 {
			return text
		}
		return text + fmt.Sprintf("\ntemplates:\n  - {source: %[1]s/nutcracker.yml.tmpl, target: %[1]s/nutcracker.yml, check: nutcracker -t -c $FILE, reload: %[1]s/load}\n", dir)
	})
	at := func() string { return front }
	answersAs(t, at, 30*time.Second)
	for _, c := range changes() {
		s := d.waitHealthy(30 * time.Second)
		c.make(d, s)
		found := answersAs(t, at, 20*time.Second)
		t.Logf("%s: twemproxy's clients write again %.0f ms after the decision", c.name, ms(found.Sub(d.decided(s.epoch()))))
	}
	d.waitHealthy(30 * time.Second)
	loads, err := os.ReadFile(filepath.Join(dir, "loads"))
	if n := strings.Count(string(loads), "loaded"); err != nil || n != 3 {
		t.Errorf("loaded %d times, want 3: at the start and for each change (%v)", n, err)
	}
	_, metrics := d.get(0, "/metrics")
	if !strings.Contains(string(metrics), `redoubt_template_loads_total{target="`+dir+`/nutcracker.yml"} 3`) {
		t.Errorf("metrics:\n%s", metrics)
	}
}

// consulAgent is a real Consul agent where there is one (REDOUBT_TEST_CONSUL, or on the PATH), and otherwise one in memory.
func consulAgent(t *testing.T) (addr, kind string) {
	t.Helper()
	bin := os.Getenv("REDOUBT_TEST_CONSUL")
	if bin == "" {
		bin = "consul"
	}
	if _, err := exec.LookPath(bin); err != nil {
		a := consultest.New()
		t.Cleanup(a.Close)
		return a.Addr(), "an agent in memory"
	}
	addr = ports.Addr(t)
	_, port, _ := net.SplitHostPort(addr)
	args := []string{"agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-http-port", port, "-grpc-port", "-1", "-grpc-tls-port", "-1", "-log-level", "warn"}
	for _, name := range []string{"-dns-port", "-server-port", "-serf-lan-port", "-serf-wan-port"} {
		args = append(args, name, strconv.Itoa(ports.Free(t)))
	}
	peer(t, bin, args...)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); wait(50 * time.Millisecond) {
		if resp, err := http.Get("http://" + addr + "/v1/status/leader"); err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == 200 && len(b) > 4 {
				return addr, "a real agent"
			}
		}
	}
	t.Fatal("the Consul agent has no leader")
	return "", ""
}

// TestConsulIsTold: what Consul says passes as primary is the agreed one, before and after a kill of the primary's server, a
// switchover, and the death of the primary's member, and there are never two.
func TestConsulIsTold(t *testing.T) {
	addr, kind := consulAgent(t)
	d := up(t)
	d.edit(func(_ int, text string) string {
		return text + fmt.Sprintf("\nconsul: {address: \"%s\", ttl: 2s}\n", addr)
	})
	passing := func() []string {
		resp, err := http.Get("http://" + addr + "/v1/health/service/mymaster?passing&tag=primary")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var all []struct {
			Service struct {
				Address string
				Port    int
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range all {
			out = append(out, net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port)))
		}
		if len(out) > 1 {
			t.Errorf("Consul names %v at once", out)
		}
		return out
	}
	await := func(not string) (addr string, at time.Time) {
		t.Helper()
		d.until(20*time.Second, "a primary is published", func() (bool, string) {
			all := passing()
			if len(all) == 1 && all[0] != not {
				addr, at = all[0], time.Now()
			}
			return addr != "", fmt.Sprint(all)
		})
		return addr, at
	}
	s := d.waitHealthy(30 * time.Second)
	now, _ := await("")
	if want := s.node(s.primary()).Addr; now != want {
		t.Errorf("Consul names %s, agreed is %s", now, want)
	}
	for _, c := range append(changes(), change{"death of the member", func(d *deployment, s status) {
		signal(d.t, s.node(s.primary()).AgentPID, syscall.SIGKILL)
	}}) {
		s := d.waitHealthy(30 * time.Second)
		c.make(d, s)
		next, at := await(s.node(s.primary()).Addr)
		t.Logf("%s: %s names the new primary %.0f ms after the decision", c.name, kind, ms(at.Sub(d.decidedBy(s, s.epoch()))))
		d.until(10*time.Second, "the status agrees", func() (bool, string) {
			st, err := d.status()
			return err == nil && st.phase() == "serving" && st.node(st.primary()).Addr == next, fmt.Sprint(next, st, err)
		})
	}
}

// decidedBy is decided, asked of a member whose node is not the primary of s: that may be gone.
func (d *deployment) decidedBy(s status, later uint64) time.Time {
	for i, n := range s.nodes() {
		if n.ID != s.primary() {
			return d.decidedAt(i, later)
		}
	}
	return time.Time{}
}
