// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

const (
	sigKill = unix.SIGKILL
	sigTerm = unix.SIGTERM

	fenceAnswer = 100 * time.Millisecond // how long a fence order may stay unanswered before a managed primary is killed
	killWait    = 100 * time.Millisecond // least time that is spent waiting for the exit after SIGKILL
	reissueWait = time.Second            // a replication link that is still connecting after that is started anew
	greetingMax = 32 * time.Second       // … and one that still waits for the primary's answer after the same, twice as long each time, up to this
)

// Fence makes sure that nobody writes here now: see redis.Node. It may overtake any other verb.
func (n *Node) Fence(ctx context.Context) error {
	n.fences.Add(1)
	p := n.process()
	if p != nil && p.exited() {
		return nil
	}
	err := errStopped
	if n.managed == nil || p == nil || !look(p.pid).stopped() || n.lastRole() == topo.RoleReplica {
		asking, cancel := context.WithTimeout(ctx, fenceTime(ctx))
		err = n.fenceByOrder(asking)
		cancel()
	}
	switch {
	case err == nil:
		return nil
	case p != nil && p.exited():
		return nil
	case n.managed == nil || p == nil:
		return fmt.Errorf("fence %s: %w", n.addr, err)
	case n.lastRole() == topo.RoleReplica:
		return fmt.Errorf("fence %s: it is a replica, so it is not killed: %w", n.addr, err)
	}
	n.log.Warn("fence order not carried out; killing the server", "pid", p.pid, "error", err)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(killWait, remaining(ctx)))
	defer cancel()
	return n.Kill(end)
}

// errStopped: a stopped process carries out no order, so nothing is gained by waiting for one.
var errStopped = errors.New("the process is stopped")

// fenceTime leaves a part of ctx for the kill.
func fenceTime(ctx context.Context) time.Duration {
	return min(fenceAnswer, remaining(ctx)*2/3)
}

func remaining(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return lookTimeout
	}
	return max(0, time.Until(end))
}

// fenceByOrder queues the fence behind whatever is unanswered on the admin connection and waits for it. A connection
// that ends meanwhile (another fence cut it) is replaced once.
func (n *Node) fenceByOrder(ctx context.Context) error {
	var reps []reply
	var c *conn
	var err error
	var at time.Duration
	seq := n.fences.Load()
	for range 2 {
		if c, err = n.connection(ctx); err != nil {
			return err
		}
		if n.managed != nil { // an attached server cannot be killed, so its fence is queued even before it said who it is
			if err = n.introduced(ctx, c); err != nil {
				if c.ended() && !errors.Is(err, errForeign) {
					continue
				}
				return err
			}
		}
		at = n.clk.Uptime()
		if reps, err = c.do(ctx, n.d.fence()...); err == nil || !c.ended() {
			break
		}
	}
	if err != nil {
		return err
	}
	m, err := n.d.fenced(reps)
	if err != nil {
		return err
	}
	n.setRole(topo.RoleReplica)
	n.noteReadBack(readBack{m, at, c, seq})
	return nil
}

// replication reads INFO replication and, with it, the role that a fence may rely on.
func (n *Node) replication(ctx context.Context) (info, error) {
	reps, err := n.ask(ctx, []string{"INFO", "replication"})
	if err != nil {
		return nil, err
	}
	m := parseInfo(reps[0].text)
	n.setRole(m.role())
	return m, nil
}

// Freeze stops following and stays read-only: see redis.Node.
func (n *Node) Freeze(ctx context.Context) error {
	if n.cluster != nil {
		return n.freezeInCluster(ctx)
	}
	m, err := n.replication(ctx)
	if err != nil {
		return fmt.Errorf("freeze %s: %w", n.addr, err)
	}
	switch {
	case m.frozen():
		return nil
	case m.role() == topo.RolePrimary:
		return n.Fence(ctx)
	}
	if err := n.replicaOf(ctx, nil, deadHost, deadPort); err != nil {
		return fmt.Errorf("freeze %s: %w", n.addr, err)
	}
	return nil
}

