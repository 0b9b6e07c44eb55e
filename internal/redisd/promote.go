// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// primeDelay is the repl-diskless-sync-delay during priming, in seconds: long enough that no child is ever forked, and
// the servers' own default, should this agent die before it restores the setting.
const primeDelay = "5"

const (
	diskless      = "repl-diskless-sync"
	disklessDelay = "repl-diskless-sync-delay"
)

// standing is what a promotion is decided on: who the server is and where it stands.
func (n *Node) standing(ctx context.Context) (*conn, info, error) {
	c, err := n.ready(ctx)
	if err != nil {
		return nil, nil, err
	}
	reps, err := c.do(ctx, n.d.look()...)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return nil, nil, err
	}
	return c, n.read(reps), nil
}

// Promote makes the elected process, at the elected position, a primary: see redis.Node. The check and REPLICAOF NO ONE
// travel on the same connection, so that no other process can take the place of the one that was checked; frozen, it
// cannot move between the two, and in a switchover it follows a fenced server whose offset is final (SAFETY A6, C1).
func (n *Node) Promote(ctx context.Context, e topo.Elected, cred redis.Credentials) (topo.Position, error) {
	if n.cluster != nil {
		return n.promoteInCluster(ctx, e, cred)
	}
	seq := n.fences.Load()
	c, m, err := n.standing(ctx)
	if err != nil {
		return topo.Position{}, fmt.Errorf("promote %s: %w", n.addr, err)
	}
	if err := n.eligible(m, e); err != nil {
		return topo.Position{}, fmt.Errorf("promote %s: %w", n.addr, err)
	}
	if m, err = n.makePrimary(ctx, c, m, e, cred, seq); err != nil {
		return topo.Position{}, err
	}
	n.notePromoted(e, seq)
	if m["repl_backlog_active"] == "1" {
		return m.position(), nil
	}
	pos, err := n.prime(ctx, c, cred)
	if err != nil {
		return topo.Position{}, fmt.Errorf("promote %s: create its backlog: %w", n.addr, err)
	}
	return pos, nil
}

// notePromoted remembers a promotion that was carried out.
func (n *Node) notePromoted(e topo.Elected, seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.promoted = e
	if n.fences.Load() == seq { // otherwise the fence has the last word
		n.role = topo.RolePrimary
	}
}

// makePrimary carries out the promotion: from one instant on the server is a primary and admits only replicas with cred.
// Becoming a primary cuts all replicas that are attached (replicationUnsetMaster, Redis 6.2 to 7.4); they come back with
// the tenure's credentials or not at all. One that is a primary already is only told again whom to admit.
func (n *Node) makePrimary(ctx context.Context, c *conn, m info, e topo.Elected, cred redis.Credentials, seq uint64) (info, error) {
	wrap := func(err error) error { return fmt.Errorf("promote %s: %w", n.addr, err) }
	admission := n.admission(cred)
	if m.role() == topo.RolePrimary {
		if len(admission) == 0 {
			return m, nil
		}
		reps, err := c.do(ctx, admission...)
		if err == nil {
			err = firstError(reps)
		}
		if err != nil {
			return nil, wrap(err)
		}
		return m, nil
	}
	n.rememberPromotion(e)
	n.setRole(topo.RoleUnknown) // from here on only a fence or a look can tell
	cmds := append([][]string{{"MULTI"}}, admission...)
	cmds = append(cmds, []string{"REPLICAOF", "NO", "ONE"}, []string{"EXEC"}, []string{"INFO"})
	at := n.clk.Uptime()
	call, err := c.sendIf(func() bool { return n.fences.Load() == seq }, cmds...)
	if err != nil {
		return nil, wrap(err)
	}
	reps, err := call.wait(ctx)
	if err == nil {
		err = errors.Join(firstError(reps), firstError(reps[len(reps)-2].items))
	}
	if err != nil {
		return nil, wrap(err)
	}
	m = parseInfo(reps[len(reps)-1].text)
	if err := n.promotedAs(ctx, m, e); err != nil {
		return m, err
	}
	if m["repl_backlog_active"] == "1" { // else it is primed, and changes its history
		n.noteReadBack(readBack{m, at, c, seq})
	}
	return m, nil
}

