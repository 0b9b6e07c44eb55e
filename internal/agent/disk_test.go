// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/topo"
)

// TestNobodyFollowsBeforeItSyncsEveryWrite: a replica says what is on its disk from its first moment, and one that syncs once a
// second may say so too early.
func TestNobodyFollowsBeforeItSyncsEveryWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.async()
		w.start("n1")
		w.promote("n1", 1)
		w.spec.Durability, w.spec.AckReplicas = topo.QuorumDisk, 1
		w.order(w.agreed())
		w.until("the primary syncs every write", 2*time.Second, func() bool { return w.told("n1").Disk == topo.DiskSynced })
		w.seats["n2"].SetFault("Configure", errors.New("CONFIG is renamed"))
		w.start("n2")
		w.always("the replica stays out", 2*time.Second, func() bool { return !w.told("n2").LinkUp })
		w.seats["n2"].SetFault("Configure", nil)
		w.until("the replica follows", 2*time.Second, func() bool { return w.told("n2").LinkUp })
		if !w.seats["n2"].Demands().Disk {
			t.Error("it follows, and was not told to sync every write")
		}
		w.until("it says so", 2*time.Second, func() bool { return w.told("n2").Disk == topo.DiskSynced })
	})
}

func TestAServerWithoutAFileIsNamedWhereThatMatters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.async()
		w.seats["n2"].SetDisk(topo.DiskUnable)
		follows(w)
		w.always("nothing is wrong with it", 500*time.Millisecond, func() bool { return len(w.told("n2").Problems) == 0 && w.told("n2").Impaired == "" })
		w.spec.Durability, w.spec.AckReplicas = topo.QuorumDisk, 1
		w.order(w.agreed())
		w.until("it is named", 2*time.Second, func() bool {
			s := w.told("n2")
			return s.Impaired == "no-disk" && len(s.Problems) == 1 && strings.HasPrefix(s.Problems[0], "no-disk: it has no append-only file")
		})
	})
}

func TestABarrierOnDisksNeedsServersThatSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		w.async()
		w.seats["n2"].SetDisk(topo.DiskUnable)
		follows(w)
		w.begin(topo.Change{Kind: topo.ChangeAck, Durability: topo.QuorumDisk, AckReplicas: 1})
		w.until("the agent says what is missing", 3*time.Second, func() bool {
			return w.told("n1").Waits == "waiting for the disks of n1 and of 1 replicas to have the barrier"
		})
		w.seats["n2"].SetDisk(topo.DiskAble)
		w.until("the barrier is held", 3*time.Second, func() bool { return w.told("n1").Barrier == 1 && w.told("n2").Disk == topo.DiskSynced })
	})
}
