// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const idleInShards = 60

// tenures are the epochs of all shards, and the processes of their servers.
func (s status) tenures() map[string]string {
	all := map[string]string{}
	for _, sh := range s.Deployments[0].Shards {
		text := fmt.Sprint(sh.Epoch, sh.Primary)
		for _, n := range sh.Nodes {
			text += fmt.Sprint(" ", n.ID, "=", n.PID)
		}
		all[sh.ID] = text
	}
	return all
}

// gatherAll connects a crowd to each member.
func gatherAll(t *testing.T, d *deployment, round, dbs int) []*crowd {
	var crowds []*crowd
	for i := range 3 {
		crowds = append(crowds, gatherIn(t, d.proxyAddr(i), fmt.Sprintf("n%d-%d", i+1, round), idleInShards, dbs))
	}
	return crowds
}

// TestUpgradeOfShards replaces the process of each member of a ring and of a cluster, under its clients: idle ones, those that write, wait, listen, watch
// and are in a transaction.
func TestUpgradeOfShards(t *testing.T) {
	for mode, dbs := range map[string]int{"ring": 3, "cluster": 1} {
		t.Run(mode, func(t *testing.T) {
			d := up(t, "--mode", mode, "--shards", "3", "--replicas", "1")
			before := d.waitHealthy(60 * time.Second).tenures()
			for round := range roundsOr(1) {
				crowds := gatherAll(t, d, round, dbs)
				pub, _ := dialPlain(t, d.proxyAddr(0)) // is handed over itself
				stopNews := publish(t, pub, crowds)
				for i := range 3 {
					upgradeOne(t, d, fmt.Sprintf("n%d", i+1), i, crowds)
				}
				stopNews()
				settle(t, pub, crowds)
			}
			if now := d.waitHealthy(20 * time.Second).tenures(); !maps.Equal(now, before) {
				t.Errorf("an upgrade must not fail over, nor touch a server:\n%v\n%v", before, now)
			}
		})
	}
}

// TestUpgradeOfShardsIsRefusedAndTakenBack: a configuration that cannot be used changes nothing; a process that fails later is undone.
func TestUpgradeOfShardsIsRefusedAndTakenBack(t *testing.T) {
	d := up(t, "--mode", "ring", "--shards", "2", "--replicas", "1")
	before := d.waitHealthy(60 * time.Second).tenures()
	crowds := gatherAll(t, d, 0, 3)
	pub, _ := dialPlain(t, d.proxyAddr(0))
	stopNews := publish(t, pub, crowds)
	old := memberPID(t, d, "n1")
	dir := filepath.Join(d.dir, "member-1")
	file := filepath.Join(dir, "redoubt.yaml")
	sound, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(sound, "\nnonsense: true\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := d.run("upgrade", "--member", "n1"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("upgrade to a broken configuration: %v\n%s", err, out)
	}
	if err := os.WriteFile(file, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	// The running process has read it long ago; the next one refuses to open the store.
	identity := filepath.Join(dir, "data", "store", "identity.json")
	if sound, err = os.ReadFile(identity); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(identity, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	signal(t, old, syscall.SIGUSR2)
	saw := func(text string) bool {
		b, err := os.ReadFile(filepath.Join(dir, "redoubt.log"))
		return err == nil && strings.Contains(string(b), text)
	}
	for end := time.Now().Add(10 * time.Second); !saw("takes everything back"); wait(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was taken back")
		}
	}
	if err := os.WriteFile(identity, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	d.until(10*time.Second, "the old process is the member", func() (bool, string) { return saw("this process is the member again"), "" })
	now := d.waitHealthy(20 * time.Second)
	if memberPID(t, d, "n1") != old {
		t.Errorf("process %d, was %d", memberPID(t, d, "n1"), old)
	}
	if !maps.Equal(now.tenures(), before) {
		t.Errorf("a hand-over that was taken back must not fail over:\n%v\n%v", before, now.tenures())
	}
	upgradeOne(t, d, "n1", 0, crowds) // and once more, when nothing is wrong
	stopNews()
	settle(t, pub, crowds)
	if now := d.waitHealthy(20 * time.Second).tenures(); !maps.Equal(now, before) {
		t.Errorf("an upgrade must not fail over:\n%v\n%v", before, now)
	}
}

// TestUpgradeWithShardsThatCameLater: a member that has opened a shard which is in no file takes it along; while keys move it is not handed over.
func TestUpgradeWithShardsThatCameLater(t *testing.T) {
	for mode, dbs := range map[string]int{"ring": 3, "cluster": 1} {
		t.Run(mode, func(t *testing.T) {
			d := up(t, "--mode", mode, "--shards", "2", "--replicas", "1")
			d.waitHealthy(60 * time.Second)
			if out, err := d.run("shard", "add", "--yes"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if mode == "ring" {
				d.ringChanged(20*time.Second, "shard s3 joins the ring")
			}
			d.until(20*time.Second, "the shard is there", func() (bool, string) {
				st, err := d.status()
				return err == nil && len(st.Deployments[0].Shards) == 3, fmt.Sprint(err)
			})
			before := d.waitHealthy(20 * time.Second).tenures()
			crowds := gatherAll(t, d, 0, dbs)
			pub, _ := dialPlain(t, d.proxyAddr(0))
			stopNews := publish(t, pub, crowds)
			for i := range 3 {
				upgradeOne(t, d, fmt.Sprintf("n%d", i+1), i, crowds)
			}
			stopNews()
			settle(t, pub, crowds)
			if now := d.waitHealthy(20 * time.Second).tenures(); !maps.Equal(now, before) {
				t.Errorf("an upgrade must not fail over, nor touch a server:\n%v\n%v", before, now)
			}
		})
	}
}
