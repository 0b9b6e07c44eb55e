// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

const (
	barrierName   = "redoubt-barrier"
	barrierWaitMS = "20" // the agent has to look at its lease again
)

// Enforce makes sure of an acknowledgement rule: see redis.Node. What was executed here before the marker is held by whoever
// holds the marker; what is executed behind it comes from connections that carry the rule's number, because all others are gone
// and no proxy can make one with a table of before any more. The barrier has a connection of its own: nothing may wait behind
// its WAIT.
func (n *Node) Enforce(ctx context.Context, r redis.Rule) (late []string, held bool, err error) {
	if r.Law > 0 {
		if late, err = n.lateProxies(ctx, r.Law, r.Cut); err != nil {
			return nil, false, fmt.Errorf("look for proxies of an older rule at %s: %w", n.addr, err)
		}
	}
	if len(late) > 0 || !r.Cut {
		n.gate.close()
		return late, false, nil
	}
	if held, err = n.barrier(ctx, r); err != nil || held {
		n.gate.close()
	}
	if err != nil {
		return nil, false, fmt.Errorf("write a barrier to %s: %w", n.addr, err)
	}
	return nil, held, nil
}

// lateProxies names the proxies that have connections of an older rule, each once, and ends these if it is told to.
func (n *Node) lateProxies(ctx context.Context, law uint64, cut bool) ([]string, error) {
	reps, err := n.ask(ctx, []string{"CLIENT", "LIST", "TYPE", "normal"}, []string{"CLIENT", "LIST", "TYPE", "pubsub"})
	if err != nil {
		return nil, err
	}
	var late []string
	var kill [][]string
	for i, r := range reps {
		for line := range strings.Lines(r.text) {
			c := clientFields(line)
			proxy, rule, ok := redis.RuleOf(c["name"])
			if !ok || rule >= law || i == 1 && c["resp"] == "2" { // a subscriber of RESP2 can write nothing
				continue
			}
			late = append(late, proxy)
			kill = append(kill, []string{"CLIENT", "KILL", "ID", c["id"]})
		}
	}
	slices.Sort(late)
	late = slices.Compact(late)
	if cut && len(kill) > 0 {
		_, err = n.ask(ctx, kill...)
	}
	return late, err
}

// clientFields splits a line of CLIENT LIST.
func clientFields(line string) map[string]string {
	m := map[string]string{}
	for f := range strings.FieldsSeq(line) {
		if k, v, ok := strings.Cut(f, "="); ok {
			m[k] = v
		}
	}
	return m
}

// barrier is a marker that was written for a change. It is asked about again as long as its connection lives, because disks may
// take longer than one question does.
type barrier struct {
	c      *conn
	change uint64
}

func (b *barrier) close() {
	if b.c != nil {
		b.c.close()
	}
	*b = barrier{}
}

// barrier writes a marker, unless that was done for this change, and reports whether it is held a moment later.
func (n *Node) barrier(ctx context.Context, r redis.Rule) (bool, error) {
	var cmds [][]string
	if n.gate.c == nil || n.gate.change != r.Change || n.gate.c.ended() {
		n.gate.close()
		c, err := dial(ctx, n.addr, append(n.credentials(), []string{"CLIENT", "SETNAME", barrierName}), nil)
		if err != nil {
			return false, err
		}
		n.gate = barrier{c, r.Change}
		cmds = append(cmds, redis.Marker(n.cluster != nil))
	}
	acks := strconv.Itoa(r.Acks)
	cmds = append(cmds, []string{"WAIT", acks, barrierWaitMS})
	if r.Disk { // behind WAIT, because a replica that is asked too early answers again a second later
		cmds = append(cmds, []string{"WAITAOF", "1", acks, barrierWaitMS})
	}
	cmds = append(cmds, []string{"ROLE"})
	reps, err := n.gate.c.do(ctx, cmds...)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return false, err
	}
	waited, role := reps[len(reps)-2], reps[len(reps)-1]
	if len(role.items) == 0 || role.items[0].text != "master" {
		return false, fmt.Errorf("%w: it is not a %s", redis.ErrRefused, topo.RolePrimary)
	}
	if !r.Disk {
		return waited.num >= int64(r.Acks), nil
	}
	return len(waited.items) == 2 && waited.items[0].num == 1 && waited.items[1].num >= int64(r.Acks), nil
}
