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
	barrierName    = "redoubt-barrier"
	barrierWaitMS  = "20"            // the agent has to look at its lease again
	barrierChannel = "__redoubt:ack" // as the proxies' markers
)

// Enforce makes sure of an acknowledgement rule: see redis.Node. What was executed here before the marker is held by whoever
// holds the marker; what is executed behind it comes from connections that carry the rule's number, because all others are gone
// and no proxy can make one with a table of before any more. The barrier has a connection of its own: nothing may wait behind
// its WAIT.
func (n *Node) Enforce(ctx context.Context, law uint64, acks int, cut bool) (late []string, held bool, err error) {
	if law > 0 {
		if late, err = n.lateProxies(ctx, law, cut); err != nil {
			return nil, false, fmt.Errorf("look for proxies of an older rule at %s: %w", n.addr, err)
		}
	}
	if len(late) > 0 || !cut {
		return late, false, nil
	}
	if held, err = n.barrier(ctx, acks); err != nil {
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

// barrier writes a marker and reports whether acks replicas hold it a moment later.
func (n *Node) barrier(ctx context.Context, acks int) (bool, error) {
	c, err := dial(ctx, n.addr, append(n.credentials(), []string{"CLIENT", "SETNAME", barrierName}), nil)
	if err != nil {
		return false, err
	}
	defer c.close()
	reps, err := c.do(ctx, []string{"PUBLISH", barrierChannel, "1"}, []string{"WAIT", strconv.Itoa(acks), barrierWaitMS}, []string{"ROLE"})
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return false, err
	}
	if len(reps[2].items) == 0 || reps[2].items[0].text != "master" {
		return false, fmt.Errorf("%w: it is not a %s", redis.ErrRefused, topo.RolePrimary)
	}
	return reps[1].num >= int64(acks), nil
}
