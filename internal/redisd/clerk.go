// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"redoubt/internal/redis"
	"redoubt/internal/slots"
)

// clerkName is the clerk's connection in CLIENT LIST.
const clerkName = "redoubt-clerk"

// Clerk keeps the books of one member of a cluster: it reads how the server sees the cluster, and tells it whom to meet and whom to
// forget. It has a connection of its own, so that it may work beside the verbs, and never changes a role. One goroutine uses it.
type Clerk struct {
	n *Node
	c *conn
}

// Clerk returns one for this server; nil: it is no member of a cluster.
func (n *Node) Clerk() *Clerk {
	if n.cluster == nil {
		return nil
	}
	return &Clerk{n: n}
}

// Close ends the connection. The clerk may be used again.
func (k *Clerk) Close() {
	if k.c != nil {
		k.c.close()
		k.c = nil
	}
}

// Books are what a server has written down about its cluster.
type Books struct {
	View    slots.Nodes
	Down    bool // it answers CLUSTERDOWN
	Hurried bool // its node-timeout is the one of Hurry
	Spreads bool // it tells everybody whom it forgets, and who knows it does so, too (CLUSTER FORGET of Redis 7.2 and later, Valkey)
}

// Read returns how the server sees its cluster. A server that has lost its identity is not believed.
func (k *Clerk) Read(ctx context.Context) (Books, error) {
	reps, err := k.do(ctx, clusterNodes(), []string{"CLUSTER", "INFO"}, []string{"CONFIG", "GET", nodeTimeout}, []string{"INFO", "server"})
	if err != nil {
		return Books{}, err
	}
	view, err := k.n.viewOf(reps[0])
	if err != nil {
		return Books{}, err
	}
	return Books{
		View: view, Down: parseInfo(reps[1].text)[clusterState] == "fail", Hurried: reps[2].pairs()[nodeTimeout] == hurriedMS,
		Spreads: parseInfo(reps[3].text).major() >= 702,
	}, nil
}

// Meet has the server introduce itself to another one.
func (k *Clerk) Meet(ctx context.Context, host string, port, bus int) error {
	_, err := k.do(ctx, []string{"CLUSTER", "MEET", host, strconv.Itoa(port), strconv.Itoa(bus)})
	return err
}

// Forget has the server forget another one, and not learn of it by gossip for a minute. One that is unknown is forgotten.
func (k *Clerk) Forget(ctx context.Context, id string) error {
	_, err := k.do(ctx, []string{"CLUSTER", "FORGET", id})
	var refusal serverError
	if errors.As(err, &refusal) && strings.Contains(refusal.Error(), "Unknown node") {
		return nil
	}
	return err
}

// Stable takes away the mark of a move.
func (k *Clerk) Stable(ctx context.Context, slot int) error {
	_, err := k.do(ctx, []string{"CLUSTER", "SETSLOT", strconv.Itoa(slot), "STABLE"})
	return err
}

// Hurry lowers the node-timeout: a server that had lost the majority waits for it, up to five seconds, before it serves again. The
// value is one that nobody else sets, so that it is known for ours after a restart of this process, too.
func (k *Clerk) Hurry(ctx context.Context) error {
	_, err := k.do(ctx, configSet(nodeTimeout, hurriedMS))
	return err
}

// Calm puts the node-timeout back.
func (k *Clerk) Calm(ctx context.Context) error {
	_, err := k.do(ctx, configSet(nodeTimeout, k.n.usualTimeout()))
	return err
}

const hurriedMS = "501"

// usualTimeout is the node-timeout of this server when nothing is wrong.
func (n *Node) usualTimeout() string {
	if n.managed != nil {
		for name, value := range n.managed.o.Directives {
			if strings.EqualFold(name, nodeTimeout) {
				return strings.Trim(value, ` "'`)
			}
		}
	}
	return nodeTimeoutMS
}

// Keys counts the keys of a slot on this server.
func (k *Clerk) Keys(ctx context.Context, slot int) (int, error) {
	reps, err := k.do(ctx, countKeys(slot))
	if err != nil {
		return 0, err
	}
	return int(reps[0].num), nil
}

// KeysAt counts the keys of a slot on another server of the cluster.
func (k *Clerk) KeysAt(ctx context.Context, addr string, slot int) (int, error) {
	c, err := dial(ctx, addr, append(k.n.credentials(), []string{"CLIENT", "SETNAME", clerkName}), nil)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
	}
	defer c.close()
	reps, err := c.do(ctx, countKeys(slot))
	if err == nil {
		err = firstError(reps)
	}
	if err != nil {
		return 0, err
	}
	return int(reps[0].num), nil
}

func countKeys(slot int) []string {
	return []string{"CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(slot)}
}

// do sends a batch. A fence cuts the connection; the next batch opens another one.
func (k *Clerk) do(ctx context.Context, cmds ...[]string) ([]reply, error) {
	if k.c != nil && k.c.ended() {
		k.Close()
	}
	if k.c == nil {
		c, err := dial(ctx, k.n.own, append(authCommand(k.n.adminLogin()), []string{"CLIENT", "SETNAME", clerkName}), nil)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", redis.ErrUnanswered, err)
		}
		k.c = c
	}
	reps, err := k.c.do(ctx, cmds...)
	if err == nil {
		err = firstError(reps)
	}
	if err != nil && !errors.As(err, new(serverError)) {
		k.Close() // what is unanswered must not be answered to the next question
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s about its cluster: %w", k.n.addr, err)
	}
	return reps, nil
}
