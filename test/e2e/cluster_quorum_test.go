// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// upClusterQuorum starts 3 × (1+2) servers on three members, with the durability that such a cluster has by default.
func upClusterQuorum(t *testing.T) *deployment {
	t.Helper()
	d := up(t, "--mode", "cluster", "--shards", "3", "--replicas", "2")
	s := d.waitHealthy(60 * time.Second)
	if got := s.Deployments[0].Durability; got != "quorum" {
		t.Fatalf("durability is %s", got)
	}
	return d
}

// ledger is one client for each shard, through each proxy, each with a list of its own.
func (d *deployment) ledger(run string) []*writer {
	d.t.Helper()
	var ws []*writer
	for i, sh := range []string{"mymaster-s1", "mymaster-s2", "mymaster-s3"} {
		for p := range 3 {
			key := d.keyOn(sh, fmt.Sprint("ledger:", run, ":", p, ":", i))
			w := goRedisWriter(fmt.Sprint(sh, " by proxy ", p+1), key, redis.NewClient(&redis.Options{Addr: d.proxyAddr(p), MaxRetries: -1, ReadTimeout: 15 * time.Second}))
			d.t.Cleanup(w.finish)
			ws = append(ws, w)
		}
	}
	for _, w := range ws {
		waitAcked(d.t, w, 10)
	}
	return ws
}

// settle ends the writers and demands that everything that was acknowledged is there, once.
func (d *deployment) settle(what string, ws []*writer) {
	d.t.Helper()
	for _, w := range ws {
		w.finish()
	}
	v := judge(d.t, d.proxyAddr(0), ws)
	d.t.Logf("%s: %d writes acknowledged, %d lost, %d doubled, %d errors %v", what, v.acked, v.lost, v.duplicated, v.errors, v.messages)
	if v.lost > 0 || v.duplicated > 0 {
		d.t.Errorf("%s: %d of %d acknowledged writes are lost, %d are doubled: %v", what, v.lost, v.acked, v.duplicated, v.lostOf)
	}
}

// TestClusterQuorumKeepsWhatItAcknowledged: kill, hang and switchover of primaries under load, with clients on all shards.
func TestClusterQuorumKeepsWhatItAcknowledged(t *testing.T) {
	d := upClusterQuorum(t)
	for k, b := range blows() {
		if b.name == "loss of the primary's host" {
			continue // and of a proxy: a host is suspended below
		}
		for i := range roundsOr(1) {
			s := d.waitHealthy(60 * time.Second)
			sh := s.Deployments[0].Shards[(k+i)%3]
			ws := d.ledger(fmt.Sprint(k, "-", i))
			at := time.Now()
			after := b.do(d, s, sh, sh.node(sh.Primary))
			d.goesOn(ws, at, 60*time.Second)
			if after != nil {
				after()
			}
			d.settle(b.name+", "+sh.ID, ws)
		}
	}
}

