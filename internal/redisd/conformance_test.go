// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis/redistest"
)

func TestTheDriverKeepsTheContractOfANode(t *testing.T) {
	serverBinary(t)
	redistest.Run(t, seats(nil))
}

func TestTheDriverKeepsTheContractOfAJournal(t *testing.T) {
	t.Parallel()
	serverBinary(t)
	redistest.RunWithJournal(t, seats(func(o *Options) { o.Persistence = PersistAOF }))
}

func seats(change func(*Options)) redistest.Factory {
	return func(t *testing.T) func() redistest.Seat {
		return func() redistest.Seat {
			n := open(t, change)
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
	}
}
