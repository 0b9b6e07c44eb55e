// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"testing"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// What a client caches on request is tracked by the server that it was read from, whatever came between CLIENT CACHING and the read.
func TestWhatIsCachedOnRequestIsTracked(t *testing.T) {
	t.Parallel()
	caching := resp.AppendCommand(nil, "CLIENT", "CACHING", "YES")
	stories := map[string]func(s *shard, c *wire, change func()){
		"a change of primary": func(_ *shard, c *wire, change func()) {
			c.want("OK", "CLIENT", "CACHING", "YES")
			change()
			c.want("1", "GET", "a")
		},
		"a change in front of the transaction": func(_ *shard, c *wire, change func()) {
			c.want("OK", "CLIENT", "CACHING", "YES")
			change()
			c.want("OK", "MULTI")
			c.want("QUEUED", "GET", "a")
			c.want("*1 $1 1", "EXEC")
		},
		"a change within the transaction": func(_ *shard, c *wire, change func()) {
			c.want("OK", "CLIENT", "CACHING", "YES")
			c.want("OK", "MULTI")
			c.want("QUEUED", "GET", "a")
			change()
			c.want("*1 $1 1", "EXEC")
		},
		"a batch that ends": func(_ *shard, c *wire, _ func()) {
			if _, err := c.c.Write(append(resp.AppendCommand(nil, "SET", "b", "1"), caching...)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got := c.recv(); got != "OK" {
					t.Fatal(got)
				}
			}
			c.want("1", "GET", "a")
		},
		"nothing": func(_ *shard, c *wire, _ func()) {
			if _, err := c.c.Write(append(caching, resp.AppendCommand(nil, "GET", "a")...)); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"OK", "1"} {
				if got := c.recv(); got != want {
					t.Fatal(got)
				}
			}
		},
	}
	for name, play := range stories {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
			s.inSync(s.nodes[0])
			c, d := s.client(), s.client()
			d.want("OK", "SET", "a", "1")
			c.do("HELLO", "3")
			c.want("OK", "CLIENT", "TRACKING", "ON", "OPTIN")
			play(s, c, func() {
				s.switchover(s.nodes[0], s.nodes[1])
				if got := c.recv(); got != ">2 $10 invalidate _" {
					t.Fatal(got)
				}
			})
			d.want("OK", "SET", "a", "2")
			if got := c.recv(); got != ">2 $10 invalidate *1 $1 a" {
				t.Fatal(got)
			}
			c.want("2", "GET", "a") // nobody asked for this to be cached
			d.want("OK", "SET", "a", "3")
			c.want("3", "GET", "a")
		})
	}
}
