// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// supervised runs a server as another supervisor would, and returns a function that kills and reaps it.
func supervised(t *testing.T, addr, dir string, args ...string) (kill func()) {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(serverBinary(t), append([]string{"--port", port, "--bind", host, "--dir", dir, "--save", "", "--pidfile", filepath.Join(dir, "pid")}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	kill = func() {
		if !done {
			done = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	return kill
}

func attach(t *testing.T, o AttachOptions) *Node {
	t.Helper()
	n, err := Attached(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func TestAnAttachedServerIsWatchedAndNeverKilled(t *testing.T) {
	t.Parallel()
	addr, dir := ports.Addr(t), t.TempDir()
	n := attach(t, AttachOptions{Addr: addr, StateDir: t.TempDir()})
	if o := n.Observe(within(t, time.Second)); o.Health != topo.HealthUnreachable {
		t.Fatalf("before there is a server: %+v", o)
	}
	kill := supervised(t, addr, dir, FrozenArguments()...)
	o := see(t, n, "the server", isUp)
	if !o.Frozen || o.PID == 0 || n.process() == nil {
		t.Fatalf("attached to %+v", o)
	}
	if err := n.Kill(within(t, time.Second)); !errors.Is(err, redis.ErrRefused) {
		t.Fatal(err)
	}
	if err := n.Restart(within(t, time.Second)); !errors.Is(err, redis.ErrRefused) {
		t.Fatal(err)
	}
	promote(t, n)
	p := n.process()
	if err := p.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := n.Fence(within(t, 150*time.Millisecond)); !errors.Is(err, redis.ErrUnanswered) || p.exited() {
		t.Fatalf("fence of a stopped attached primary: %v", err)
	}
	if o := n.Observe(within(t, 50*time.Millisecond)); o.Health != topo.HealthStopped {
		t.Fatalf("stopped: %+v", o)
	}
	_ = p.signal(unix.SIGCONT)
	see(t, n, "the queued fence", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
	kill()
	if o := n.Observe(within(t, time.Second)); o.Health != topo.HealthExited || o.RunID == "" {
		t.Fatalf("after its end: %+v", o)
	}
	kill = supervised(t, addr, dir, FrozenArguments()...)
	if again := see(t, n, "the next process", isUp); again.RunID == o.RunID || len(again.Problems) > 0 {
		t.Fatalf("after its return: %+v", again)
	}
	kill()
}

func TestAnAttachedServerThatDoesNotBootFrozenIsFencedAndNamed(t *testing.T) {
	t.Parallel()
	addr, dir, state := ports.Addr(t), t.TempDir(), t.TempDir()
	kill := supervised(t, addr, dir)
	first := attach(t, AttachOptions{Addr: addr, StateDir: state})
	if o := see(t, first, "the server that was there before us", isUp); o.Role != topo.RolePrimary || len(o.Problems) > 0 {
		t.Fatalf("the first look at a running primary: %+v", o)
	}
	_ = first.Close()
	kill()
	kill = supervised(t, addr, dir)
	n := attach(t, AttachOptions{Addr: addr, StateDir: state, PIDFile: filepath.Join(dir, "pid")})
	o := see(t, n, "the judgement", isUp)
	if !o.Frozen || len(o.Problems) != 1 || !strings.HasPrefix(o.Problems[0], "boot-not-frozen: the server came up as a primary") {
		t.Fatalf("a server that came up as a primary: %+v", o)
	}
	kill()
	see(t, n, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
	kill = supervised(t, addr, dir, FrozenArguments()...)
	if o := see(t, n, "a good start", isUp); len(o.Problems) > 0 {
		t.Fatalf("after a good start: %+v", o)
	}
	kill()
}

func TestAPIDFileShowsAProcessThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	see(t, n, "an answering server", isUp)
	file := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(file, []byte(strconv.Itoa(n.process().pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop(t, n)
	a := attach(t, AttachOptions{Addr: n.addr, PIDFile: file})
	if o := a.Observe(within(t, 50*time.Millisecond)); o.Health != topo.HealthStopped || o.PID != n.process().pid {
		t.Fatalf("a stopped server that never answered us: %+v", o)
	}
}

func TestTheFrozenFormsAreRenderedForASupervisor(t *testing.T) {
	t.Parallel()
	text, err := SystemdDropIn("/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd\n")
	want := "ExecStart=\nExecStart=/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --replicaof 127.0.0.1 0\n"
	if err != nil || !strings.HasSuffix(text, want) {
		t.Fatalf("%v: %s", err, text)
	}
	if _, err := SystemdDropIn("two\nlines"); err == nil {
		t.Fatal("two command lines were accepted")
	}
	addr, dir := ports.Addr(t), t.TempDir()
	file := filepath.Join(dir, "frozen.conf")
	if err := os.WriteFile(file, []byte(FrozenInclude()), 0o600); err != nil {
		t.Fatal(err)
	}
	kill := supervised(t, addr, dir, "--include", file)
	if o := see(t, attach(t, AttachOptions{Addr: addr}), "the server", isUp); !o.Frozen {
		t.Fatalf("with the include: %+v", o)
	}
	kill()
}
