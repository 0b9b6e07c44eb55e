// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// tag puts all keys of a run into one slot of a cluster, so that one shard has all the traffic, as elsewhere.
const tag = "{x}"

// cluster is Redis Cluster as people deploy it: two servers on each host, one of them a primary, one somebody's replica.
// All traffic goes to one shard; the others vote.
type cluster struct {
	base
	procs map[int][]*process // by host: of port 6479, then of 6480
	ours  map[int]int        // by host: which of its two serves the shard that has the traffic
	ctx   context.Context
	end   context.CancelFunc
}

var clusterPorts = [2]string{"6479", "6480"}

func (s *cluster) start(ctx context.Context) error {
	if err := s.up(); err != nil {
		return err
	}
	s.ctx, s.end = context.WithCancel(ctx)
	s.procs, s.ours = map[int][]*process{}, map[int]int{}
	create := []string{"--cluster", "create"}
	for k, port := range clusterPorts {
		for i := 1; i <= s.r.o.hosts; i++ {
			name := fmt.Sprintf("server-%d-%d", i, k)
			conf := filepath.Join(s.r.dir, name+".conf")
			text := fmt.Sprintf("port %s\nbind 0.0.0.0\nprotected-mode no\ndir %s\nappendonly yes\nappenddirname aof-%d\nsave \"\"\nrepl-diskless-sync-delay 0\n"+
				"cluster-enabled yes\ncluster-config-file nodes-%d.conf\ncluster-node-timeout %d\n", port, s.disk(i), k, k, s.r.o.detect.Milliseconds())
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				return err
			}
			s.procs[i] = append(s.procs[i], supervise(s.ctx, s.r.history, name, s.logFile(name), func() *exec.Cmd {
				return s.inHost(i, "redis-server", conf)
			}))
			create = append(create, s.net.Addr(i)+":"+port)
		}
	}
	for i := 1; i <= s.r.o.hosts; i++ {
		for _, port := range clusterPorts {
			if err := s.until(ctx, 10*time.Second, func() error { return s.say(ctx, i, port, ping) }); err != nil {
				return err
			}
		}
	}
	if out, err := s.net.Command(1, "redis-cli", append(create, "--cluster-replicas", "1", "--cluster-yes")...).CombinedOutput(); err != nil {
		return fmt.Errorf("create the cluster: %w: %s", err, out)
	}
	return s.until(ctx, 30*time.Second, func() error { return s.locate(ctx) })
}

func ping(ctx context.Context, c *redis.Client) error { return c.Ping(ctx).Err() }

// until repeats something that will come to work.
func (s *cluster) until(ctx context.Context, within time.Duration, f func() error) error {
	for end := time.Now().Add(within); ; wait(ctx, 50*time.Millisecond) {
		if err := f(); err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
	}
}

// nodes are the servers of the shard that has the traffic, as a server of host i sees it, the primary first.
func (s *cluster) nodes(ctx context.Context, i, k int) (addrs []string, err error) {
	err = s.say(ctx, i, clusterPorts[k], func(ctx context.Context, c *redis.Client) error {
		slot, err := c.ClusterKeySlot(ctx, tag).Result()
		if err != nil {
			return err
		}
		shards, err := c.ClusterShards(ctx).Result()
		for _, shard := range shards {
			if !slices.ContainsFunc(shard.Slots, func(r redis.SlotRange) bool { return r.Start <= slot && slot <= r.End }) {
				continue
			}
			for _, n := range shard.Nodes {
				addr := net.JoinHostPort(n.IP, strconv.FormatInt(n.Port, 10))
				switch {
				case n.Health == "fail":
				case n.Role == "master":
					addrs = slices.Insert(addrs, 0, addr)
				default:
					addrs = append(addrs, addr)
				}
			}
		}
		return err
	})
	return addrs, err
}

// locate notes where the two servers of our shard are.
func (s *cluster) locate(ctx context.Context) error {
	addrs, err := s.nodes(ctx, 1, 0)
	if err == nil && len(addrs) != 2 {
		err = fmt.Errorf("the shard has %d servers", len(addrs))
	}
	if err != nil {
		return err
	}
	for _, a := range addrs {
		s.ours[s.hostOf(a)] = s.index(a)
	}
	return nil
}

func (s *cluster) hostOf(addr string) int {
	ip, _, _ := net.SplitHostPort(addr)
	for i := 1; i <= s.r.o.hosts; i++ {
		if s.net.Addr(i) == ip {
			return i
		}
	}
	return 0
}

