// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/redis/go-redis/v9"
)

// plain is what people run today: a server and a Sentinel on each host, at ordinary settings.
type plain struct {
	base
	servers, sentinels []*process // of host i at i-1
	ctx                context.Context
	end                context.CancelFunc
}

func (s *plain) start(ctx context.Context) error {
	if err := s.up(); err != nil {
		return err
	}
	s.ctx, s.end = context.WithCancel(ctx)
	for i := 1; i <= s.r.o.hosts; i++ {
		conf, sent := filepath.Join(s.r.dir, fmt.Sprintf("server-%d.conf", i)), filepath.Join(s.r.dir, fmt.Sprintf("sentinel-%d.conf", i))
		text := fmt.Sprintf("port 6479\nbind 0.0.0.0\nprotected-mode no\ndir %s\nappendonly yes\nsave \"\"\nrepl-diskless-sync-delay 0\n", s.disk(i))
		if i > 1 {
			text += "replicaof " + s.net.Addr(1) + " 6479\n"
		}
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		text = fmt.Sprintf("port 26379\nbind 0.0.0.0\nprotected-mode no\ndir %s\nsentinel monitor mymaster %s 6479 %d\n"+
			"sentinel down-after-milliseconds mymaster %d\nsentinel failover-timeout mymaster 10000\nsentinel parallel-syncs mymaster 1\n",
			s.r.dir, s.net.Addr(1), s.r.o.hosts/2+1, s.r.o.detect.Milliseconds())
		if err := os.WriteFile(sent, []byte(text), 0o600); err != nil {
			return err
		}
		server, sentinel := fmt.Sprintf("server-%d", i), fmt.Sprintf("sentinel-%d", i)
		s.servers = append(s.servers, supervise(s.ctx, s.r.history, server, s.logFile(server), func() *exec.Cmd {
			return s.inHost(i, "redis-server", conf)
		}))
		s.sentinels = append(s.sentinels, supervise(s.ctx, s.r.history, sentinel, s.logFile(sentinel), func() *exec.Cmd {
			return s.inHost(i, "redis-server", sent, "--sentinel")
		}))
	}
	return nil
}

// believed is the address that the Sentinel of host i gives to clients.
func (s *plain) believed(ctx context.Context, i int) (addr string, err error) {
	err = s.say(ctx, i, "26379", func(ctx context.Context, c *redis.Client) error {
		v, err := c.Do(ctx, "sentinel", "get-master-addr-by-name", "mymaster").StringSlice()
		if err == nil && len(v) == 2 {
			addr = v[0]
		}
		return err
	})
	return addr, err
}

// healthy: all Sentinels name one primary, know each other, and the others follow it.
func (s *plain) healthy(ctx context.Context) error {
	one := ""
	for i := 1; i <= s.r.o.hosts; i++ {
		addr, err := s.believed(ctx, i)
		if err != nil {
			return err
		}
		if one == "" {
			one = addr
		}
		if addr != one {
			return fmt.Errorf("sentinels name %s and %s", one, addr)
		}
		err = s.say(ctx, i, "26379", func(ctx context.Context, c *redis.Client) error {
			v, err := c.Do(ctx, "sentinel", "sentinels", "mymaster").Slice()
			if err == nil && len(v) != s.r.o.hosts-1 {
				err = fmt.Errorf("sentinel %d knows %d others", i, len(v))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for i := 1; i <= s.r.o.hosts; i++ {
		err := s.say(ctx, i, "6479", func(ctx context.Context, c *redis.Client) error {
			info, err := c.Info(ctx, "replication").Result()
			want := []string{"role:slave", "master_host:" + one + "\r", "master_link_status:up"}
			if s.net.Addr(i) == one {
				want = []string{"role:master", fmt.Sprintf("connected_slaves:%d", s.r.o.hosts-1)}
			}
			for _, w := range want {
				if err == nil && !strings.Contains(info, w) {
					err = fmt.Errorf("server %d: not %s", i, strings.TrimSpace(w))
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// primary is the one that most Sentinels name.
func (s *plain) primary(ctx context.Context) int {
	votes := map[string]int{}
	for i := 1; i <= s.r.o.hosts; i++ {
		if addr, err := s.believed(ctx, i); err == nil {
			votes[addr]++
		}
	}
	for i := 1; i <= s.r.o.hosts; i++ {
		if votes[s.net.Addr(i)] > s.r.o.hosts/2 {
			return i
		}
	}
	return 0
}

func (s *plain) controller(ctx context.Context) int { return 0 } // Sentinel has no lasting leader

func (s *plain) pids(i int, what string) []int {
	if what == host {
		return s.net.PIDs(i)
	}
	var out []int
	if pid := s.servers[i-1].id(); pid > 0 && what != agent {
		out = append(out, pid)
	}
	if pid := s.sentinels[i-1].id(); pid > 0 && what != server {
		out = append(out, pid)
	}
	return out
}

func (s *plain) hold(i int, what string, down bool) {
	if what != agent {
		s.servers[i-1].hold(down)
	}
	if what != server {
		s.sentinels[i-1].hold(down)
	}
}

func (s *plain) storePort() string   { return "26379" }
func (s *plain) serverPorts() string { return "6479" }

func (s *plain) switchover(ctx context.Context, to int) error {
	return s.say(ctx, to, "26379", func(ctx context.Context, c *redis.Client) error {
		return c.Do(ctx, "sentinel", "failover", "mymaster").Err()
	})
}

// client asks the Sentinel of host to first, and then the others.
func (s *plain) client(host, to int) redis.UniversalClient {
	var all []string
	for k := range s.r.o.hosts {
		all = append(all, s.net.Addr((to+k-1)%s.r.o.hosts+1)+":26379")
	}
	return s.failover(host, all)
}

func (s *plain) stop() {
	if s.end == nil {
		return
	}
	s.end()
	for _, p := range append(s.sentinels, s.servers...) {
		<-p.done
	}
}