// replicaOf gives one or more REPLICAOF orders in one transaction, after the commands that set the login, and reads the last
// one back.
func (n *Node) replicaOf(ctx context.Context, login [][]string, hostPorts ...string) error {
	seq := n.fences.Load()
	c, err := n.ready(ctx)
	if err != nil {
		return err
	}
	cmds := append([][]string{{"MULTI"}}, login...)
	for i := 0; i+1 < len(hostPorts); i += 2 {
		cmds = append(cmds, []string{"REPLICAOF", hostPorts[i], hostPorts[i+1]})
	}
	execAt := len(cmds)
	cmds = append(cmds, []string{"EXEC"}, []string{"INFO"})
	if len(login) > 0 {
		cmds = append(cmds, loginQuestions()...)
	}
	at := n.clk.Uptime()
	call, err := c.sendIf(func() bool { return n.fences.Load() == seq }, cmds...)
	if err != nil {
		return err
	}
	reps, err := call.wait(ctx)
	if err != nil {
		return err
	}
	if err := firstError(reps); err != nil {
		if isCode(err, "LOADING") {
			return fmt.Errorf("%w: it is loading and cannot change what it follows; wait: %w", redis.ErrRefused, err)
		}
		return err
	}
	if err := firstError(reps[execAt].items); err != nil {
		return err
	}
	m := parseInfo(reps[execAt+1].text)
	host, port := hostPorts[len(hostPorts)-2], hostPorts[len(hostPorts)-1]
	if m.role() != topo.RoleReplica || m["master_host"] != host || m["master_port"] != port {
		return fmt.Errorf("%w: read back role %q following %s:%s", redis.ErrRefused, m.role(), m["master_host"], m["master_port"])
	}
	n.setRole(topo.RoleReplica)
	n.noteReadBack(readBack{m, at, c, seq})
	if len(login) == 0 {
		return nil
	}
	return tookLogin(reps[execAt+2:], login)
}

// presentLogin sets a login on a server that follows already, and reads it back.
func (n *Node) presentLogin(ctx context.Context, login [][]string) error {
	reps, err := n.ask(ctx, append(login[:len(login):len(login)], loginQuestions()...)...)
	if err != nil {
		return err
	}
	return tookLogin(reps[len(login):], login)
}

// tookLogin checks the answers to loginQuestions against the commands of a login.
func tookLogin(reps []reply, login [][]string) error {
	has, err := mergeConfig(reps)
	if err != nil {
		return err
	}
	for _, set := range login {
		if has[set[2]] != set[3] {
			return fmt.Errorf("%w: %s did not take its value", redis.ErrRefused, set[2])
		}
	}
	return nil
}

// Follow makes the server a replica of addr, with the login that the primary there demands. On one that follows addr already
// it only sees to the login, unless the link is down and the server would try with another login, or only waits for its next
// attempt (once a second), or the link is said to be up and is silent: then it is started anew at once (SAFETY C2).
func (n *Node) Follow(ctx context.Context, addr string, cred redis.Credentials) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == deadPort || addr == n.addr {
		return fmt.Errorf("follow %q: %w: not the address of another server", addr, redis.ErrRefused)
	}
	if n.cluster != nil {
		return n.followInCluster(ctx, addr, cred)
	}
	if user, password := n.login(cred); password != "" && n.wasFrozen() {
		// The usual case of an election, where every round trip is a part of the outage: nothing needs to be asked first.
		if err := n.replicaOf(ctx, loginAs(user, password), host, port); err != nil {
			return fmt.Errorf("follow %s: %w", addr, err)
		}
		n.connecting, n.greetings = 0, 0
		return nil
	}
	m, login, err := n.leanings(ctx, cred)
	if err != nil {
		return fmt.Errorf("follow %s: %w", addr, err)
	}
	if m.role() == topo.RolePrimary { // demotion always cuts the clients (SAFETY A5)
		if err := n.Fence(ctx); err != nil {
			return fmt.Errorf("follow %s: %w", addr, err)
		}
	}
	renew := n.mustRenew(m)
	switch {
	case m.role() != topo.RoleReplica || m["master_host"] != host || m["master_port"] != port:
		n.greetings = 0
		err = n.replicaOf(ctx, login, host, port)
	case m.linkUp() && !renew || m.syncing():
		n.greetings = 0
		if len(login) > 0 {
			err = n.presentLogin(ctx, login)
		}
	default:
		waits := renew || len(login) > 0
		if !waits {
			if waits, err = n.linkWaits(ctx); err != nil || !waits {
				return err
			}
		}
		// The same address again would be answered with "Already connected", so it goes by the dead one.
		err = n.replicaOf(ctx, login, deadHost, deadPort, host, port)
	}
	if err != nil {
		return fmt.Errorf("follow %s: %w", addr, err)
	}
	n.connecting = 0
	return nil
}

