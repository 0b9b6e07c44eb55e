// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/sha1"
	"encoding/hex"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// What a client expects one server to remember, whoever is primary.

const incrScript = "return redis.call('incrby',KEYS[1],ARGV[1])"

func TestScriptsAreKnownAfterASwitchoverAndAFailover(t *testing.T) {
	t.Parallel()
	s := newShard(t, 2, nil)
	c := s.client()
	loaded := c.do("SCRIPT", "LOAD", incrScript)
	sha := strings.TrimPrefix(loaded, "$40 ")
	c.want("1", "EVALSHA", sha, "1", "n", "1")
	c.want("7", "EVAL", "return 7", "0")
	for _, n := range s.nodes {
		waitFor(t, "the script is known to "+string(n.id), func() bool { v, _ := n.try("SCRIPT", "EXISTS", sha); return strings.HasSuffix(v, "1") })
	}
	// A server that has forgotten, in the middle of everything: the proxy heals what it can.
	s.nodes[0].do(t, "SCRIPT", "FLUSH")
	c.want("2", "EVALSHA", sha, "1", "n", "1")
	s.switchover(s.nodes[0], s.nodes[1])
	c.want("OK", "MULTI")
	c.want("QUEUED", "EVALSHA", sha, "1", "n", "1")
	c.want("*1 :3", "EXEC")
	s.nodes[1].signal(syscall.SIGKILL)
	s.failover()
	c.want("4", "EVALSHA", sha, "1", "n", "1")
	if got := c.do("EVALSHA", strings.Repeat("f", 40), "0"); !strings.HasPrefix(got, "-NOSCRIPT") {
		t.Fatal(got)
	}
}

// A script that its server has forgotten cannot be sent again once a later write has run. What was read in between has its reply.
func TestReadsBehindAForgottenScriptHaveTheirReplies(t *testing.T) {
	t.Parallel()
	for _, quorum := range []bool{false, true} {
		replicas := 0
		if quorum {
			replicas = 1
		}
		s := newShard(t, replicas, func(sp *spec, _ *Options) {
			if quorum {
				sp.Durability, sp.AckReplicas = topo.Quorum, 1
			}
		})
		c := s.client()
		sha := strings.TrimPrefix(c.do("SCRIPT", "LOAD", incrScript), "$40 ")
		var all []byte
		for _, words := range [][]string{{"EVALSHA", sha, "1", "n", "1"}, {"GET", "a"}, {"STRLEN", "a"}, {"SET", "a", "22"}, {"GET", "a"}} {
			all = resp.AppendCommand(all, words...)
		}
		waitFor(t, "the server has forgotten the script", func() bool { // the proxy may tell it once more
			c.want("OK", "SET", "a", "1")
			s.nodes[0].do(t, "SCRIPT", "FLUSH")
			if _, err := c.c.Write(all); err != nil {
				t.Fatal(err)
			}
			first := c.recv()
			for _, want := range []string{"1", "1", "OK", "22"} {
				if got := c.recv(); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			}
			return strings.HasPrefix(first, "-NOSCRIPT")
		})
	}
}

func TestWhoWantsNoRepliesIsNotToldOfAForgottenScript(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	sha := strings.TrimPrefix(c.do("SCRIPT", "LOAD", incrScript), "$40 ")
	var all []byte
	for _, words := range [][]string{{"CLIENT", "REPLY", "OFF"}, {"EVALSHA", sha, "1", "n", "1"}, {"GET", "a"}, {"SET", "a", "1"}, {"CLIENT", "REPLY", "ON"}, {"ECHO", "end"}} {
		all = resp.AppendCommand(all, words...)
	}
	for range 5 { // the proxy may tell the server once more
		s.nodes[0].do(t, "SCRIPT", "FLUSH")
		if _, err := c.c.Write(all); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"OK", "end"} {
			if got := c.recv(); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
	}
}