// eligible compares what stands there with what was elected. A primary that this very election made is eligible: the
// verb is idempotent.
func (n *Node) eligible(m info, e topo.Elected) error {
	p := m.position()
	switch {
	case m["run_id"] != e.RunID:
		return fmt.Errorf("%w: its run id is %s, elected was %s", redis.ErrRefused, m["run_id"], e.RunID)
	case m.loading() || m.syncing():
		return fmt.Errorf("%w: it is loading or in a full sync", redis.ErrRefused)
	case m.role() == topo.RolePrimary && (p.ReplID2 == e.ReplID && p.Offset2 == e.Offset+1 || n.recalls(e)):
		return nil
	case m.rawPrimary() && p.ReplID2 == e.ReplID && p.Offset2 == e.Offset+1, m.rawPrimary() && n.recalls(e):
		return nil // a member of a cluster that was promoted, and is not open yet or not any more
	case m.role() != topo.RoleReplica:
		return fmt.Errorf("%w: it is %q, and not by this election", redis.ErrRefused, m.role())
	case p.ReplID == e.ReplID && p.Offset < e.Offset && m.following() != "":
		return fmt.Errorf("%w: it stands at %d, elected was %d", redis.ErrBehind, p.Offset, e.Offset)
	case p.ReplID != e.ReplID || p.Offset != e.Offset:
		return fmt.Errorf("%w: it stands at (%s, %d), elected was (%s, %d)", redis.ErrRefused, p.ReplID, p.Offset, e.ReplID, e.Offset)
	}
	return nil
}

// promotedAs verifies the promotion: the server's own note of where its former history ended is the position at which it
// was promoted. If that is not the elected one, the fence of the old primary did not hold and this one is fenced.
func (n *Node) promotedAs(ctx context.Context, m info, e topo.Elected) error {
	p := m.position()
	if m.role() != topo.RolePrimary {
		return fmt.Errorf("promote %s: %w: after REPLICAOF NO ONE it is %q; a fence overtook it", n.addr, redis.ErrRefused, m.role())
	}
	if p.ReplID2 == e.ReplID && p.Offset2 == e.Offset+1 {
		return nil
	}
	n.setRole(topo.RolePrimary)
	err := fmt.Errorf("promote %s: %w: it moved on to offset %d while it was promoted at %d", n.addr, redis.ErrRefused, p.Offset2-1, e.Offset)
	if ferr := n.Fence(ctx); ferr != nil {
		return fmt.Errorf("%w; and it could not be fenced: %w", err, ferr)
	}
	return err
}

// recalls tells whether this process was made primary by the election e, also when an earlier agent did it.
func (n *Node) recalls(e topo.Elected) bool {
	n.mu.Lock()
	p := n.promoted
	n.mu.Unlock()
	if p.RunID == "" && n.state != "" {
		_ = loadJSON(n.state, promotedFile, &p)
	}
	return p.RunID == e.RunID && p.ReplID == e.ReplID && p.Offset == e.Offset
}

// rememberPromotion notes a promotion on disk before it is ordered: for the guard, which must not take the server for
// the replica that it was a moment ago, and because priming clears replid2, the server's own note. A full disk must not
// prevent a promotion, so that an error is only logged.
func (n *Node) rememberPromotion(e topo.Elected) {
	if n.state == "" {
		return
	}
	e.Node, e.Lossy = "", "" // names and sentences of any length are not needed to recall it
	if err := overwriteJSON(n.state, promotedFile, e); err != nil {
		n.log.Warn("promotion not recorded", "error", err)
	}
}

