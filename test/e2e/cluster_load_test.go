// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// clusterClient asks for the nodes every half second: by default go-redis 9.23 does so once a minute, and not when it cannot reach a
// node, so that it would go on with a host that is lost for that long, here as with any cluster.
func clusterClient(addrs ...string) *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ClusterStateReloadInterval: 500 * time.Millisecond})
}

// shardKeyWriters are the clients of one shard: a plain one, and cluster-aware ones of four libraries.
func shardKeyWriters(t *testing.T, d *deployment, shard, run, addr string) []*writer {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	key := func(who string) string { return d.keyOn(shard, "w:"+who+":"+run) }
	goCluster := clusterClient(d.proxyAddr(0), d.proxyAddr(1), d.proxyAddr(2))
	ws := []*writer{
		goRedisWriter("go-redis", key("go"), redis.NewClient(&redis.Options{Addr: addr})),
		goRedisWriter("go-redis ClusterClient", key("goc"), goCluster),
		cliWriter(t, key("cli"), host, port, "-c"),
	}
	py := key("py")
	ws = append(ws, processWriter(t, "redis-py RedisCluster", py, "/usr/bin/python3", "../clients/redispy_writer.py", py, "cluster", host, port))
	if _, err := exec.LookPath("node"); err == nil {
		io := key("io")
		ws = append(ws, processWriter(t, "ioredis Cluster", io, "node", "../clients/ioredis_writer.js", io, "cluster", host, port))
	}
	t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	return ws
}

// goesOn waits until each writer has had a success since at.
func (d *deployment) goesOn(ws []*writer, at time.Time, within time.Duration) {
	d.t.Helper()
	d.until(within, "writes go on", func() (bool, string) {
		for _, w := range ws {
			all := w.all()
			if len(all) == 0 || !slices.ContainsFunc(all, func(a attempt) bool { return a.ok && a.start.After(at.Add(20*time.Millisecond)) }) {
				last := ""
				if len(all) > 0 {
					last = all[len(all)-1].err
				}
				return false, w.name + " has no success since: " + last
			}
		}
		return true, ""
	})
}

// blow is something that befalls the primary of a shard. What it returns cleans up after the round.
type blow struct {
	name  string
	loses bool // an acknowledged write may be lost with the primary: durability is async
	do    func(d *deployment, s status, sh shard, p node) func()
}

func blows() []blow {
	return []blow{
		{"kill -9 of the primary's server", true, func(d *deployment, _ status, _ shard, p node) func() {
			signal(d.t, p.PID, syscall.SIGKILL)
			return nil
		}},
		{"SIGSTOP of the primary's server", true, func(d *deployment, _ status, _ shard, p node) func() {
			signal(d.t, p.PID, syscall.SIGSTOP)
			return func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) } // killed by its agent long ago
		}},
		{"loss of the primary's host", true, func(d *deployment, s status, _ shard, p node) func() {
			signal(d.t, p.AgentPID, syscall.SIGKILL)
			for _, other := range s.Deployments[0].Shards {
				for _, n := range other.Nodes {
					if n.AgentPID == p.AgentPID && n.PID > 1 {
						_ = syscall.Kill(n.PID, syscall.SIGKILL)
					}
				}
			}
			return d.start
		}},
		{"switchover", false, func(d *deployment, _ status, sh shard, _ node) func() {
			if out, err := d.run("switchover", "--shard", sh.ID, "--yes"); err != nil {
				d.t.Errorf("%v\n%s", err, out)
			}
			return nil
		}},
	}
}

// TestClusterUnderLoad: what befalls the primary of one shard of a cluster, as clients of that shard and of the others see it.
func TestClusterUnderLoad(t *testing.T) {
	d := upCluster(t)
	for k, b := range blows() {
		var hit, others []time.Duration
		sum, rest := verdict{messages: map[string]int{}}, verdict{messages: map[string]int{}}
		for i := range roundsOr(1) {
			h, o, v, w := d.strike(b, fmt.Sprint(k, "-", i), k+i)
			hit, others = append(hit, h.outage), append(others, o.outage)
			sum.waits, rest.waits = append(sum.waits, h.wait), append(rest.waits, o.wait)
			sum.add(v)
			rest.add(w)
		}
		figures(t, b.name+": its shard", hit, sum)
		figures(t, b.name+": the other shards", others, rest)
		if !b.loses && (sum.lost > 0 || sum.errors > 0) || rest.lost > 0 {
			t.Errorf("%s: %d lost (%v), %d errors; elsewhere %d lost", b.name, sum.lost, sum.lostOf, sum.errors, rest.lost)
		}
		if sum.lost > 50*len(hit) {
			t.Errorf("%s: %d acknowledged writes lost in %d rounds: more than what can be on its way", b.name, sum.lost, len(hit))
		}
	}
}

func (v *verdict) add(o verdict) {
	v.acked, v.lost, v.duplicated, v.errors = v.acked+o.acked, v.lost+o.lost, v.duplicated+o.duplicated, v.errors+o.errors
	v.lostOf = append(v.lostOf, o.lostOf...)
	for m, n := range o.messages {
		v.messages[m] += n
	}
}

// strike does one round: what the shard's own clients saw, and the others.
func (d *deployment) strike(b blow, run string, i int) (hit, others span, of, elsewhere verdict) {
	t := d.t
	s := d.waitHealthy(60 * time.Second)
	shards := s.Deployments[0].Shards
	sh := shards[i%len(shards)]
	p := sh.node(sh.Primary)
	addr := ""
	for _, x := range s.Deployments[0].Proxies {
		if x.PID != p.AgentPID {
			addr = x.Addr
		}
	}
	ws := shardKeyWriters(t, d, sh.ID, run, addr)
	var bystanders []*writer
	for _, other := range shards {
		if other.ID != sh.ID && other.node(other.Primary).AgentPID != p.AgentPID {
			w := goRedisWriter(other.ID, d.keyOn(other.ID, "by:"+run), redis.NewClient(&redis.Options{Addr: addr}))
			t.Cleanup(w.finish)
			bystanders = append(bystanders, w)
		}
	}
	for _, w := range append(slices.Clone(ws), bystanders...) {
		waitAcked(t, w, 20)
	}
	wait(300 * time.Millisecond)
	at := time.Now()
	after := b.do(d, s, sh, p)
	d.goesOn(append(slices.Clone(ws), bystanders...), at, 60*time.Second)
	wait(400 * time.Millisecond)
	if after != nil {
		after()
	}
	for _, w := range append(slices.Clone(ws), bystanders...) {
		w.finish()
	}
	hit, others = outage(ws, at), outage(bystanders, at)
	t.Logf("%s, %s: its shard %.1f ms (%s), the others at most %.1f ms", b.name, sh.ID, ms(hit.outage), hit.who, ms(others.outage))
	for _, w := range ws {
		t.Logf("  %s: %.1f ms", w.name, ms(outage([]*writer{w}, at).outage))
	}
	return hit, others, judge(t, addr, ws), judge(t, addr, bystanders)
}
