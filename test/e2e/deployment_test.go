// SPDX-License-Identifier: Apache-2.0

// Package e2e runs whole deployments made by `redoubt up` and does to them what production does: kills, hangs, cuts,
// planned moves. It needs redis-server; some tests need root, node or python3-redis and say so. Each test has its own
// directory and its own ports, and ends only processes that its own deployment started.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"redoubt/test/ports"
)

var (
	rounds   = flag.Int("rounds", 0, "how often to repeat; 0: a few, for the test suite")
	everyone = flag.Bool("matrix", false, "every client library and framework that is installed, not only the Go ones")
	minutes  = flag.Int("minutes", 0, "how long to stress; 0: some seconds, for the test suite")
)

func roundsOr(few int) int {
	if *rounds > 0 {
		return *rounds
	}
	return few
}

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "2")     // each story has machines to itself, of which some are judged by their speed
	redis.SetLogger(&logging.VoidLogger{}) // what clients meet is what the stories report
	os.Exit(m.Run())
}

// binary is the program under test, built once by `make build`; built here when it is not there.
func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/redoubt")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if out, err := exec.Command("go", "build", "-o", path, "../../cmd/redoubt").CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	return path
}

// deployment is one `redoubt up`.
type deployment struct {
	t    *testing.T
	bin  string
	dir  string
	base int
	args []string
	api  func() string // network namespaces: the API to ask, in place of the directory
}

// status is the documented contract of `redoubt status --json`, as far as the tests use it.
type status struct {
	Controller  string `json:"controller"`
	Deployments []struct {
		Mode       string  `json:"mode"`
		Durability string  `json:"durability"`
		Shards     []shard `json:"shards"`
		Proxies    []struct {
			Addr         string `json:"addr"`
			ReadonlyAddr string `json:"readonly_addr"`
			PID          int    `json:"pid"`
		} `json:"proxies"`
	} `json:"deployments"`
	Sentinels []struct {
		Addr string `json:"addr"`
	} `json:"sentinels"`
	Address struct {
		IP     string `json:"ip"`
		Holder string `json:"holder"`
	} `json:"address"`
}

type shard struct {
	ID      string `json:"id"`
	Epoch   uint64 `json:"epoch"`
	Phase   string `json:"phase"`
	Primary string `json:"primary"`
	Nodes   []node `json:"nodes"`
}

type node struct {
	ID       string   `json:"id"`
	Host     string   `json:"host"`
	Addr     string   `json:"addr"`
	Role     string   `json:"role"`
	PID      int      `json:"pid"`
	AgentPID int      `json:"agent_pid"`
	Offset   int64    `json:"offset"`
	State    string   `json:"state"`
	Enrolled bool     `json:"enrolled"`
	Problems []string `json:"problems"`
}

// freeBase reserves a block of ports, of which `up` uses base…, base+100…, base+300…: between the ports of other tests and those that
// the kernel gives to clients.
func freeBase(t *testing.T) int {
	t.Helper()
	return ports.Block(t, 16500, 31, 500, 0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42, 100, 101, 102, 110, 111, 112, 120, 121, 122, 300, 301, 302, 310, 311, 312, 320, 321, 322)
}

