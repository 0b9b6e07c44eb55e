// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"redoubt/internal/topo"
)

const (
	guardSpacing = time.Second            // between two starts of a guard
	guardPoll    = time.Second            // how often a guard asks its server for its role
	guardAsk     = 50 * time.Millisecond  // … and how long it waits for that answer
	guardFence   = 100 * time.Millisecond // a primary that has not carried out the fence by then is killed
	guardPatient = 2 * time.Second        // how long a guard waits for the word of a server that was a replica
	guardRecent  = 2 * time.Second        // a promotion that was ordered so long ago has been carried out, or will not be
	passwordMax  = 64 << 10
)

// startGuard starts the process that fences this server when this agent dies (SAFETY B3), unless one that watches both
// runs already. It tells whether there is a guard now.
func (m *managed) startGuard(server *process) bool {
	if len(m.o.GuardCommand) == 0 {
		return true
	}
	g, err := m.runGuard(server)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nextGuard = m.node.clk.Uptime() + guardSpacing
	if err != nil {
		m.node.log.Error("guard not started", "error", err)
		return false
	}
	// A guard of an earlier server ends by itself; it is watched until then, so that it is reaped.
	m.guards = append(slices.DeleteFunc(m.guards, func(old *process) bool { return old.exited() }), g)
	return true
}

// guarded tells whether the newest guard runs, and starts another one, at most one per guardSpacing, if it does not.
func (m *managed) guarded(server *process) bool {
	m.mu.Lock()
	runs := len(m.guards) > 0 && !m.guards[len(m.guards)-1].exited()
	due := m.node.clk.Uptime() >= m.nextGuard
	m.mu.Unlock()
	return runs || len(m.o.GuardCommand) == 0 || due && m.startGuard(server)
}

