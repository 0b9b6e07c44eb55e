// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestAShardIsRemovedUnderLoad: the first shard of all is emptied while clients of every kind write and listen, its servers are stopped and
// forgotten, and a member that was killed meanwhile, or is started again later, knows it no more.
func TestAShardIsRemovedUnderLoad(t *testing.T) {
	d := upCluster(t)
	s, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, n := range s.shard("mymaster-s1").Nodes {
		pids = append(pids, n.PID)
	}
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: d.proxyAddr(1), MaxRetries: -1, ReadTimeout: 20 * time.Second})
	defer c.Close()
	channel := d.keyOn("mymaster-s1", "news")
	plain, sharded := c.Subscribe(ctx, channel), c.SSubscribe(ctx, "{"+channel+"}s")
	defer plain.Close()
	defer sharded.Close()
	for _, sub := range []*redis.PubSub{plain, sharded} {
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
	}
	before := d.epochs()
	l := startLedger(t, d, 300)
	d.reshard(60*time.Second, "--weight", "s1=0.05", "--batch", "200") // most of it, in large batches
	if _, err := d.run("shard", "remove", "s1", "--yes", "--wait=false"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"shard", "remove", "s2", "--yes"}, {"reshard", "--yes", "--weight", "s1=1"}} { // one after the other
		if out, err := d.run(args...); err == nil {
			t.Errorf("%v was not refused: %s", args, out)
		}
	}
	d.until(90*time.Second, "the shard is gone", func() (bool, string) {
		s, err := d.status()
		st, _ := d.reshardStatus()
		return err == nil && len(s.Deployments[0].Shards) == 2, fmt.Sprintf("%+v %v", st, err)
	})
	d.until(30*time.Second, "its servers have stopped, and nobody knows them", func() (bool, string) {
		out, err := d.run("cluster", "check")
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				return false, fmt.Sprintf("server %d runs; %s", pid, out)
			}
		}
		return err == nil, fmt.Sprint(out, err)
	})
	now, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	l.check(d, before != now.shard("mymaster-s2").Epoch+now.shard("mymaster-s3").Epoch+s.shard("mymaster-s1").Epoch)
	for _, kind := range []struct {
		sub  *redis.PubSub
		name string
		say  func(name string) *redis.IntCmd
	}{{plain, channel, func(n string) *redis.IntCmd { return c.Publish(ctx, n, "x") }}, {sharded, "{" + channel + "}s", func(n string) *redis.IntCmd { return c.SPublish(ctx, n, "x") }}} {
		if err := kind.say(kind.name).Err(); err != nil {
			t.Error(err)
		}
		if m, err := kind.sub.ReceiveTimeout(ctx, 5*time.Second); err != nil || !strings.Contains(fmt.Sprint(m), "x") {
			t.Errorf("a subscription that began before: %v %v", m, err)
		}
	}
	if away, _ := filepath.Glob(filepath.Join(d.dir, "member-*", "data", "redis", "s1.removed-*")); len(away) != 2 {
		t.Errorf("put away: %v", away)
	}
	for _, sh := range now.Deployments[0].Shards {
		for _, n := range sh.Nodes {
			if n.ID == now.Controller {
				signal(t, n.AgentPID, syscall.SIGKILL)
				d.start()
				d.until(30*time.Second, "everything is well again", func() (bool, string) {
					out, err := d.run("cluster", "check")
					return err == nil, fmt.Sprint(out, err)
				})
				return
			}
		}
	}
}