// TestClusterQuorumThroughASuspendedHost: agent and servers of a host stand still while others are elected, and go on as if nothing had
// been. The deposed primary gets no acknowledgement, and has no replica any more.
func TestClusterQuorumThroughASuspendedHost(t *testing.T) {
	d := upClusterQuorum(t)
	s := d.waitHealthy(60 * time.Second)
	sh := s.shard("mymaster-s2")
	p := sh.node(sh.Primary)
	ws := d.ledger("suspended")
	key := d.keyOn(sh.ID, "late")
	direct := redis.NewClient(&redis.Options{Addr: p.Addr, MaxRetries: -1, PoolSize: 1, ReadTimeout: 20 * time.Second})
	defer direct.Close()
	conn := direct.Conn()
	defer conn.Close()
	if err := conn.Set(t.Context(), key, "before", 0).Err(); err != nil {
		t.Fatal(err)
	}
	pids := []int{p.AgentPID}
	for _, other := range s.Deployments[0].Shards {
		if pid := other.node(p.ID).PID; pid > 1 {
			pids = append(pids, pid)
		}
	}
	resume := func() {
		for _, pid := range pids[1:] { // the servers first: what waits in their sockets runs before any order
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		_ = syscall.Kill(pids[0], syscall.SIGCONT)
	}
	t.Cleanup(resume)
	at := time.Now()
	for _, pid := range pids {
		signal(t, pid, syscall.SIGSTOP)
	}
	type answer struct {
		acks int64
		err  error
	}
	late := make(chan answer, 1)
	go func() { // it waits in the server's socket
		cmds, err := conn.Pipelined(context.Background(), func(p redis.Pipeliner) error {
			p.Set(context.Background(), key, "late", 0)
			p.Do(context.Background(), "WAIT", 1, 2000)
			return nil
		})
		a := answer{err: err}
		if c, ok := cmds[1].(*redis.Cmd); ok {
			a.acks, _ = c.Int64()
		}
		late <- a
	}()
	alive := slices.DeleteFunc(slices.Clone(ws), func(w *writer) bool { return strings.HasSuffix(w.name, " by proxy "+p.ID[1:]) })
	d.goesOn(alive, at, 60*time.Second)
	resume()
	a := <-late
	t.Logf("a write in the socket of the deposed primary: %d acknowledgements, %v", a.acks, a.err)
	if a.acks > 0 {
		t.Errorf("a deposed primary got %d acknowledgements", a.acks)
	}
	now := d.waitHealthy(60 * time.Second)
	if got := now.shard(sh.ID).Primary; got == p.ID {
		t.Fatalf("%s is the primary again: nobody was elected", got)
	}
	if v, err := d.client(0).Get(t.Context(), key).Result(); err != nil || v != "before" {
		t.Errorf("the key is %q, %v: a write that nobody acknowledged", v, err)
	}
	d.settle("a suspended host", ws)
}

// TestClusterQuorumThroughAStopOfEverything: all members and servers are killed at once, under load, and come back.
func TestClusterQuorumThroughAStopOfEverything(t *testing.T) {
	d := upClusterQuorum(t)
	for i := range roundsOr(1) {
		s := d.waitHealthy(60 * time.Second)
		ws := d.ledger(fmt.Sprint("stop", i))
		wait(500 * time.Millisecond)
		var all []node
		for _, sh := range s.Deployments[0].Shards {
			all = append(all, sh.Nodes...)
		}
		killWritten(t, all)
		for _, w := range ws {
			w.finish()
		}
		begun := time.Now()
		d.start()
		d.waitHealthy(60 * time.Second)
		d.settle(fmt.Sprintf("everything killed, well again after %s", time.Since(begun).Round(10*time.Millisecond)), ws)
	}
}

func newShardCrew(t *testing.T) *crew {
	c := newCrew(t)
	c.cluster = true
	return c
}

// TestClusterColdStarts: a shard of a cluster comes back with everything, in whatever order its members do; one that has lost its data does
// not lead, and the newest data do, by the marker in them.
func TestClusterColdStarts(t *testing.T) { coldStarts(t, newShardCrew(t)) }

func TestClusterColdStartsTakeTheNewestData(t *testing.T) { coldNewest(t, newShardCrew(t)) }

func TestOfTwoNodesOfAClusterThePrimaryGoesOnAlone(t *testing.T) { goesOnAlone(t, newShardCrew(t)) }

func newClusterDiskCrew(t *testing.T, durability string) *crew {
	c := newDiskCrew(t, durability)
	c.cluster = true
	return c
}

// TestClusterQuorumDisk: what is promised of disks holds for a shard of a cluster, too, and begins and ends under load.
func TestClusterQuorumDisk(t *testing.T) {
	t.Run("kills", func(t *testing.T) { diskThroughKills(t, newClusterDiskCrew(t, "quorum+disk")) })
	t.Run("changes", func(t *testing.T) { diskBeginsAndEnds(t, newClusterDiskCrew(t, "quorum")) })
}

// TestClusterDurabilityBeginsUnderLoad: an async cluster is told to wait for replicas. What was acknowledged from then on is not lost with
// a primary, and the server itself refuses writes without replicas.
func TestClusterDurabilityBeginsUnderLoad(t *testing.T) {
	c := newShardCrew(t)
	c.extra = "    durability: async\n"
	c.startAll()
	c.d.waitHealthy(60 * time.Second)
	early := c.startSetters("e", 6)
	c.d.until(20*time.Second, "some writes are acknowledged", func() (bool, string) { return early.total() > 200, fmt.Sprint(early.total()) })
	if out, err := c.d.run("set", "durability=quorum"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	early.end()
	s := c.startSetters("q", 12)
	c.d.until(20*time.Second, "some writes are acknowledged", func() (bool, string) { return s.total() > 500, fmt.Sprint(s.total()) })
	now := c.d.waitHealthy(30 * time.Second)
	primary := number(t, now.primary())
	client := c.direct(primary, 0)
	defer client.Close()
	if got := client.ConfigGet(t.Context(), "min-replicas-to-write").Val()["min-replicas-to-write"]; got != "1" {
		t.Errorf("min-replicas-to-write of the primary is %q", got)
	}
	c.endManaged(now.primary())
	at := s.total()
	c.d.until(20*time.Second, "writes go on", func() (bool, string) { return s.total() > at+500, fmt.Sprint(s.total()) })
	s.end()
	now = c.d.waitHealthy(60 * time.Second)
	lost, of := c.missing(s, number(t, now.primary())), c.missing(early, number(t, now.primary()))
	t.Logf("%d writes acknowledged before and %d after the change, of which %d and %d are missing behind a kill", early.total(), s.total(), of, lost)
	if lost+of > 0 {
		t.Errorf("%d and %d acknowledged writes are missing", of, lost)
	}
	if out, err := c.d.run("set", "durability=async"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
