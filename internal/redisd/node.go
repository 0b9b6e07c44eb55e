// SPDX-License-Identifier: Apache-2.0

// Package redisd is the driver of one real redis-server (6.2 to 8) or valkey-server (7.2 to 9): it implements
// redis.Node, starts and watches the process in managed mode, and carries the small guard process that fences a primary
// whose agent died.
//
// It is not for decisions: when to follow, fence or promote is said by its caller, and so are backoff and repetition.
// It never writes a user's configuration file.
//
// Its invariant: a server boots frozen, and only Promote, on the one admin connection and after checking who it talks
// to, makes it writable.
//
// Goroutines, all ended and waited for by Close: one reader per connection (admin, one peer), one watcher per process
// (server, guard), one reaper per child. Commands are RESP2 (Redis protocol 2); facts about servers were read in
// Redis 6.2.14 and 7.0.15 and Valkey 7.2.7 and 8.0.1, and tested on those that redistest is run against.
package redisd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// Names of our own connections in CLIENT LIST.
const (
	adminName = "redoubt-admin"
	peerName  = "redoubt-insync"
	primeName = "redoubt-prime"
	guardName = "redoubt-guard"
)

// Node drives one server. It implements redis.Node; Managed and Attached make it. Safe for the use that the port
// describes: one verb at a time, Fence at any time; Close when no verb is under way.
type Node struct {
	addr     string
	own      string // where this driver reaches its server: addr, or the socket of a member of a cluster
	username string
	password string
	log      *slog.Logger
	clk      clock.Clock
	wake     chan struct{}
	fences   atomic.Uint64 // grows with each Fence; a promotion that a fence overtook is not sent
	dialing  chan struct{} // capacity one: who holds the token may open the admin connection
	state    string        // directory of our own small files; empty: nothing outlives this process
	managed  *managed      // nil for attached servers
	cluster  *ClusterSeat  // nil: the server is no member of a cluster
	d        dialect       // how such a server is asked and told
	pidFile  string        // attached: where the service manager writes the pid; may be empty

	peer     *conn // verbs only: connection to another server, see PrimaryPosition
	peerA    string
	pinged   string            // verbs only: address of the primary that is known to send something every second
	admitted redis.Credentials // verbs only: what Configure demanded last, …
	movers   string            // … for who moves slots
	rules    []string          // … and the access rules after that
	disk     bool              // verbs only: Configure asked for every write to be synced
	gate     barrier           // verbs only: the latest that was written
	atLeast  int               // verbs only: min-replicas-to-write that Configure asked for, for a server that is opened later

	mu         sync.Mutex // guards everything below; never held across I/O
	closed     bool
	admin      *conn
	last       adminRecord // the newest admin connection, for the kill by its successor
	proc       *process    // nil when the process is out of sight
	runID      string      // of the process that was last seen to answer
	knownRun   string      // the last run id whose boot was judged
	badBoot    string      // problem of the boot of runID
	role       topo.Role   // last seen of this process
	frozen     bool        // the last look found a frozen replica; cleared by every change of role
	barred     bool        // cluster: whatever link this process is about to make presents the frozen login
	version    int         // Redis-compatible, major × 100 + minor; 0 before the first look
	verText    string
	answered   bool          // this process has answered at least once
	loadedAt   time.Duration // when the server last said that it was loading; 0: not loading
	health     topo.Health
	healthAt   time.Duration
	cfg        map[string]string
	cfgAt      time.Duration
	readBack   readBack
	marks      markState
	promoted   topo.Elected // the promotion that made this process primary; survives priming, which clears replid2
	undelay    [][]string   // what puts back the settings that priming has changed; nil: nothing is changed
	connecting time.Duration
	greetings  int           // verbs only: how often a link in its greeting was started anew since it last got beyond that
	renewed    time.Duration // verbs only: when a silent link was last started anew
}

var _ redis.Node = (*Node)(nil)

// errForeign: a server that is not ours answers at our address.
var errForeign = errors.New("another server has this node's port")

// adminRecord names an admin connection as the server knows it.
type adminRecord struct {
	ID   int64  `json:"id"`
	Addr string `json:"addr"`
}

