// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
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

	redigo "github.com/gomodule/redigo/redis"

	"redoubt/test/ports"
)

// peer starts a program that ends with the test, or is left out where it is not installed.
func peer(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	var said bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, said.String())
		}
	})
	return cmd
}

func (d *deployment) apiAddr(i int) string { return "127.0.0.1:" + strconv.Itoa(d.base+30+i) }

// get asks a member's API.
func (d *deployment) get(i int, path string) (int, []byte) {
	d.t.Helper()
	c := http.Client{Timeout: 5 * time.Second}
	resp, err := c.Get("http://" + d.apiAddr(i) + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, b
}

// decided is when the controller recorded the primary of a later epoch than this one. It notes that a moment after it did so.
func (d *deployment) decided(later uint64) time.Time { return d.decidedAt(0, later) }

func (d *deployment) decidedAt(member int, later uint64) (at time.Time) {
	d.t.Helper()
	d.until(10*time.Second, "the decision is in the history", func() (bool, string) {
		var tl struct {
			Events []struct {
				AtMS  int64 `json:"at_ms"`
				Epoch uint64
				Rule  string
			}
		}
		_, b := d.get(member, "/v1/history")
		if err := json.Unmarshal(b, &tl); err != nil {
			return false, err.Error()
		}
		for _, e := range tl.Events {
			if e.Rule == "record" && e.Epoch > later {
				at = time.UnixMilli(e.AtMS)
			}
		}
		return !at.IsZero(), string(b)
	})
	return at
}

// answersAs waits until a write with a fresh connection is taken behind addr, and returns when it was.
func answersAs(t *testing.T, addr func() string, within time.Duration) time.Time {
	t.Helper()
	var last error
	for end := time.Now().Add(within); time.Now().Before(end); wait(2 * time.Millisecond) {
		c, err := redigo.Dial("tcp", addr(), redigo.DialConnectTimeout(500*time.Millisecond), redigo.DialReadTimeout(500*time.Millisecond)) // no HELLO: twemproxy hangs up on it
		if last = err; err == nil {
			_, last = c.Do("SET", "found", "yes")
			c.Close()
		}
		if last == nil {
			return time.Now()
		}
	}
	t.Fatalf("nothing takes writes behind %s after %s: %v", addr(), within, last)
	return time.Time{}
}

// waitPort waits until somebody listens.
func waitPort(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); wait(20 * time.Millisecond) {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("nobody listens at %s", addr)
}

// change is one way to another primary.
type change struct {
	name string
	make func(d *deployment, s status)
}

func changes() []change {
	return []change{
		{"kill", func(d *deployment, s status) { signal(d.t, s.node(s.primary()).PID, syscall.SIGKILL) }},
		{"switchover", func(d *deployment, s status) {
			if _, err := d.run("switchover", "--yes"); err != nil {
				d.t.Fatal(err)
			}
		}},
	}
}

// TestHAProxyFollowsTheChecks: a plain HAProxy with option httpchk GET /primary sends clients to the primary's own server, before
// and after a failover and a switchover, and the two checks never say yes for two nodes at once.
func TestHAProxyFollowsTheChecks(t *testing.T) {
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	front := ports.Addr(t)
	conf := fmt.Sprintf(`
global
  maxconn 200
defaults
  mode tcp
  option redispatch 1
  timeout connect 100ms
  timeout client 1m
  timeout server 1m
listen redis
  bind %s
  option httpchk GET /primary
  http-check expect status 200
  default-server check inter 50ms fall 1 rise 1 on-marked-down shutdown-sessions
`, front)
	for i, n := range s.nodes() {
		_, port, _ := net.SplitHostPort(d.apiAddr(i))
		conf += fmt.Sprintf("  server %s %s port %s\n", n.ID, n.Addr, port)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	peer(t, "haproxy", "-db", "-f", file)
	waitPort(t, front)
	at := func() string { return front }
	answersAs(t, at, 10*time.Second)

	stop, seen := make(chan struct{}), make(chan string, 1)
	go func() { seen <- twoPrimaries(d, len(s.nodes()), stop) }()
	for _, c := range changes() {
		for range roundsOr(1) {
			s = d.waitHealthy(30 * time.Second)
			began := time.Now()
			c.make(d, s)
			found := answersAs(t, at, 10*time.Second)
			decided := d.decided(s.epoch())
			t.Logf("%s: decided %.0f ms after it began; HAProxy's clients write again %.0f ms after the decision", c.name, ms(decided.Sub(began)), ms(found.Sub(decided)))
			if late := found.Sub(decided); late > 5*time.Second {
				t.Errorf("%s after the decision", late)
			}
		}
	}
	close(stop)
	if both := <-seen; both != "" {
		t.Error(both)
	}
}

// twoPrimaries asks all members all the time, and says so when two say yes within one round of questions whose nodes had the same
// epoch, or when one says yes twice around another's yes.
func twoPrimaries(d *deployment, n int, stop <-chan struct{}) string {
	c := http.Client{Timeout: time.Second}
	yes := func(i int) (bool, uint64) {
		resp, err := c.Get("http://" + d.apiAddr(i) + "/primary")
		if err != nil {
			return false, 0
		}
		defer resp.Body.Close()
		var st struct{ Epoch uint64 }
		if json.NewDecoder(resp.Body).Decode(&st) != nil {
			return false, 0
		}
		return resp.StatusCode == http.StatusOK, st.Epoch
	}
	for {
		select {
		case <-stop:
			return ""
		case <-time.After(5 * time.Millisecond):
		}
		for i := range n {
			first, epoch := yes(i)
			if !first {
				continue
			}
			for j := range n {
				other, e2 := yes(j)
				again, e1 := yes(i)
				if i != j && other && again && e1 == epoch {
					return fmt.Sprintf("members %d (epoch %d) and %d (epoch %d) both said that they are the primary", i, epoch, j, e2)
				}
			}
		}
	}
}

// TestPrometheusAndTopologyAreServed: what http_sd and announcers read, from a real deployment.
func TestPrometheusAndTopologyAreServed(t *testing.T) {
	d := up(t)
	s := d.waitHealthy(30 * time.Second)
	code, b := d.get(1, "/v1/sd/prometheus")
	var groups []struct{ Targets []string }
	if err := json.Unmarshal(b, &groups); err != nil || code != 200 || len(groups) != 3 {
		t.Fatalf("%d %v %s", code, err, b)
	}
	for _, g := range groups {
		resp, err := http.Get("http://" + g.Targets[0] + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(text), "redoubt_shard_epoch") {
			t.Errorf("%s: %v", g.Targets, err)
		}
	}
	var top struct {
		Serving bool
		Shards  []struct {
			Primary  *struct{ ID string }
			Replicas []struct{ ID string }
		}
		Proxies []struct{ Addr string }
	}
	d.until(5*time.Second, "both replicas are announced", func() (bool, string) {
		_, b := d.get(2, "/v1/topology")
		if err := json.Unmarshal(b, &top); err != nil {
			t.Fatal(err)
		}
		return len(top.Shards) == 1 && len(top.Shards[0].Replicas) == 2, string(b)
	})
	if !top.Serving || top.Shards[0].Primary == nil || top.Shards[0].Primary.ID != s.primary() || len(top.Proxies) != 3 {
		t.Errorf("%+v", top)
	}
}

// srvOf waits until a server names another place than this one, and returns when it did.
func srvOf(t *testing.T, server, name, not string) time.Time {
	t.Helper()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
	_, old, _ := net.SplitHostPort(not)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); wait(2 * time.Millisecond) {
		_, all, err := r.LookupSRV(t.Context(), "redis", "tcp", name+".")
		if err == nil && len(all) == 1 && strconv.Itoa(int(all[0].Port)) != old {
			return time.Now()
		}
	}
	t.Fatalf("%s names nobody else", server)
	return time.Time{}
}

// dig asks a name server with the real dig, and returns the lines of the answer (+short), or the whole of it.
func dig(t *testing.T, server, name, kind string, more ...string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(server)
	args := append([]string{"@" + host, "-p", port, name, kind, "+tries=1", "+time=2"}, more...)
	out, err := exec.Command("dig", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("dig %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestDNSFollowsTheDecision: the real dig, asking every member, is told the primary's port by SRV, nothing between two primaries,
// and the same by all.
func TestDNSFollowsTheDecision(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("dig is not installed")
	}
	d := up(t)
	var servers []string
	for range 3 {
		servers = append(servers, ports.Addr(t))
	}
	d.edit(func(i int, text string) string {
		return text + fmt.Sprintf("\ndns: {listen: \"%s\", zone: test.example, ttl: 0s}\n", servers[i])
	})
	s := d.waitHealthy(30 * time.Second)
	const name = "primary.mymaster.test.example"
	named := func(server string) string {
		words := strings.Fields(dig(t, server, "_redis._tcp."+name, "SRV", "+short"))
		if len(words) != 4 {
			return strings.Join(words, " ")
		}
		return words[3] + " " + words[2]
	}
	wanted := func(s status) string {
		_, port, _ := net.SplitHostPort(s.node(s.primary()).Addr)
		return s.primary() + ".node.mymaster.test.example. " + port
	}
	all := func(s status) {
		t.Helper()
		for _, server := range servers {
			d.until(5*time.Second, server+" names "+wanted(s), func() (bool, string) { now := named(server); return now == wanted(s), now })
		}
	}
	all(s)
	for _, want := range []struct{ name, kind, more, text string }{
		{name, "A", "+short", "127.0.0.1"}, {name, "AAAA", "+noall +comments +authority", "SOA"}, {name, "A", "+tcp +short", "127.0.0.1"},
		{"mymaster.test.example", "A", "+short", "127.0.0.1"}, {"nobody.test.example", "A", "", "NXDOMAIN"}, {"example.org", "A", "", "REFUSED"},
		{name, "ANY", "+notcp", "RFC8482"}, {name, "A", "+edns=1 +noednsnegotiation", "BADVERS"}, {"test.example", "SOA", "+short", "ns.test.example."},
		{"replicas.mymaster.test.example", "SRV", "+short", ".node.mymaster.test.example."},
	} {
		d.until(5*time.Second, want.name+" "+want.kind, func() (bool, string) {
			out := dig(t, servers[1], want.name, want.kind, strings.Fields(want.more)...)
			return strings.Contains(out, want.text), out
		})
	}
	for _, c := range changes() {
		s = d.waitHealthy(30 * time.Second)
		c.make(d, s)
		var learned []time.Time
		for _, server := range servers {
			learned = append(learned, srvOf(t, server, name, s.node(s.primary()).Addr))
		}
		for i, at := range learned {
			t.Logf("%s: member %d names the new primary %.0f ms after the decision", c.name, i+1, ms(at.Sub(d.decided(s.epoch()))))
		}
		next := d.waitHealthy(30 * time.Second)
		all(next)
		at := func() string { _, port, _ := strings.Cut(named(servers[2]), " "); return "127.0.0.1:" + port }
		answersAs(t, at, 5*time.Second)
	}
	s = d.waitHealthy(30 * time.Second)
	for _, n := range s.nodes() { // two of three members are gone: the third may name nobody any more
		if n.ID != "n3" {
			signal(t, n.AgentPID, syscall.SIGSTOP)
			defer func() { _ = syscall.Kill(n.AgentPID, syscall.SIGCONT) }()
		}
	}
	d.until(5*time.Second, "nobody is named without a lease", func() (bool, string) {
		out := dig(t, servers[2], name, "A")
		return strings.Contains(out, "status: NOERROR") && strings.Contains(out, "ANSWER: 0"), out
	})
}