// What is sent again comes behind a MULTI or SUBSCRIBE that was sent with it only if that waits: on the client's own connection it
// would be queued, or refused.
func TestAForgottenScriptIsNotSentIntoATransactionOrASubscription(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	other := s.client()
	for i := range 10 {
		body := "return {ok='fine'}--" + strconv.Itoa(i)
		sum := sha1.Sum([]byte(body))
		for end, want := range map[string]string{"MULTI": "OK", "SUBSCRIBE c": "*3 $9 subscribe $1 c :1"} {
			c := s.client()
			c.want("OK", "WATCH", "w") // a connection of its own
			s.nodes[0].do(t, "SCRIPT", "FLUSH")
			all := resp.AppendCommand(nil, "EVALSHA", hex.EncodeToString(sum[:]), "0")
			all = resp.AppendCommand(all, "EVAL_RO", body, "0") // by which the proxy knows it in time to send it again
			all = resp.AppendCommand(all, strings.Fields(end)...)
			if _, err := c.c.Write(all); err != nil {
				t.Fatal(err)
			}
			if got := c.recv(); got != "fine" && !strings.HasPrefix(got, "-NOSCRIPT") {
				t.Errorf("in front of %s: EVALSHA got %q", end, got)
			}
			for _, want := range []string{"fine", want} {
				if got := c.recv(); got != want {
					t.Errorf("in front of %s: %q, want %q", end, got, want)
				}
			}
			c.c.Close()
		}
		other.want("OK", "WATCH", "w") // another's connection, or a new one
		other.want("OK", "MULTI")
		other.want("QUEUED", "ECHO", "x")
		other.want("*1 $1 x", "EXEC")
	}
}

func TestAScanThatSpansASwitchoverMissesNothing(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	c := s.client()
	const keys = 1000
	for i := range keys {
		c.want("OK", "SET", "k"+strconv.Itoa(i), "v")
		c.want("1", "HSET", "h", "f"+strconv.Itoa(i), "v")
	}
	scan := func(between func(), first string, more ...string) map[string]bool {
		seen := map[string]bool{}
		cursor := "0"
		for page := 0; ; page++ {
			words := append(strings.Fields(strings.ReplaceAll(first, "CURSOR", cursor)), more...)
			fields := strings.Fields(c.do(words...))
			cursor = fields[2]
			if n, err := strconv.ParseUint(cursor, 10, 64); err != nil || n >= 1<<53 {
				t.Fatalf("cursor %q", cursor)
			}
			for _, f := range fields[4:] {
				seen[f] = true
			}
			if cursor == "0" {
				return seen
			}
			if page == 30 {
				between()
			}
		}
	}
	from, to := s.nodes[0], s.nodes[1]
	swap := func() { s.switchover(from, to); from, to = to, from; s.inSync(from) }
	got := scan(swap, "SCAN CURSOR COUNT 10")
	hash := scan(swap, "HSCAN h CURSOR COUNT 10")
	plain := scan(func() {}, "SCAN CURSOR COUNT 100")
	for i := range keys {
		if k := "k" + strconv.Itoa(i); !got[k] || !plain[k] {
			t.Errorf("%s is missed", k)
		}
		if !hash["f"+strconv.Itoa(i)] {
			t.Errorf("field f%d is missed", i)
		}
	}
	// Inside a transaction the cursor is the server's own.
	cursor := strings.Fields(c.do("SCAN", "0", "COUNT", "10"))[2]
	c.want("OK", "MULTI")
	c.want("QUEUED", "SCAN", cursor, "COUNT", "10")
	if got := c.do("EXEC"); strings.Contains(got, "-") {
		t.Fatal(got)
	}
}

func TestSettingsAndUsersReachEveryNode(t *testing.T) {
	t.Parallel()
	s := newShard(t, 2, nil)
	c := s.client()
	c.want("OK", "CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
	c.want("OK", "ACL", "SETUSER", "bob", "on", ">secret", "~*", "+@all")
	for _, n := range s.nodes {
		waitFor(t, "the setting on "+string(n.id), func() bool {
			v, _ := n.try("CONFIG", "GET", "maxmemory-policy")
			u, _ := n.try("ACL", "USERS")
			return strings.Contains(v, "allkeys-lfu") && strings.Contains(u, "bob")
		})
	}
	if got := c.do("CONFIG", "SET", "maxmemory-policy", "nonsense"); !strings.HasPrefix(got, "-ERR") {
		t.Fatal(got)
	}
	c.want("1", "ACL", "DELUSER", "bob")
	for _, n := range s.nodes {
		waitFor(t, "the user is gone from "+string(n.id), func() bool { u, err := n.try("ACL", "USERS"); return err == nil && !strings.Contains(u, "bob") })
	}
}
