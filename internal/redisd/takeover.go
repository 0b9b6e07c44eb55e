// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

const (
	// writableDelay is how long a starting primary answers CLUSTERDOWN (CLUSTER_WRITABLE_DELAY, Redis 7.0 to 8, Valkey 7.2 to 9:
	// 2 s from a moment of its start), and a margin.
	writableDelay = 2500 * time.Millisecond
	statePause    = 5 * time.Millisecond  // between two questions for the state of the cluster
	statePatience = 50 * time.Millisecond // of one attempt
)

// promoteInCluster makes a server that is eligible the primary of its shard. A replica takes over the slots of its primary; one
// that is a primary by its own word, closed, keeps what it has. A closed server is opened last, when its slots and its history are
// what they have to be, so that nothing of what may go wrong is seen by anybody.
func (n *Node) promoteInCluster(ctx context.Context, e topo.Elected, cred redis.Credentials) (topo.Position, error) {
	seq := n.fences.Load()
	c, m, view, err := n.survey(ctx)
	if err == nil {
		err = n.eligible(m, e)
	}
	switch {
	case err != nil:
	case m.role() == topo.RolePrimary && m["repl_backlog_active"] == "1": // it serves: it is only told again whom to admit
		err = n.tellAdmission(ctx, c, cred)
	default:
		m, err = n.enthrone(ctx, c, m, view, e, cred, seq)
	}
	if err != nil {
		return topo.Position{}, fmt.Errorf("promote %s: %w", n.addr, err)
	}
	n.notePromoted(e, seq)
	return m.position(), nil
}

func (n *Node) enthrone(ctx context.Context, c *conn, m info, view slots.Nodes, e topo.Elected, cred redis.Credentials, seq uint64) (info, error) {
	var err error
	if m.rawPrimary() {
		err = n.keepSlots(ctx, c, view, e, cred, seq)
	} else {
		m, err = n.takeOver(ctx, c, view, e, cred, seq)
	}
	if err != nil {
		return nil, err
	}
	primed := m["repl_backlog_active"] != "1"
	if primed {
		if _, err := n.prime(ctx, c, cred); err != nil {
			return nil, fmt.Errorf("create its backlog: %w", err)
		}
	}
	if m[isShut] == "yes" {
		if err := n.stateAllows(ctx, c); err != nil {
			return nil, err
		}
	}
	if primed || m[isShut] == "yes" {
		n.rememberPromotion(e) // again: the guard may have asked the closed server meanwhile
		// The login stays the frozen one: should it be demoted by gossip, it keeps its data until it is told whom to follow.
		var res []reply
		if res, m, err = n.transact(ctx, c, seq, n.opening(frozenUser, frozenWord), []string{"CLIENT", "UNPAUSE"}); err == nil {
			err = firstError(res)
		}
		if err != nil {
			return nil, err
		}
	}
	if primed { // as any server's, its history is seen by a look of its own
		n.noteReadBack(readBack{})
	}
	return m, shouldBe(m.role() == topo.RolePrimary && m["repl_backlog_active"] == "1", m, "an open primary with a backlog")
}

func (n *Node) tellAdmission(ctx context.Context, c *conn, cred redis.Credentials) error {
	cmds := n.admission(cred)
	if len(cmds) == 0 {
		return nil
	}
	reps, err := c.do(ctx, cmds...)
	if err == nil {
		err = firstError(reps)
	}
	return err
}

// takeOver orders CLUSTER FAILOVER TAKEOVER, which asks nobody: the consensus that elected this node has. The slots that it takes
// are those that its own view gives to its primary, so this has to be what is agreed: a view that missed the move of a slot would
// take it back, and its new owner would delete its keys.
func (n *Node) takeOver(ctx context.Context, c *conn, view slots.Nodes, e topo.Elected, cred redis.Credentials, seq uint64) (info, error) {
	self, _ := view.Self()
	former, _ := view.ByID(self.Of)
	missing, err := n.rightful(view, self, former.Slots)
	if err != nil {
		return nil, err
	}
	n.rememberPromotion(e)
	n.setRole(topo.RoleUnknown) // from here on only a fence or a look can tell
	cmds := append(n.admission(cred), configSet(append(frozenLogin(), minReplicas, strconv.Itoa(n.atLeast), pingPeriod, openPeriod)...))
	cmds = append(cmds, []string{"CLUSTER", "FAILOVER", "TAKEOVER"})
	cmds = append(cmds, unmark(view, self)...)
	cmds = append(cmds, addSlots(missing)...)
	cmds = append(cmds, []string{"CLIENT", "UNPAUSE"}, clusterNodes())
	res, m, err := n.transact(ctx, c, seq, cmds...)
	if err == nil {
		err = firstError(res)
	}
	if err != nil {
		return nil, err
	}
	if p := m.position(); !m.rawPrimary() || p.ReplID2 != e.ReplID || p.Offset2 != e.Offset+1 {
		n.setRole(topo.RolePrimary)
		return nil, n.undo(ctx, fmt.Errorf("%w: after CLUSTER FAILOVER TAKEOVER it is %q, and its history branched at %d, not at %d", redis.ErrRefused, m[rawRole], p.Offset2-1, e.Offset))
	}
	return m, n.owns(ctx, res[len(res)-1])
}