func newNode(addr string, log *slog.Logger, clk clock.Clock) *Node {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if clk == nil {
		clk = clock.Real{}
	}
	return &Node{
		addr: addr, own: addr, d: single{}, log: log.With("addr", addr), clk: clk,
		wake: make(chan struct{}, 1), dialing: make(chan struct{}, 1),
	}
}

// Wake gets a value when a look would show something new: see redis.Node.
func (n *Node) Wake() <-chan struct{} { return n.wake }

func (n *Node) nudge() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Close gives up the connections and the watch. A managed server goes on running: the next agent adopts it.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	admin, proc := n.admin, n.proc
	n.mu.Unlock()
	if admin != nil {
		admin.close()
	}
	if n.peer != nil {
		n.peer.close()
	}
	n.gate.close()
	if proc != nil {
		proc.release()
	}
	if n.managed != nil {
		n.managed.close()
	}
	return nil
}

func (n *Node) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// wasFrozen reports whether the last look found a frozen replica that answers, and nothing has changed its role since.
func (n *Node) wasFrozen() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.frozen
}

// setRole notes the role, as it is or as an order that is about to be sent may make it: what was read before is no look any more.
func (n *Node) setRole(r topo.Role) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.role, n.frozen, n.readBack = r, false, readBack{}
}

func (n *Node) lastRole() topo.Role {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.role
}

// newProcess forgets what was known of the earlier process.
func (n *Node) newProcess(p *process, role topo.Role) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.proc, n.role, n.frozen = p, role, false
	n.runID, n.badBoot, n.answered, n.loadedAt, n.cfg = "", "", false, 0, nil
	n.promoted, n.barred = topo.Elected{}, false
}

// credentials is the AUTH command that opens a connection to another node's server; none without a password.
func (n *Node) credentials() [][]string { return authCommand(n.username, n.password) }

// adminLogin is the user, and its password, as which the agent commands its own server.
func (n *Node) adminLogin() (username, password string) {
	if n.managed != nil {
		return n.managed.login()
	}
	return n.username, n.password
}

func authCommand(username, password string) [][]string {
	switch {
	case password == "":
		return nil
	case username == "":
		return [][]string{{"AUTH", password}}
	}
	return [][]string{{"AUTH", username, password}}
}

// connection returns the admin connection, opening it if there is none. The setup may still be unanswered. A new
// connection first kills the earlier one, by the id and the address that the server knows (SAFETY A6, one voice).
func (n *Node) connection(ctx context.Context) (*conn, error) {
	select {
	case n.dialing <- struct{}{}:
		defer func() { <-n.dialing }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", redis.ErrUnanswered, ctx.Err())
	}
	n.mu.Lock()
	c, last, closed := n.admin, n.last, n.closed
	n.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("%w: this driver was closed", redis.ErrRefused)
	}
	if c != nil && !c.ended() {
		return c, nil
	}
	if p := n.process(); p != nil && n.managed != nil && p.exited() {
		return nil, fmt.Errorf("%w: the process exited", redis.ErrUnanswered)
	}
	setup := authCommand(n.adminLogin())
	if last.ID != 0 {
		setup = append(setup, []string{"CLIENT", "KILL", "ID", fmt.Sprint(last.ID), "ADDR", last.Addr})
	}
	setup = append(setup, []string{"CLIENT", "SETNAME", adminName}, []string{"INFO", "server"}, []string{"CLIENT", "ID"})
	c, err := dial(ctx, n.own, setup, n.nudge)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	n.mu.Lock()
	n.admin, closed = c, n.closed
	n.mu.Unlock()
	if closed {
		c.close()
		return nil, fmt.Errorf("%w: this driver was closed", redis.ErrRefused)
	}
	return c, nil
}