// prime gives a primary without a backlog one, by asking for a full sync on a second connection and leaving before it
// begins. The server creates the backlog, and changes its replication id, when it accepts the request (syncCommand and
// masterTryPartialResynchronization, Redis 6.2 to 7.0); a sync without disk and with a delay forks only seconds later.
// PSYNC with the server's own id and offset would not do: without a backlog it is the same full sync.
func (n *Node) prime(ctx context.Context, c *conn, cred redis.Credentials) (topo.Position, error) {
	restore, err := n.delaySync(ctx, c)
	var id int64
	if err == nil {
		id, err = n.askForSync(ctx, c, cred)
	}
	// The priming connection goes before the setting comes back, so that no sync can begin; in every case, also late.
	undo := append([][]string{{"CLIENT", "KILL", "ID", strconv.FormatInt(id, 10)}}, restore...)
	last, sendErr := c.send(append(undo, []string{"INFO", "replication"})...)
	if err = errors.Join(err, sendErr); err != nil {
		return topo.Position{}, err
	}
	reps, err := last.wait(ctx)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return topo.Position{}, err
	}
	n.undelay = nil
	m := parseInfo(reps[len(reps)-1].text)
	if m.role() != topo.RolePrimary || m["repl_backlog_active"] != "1" {
		return topo.Position{}, fmt.Errorf("%w: after priming it is %q with backlog %s", redis.ErrRefused, m.role(), m["repl_backlog_active"])
	}
	return m.position(), nil
}

// askForSync asks for a full sync on a second connection, as a replica of this tenure would, and returns that connection's id once there is a backlog. The
// round trips of INFO are the pace of the wait; ctx is its bound.
func (n *Node) askForSync(ctx context.Context, c *conn, cred redis.Credentials) (int64, error) {
	setup := append(authCommand(n.adminLogin()), []string{"CLIENT", "SETNAME", primeName}, []string{"CLIENT", "ID"})
	named := len(setup) - 1
	if !cred.Open() {
		setup = append(setup, authCommand(n.login(cred))...)
	}
	setup = append(setup, []string{"REPLCONF", "capa", "eof", "capa", "psync2"})
	second, err := dial(ctx, n.own, setup, nil)
	if err != nil {
		return 0, err
	}
	defer second.close()
	reps, err := second.setup.wait(ctx)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return 0, err
	}
	id := reps[named].num
	sync, err := second.send([]string{"PSYNC", "?", "-1"})
	if err != nil {
		return id, err
	}
	for ctx.Err() == nil {
		if reps, err = c.do(ctx, []string{"INFO", "replication"}); err == nil {
			err = firstError(reps)
		}
		if err != nil {
			return id, err
		}
		if parseInfo(reps[0].text)["repl_backlog_active"] == "1" {
			return id, nil
		}
		if !sync.finished() {
			continue
		}
		if reps, err = sync.wait(ctx); err == nil {
			err = firstError(reps)
		}
		if err != nil {
			return id, fmt.Errorf("the request for a full sync was refused: %w", err)
		}
	}
	return id, fmt.Errorf("%w: %w", redis.ErrUnanswered, ctx.Err())
}

// delaySync makes full syncs diskless and slow to start, and returns the commands that undo it. They are remembered until they
// were answered: what an attempt that was cut short has left is not what was there before.
func (n *Node) delaySync(ctx context.Context, c *conn) ([][]string, error) {
	names := []string{diskless, disklessDelay}
	reps, err := c.do(ctx, configGets(names)...)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return n.undelay, err
	}
	had, err := mergeConfig(reps)
	if err != nil {
		return n.undelay, err
	}
	want := map[string]string{diskless: "yes", disklessDelay: primeDelay}
	var set, restore [][]string
	for _, name := range names {
		if had[name] != want[name] {
			set = append(set, []string{"CONFIG", "SET", name, want[name]})
			restore = append(restore, []string{"CONFIG", "SET", name, had[name]})
		}
	}
	if n.undelay == nil {
		slices.Reverse(restore)
		n.undelay = restore
	}
	if len(set) == 0 {
		return n.undelay, nil
	}
	if reps, err = c.do(ctx, set...); err == nil {
		err = firstError(reps)
	}
	return n.undelay, err
}

// restoreDelay undoes what a priming that was cut short has left.
func (n *Node) restoreDelay(ctx context.Context, c *conn) error {
	if n.undelay == nil {
		return nil
	}
	reps, err := c.do(ctx, n.undelay...)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return fmt.Errorf("put back the settings of full syncs at %s: %w", n.addr, err)
	}
	n.undelay = nil
	return nil
}
