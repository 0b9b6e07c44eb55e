// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis"
	"redoubt/internal/redis/redistest"
	"redoubt/internal/topo"
)

func TestTheDriverKeepsTheContractOfANode(t *testing.T) {
	serverBinary(t)
	redistest.Run(t, seats(nil))
}

func TestTheDriverKeepsTheContractOfAJournal(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	redistest.RunWithJournal(t, seats(keepsAll))
}

// TestTheDriverKeepsTheContractInACluster: the servers of a case are the nodes of one shard, which has all slots.
func TestTheDriverKeepsTheContractInACluster(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	redistest.Run(t, memberSeats(nil), redistest.NeedsAnyPrimary()...)
}

func TestTheDriverKeepsTheContractOfAJournalInACluster(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	redistest.RunWithJournal(t, memberSeats(keepsAll))
}

// keepsAll has a server keep what a crash must not lose: with everysec a write is postponed while the one before it is being synced
// (a member of a cluster opens two seconds after its start, when the file is due for a sync, and elsewhere the disk may be slow).
func keepsAll(o *Options) {
	o.Persistence, o.Directives = PersistAOF, map[string]string{appendFsync: "always"}
}

// persistent tries again what a member of a cluster cannot do yet, as its agent would.
type persistent struct{ *Node }

func (p persistent) Promote(ctx context.Context, e topo.Elected, cred redis.Credentials) (pos topo.Position, err error) {
	again(ctx, func() error { pos, err = p.Node.Promote(ctx, e, cred); return err })
	return pos, err
}

func (p persistent) Follow(ctx context.Context, addr string, cred redis.Credentials) (err error) {
	again(ctx, func() error { err = p.Node.Follow(ctx, addr, cred); return err })
	return err
}

func again(ctx context.Context, verb func() error) {
	for {
		err := verb()
		if err == nil || errors.Is(err, redis.ErrRefused) || errors.Is(err, redis.ErrBehind) || errors.Is(err, redis.ErrUnanswered) || ctx.Err() != nil {
			return
		}
	}
}

func memberSeats(change func(*Options)) redistest.Factory {
	return func(t *testing.T) func() redistest.Seat {
		f := plan(t, 1, 3)
		f.change = change
		next := 0
		return func() redistest.Seat {
			n := f.start(t, f.layout.Nodes[next])
			next++
			s := handsOf(t, n)
			s.Node = persistent{n}
			return s
		}
	}
}

func seats(change func(*Options)) redistest.Factory {
	return func(t *testing.T) func() redistest.Seat {
		return func() redistest.Seat { return handsOf(t, open(t, change)) }
	}
}

func handsOf(t *testing.T, n *Node) redistest.Seat {
	return redistest.Seat{
		Node: n, Addr: n.addr,
		Write: func(key string) error {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			c, err := dial(ctx, n.addr, [][]string{{"SET", key, "v"}}, nil)
			if err != nil {
				return err
			}
			defer c.close()
			reps, err := c.setup.wait(ctx)
			if err != nil {
				return err
			}
			return firstError(reps)
		},
		Stop:  func() { stop(t, n) },
		Cont:  func() { cont(t, n) },
		Crash: func() { _ = n.process().signal(unix.SIGKILL) },
	}
}
