// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"fmt"
	"io"
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

// TestMain lets the test binary play the guard and an agent that can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guard" {
		if err := RunGuard(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		playAgent(os.Args[2], os.Args[3], os.Args[4])
	}
	os.Exit(m.Run())
}

// playAgent is a minimal agent: it starts a guarded server, promotes it if asked to, says so, and waits to be killed. Mode
// "member:PORT" is a cluster of one, with that bus port, which is promoted.
func playAgent(addr, dir, mode string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	options := Options{Addr: addr, Dir: dir, Binary: os.Getenv("REDOUBT_TEST_SERVER"), Persistence: PersistNone, GuardCommand: []string{"/proc/self/exe", "guard"}}
	if bus, ok := strings.CutPrefix(mode, "member:"); ok {
		options.Cluster = hermit(addr, bus)
	}
	n, err := Managed(ctx, options)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	o := lookUntil(ctx, n, isUp)
	if mode != "replica" {
		if _, err := crownAt(ctx, n, electedOf(o)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	fmt.Println("ready", o.PID)
	_, _ = io.ReadAll(os.Stdin) // until the test closes it, or kills us
	os.Exit(0)
}

func isUp(o redis.Observation) bool { return o.Health == topo.HealthUp }

// serverBinary is the server under test: REDOUBT_TEST_SERVER, or the one on PATH.
func serverBinary(t testing.TB) string {
	t.Helper()
	path, _, err := findBinary(os.Getenv("REDOUBT_TEST_SERVER"))
	if err != nil {
		t.Skipf("no server to test with: %v", err)
	}
	return path
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// open starts a managed server for the test and ends it at the end.
func open(t testing.TB, change func(*Options)) *Node {
	t.Helper()
	o := Options{Addr: ports.Addr(t), Dir: t.TempDir(), Binary: serverBinary(t), Persistence: PersistNone}
	if change != nil {
		change(&o)
	}
	n, err := Managed(within(t, 10*time.Second), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = n.Kill(within(t, 5*time.Second))
		_ = n.Close()
	})
	return n
}

// lookUntil observes until cond holds or ctx ends, and returns the last look.
func lookUntil(ctx context.Context, n redis.Node, cond func(redis.Observation) bool) redis.Observation {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		lctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		o := n.Observe(lctx)
		cancel()
		if cond(o) || ctx.Err() != nil {
			return o
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// see observes until cond holds and ends the test if it never does.
func see(t testing.TB, n redis.Node, what string, cond func(redis.Observation) bool) redis.Observation {
	t.Helper()
	var answered redis.Observation
	o := lookUntil(within(t, 10*time.Second), n, func(o redis.Observation) bool {
		if isUp(o) {
			answered = o
		}
		return cond(o)
	})
	if !cond(o) {
		t.Fatalf("never saw %s; last look: %+v\nlast answer: %+v%s", what, o, answered, lastWords(n))
	}
	return o
}

// lastWords is the end of a managed server's log.
func lastWords(n redis.Node) string {
	m, ok := n.(*Node)
	if !ok || m.managed == nil {
		return ""
	}
	text, _ := os.ReadFile(filepath.Join(m.managed.o.Dir, serverLog))
	return "\nits log ends:\n" + string(text[max(0, len(text)-4000):])
}

func electedOf(o redis.Observation) topo.Elected {
	return topo.Elected{RunID: o.RunID, ReplID: o.Pos.ReplID, Offset: o.Pos.Offset}
}

// tenure are the credentials of most tests: one primary, one secret.
func tenure() redis.Credentials { return redis.Credentials{Secret: "tenure"} }

// primary starts a server and promotes it.
func primary(t testing.TB, change func(*Options)) *Node {
	t.Helper()
	n := open(t, change)
	promote(t, n)
	return n
}

func promote(t testing.TB, n *Node) topo.Position {
	t.Helper()
	o := see(t, n, "an answering server", isUp)
	pos, err := n.Promote(within(t, 2*time.Second), electedOf(o), tenure())
	if err != nil {
		t.Fatal(err)
	}
	see(t, n, "the primary", func(o redis.Observation) bool { return o.Role == topo.RolePrimary })
	return pos
}

// follow makes r a replica of p and waits for the link.
func follow(t testing.TB, r, p *Node) redis.Observation {
	t.Helper()
	see(t, r, "an answering replica", isUp)
	if err := r.Follow(within(t, 2*time.Second), p.addr, tenure()); err != nil {
		t.Fatal(err)
	}
	return see(t, r, "the link", func(o redis.Observation) bool { return o.LinkUp && o.Whole })
}

// caughtUp waits until r has what p has.
func caughtUp(t testing.TB, r, p *Node) {
	t.Helper()
	want := see(t, p, "the primary", isUp).Pos
	see(t, r, "the replica catch up", func(o redis.Observation) bool { return o.Pos.ReplID == want.ReplID && o.Pos.Offset >= want.Offset })
}

// client is a plain client connection of a test.
func client(t testing.TB, addr, password string) *conn {
	t.Helper()
	c, err := dial(within(t, 2*time.Second), addr, append(authCommand("", password), []string{"PING"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// run executes one command and returns its reply, error replies included.
func run(t testing.TB, c *conn, args ...string) reply {
	t.Helper()
	reps, err := c.do(within(t, 5*time.Second), args)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return reps[0]
}

func must(t testing.TB, c *conn, args ...string) reply {
	t.Helper()
	r := run(t, c, args...)
	if err := r.err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return r
}

func stop(t testing.TB, n *Node) {
	t.Helper()
	if err := n.process().signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p := n.process()
	t.Cleanup(func() { _ = p.signal(unix.SIGCONT) })
}

func cont(t testing.TB, n *Node) {
	t.Helper()
	if err := n.process().signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// startAgent runs this test binary as an agent; the returned function kills it with SIGKILL and reaps it.
func startAgent(t testing.TB, addr, dir, mode string) (serverPID int, kill func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "agent", addr, dir, mode)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	kill = func() {
		if !done {
			done = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = in.Close()
		}
	}
	t.Cleanup(kill)
	var word string
	if _, err := fmt.Fscan(out, &word, &serverPID); err != nil || word != "ready" {
		t.Fatalf("the agent said %q: %v", word, err)
	}
	pid := serverPID
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	return serverPID, kill
}

func portOf(addr string) int {
	_, p, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(p)
	return n
}
