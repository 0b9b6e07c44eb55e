// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestSentinelClientsFollowAFailover: Sentinel-aware clients with default settings, in both address modes.
func TestSentinelClientsFollowAFailover(t *testing.T) {
	for _, mode := range []string{"proxy", "direct"} {
		t.Run(mode, func(t *testing.T) {
			d := up(t, "--sentinel-addresses", mode)
			s := d.waitHealthy(30 * time.Second)
			addr := ""
			for i, p := range s.Deployments[0].Proxies {
				if p.PID != s.node(s.primary()).AgentPID {
					addr = s.Sentinels[i].Addr
				}
			}
			host, port, _ := net.SplitHostPort(addr)
			ws := []*writer{
				goRedisWriter("go-redis", "s:go", redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "mymaster", SentinelAddrs: []string{addr}})),
				processWriter(t, "redis-py", "s:py", "/usr/bin/python3", "../clients/redispy_writer.py", "s:py", "sentinel", "mymaster", host, port),
			}
			if _, err := exec.LookPath("node"); err == nil {
				ws = append(ws, processWriter(t, "ioredis", "s:io", "node", "../clients/ioredis_writer.js", "s:io", "sentinel", "mymaster", host, port))
			}
			for _, w := range ws {
				defer w.finish()
				waitAcked(t, w, 20)
			}
			at := time.Now()
			signal(t, s.node(s.primary()).PID, syscall.SIGKILL)
			for _, w := range ws {
				d.until(20*time.Second, w.name+" follows the failover", func() (bool, string) {
					all := w.all()
					last := all[len(all)-1]
					return last.ok && last.start.After(at.Add(50*time.Millisecond)), last.err
				})
			}
			wait(300 * time.Millisecond)
			for _, w := range ws {
				w.finish()
				o := outage([]*writer{w}, at).outage
				v := judge(t, d.proxyAddr(1), []*writer{w})
				t.Logf("%s addresses, %s: write outage %.1f ms, %d errors, %d acknowledged, %d lost", mode, w.name, ms(o), v.errors, v.acked, v.lost)
				if mode == "proxy" && v.lost > 0 { // in direct mode nobody withholds the reply: asynchronous by nature
					t.Errorf("%s lost %d acknowledged writes", w.name, v.lost)
				}
			}
		})
	}
}
