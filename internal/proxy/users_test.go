// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/topo"
)

func TestUsersAreTheServersOwn(t *testing.T) {
	t.Parallel()
	for _, quorum := range []bool{false, true} {
		t.Run("quorum="+strconv.FormatBool(quorum), func(t *testing.T) {
			t.Parallel()
			s := newShard(t, 2, func(sp *spec, _ *Options) {
				if quorum {
					sp.Durability, sp.AckReplicas = topo.Quorum, 1
				}
			})
			admin, c := s.client(), s.client()
			admin.want("OK", "ACL", "SETUSER", "app", "on", ">secret", "~app:*", "resetchannels", "+@read", "+@write", "+@transaction", "+blpop", "-flushall", "+acl|whoami")
			for _, n := range s.nodes {
				waitFor(t, "the user on "+string(n.id), func() bool { u, _ := n.try("ACL", "USERS"); return strings.Contains(u, "app") })
			}
			if got := c.do("AUTH", "app", "wrong"); got != "-WRONGPASS invalid username-password pair or user is disabled." {
				t.Fatal(got)
			}
			c.want("OK", "AUTH", "app", "secret")
			c.want("app", "ACL", "WHOAMI")
			c.want("OK", "SET", "app:a", "1")
			c.want("1", "GET", "app:a")
			for _, words := range [][]string{{"GET", "other"}, {"FLUSHALL"}, {"CLIENT", "KILL", "ID", "1"}, {"CLIENT", "LIST"}, {"CONFIG", "GET", "port"}} {
				if got := c.do(words...); !strings.HasPrefix(got, "-NOPERM") {
					t.Errorf("%v: %s", words, got)
				}
			}
			c.want("OK", "MULTI")
			c.want("QUEUED", "INCR", "app:a")
			c.want("*1 :2", "EXEC")
			for i := range 20 {
				c.send("SET", "app:"+strconv.Itoa(i), "v")
			}
			for range 20 {
				if got := c.recv(); got != "OK" {
					t.Fatal(got)
				}
			}
			s.switchover(s.nodes[0], s.nodes[1])
			c.want("2", "GET", "app:a")
			c.want("3", "INCR", "app:a")
			if got := c.do("GET", "other"); !strings.HasPrefix(got, "-NOPERM") {
				t.Error(got)
			}
			admin.want("1", "ACL", "DELUSER", "app")
			waitFor(t, "the deleted user's session ends", func() bool { _, err := c.try("GET", "app:a"); return err != nil })
		})
	}
}

// A user who may not say MULTI is in no transaction after it.
func TestARefusedMultiBeginsNothing(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	s.nodes[0].do(t, "ACL", "SETUSER", "app", "on", ">secret", "~*", "+@read", "+@write")
	c := s.client()
	c.want("OK", "AUTH", "app", "secret")
	if got := c.do("MULTI"); !strings.HasPrefix(got, "-NOPERM") {
		t.Fatal(got)
	}
	c.want("1", "INCR", "n")
	c.want("OK", "CLIENT", "SETNAME", "ann")
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("INCR", "n")
	_ = c.c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if f, err := c.frame(); err == nil {
		t.Errorf("answered %q without an acknowledgement", f)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv(); got != "2" {
		t.Error(got)
	}
}