func (s *cluster) index(addr string) int {
	if _, port, _ := net.SplitHostPort(addr); port == clusterPorts[1] {
		return 1
	}
	return 0
}

// healthy: every server says that the cluster is well, all name one primary of our shard, and every replica is linked.
func (s *cluster) healthy(ctx context.Context) error {
	one := ""
	for i := 1; i <= s.r.o.hosts; i++ {
		for k, port := range clusterPorts {
			addrs, err := s.nodes(ctx, i, k)
			if err == nil && (len(addrs) != 2 || one != "" && addrs[0] != one) {
				err = fmt.Errorf("server %d-%d sees %v", i, k, addrs)
			}
			if err != nil {
				return err
			}
			one = addrs[0]
			err = s.say(ctx, i, port, func(ctx context.Context, c *redis.Client) error {
				about, err := c.ClusterInfo(ctx).Result()
				if err == nil && !strings.Contains(about, "cluster_state:ok") {
					err = fmt.Errorf("server %d-%d: not cluster_state:ok", i, k)
				}
				if err != nil {
					return err
				}
				info, err := c.Info(ctx, "replication").Result()
				if err == nil && !strings.Contains(info, "master_link_status:up") && !strings.Contains(info, "connected_slaves:1") {
					err = fmt.Errorf("server %d-%d has no link", i, k)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// primary is the one that most servers name.
func (s *cluster) primary(ctx context.Context) int {
	votes := make([]int, s.r.o.hosts+1)
	for i := 1; i <= s.r.o.hosts; i++ {
		for k := range clusterPorts {
			if addrs, err := s.nodes(ctx, i, k); err == nil && len(addrs) > 0 {
				votes[s.hostOf(addrs[0])]++
			}
		}
	}
	for i, n := range votes {
		if i > 0 && n > s.r.o.hosts {
			return i
		}
	}
	return 0
}

func (s *cluster) controller(ctx context.Context) int { return 0 } // the primaries decide together

// hit are the processes of a host that a fault means: the server of our shard, or those that only vote.
func (s *cluster) hit(i int, what string) []*process {
	k, is := s.ours[i]
	switch {
	case is && what == server:
		return s.procs[i][k : k+1]
	case is && what == agent:
		return s.procs[i][1-k : 2-k]
	}
	return s.procs[i]
}

func (s *cluster) pids(i int, what string) []int {
	var out []int
	for _, p := range s.hit(i, what) {
		if pid := p.id(); pid > 0 {
			out = append(out, pid)
		}
	}
	return out
}

func (s *cluster) hold(i int, what string, down bool) {
	for _, p := range s.hit(i, what) {
		p.hold(down)
	}
}

func (s *cluster) storePort() string   { return "16479:16480" }
func (s *cluster) serverPorts() string { return "6479:6480" }

// switchover is asked of the replica of our shard, wherever it is.
func (s *cluster) switchover(ctx context.Context, _ int) error {
	addrs, err := s.nodes(ctx, 1, 0)
	if err != nil || len(addrs) != 2 {
		return fmt.Errorf("our shard is %v: %w", addrs, err)
	}
	i := s.hostOf(addrs[1])
	return s.say(ctx, i, clusterPorts[s.index(addrs[1])], func(ctx context.Context, c *redis.Client) error {
		return c.ClusterFailover(ctx).Err()
	})
}

func (s *cluster) client(host, to int) redis.UniversalClient {
	var all []string
	for k := range s.r.o.hosts {
		all = append(all, s.net.Addr((to+k-1)%s.r.o.hosts+1)+":6479")
	}
	// Without redirections of its own: they send commands again whose outcome is unknown.
	return tagged{redis.NewClusterClient(&redis.ClusterOptions{Addrs: all, Dialer: s.dial(host), PoolSize: 1, MaxRetries: -1, MaxRedirects: -1,
		DialerRetries: 1, ContextTimeoutEnabled: true})}
}

func (s *cluster) stop() {
	if s.end == nil {
		return
	}
	s.end()
	for _, of := range s.procs {
		for _, p := range of {
			<-p.done
		}
	}
}

// tagged puts every key into the one slot. It looks for the primary anew after each error, as clients do that redirect.
type tagged struct{ *redis.ClusterClient }

// wire is the name of a key on its way to a server.
func wire(c redis.UniversalClient, key string) string {
	switch c.(type) {
	case tagged, inSlot:
		return key + tag
	}
	return key
}

// again lets a cluster's client look where the primary is, after an error.
func again(ctx context.Context, c redis.UniversalClient) {
	if t, is := c.(tagged); is {
		t.ReloadState(ctx)
	}
}