// leanings reads whom the server follows, and returns the commands that it needs to log in there.
func (n *Node) leanings(ctx context.Context, cred redis.Credentials) (info, [][]string, error) {
	reps, err := n.ask(ctx, append([][]string{{"INFO", "replication"}}, loginQuestions()...)...)
	if err != nil {
		return nil, nil, err
	}
	has, err := mergeConfig(reps[1:])
	if err != nil {
		return nil, nil, err
	}
	m := parseInfo(reps[0].text)
	n.setRole(m.role())
	return m, n.relogin(has, cred), nil
}

// linkWaits tells whether a link that is down would profit from a new start: the server waits for its cron, or has been
// connecting for long. ROLE shows it: connect, connecting, handshake, sync, connected (Redis 6.2 and later).
func (n *Node) linkWaits(ctx context.Context) (bool, error) {
	reps, err := n.ask(ctx, []string{"ROLE"})
	if err != nil {
		return false, fmt.Errorf("look at the replication link: %w", err)
	}
	if len(reps[0].items) < 4 {
		return false, nil
	}
	return n.linkIdles(reps[0].items[3].text), nil
}

// linkIdles judges the state of a link that is down.
func (n *Node) linkIdles(state string) bool {
	now := n.clk.Uptime()
	switch state {
	case "connect", "none":
		return true
	case "connecting", "handshake":
		if n.connecting == 0 {
			n.connecting = now
		}
		// In its greeting it also waits for its turn: the primary may delay the sync, or be busy with somebody else's, and each new
		// start sends it to the end of that.
		wait := reissueWait
		if state == "handshake" {
			wait = min(reissueWait<<min(n.greetings, 10), greetingMax)
		}
		if now-n.connecting < wait {
			return false
		}
		if state == "handshake" {
			n.greetings++
		}
		return true
	}
	n.connecting, n.greetings = 0, 0
	return false
}

// ProxyConnections counts what a switchover waits for, by its name.
func (n *Node) ProxyConnections(ctx context.Context) (int, error) {
	reps, err := n.ask(ctx, []string{"CLIENT", "LIST", "TYPE", "normal"})
	if err != nil {
		return 0, fmt.Errorf("count the proxies' connections at %s: %w", n.addr, err)
	}
	return redis.Undrained(reps[0].text), nil
}

// PrimaryPosition reads another server's role and position, over one cached connection.
func (n *Node) PrimaryPosition(ctx context.Context, addr string) (topo.Role, topo.Position, error) {
	return n.position(ctx, addr)
}

// StreamPosition is PrimaryPosition behind something that was just sent to the replicas: who reaches it gets the stream. A replica whose
// link is up may not get it yet (Acknowledge).
func (n *Node) StreamPosition(ctx context.Context, addr string) (topo.Role, topo.Position, error) {
	return n.position(ctx, addr, moveStream)
}

func (n *Node) position(ctx context.Context, addr string, first ...[]string) (topo.Role, topo.Position, error) {
	cmds := append(first, []string{"INFO", "replication"}, []string{"CONFIG", "GET", pingPeriod})
	if n.peer != nil && (n.peerA != addr || n.peer.ended() || n.peer.last() != nil) {
		n.peer.close()
		n.peer = nil
	}
	var err error
	for range 2 { // a fence there may have cut the cached connection
		if n.peer == nil {
			setup := append(n.credentials(), []string{"CLIENT", "SETNAME", peerName})
			if n.peer, err = dial(ctx, addr, setup, nil); err != nil {
				return "", topo.Position{}, fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
			}
			n.peerA = addr
		}
		var reps []reply
		if reps, err = n.peer.do(ctx, cmds...); err == nil {
			reps = reps[len(first):]
			err = reps[0].err()
		}
		if err == nil {
			m := parseInfo(reps[0].text)
			n.notePings(addr, reps[1])
			return m.role(), m.position(), nil
		}
		if !n.peer.ended() {
			break
		}
		n.peer.close()
		n.peer = nil
	}
	return "", topo.Position{}, fmt.Errorf("read the position of %s: %w", addr, err)
}
