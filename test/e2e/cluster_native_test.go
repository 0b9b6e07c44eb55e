// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// native is a plain cluster of 3 × (1+1) servers whose own failover is on, as `redis-cli --cluster create` makes it.
type native struct {
	t     *testing.T
	addrs []string
	procs map[string]*exec.Cmd
}

func startNative(t *testing.T, timeout time.Duration) *native {
	t.Helper()
	n := &native{t: t, procs: map[string]*exec.Cmd{}}
	for range 6 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		bus, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_, port, _ := net.SplitHostPort(addr)
		_, busPort, _ := net.SplitHostPort(bus.Addr().String())
		l.Close()
		bus.Close()
		cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0",
			"--cluster-enabled", "yes", "--cluster-port", busPort, "--cluster-node-timeout", strconv.FormatInt(timeout.Milliseconds(), 10), "--logfile", "log")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.addrs, n.procs[addr] = append(n.addrs, addr), cmd
	}
	t.Cleanup(n.stop)
	for _, a := range n.addrs {
		n.until("servers answer", func(ctx context.Context, c *redis.Client) bool { return c.Ping(ctx).Err() == nil }, a)
	}
	args := append(append([]string{"--cluster", "create"}, n.addrs...), "--cluster-replicas", "1", "--cluster-yes")
	if out, err := exec.Command("redis-cli", args...).CombinedOutput(); err != nil {
		t.Fatalf("create a cluster: %v\n%s", err, out)
	}
	n.until("the cluster is well", func(ctx context.Context, c *redis.Client) bool {
		info, err := c.ClusterInfo(ctx).Result()
		about, err2 := c.Info(ctx, "replication").Result()
		return err == nil && err2 == nil && strings.Contains(info, "cluster_state:ok") && (strings.Contains(about, "master_link_status:up") || strings.Contains(about, "state=online"))
	}, n.addrs...)
	return n
}

func (n *native) until(what string, ok func(context.Context, *redis.Client) bool, addrs ...string) {
	n.t.Helper()
	for _, a := range addrs {
		c := redis.NewClient(&redis.Options{Addr: a})
		for end := time.Now().Add(60 * time.Second); !ok(n.t.Context(), c); wait(50 * time.Millisecond) {
			if time.Now().After(end) {
				n.t.Fatalf("%s: not within 60 s at %s", what, a)
			}
		}
		c.Close()
	}
}

func (n *native) stop() {
	for _, cmd := range n.procs {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// primaryOf returns the process that serves a key's slot.
func (n *native) primaryOf(key string) *exec.Cmd {
	n.t.Helper()
	c := redis.NewClient(&redis.Options{Addr: n.addrs[0]})
	defer c.Close()
	slot, err := c.ClusterKeySlot(n.t.Context(), key).Result()
	if err != nil {
		n.t.Fatal(err)
	}
	shards, err := c.ClusterShards(n.t.Context()).Result()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, s := range shards {
		if !slices.ContainsFunc(s.Slots, func(r redis.SlotRange) bool { return r.Start <= slot && slot <= r.End }) {
			continue
		}
		for _, x := range s.Nodes {
			if x.Role == "master" {
				return n.procs[net.JoinHostPort(x.IP, strconv.FormatInt(x.Port, 10))]
			}
		}
	}
	n.t.Fatalf("nobody has slot %d", slot)
	return nil
}

// round strikes one primary and returns what its shard's client saw, and another shard's.
func (n *native) round(sig syscall.Signal) (hit, other time.Duration) {
	t := n.t
	const key, elsewhere = "b", "d" // slots 3300 and 11298: the first shard and the third
	open := func() *redis.ClusterClient { return clusterClient(n.addrs...) }
	w, by := goRedisWriter("go-redis ClusterClient", key, open()), goRedisWriter("another shard", elsewhere, open())
	defer w.finish()
	defer by.finish()
	waitAcked(t, w, 20)
	waitAcked(t, by, 20)
	wait(300 * time.Millisecond)
	at := time.Now()
	_ = n.primaryOf(key).Process.Signal(sig)
	for end := time.Now().Add(90 * time.Second); ; wait(20 * time.Millisecond) {
		if slices.ContainsFunc(w.all(), func(a attempt) bool { return a.ok && a.start.After(at.Add(50*time.Millisecond)) }) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the cluster does not come back")
		}
	}
	wait(400 * time.Millisecond)
	return outage([]*writer{w}, at).outage, outage([]*writer{by}, at).outage
}

// round is the same for a deployment.
func (d *deployment) round(i int, sig syscall.Signal) (hit, other time.Duration) {
	t := d.t
	s := d.waitHealthy(60 * time.Second)
	shards := s.Deployments[0].Shards
	sh := shards[i%len(shards)]
	p := sh.node(sh.Primary)
	open := func() *redis.ClusterClient { return clusterClient(d.proxyAddr(0), d.proxyAddr(1), d.proxyAddr(2)) }
	run := fmt.Sprint(i, "-", sig)
	w := goRedisWriter("go-redis ClusterClient", d.keyOn(sh.ID, "n:"+run), open())
	by := goRedisWriter("another shard", d.keyOn(shards[(i+1)%len(shards)].ID, "nb:"+run), open())
	defer w.finish()
	defer by.finish()
	waitAcked(t, w, 20)
	waitAcked(t, by, 20)
	wait(300 * time.Millisecond)
	at := time.Now()
	signal(t, p.PID, sig)
	d.goesOn([]*writer{w, by}, at, 60*time.Second)
	wait(400 * time.Millisecond)
	return outage([]*writer{w}, at).outage, outage([]*writer{by}, at).outage
}

// TestClusterBesideNative compares the loss of one shard's primary with what Redis Cluster does by itself, in the same run, with the
// same client: interleaved rounds.
func TestClusterBesideNative(t *testing.T) {
	if *rounds == 0 {
		t.Skip("make bench-cluster")
	}
	d := upCluster(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		names := []string{"Redoubt", "Cluster, node-timeout 1000", "Cluster, node-timeout 5000"}
		hit, others := map[string][]time.Duration{}, map[string][]time.Duration{}
		for i := range *rounds {
			for k, timeout := range []time.Duration{0, time.Second, 5 * time.Second} {
				var h, o time.Duration
				if timeout == 0 {
					h, o = d.round(i, sig)
				} else {
					n := startNative(t, timeout)
					h, o = n.round(sig)
					n.stop()
				}
				hit[names[k]], others[names[k]] = append(hit[names[k]], h), append(others[names[k]], o)
			}
		}
		for _, name := range names {
			t.Logf("%s of one primary, %s: its shard %s", sig, name, medianWorst(hit[name]))
			t.Logf("%s of one primary, %s: another shard %s", sig, name, medianWorst(others[name]))
		}
	}
}
