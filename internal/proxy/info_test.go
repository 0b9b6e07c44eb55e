// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strings"
	"testing"
	"time"

	"redoubt/internal/resp"
)

func TestInfoIsThePrimarysWithASectionOfTheProxys(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.ListenReadonly = "127.0.0.1:0" })
	for _, c := range []*wire{s.client(), dialWire(t, s.p.ReadonlyAddr().String())} {
		for _, proto := range []string{"2", "3"} {
			c.do("HELLO", proto)
			for _, args := range [][]string{{"INFO"}, {"INFO", "all"}, {"INFO", "Everything"}, {"INFO", "default"}, {"INFO", "server", "redoubt"}} {
				c.send(args...)
				_ = c.c.SetReadDeadline(time.Now().Add(5 * time.Second))
				f, err := c.frame()
				if err != nil {
					t.Fatal(err)
				}
				if kind := map[string]byte{"2": '$', "3": '='}[proto]; f[0] != kind {
					t.Fatalf("%v in RESP%s: %.20q", args, proto, f)
				}
				text := string(resp.Text(f))
				if !strings.HasPrefix(text, "# Server\r\nredis_version:7") || strings.Count(text, "\r\n\r\n# Redoubt\r\nproxy_id:p1\r\n") != 1 ||
					!strings.Contains(text, "\r\nstate:serving\r\n") || strings.Contains(text, "# Replication") == (len(args) == 3) {
					t.Fatalf("%v: %s", args, text)
				}
			}
			if got := c.do("INFO", "redoubt"); !strings.HasPrefix(got, "# Redoubt\r\n") {
				t.Fatal(got)
			}
			if got := c.do("INFO", "replication"); !strings.HasPrefix(got, "# Replication\r\nrole:master") || strings.Contains(got, "Redoubt") {
				t.Fatal(got)
			}
		}
	}
}

func TestInfoKeepsItsPlaceInAPipeline(t *testing.T) {
	t.Parallel()
	for _, quorum := range []bool{false, true} {
		s := newShard(t, 1, func(sp *spec, _ *Options) {
			if quorum {
				sp.Durability, sp.AckReplicas = "quorum", 1
			}
		})
		c := s.client()
		var out []byte
		for range 50 {
			out = resp.AppendCommand(out, "INCR", "n")
			out = resp.AppendCommand(out, "INFO")
			out = resp.AppendCommand(out, "INFO", "redoubt")
			out = resp.AppendCommand(out, "GET", "n")
		}
		if _, err := c.c.Write(out); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			n := c.recv()
			if a, b, again := c.recv(), c.recv(), c.recv(); !strings.HasPrefix(a, "# Server") || !strings.Contains(a, "\r\n# Redoubt\r\n") || !strings.HasPrefix(b, "# Redoubt") || n != again {
				t.Fatalf("round %d: %q, %.30q, %.30q, %q", i, n, a, b, again)
			}
		}
		c.want("OK", "MULTI")
		c.want("QUEUED", "INFO")
		if got := c.do("EXEC"); !strings.HasPrefix(got, "*1 $") {
			t.Fatalf("%.40q", got)
		}
		c.want("OK", "WATCH", "n") // a connection of its own
		if got := c.do("INFO"); !strings.Contains(got, "\r\n# Redoubt\r\n") {
			t.Fatal(got)
		}
	}
}