func up(t *testing.T, args ...string) *deployment {
	t.Helper()
	d := &deployment{t: t, bin: binary(t), dir: t.TempDir(), base: freeBase(t), args: args}
	t.Cleanup(func() {
		if t.Failed() {
			d.showLogs()
		}
		if out, err := exec.Command(d.bin, "down", "--dir", d.dir, "--yes").CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	for try := 1; ; try++ {
		out, err := d.tryStart()
		if err == nil {
			return d
		}
		// A port may have become somebody's between the look and its use: the kernel gives those above 32768 to anybody.
		if try == 3 || !strings.Contains(out, "address already in use") {
			t.Fatalf("up: %v\n%s", err, out)
		}
		if out, err := exec.Command(d.bin, "down", "--dir", d.dir, "--purge", "--yes").CombinedOutput(); err != nil {
			t.Fatalf("down: %v\n%s", err, out)
		}
		d.dir, d.base = t.TempDir(), freeBase(t) // a directory knows its ports
	}
}

// start starts what is not running; the deployment's directory says what it is.
func (d *deployment) start() {
	d.t.Helper()
	if out, err := d.tryStart(); err != nil {
		d.t.Fatalf("up: %v\n%s", err, out)
	}
}

func (d *deployment) tryStart() (string, error) {
	args := append([]string{"up", "--dir", d.dir, "--base-port", strconv.Itoa(d.base)}, d.args...)
	out, err := exec.Command(d.bin, args...).CombinedOutput()
	return string(out), err
}

// set adds a setting to a section of every member's file, and starts them again.
func (d *deployment) set(section, line string) {
	d.t.Helper()
	d.insert("\n"+section+":\n", "  "+line+"\n")
}

// insert puts text behind the first place of every member's file that says after, and starts them again.
func (d *deployment) insert(after, text string) {
	d.t.Helper()
	d.edit(func(i int, file string) string {
		if !strings.Contains(file, after) {
			d.t.Fatalf("the file of member %d does not say %q:\n%s", i+1, after, file)
		}
		return strings.Replace(file, after, after+text, 1)
	})
}

// edit changes every member's file, and starts them again.
func (d *deployment) edit(change func(i int, text string) string) {
	d.t.Helper()
	if out, err := exec.Command(d.bin, "down", "--dir", d.dir).CombinedOutput(); err != nil {
		d.t.Fatalf("down: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(d.dir, "member-*", "redoubt.yaml"))
	if err != nil || len(files) == 0 {
		d.t.Fatal("no member files", err)
	}
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			d.t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(change(i, string(b))), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	d.start()
}

func (d *deployment) run(args ...string) (string, error) {
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	target := []string{"--dir", d.dir}
	if d.api != nil {
		target = []string{"--api", d.api()}
	}
	cmd := exec.CommandContext(ctx, d.bin, append(args, target...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("redoubt %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

func (d *deployment) status() (status, error) {
	var s status
	out, err := d.run("status", "--json")
	if err != nil {
		return s, err
	}
	err = json.Unmarshal([]byte(out), &s)
	if err == nil && (len(s.Deployments) == 0 || len(s.Deployments[0].Shards) == 0) {
		err = fmt.Errorf("status names no shard")
	}
	return s, err
}

func (s status) nodes() []node   { return s.Deployments[0].Shards[0].Nodes }
func (s status) phase() string   { return s.Deployments[0].Shards[0].Phase }
func (s status) primary() string { return s.Deployments[0].Shards[0].Primary }
func (s status) epoch() uint64   { return s.Deployments[0].Shards[0].Epoch }
func (s status) node(id string) node {
	for _, n := range s.nodes() {
		if n.ID == id {
			return n
		}
	}
	return node{}
}

// healthy: one primary, and all nodes are enrolled and well.
func (s status) healthy() bool {
	for _, sh := range s.Deployments[0].Shards {
		for _, n := range sh.Nodes {
			if !n.Enrolled || n.State != "serving" && n.State != "following" || n.PID == 0 || n.AgentPID == 0 {
				return false
			}
		}
		if sh.Phase != "serving" {
			return false
		}
	}
	return s.Controller != ""
}

func (d *deployment) waitHealthy(within time.Duration) status {
	d.t.Helper()
	var s status
	d.until(within, "all nodes are enrolled and well", func() (bool, string) {
		var err error
		if s, err = d.status(); err != nil {
			return false, err.Error()
		}
		return s.healthy(), fmt.Sprintf("%+v", s)
	})
	return s
}

// until polls a condition, with a bound.
func (d *deployment) until(within time.Duration, what string, cond func() (bool, string)) {
	d.t.Helper()
	end := time.Now().Add(within)
	for {
		ok, state := cond()
		if ok {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("not within %s: %s; now: %s", within, what, state)
		}
		wait(50 * time.Millisecond)
	}
}

func wait(d time.Duration) { <-time.After(d) }

// showLogs prints the ends of the members' logs and the history, before the report of the test that failed: what it found
// wrong is then the last that is printed of it.
func (d *deployment) showLogs() {
	var all strings.Builder
	fmt.Fprintf(&all, "==== members of %s\n", d.t.Name())
	logs, _ := filepath.Glob(filepath.Join(d.dir, "*", "*.log"))
	for _, f := range logs {
		b, _ := os.ReadFile(f)
		lines := strings.Split(string(b), "\n")
		fmt.Fprintf(&all, "%s:\n%s\n", filepath.Base(filepath.Dir(f))+"/"+filepath.Base(f), strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
	if out, err := d.run("history"); err == nil {
		fmt.Fprintf(&all, "history:\n%s\n", out)
	}
	fmt.Print(all.String())
}

func (d *deployment) proxyAddr(i int) string { return "127.0.0.1:" + strconv.Itoa(d.base+i) }

// signal sends a signal to a process of this deployment.
func signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no process to signal: pid %d", pid)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal %s to %d: %v", sig, pid, err)
	}
}
