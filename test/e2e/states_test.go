// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/redisd"
)

// awaitState waits until `redoubt status` gives that state of a node.
func (d *deployment) awaitState(id, state string) {
	d.t.Helper()
	d.until(5*time.Second, id+" is "+state, func() (bool, string) {
		s, err := d.status()
		return err == nil && s.node(id).State == state, fmt.Sprintf("%+v %v", s, err)
	})
}

// awaitProblem waits until `redoubt status` names a problem of a node, or does not any more.
func (d *deployment) awaitProblem(id, problem string, there bool) {
	d.t.Helper()
	d.until(5*time.Second, fmt.Sprintf("%s of %s is named: %t", problem, id, there), func() (bool, string) {
		s, err := d.status()
		named := err == nil && slices.ContainsFunc(s.node(id).Problems, func(p string) bool { return strings.HasPrefix(p, problem+":") })
		return err == nil && named == there, fmt.Sprintf("%+v %v", s, err)
	})
}

// sameEpoch requires that nothing of all that cost a failover.
func (d *deployment) sameEpoch(s status) {
	d.t.Helper()
	if now := d.waitHealthy(10 * time.Second); now.epoch() != s.epoch() {
		d.t.Errorf("epoch %d, was %d", now.epoch(), s.epoch())
	}
}

func TestStatesOfAServerAreToldApart(t *testing.T) {
	c, s := attachedCrew(t)
	d := c.d
	c.fill("k", 400)
	c.everywhere(s, 400)
	r := replicaOf(s)
	id := r.ID

	pid := s.node(id).PID
	signal(t, pid, syscall.SIGSTOP)
	d.awaitState(id, "stopped")
	signal(t, pid, syscall.SIGCONT)
	d.sameEpoch(s)

	// A changed password: connections that are open stay logged in, so they are cut.
	own := redis.NewClient(&redis.Options{Addr: r.Addr, PoolSize: 1, MaxRetries: -1})
	defer own.Close()
	ctx := t.Context()
	conn := own.Conn()
	defer conn.Close()
	must := func(args ...any) {
		t.Helper()
		if err := conn.Do(ctx, args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	must("CONFIG", "SET", "requirepass", "changed")
	must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	d.awaitState(id, "denied")
	if now, err := d.status(); err != nil || now.node(id).PID != pid {
		t.Errorf("the process of a server that denies is %d, was %d (%v)", now.node(id).PID, pid, err)
	}
	must("CONFIG", "SET", "requirepass", "")
	d.sameEpoch(s)

	// A server that restarts with slow data.
	must("SAVE")
	c.killServer(id)
	d.awaitState(id, "exited")
	c.supervise(id, append(redisd.FrozenArguments(), "--key-load-delay", "4000", "--loading-process-events-interval-bytes", "1024")...)
	d.awaitState(id, "loading")
	d.sameEpoch(s)

	// Its process is out of sight for an agent that never saw it, and nobody listens.
	c.kill(id)
	c.killServer(id)
	c.start(id, "")
	d.awaitState(id, "unreachable")
	c.supervise(id, redisd.FrozenArguments()...)
	d.sameEpoch(s)
	c.everywhere(s, 400)
}

func TestAMemoryLimitOfThePrimaryIsNamedAndNoFailover(t *testing.T) {
	c := managedCrew(t, 3)
	s := c.d.waitHealthy(10 * time.Second)
	p := direct(t, s.node(s.primary()))
	if err := p.ConfigSet(t.Context(), "maxmemory", "100kb").Err(); err != nil {
		t.Fatal(err)
	}
	c.d.awaitProblem(s.primary(), "oom", true)
	err := c.d.client(0).Set(t.Context(), "k", "v", 0).Err()
	if err == nil || !strings.HasPrefix(err.Error(), "OOM ") {
		t.Errorf("a write got %v", err)
	}
	if err := p.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	c.d.awaitProblem(s.primary(), "oom", false)
	c.write(1, "k", 2*time.Second)
	c.d.sameEpoch(s)
}

// spoilDisk makes every background save fail, also for root: a directory is in the place of the file. It returns when the
// server refuses writes, or would.
func (c *crew) spoilDisk(n node) {
	c.t.Helper()
	at := filepath.Join(c.d.dir, n.ID, "data", "redis", "dump.rdb")
	if err := os.RemoveAll(at); err != nil {
		c.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(at, "x"), 0o700); err != nil {
		c.t.Fatal(err)
	}
	r := direct(c.t, n)
	c.d.until(5*time.Second, "a save begins", func() (bool, string) { // the one for a replica's sync may still be running
		err := r.BgSave(context.Background()).Err()
		return err == nil, errText(err)
	})
	c.d.until(5*time.Second, "the save fails", func() (bool, string) {
		v, err := infoField(context.Background(), r, "persistence", "rdb_last_bgsave_status")
		return v == "err", v + errText(err)
	})
}

func (c *crew) mendDisk(n node) {
	c.t.Helper()
	if err := os.RemoveAll(filepath.Join(c.d.dir, n.ID, "data", "redis", "dump.rdb")); err != nil {
		c.t.Fatal(err)
	}
}

// TestAFullDiskMovesThePrimaryAwayAfterItsBudget: it is a state with a budget, not "up" (PRODUCT, rule 8).
func TestAFullDiskMovesThePrimaryAwayAfterItsBudget(t *testing.T) {
	c := newCrew(t)
	c.local = func(string) string { return "{persistence: rdb}" }
	c.extra = "    timing: {loading: 1500ms}\n"
	for _, id := range []string{"n1", "n2", "n3"} {
		c.start(id, "")
	}
	s := c.d.waitHealthy(20 * time.Second)
	c.fill("k", 50)
	old := s.node(s.primary())
	c.spoilDisk(old)
	begun := time.Now()
	c.d.awaitProblem(old.ID, "disk-full", true)
	c.d.until(10*time.Second, "another node is the primary", func() (bool, string) {
		now, err := c.d.status()
		return err == nil && now.phase() == "serving" && now.primary() != old.ID, fmt.Sprintf("%+v %v", now, err)
	})
	took := time.Since(begun)
	t.Logf("moved after %s", took.Round(time.Millisecond))
	if took < time.Second {
		t.Errorf("moved after %s, before its budget was over", took)
	}
	c.write(1, "goes:on", 3*time.Second)
	c.mendDisk(old) // a replica that cannot write to its disk ends rather than lie, and is started again and again
	c.everywhere(c.d.waitHealthy(15*time.Second), 51)
	out, err := c.d.run("history")
	if err != nil || !strings.Contains(out, "primary-impaired") || !strings.Contains(out, "switchover") {
		t.Errorf("the history does not tell: %v\n%s", err, out)
	}
}