func (m *managed) runGuard(server *process) (*process, error) {
	agent, err := readStat(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("look at our own process: %w", err)
	}
	want := guardRecord{AgentPID: os.Getpid(), AgentStart: agent.start, ServerPID: server.pid}
	var had guardRecord
	_ = loadJSON(m.o.Dir, guardFile, &had)
	if had.AgentPID == want.AgentPID && had.AgentStart == want.AgentStart && had.ServerPID == want.ServerPID {
		if g, err := openProcess(had.PID, had.Start, m.exited(had.PID)); err == nil { // an agent that replaced itself by exec
			return g, nil
		}
	}
	username, password := m.login()
	argv := append(append([]string{}, m.o.GuardCommand...),
		"--agent-pid", strconv.Itoa(want.AgentPID), "--agent-start", strconv.FormatUint(want.AgentStart, 10),
		"--server-pid", strconv.Itoa(server.pid), "--server-start", strconv.FormatUint(server.start, 10),
		"--addr", m.node.own, "--dir", m.o.Dir, "--user", username)
	out, err := os.OpenFile(filepath.Join(m.o.Dir, guardLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	defer out.Close()
	in, err := inputOf(password)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = m.o.Dir, in, out, out
	cmd.Env = serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pid, err := startDetached(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g, err := openProcess(pid, 0, m.exited(pid))
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	want.PID, want.Start = g.pid, g.start
	return g, saveJSON(m.o.Dir, guardFile, want)
}

// guard is the state of the guard process. One goroutine (RunGuard) uses it.
type guard struct {
	addr     string
	d        dialect
	username string
	password string
	dir      string
	server   *process
	c        *conn
	role     topo.Role    // last answer; unknown again when a promotion was ordered since
	promoted topo.Elected // the promotion on record when that answer was asked for
	out      io.Writer
}

// RunGuard is the guard process: it waits until the agent or the server is gone. When the agent dies first, a primary is
// fenced, and killed if it does not carry that out; a replica is left alone. args are those that the driver appends to
// Options.GuardCommand; the password comes on standard input. It returns when its work is over.
func RunGuard(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("guard", flag.ContinueOnError)
	agentPID := fs.Int("agent-pid", 0, "process id of the agent")
	agentStart := fs.Uint64("agent-start", 0, "its start time, in ticks after boot")
	serverPID := fs.Int("server-pid", 0, "process id of the server")
	serverStart := fs.Uint64("server-start", 0, "its start time, in ticks after boot")
	addr := fs.String("addr", "", "host:port of the server, or unix: and its directory, for a member of a cluster")
	dir := fs.String("dir", ".", "the node's directory")
	user := fs.String("user", "", "the server's user to log in as; empty: the default one")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	password, err := io.ReadAll(io.LimitReader(os.Stdin, passwordMax))
	if err != nil {
		return fmt.Errorf("guard: read the password: %w", err)
	}
	server, err := openProcess(*serverPID, *serverStart, nil)
	if err != nil {
		return nil // the server is gone already
	}
	defer server.release()
	g := &guard{addr: *addr, d: single{}, username: *user, password: string(password), dir: *dir, server: server, out: os.Stderr}
	if strings.HasPrefix(*addr, socketPrefix) {
		g.d = member{}
	}
	defer g.hangUp()
	agent, err := openProcess(*agentPID, *agentStart, nil)
	if err != nil {
		return g.agentDied(ctx)
	}
	defer agent.release()
	g.ask(ctx, guardAsk)
	tick := time.NewTicker(guardPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-server.gone:
			return nil
		case <-agent.gone:
			return g.agentDied(ctx)
		case <-tick.C:
			g.ask(ctx, guardAsk)
		}
	}
}

// line returns the standing connection, opening it if needed.
func (g *guard) line(ctx context.Context) (*conn, error) {
	if g.c != nil && !g.c.ended() {
		return g.c, nil
	}
	g.hangUp()
	setup := append(authCommand(g.username, g.password), []string{"CLIENT", "SETNAME", guardName})
	c, err := dial(ctx, g.addr, setup, nil)
	g.c = c
	return c, err
}

func (g *guard) hangUp() {
	if g.c != nil {
		g.c.close()
		g.c = nil
	}
}

// ask reads the role. It keeps what it knows when the server does not answer, unless a promotion was ordered since, and
// queues nothing behind a question that is still open.
func (g *guard) ask(ctx context.Context, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var promoted topo.Elected
	_ = loadJSON(g.dir, promotedFile, &promoted)
	if promoted != g.promoted {
		g.role, g.promoted = topo.RoleUnknown, promoted
	}
	c, err := g.line(ctx)
	if err != nil {
		return false
	}
	if open := c.last(); open != nil {
		if _, err := open.wait(ctx); err != nil {
			return false
		}
	}
	reps, err := c.do(ctx, g.d.look("replication")...)
	if err != nil || firstError(reps) != nil {
		return false
	}
	g.role = g.d.read(reps).role()
	if g.role == topo.RoleReplica && g.promoting() {
		g.role = topo.RoleUnknown
	}
	return g.role != topo.RoleUnknown
}

// promoting tells whether a promotion was ordered a moment ago: what is a replica now may be a primary in the next moment, and
// then the record of the order does not change any more.
func (g *guard) promoting() bool {
	st, err := os.Stat(filepath.Join(g.dir, promotedFile))
	return err == nil && time.Since(st.ModTime()) < guardRecent
}

// agentDied does what the guard is for. A server whose last known role is replica is only asked, for a while: it must
// not be killed for being slow. Any other is fenced or killed within guardFence.
func (g *guard) agentDied(ctx context.Context) error {
	if g.succeeded() {
		g.say("the agent ended; another one has the server, with a guard of its own: left to them")
		return nil
	}
	end := time.Now().Add(guardPatient)
	known := g.ask(ctx, guardAsk)
	for !known && g.role == topo.RoleReplica && time.Now().Before(end) && !g.server.exited() && ctx.Err() == nil {
		pause, cancel := context.WithTimeout(ctx, guardAsk)
		_ = g.server.await(pause)
		cancel()
		known = g.ask(ctx, guardAsk)
	}
	if g.role == topo.RoleReplica || g.server.exited() {
		g.say("the agent died; its server is a replica or gone: left alone")
		return nil
	}
	err := g.fence(ctx)
	if err == nil {
		g.say("the agent died; fenced its primary")
		return nil
	}
	if g.server.exited() {
		return nil
	}
	g.say("the agent died and its primary did not carry out the fence: " + err.Error() + "; killed it")
	if err := g.server.signal(sigKill); err != nil {
		return fmt.Errorf("guard: kill the server: %w", err)
	}
	wait, cancel := context.WithTimeout(ctx, guardPatient)
	defer cancel()
	return g.server.await(wait)
}

// succeeded reports whether another agent took the server over while this guard's still ran: both it and its guard do.
func (g *guard) succeeded() bool {
	var rec guardRecord
	if err := loadJSON(g.dir, guardFile, &rec); err != nil || rec.PID == os.Getpid() || rec.ServerPID != g.server.pid {
		return false
	}
	runs := func(pid int, start uint64) bool {
		st, err := readStat(pid)
		return err == nil && st.start == start && st.state != 'Z' && st.state != 'X'
	}
	return runs(rec.PID, rec.Start) && runs(rec.AgentPID, rec.AgentStart)
}

func (g *guard) fence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guardFence)
	defer cancel()
	c, err := g.line(ctx)
	if err != nil {
		return err
	}
	reps, err := c.do(ctx, g.d.fence()...)
	if err != nil {
		return err
	}
	_, err = g.d.fenced(reps)
	return err
}

func (g *guard) say(what string) {
	fmt.Fprintln(g.out, time.Now().UTC().Format(time.RFC3339Nano), strings.TrimSpace(what))
}