// ready returns the admin connection once it is set up and every earlier command on it was answered: a server that has
// been unresponsive gets no order that could run late (SAFETY A6).
func (n *Node) ready(ctx context.Context) (*conn, error) {
	c, err := n.connection(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.introduced(ctx, c); err != nil {
		return nil, err
	}
	if p := c.last(); p != nil {
		if _, err := p.wait(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// introduced waits for the setup of an admin connection and checks who answered: a managed node never speaks to another
// process than its own, whoever has taken its port.
func (n *Node) introduced(ctx context.Context, c *conn) error {
	reps, err := c.setup.wait(ctx)
	if err != nil {
		return err
	}
	who := reps[len(reps)-2] // a foreign server may refuse our login and answer nevertheless
	c.answers.Do(func() { c.pid = int(parseInfo(who.text).num("process_id")) })
	if p := n.process(); n.managed != nil && p != nil && who.err() == nil && c.pid != p.pid {
		c.close()
		return fmt.Errorf("%w: process %d answers at %s, ours is %d: stop it, or give this node another port", errForeign, c.pid, n.addr, p.pid)
	}
	if err := firstError(reps); err != nil {
		c.close()
		return fmt.Errorf("open the admin connection: %w", err)
	}
	n.record(adminRecord{ID: reps[len(reps)-1].num, Addr: c.local()})
	return nil
}

// record remembers the admin connection, also for the next agent on this seat.
func (n *Node) record(r adminRecord) {
	n.mu.Lock()
	same := n.last == r
	n.last = r
	n.mu.Unlock()
	if same || n.state == "" {
		return
	}
	if err := saveJSON(n.state, adminFile, r); err != nil {
		n.log.Warn("admin connection not recorded", "error", err)
	}
}

// ask sends a batch on the ready admin connection; the first error reply is returned as an error.
func (n *Node) ask(ctx context.Context, cmds ...[]string) ([]reply, error) {
	c, err := n.ready(ctx)
	if err != nil {
		return nil, err
	}
	reps, err := c.do(ctx, cmds...)
	if err != nil {
		return nil, err
	}
	return reps, firstError(reps)
}

func firstError(reps []reply) error {
	for _, r := range reps {
		if err := r.err(); err != nil {
			return err
		}
	}
	return nil
}

// versionOf returns the Redis-compatible version, from the last look or by asking.
func (n *Node) versionOf(ctx context.Context, c *conn) (int, error) {
	n.mu.Lock()
	v := n.version
	n.mu.Unlock()
	if v != 0 {
		return v, nil
	}
	reps, err := c.do(ctx, []string{"INFO", "server"})
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return 0, fmt.Errorf("read the server's version: %w", err)
	}
	return parseInfo(reps[0].text).major(), nil
}

func (n *Node) forgetSettings() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cfg = nil
}

// Kill ends a managed server with SIGKILL and returns when it was seen to exit. ErrRefused for attached servers.
func (n *Node) Kill(ctx context.Context) error {
	if n.managed == nil {
		return fmt.Errorf("kill %s: %w: its process belongs to another supervisor", n.addr, redis.ErrRefused)
	}
	p := n.process()
	if p == nil {
		return nil
	}
	if err := p.signal(sigKill); err != nil {
		return fmt.Errorf("kill %s (process %d): %w", n.addr, p.pid, err)
	}
	if err := p.await(ctx); err != nil {
		return fmt.Errorf("kill %s: %w: %w", n.addr, redis.ErrUnanswered, err)
	}
	return nil
}

// Stop ends a managed server politely (SIGTERM: it saves what its configuration says) and returns when it was seen to
// exit. The caller switches over first. ErrRefused for attached servers.
func (n *Node) Stop(ctx context.Context) error {
	if n.managed == nil {
		return fmt.Errorf("stop %s: %w: its process belongs to another supervisor", n.addr, redis.ErrRefused)
	}
	p := n.process()
	if p == nil {
		return nil
	}
	for {
		if err := p.signal(sigTerm); err != nil {
			return fmt.Errorf("stop %s: %w: %w", n.addr, redis.ErrUnanswered, err)
		}
		// A server that writes its first append-only file (after a full sync, or when it was switched on) forgets the signal:
		// "Writing initial AOF. Can't exit" (redis 6.2 to 8, valkey 7.2 to 9). So it is sent again, which changes nothing else.
		again, cancel := context.WithTimeout(ctx, stopAgain)
		err := p.await(again)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("stop %s: %w: %w", n.addr, redis.ErrUnanswered, err)
		}
	}
}

// stopAgain is when a server that has not ended is asked once more.
const stopAgain = 300 * time.Millisecond
