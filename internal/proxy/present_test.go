// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// A switchover waits for a write that is on its way on a connection of its session's own, also when the proxy has no other.
func TestASwitchoverWaitsForSessionsOwnConnections(t *testing.T) {
	t.Parallel()
	sessions := map[string]func(*wire){
		"tracking": func(c *wire) {
			if got := c.do("HELLO", "3"); strings.HasPrefix(got, "-") {
				t.Fatal(got)
			}
			c.want("OK", "CLIENT", "TRACKING", "ON")
		},
		"user":     func(c *wire) { c.want("OK", "AUTH", "app", "secret") },
		"watching": func(c *wire) { c.want("OK", "WATCH", "w") },
	}
	for name, begin := range sessions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
			s.inSync(s.nodes[0])
			for _, n := range s.nodes {
				n.do(t, "ACL", "SETUSER", "app", "on", ">secret", "~*", "+@read", "+@write")
			}
			c := s.client()
			begin(c)
			c.want("OK", "SET", "a", "1")
			waitFor(t, "no connection but its own", func() bool {
				return !strings.Contains(s.nodes[0].do(t, "CLIENT", "LIST"), "name="+redis.ProxyClientName)
			})
			s.nodes[1].signal(syscall.SIGSTOP)
			c.send("SET", "a", "2")
			waitFor(t, "it is at the primary", func() bool { return s.nodes[0].do(t, "GET", "a") == "2" })
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.switchover(s.nodes[0], s.nodes[1])
			}()
			<-time.After(50 * time.Millisecond)
			s.nodes[1].signal(syscall.SIGCONT)
			if got := c.recv(); got != "OK" {
				t.Errorf("in a planned switchover: %s", got)
			}
			<-done
			s.client().want("2", "GET", "a")
		})
	}
}