// keepSlots sees that a closed primary has the slots of its shard. What nobody has is assigned to it, with a new epoch. Replicas
// that are attached from before are cut: they come back with the tenure's credentials, or not at all.
func (n *Node) keepSlots(ctx context.Context, c *conn, view slots.Nodes, e topo.Elected, cred redis.Credentials, seq uint64) error {
	self, _ := view.Self()
	missing, err := n.rightful(view, self, self.Slots)
	if err != nil {
		return err
	}
	n.rememberPromotion(e)
	cmds := append(n.admission(cred), []string{"CLIENT", "KILL", "TYPE", "replica"})
	cmds = append(append(cmds, addSlots(missing)...), clusterNodes())
	res, _, err := n.transact(ctx, c, seq, cmds...)
	if err == nil {
		err = firstError(res)
	}
	if err != nil {
		return err
	}
	return n.owns(ctx, res[len(res)-1])
}

// rightful compares what would be this node's slots with what is agreed, and returns those that nobody has. An error is tried
// again: gossip brings the rest.
func (n *Node) rightful(view slots.Nodes, self slots.Node, have slots.Set) (missing slots.Set, err error) {
	if !n.cluster.known() {
		return missing, errors.New("it is not known yet which slots its shard has")
	}
	want := n.cluster.expected()
	have = have.Or(self.Slots)
	if more := have.Minus(want).Minus(n.cluster.either()); more != (slots.Set{}) {
		return missing, fmt.Errorf("by its own view it would have slots %s, which are not its shard's", more)
	}
	missing = want.Minus(have)
	if held := missing.And(view.Assigned()); held != (slots.Set{}) {
		return missing, fmt.Errorf("by its own view slots %s of its shard belong to another node", held)
	}
	return missing, nil
}

// unmark removes the marks of slots that a former primary was being given, which replicas have from Valkey 8.0 on. They name that primary (see
// package mover), and should it come back and say anything to its cluster before it is demoted, this node would take the slots from
// their owner, who deletes their keys then. A mark that names the owner stays.
func unmark(view slots.Nodes, self slots.Node) (cmds [][]string) {
	for _, slot := range slices.Sorted(maps.Keys(self.Importing)) {
		if giver, known := view.ByID(self.Importing[slot]); !known || !giver.Slots.Has(slot) {
			cmds = append(cmds, []string{"CLUSTER", "SETSLOT", strconv.Itoa(slot), "STABLE"})
		}
	}
	return cmds
}

// addSlots assigns slots that nobody has, by an epoch that is newer than all that this server knows.
func addSlots(s slots.Set) [][]string {
	if s == (slots.Set{}) {
		return nil
	}
	add := []string{"CLUSTER", "ADDSLOTSRANGE"}
	for _, r := range s.Ranges() {
		add = append(add, strconv.Itoa(r[0]), strconv.Itoa(r[1]))
	}
	return [][]string{add, {"CLUSTER", "BUMPEPOCH"}}
}

func clusterNodes() []string { return []string{"CLUSTER", "NODES"} }

// owns verifies that the server itself sees its shard's slots as its own.
func (n *Node) owns(ctx context.Context, nodes reply) error {
	view, err := n.viewOf(nodes)
	if err != nil {
		return err
	}
	if self, _ := view.Self(); self.Slots.Minus(n.cluster.either()) != n.cluster.expected() {
		return n.undo(ctx, fmt.Errorf("%w: its slots are %s, and its shard's are %s", redis.ErrRefused, self.Slots, n.cluster.expected()))
	}
	return nil
}

// undo fences a server that became a primary and should not have.
func (n *Node) undo(ctx context.Context, err error) error {
	if ferr := n.Fence(ctx); ferr != nil {
		return fmt.Errorf("%w; and it could not be fenced: %w", err, ferr)
	}
	return err
}

// stateAllows waits a moment until the server would serve its slots. A primary that starts refuses that for two seconds; until
// then it stays closed, and promoting it is tried again. After that it is opened whatever the state: a minority serves reads.
func (n *Node) stateAllows(ctx context.Context, c *conn) error {
	for end := n.clk.Uptime() + statePatience; ; n.clk.Nap(statePause) {
		reps, err := c.do(ctx, []string{"CLUSTER", "INFO"})
		if err == nil {
			err = firstError(reps)
		}
		if err != nil {
			return err
		}
		p := n.process()
		if parseInfo(reps[0].text)[clusterState] == "ok" || p == nil || n.clk.Uptime()-p.startedAt() > writableDelay {
			return nil
		}
		if n.clk.Uptime() >= end || ctx.Err() != nil {
			return redis.ErrStarting
		}
	}
}

// readTailInCluster reads the end of a closed primary's stream, which it hands out over its socket. One that was demoted
// meanwhile serves no replica, and cannot be lent a primary, because REPLICAOF is refused.
func (n *Node) readTailInCluster(ctx context.Context, m info, from, to int64, w io.Writer) error {
	if !m.rawPrimary() {
		return fmt.Errorf("%w: a member of a cluster that was demoted hands out no stream", redis.ErrNoTail)
	}
	return n.copyStream(ctx, redis.Credentials{}, m["master_replid"], from, to, w)
}
