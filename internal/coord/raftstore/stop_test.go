// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/test/ports"
)

// A controller that is stopped and goes on finds the answers to its last heartbeats in its sockets, and may believe for
// a moment that it still rules. None of its reads may be older than what the others acknowledged meanwhile.
func TestStoppedControllerNeverReadsThePastWhenItGoesOn(t *testing.T) {
	dir, p := t.TempDir(), newParty(t, 0)
	for _, id := range []string{"m1", "m2", "m3"} {
		p.members = append(p.members, coord.Member{ID: id, Addr: ports.Addr(t)})
	}
	child := p.members[2]
	proc := startProcess(t, processOptions{child.ID, child.Addr, filepath.Join(dir, child.ID), p.members, "k"})
	defer func() {
		_ = proc.cmd.Process.Kill()
		_ = proc.cmd.Wait()
	}()
	p.stores = make([]*Store, 2)
	for i, m := range p.members[:2] {
		p.opts = append(p.opts, Options{ID: m.ID, ListenAddr: m.Addr, Dir: filepath.Join(dir, m.ID), Bootstrap: p.members, Log: testLog(t)})
		p.open(i)
	}
	coordtest.Put(t, p.stores[0], "k", "v")
	type acked struct {
		at  int64 // when the swap was acknowledged, in ns
		rev coord.Rev
	}
	var swaps []acked
	for range 8 {
		coordtest.Until(t, "the child is the controller", func() bool {
			for _, s := range p.stores {
				if s.reign.Load() != nil {
					_ = s.raft.Load().LeadershipTransferToServer(raft.ServerID(child.ID), raft.ServerAddress(child.Addr)).Error()
				}
			}
			_, err := p.stores[0].Get(within(t, 100*time.Millisecond), "k")
			return err == nil && p.stores[0].Controller() == child.ID
		})
		if err := proc.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		rev := coordtest.Put(t, p.stores[0], "k", "w")
		swaps = append(swaps, acked{time.Now().UnixNano(), rev})
		if err := proc.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for seen := (coord.Rev)(0); seen < rev; {
			select {
			case g, ok := <-proc.gets:
				if !ok {
					t.Fatal("the child died")
				}
				seen = coord.Rev(g[1])
				for _, a := range swaps {
					if g[0] > a.at && seen < a.rev {
						t.Fatalf("a read that began %s after the swap to revision %d saw %d", time.Duration(g[0]-a.at), a.rev, seen)
					}
				}
			case <-within(t, 10*time.Second).Done():
				t.Fatal(errors.Join(context.DeadlineExceeded, errors.New("the child reads nothing new")))
			}
		}
	}
}
