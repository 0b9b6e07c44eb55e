// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/redis"
)

// covering is one row of SAFETY A4's table: a client's command whose reply shows a write that a replica may not have yet.
type covering struct {
	name  string
	other [][]string // by another client, before the command
	push  []string   // by another client, once the command blocks
	do    [][]string // by the client; the last one is the command
}

func coverings() []covering {
	fresh := [][]string{{"SET", "k", "fresh"}}
	c := func(words ...string) [][]string {
		var out [][]string
		for _, w := range words {
			out = append(out, strings.Fields(w))
		}
		return out
	}
	return []covering{
		{name: "SET", do: c("SET k v")},
		{name: "MULTI with a write", do: c("MULTI", "SET k v", "EXEC")},
		{name: "EVAL that writes", do: [][]string{{"EVAL", "return redis.call('set','k','v')", "0"}}},
		{name: "SPOP", other: c("SADD s a b c"), do: c("SPOP s")},
		{name: "GETEX", other: fresh, do: c("GETEX k EX 100")},
		{name: "GETDEL", other: fresh, do: c("GETDEL k")},
		{name: "FLUSHALL", other: fresh, do: c("FLUSHALL")},
		{name: "PUBLISH", do: c("PUBLISH ch m")},
		{name: "FUNCTION LOAD", do: [][]string{{"FUNCTION", "LOAD", "REPLACE", "#!lua name=l\nredis.register_function('f', function() return 1 end)"}}},
		{name: "GET of another client's write", other: fresh, do: c("GET k")},
		{name: "EVAL that reads it", other: fresh, do: [][]string{{"EVAL", "return redis.call('get','k')", "0"}}},
		{name: "EXEC that reads it", other: fresh, do: c("MULTI", "GET k", "EXEC")},
		{name: "SETNX that failed because of it", other: fresh, do: c("SETNX k w")},
		{name: "DEL of what was just deleted", other: c("SET k v", "DEL k"), do: c("DEL k")},
		{name: "BLPOP served by a push", push: c("RPUSH l a")[0], do: c("BLPOP l 5")},
		{name: "BLMOVE served by a push", push: c("RPUSH l a")[0], do: c("BLMOVE l m LEFT LEFT 5")},
		{name: "BZPOPMIN served by an add", push: c("ZADD z 1 a")[0], do: c("BZPOPMIN z 5")},
		{name: "XREAD BLOCK served by an add", push: c("XADD x * f v")[0], do: c("XREAD BLOCK 5000 STREAMS x $")},
		{name: "XREADGROUP BLOCK served by an add", other: c("XGROUP CREATE x g $ MKSTREAM"), push: c("XADD x * f v")[0],
			do: c("XREADGROUP GROUP g c BLOCK 5000 STREAMS x >")},
	}
}

// TestTheMarkerCoversEveryReply runs the table of SAFETY A4 on the server that is installed: whatever a client was
// answered, [marker][WAIT 1] behind it must not be satisfied by a replica that has stopped before. A bare WAIT may be; that
// is the reason for the marker, and it is logged.
func TestTheMarkerCoversEveryReply(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	primary := s.nodes[0]
	uncovered := 0
	for _, row := range coverings() {
		if strings.HasPrefix(row.name, "BLPOP") {
			for range 5 { // what the primary itself sends to its replicas moves the offset, too, now and then
				if acks := row.stopped(t, s, true); acks != "0" {
					uncovered++
					t.Logf("%s: a bare WAIT does not cover it (redis %s)", row.name, primary.info("redis_version"))
					break
				}
			}
		}
		if acks := row.stopped(t, s, false); acks != "0" {
			t.Errorf("%s: [marker][WAIT 1] counted %s replicas, none had it", row.name, acks)
		}
	}
	if uncovered == 0 {
		t.Error("a bare WAIT covered everything: then this test cannot see what it looks for")
	}
}

// stopped runs the row while the replica is stopped, which has everything from before.
func (row covering) stopped(t *testing.T, s *shard, bare bool) string {
	t.Helper()
	primary, replica := s.nodes[0], s.nodes[1]
	c, other := dialWire(t, primary.addr), dialWire(t, primary.addr)
	other.do("FLUSHALL")
	poke := dialWire(t, replica.addr)
	waitFor(t, "the primary knows that the replica has everything", func() bool {
		poke.send("REPLCONF", "GETACK", "*") // has no reply; by itself it acknowledges once a second
		text := primary.do(t, "INFO", "replication")
		_, slave, _ := strings.Cut(infoField([]byte(text), "slave0"), ",offset=")
		offset, _, _ := strings.Cut(slave, ",")
		return offset == infoField([]byte(text), "master_repl_offset")
	})
	replica.signal(syscall.SIGSTOP)
	defer replica.signal(syscall.SIGCONT)
	return row.run(s, c, other, bare)
}

// run returns how many replicas the WAIT counted.
func (row covering) run(s *shard, c, other *wire, bare bool) string {
	for _, args := range row.other {
		other.do(args...)
	}
	for _, args := range row.do {
		c.send(args...)
	}
	if row.push != nil {
		waitFor(s.t, "the command blocks", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
		other.do(row.push...)
	}
	last := ""
	for range row.do {
		last = c.recv()
	}
	if strings.HasPrefix(last, "-") {
		s.t.Fatalf("%s: %s", row.name, last)
	}
	if !bare {
		c.do(redis.Marker(false)...)
	}
	return c.do("WAIT", "1", fmt.Sprint((60 * time.Millisecond).Milliseconds()))
}
