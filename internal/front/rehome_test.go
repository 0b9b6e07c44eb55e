// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestClientsAreLedAwayFromAShardThatIsRemoved: the first shard goes, when it has no keys; those who listen there go on listening, what concerns
// all shards concerns the others, and what concerns none is answered by another one.
func TestClientsAreLedAwayFromAShardThatIsRemoved(t *testing.T) {
	t.Parallel()
	var first atomic.Int32 // the shard of names that begin with a
	f, addrs := servers(t, 3, func(o *Options) {
		o.Place = func(key []byte) int {
			if key[0] == 'a' {
				return int(first.Load())
			}
			return 1 + int(key[0])%2
		}
	})
	w, sub, tracks := f.client(t), f.client(t), f.client(t)
	w.want("+OK\r\n", "SET b 1")
	w.want("+OK\r\n", "SET c 1")
	w.want(":2\r\n", "DBSIZE")
	sub.want("*3\r\n$9\r\nsubscribe\r\n"+bulk("ab")+":1\r\n", "SUBSCRIBE ab")
	tracks.do("HELLO", "3")
	tracks.want("+OK\r\n", "CLIENT TRACKING ON")
	tracks.want("_\r\n", "GET anybody")

	first.Store(2)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if left := f.RemoveShard(ctx, "s0"); left != 0 {
		t.Fatalf("%d clients hold on to it", left)
	}
	if got := f.RemoveShard(ctx, "nobody"); got != 0 {
		t.Errorf("a shard that was never there: %d", got)
	}
	own := dial(t, addrs[0])
	if !until(5*time.Second, func() bool { return strings.Count(own.do("CLIENT", "LIST"), " addr=") == 2 }) { // this one, and that which asked for the table
		t.Errorf("connections to it:\n%s", own.do("CLIENT", "LIST"))
	}
	if !until(5*time.Second, func() bool { return w.do("PUBLISH", "ab", "x") == ":1\r\n" }) {
		t.Error("nobody listens any more")
	}
	if got := sub.next(); got != "*3\r\n$7\r\nmessage\r\n"+bulk("ab")+bulk("x") {
		t.Errorf("the listener got %q", got)
	}
	sub.want("*3\r\n$11\r\nunsubscribe\r\n"+bulk("ab")+":0\r\n", "UNSUBSCRIBE ab")
	w.want(":0\r\n", "PUBLISH ab x")
	w.want(":2\r\n", "DBSIZE")
	w.want("+OK\r\n", "CONFIG SET timeout 0")
	w.want("$2\r\ns2\r\n", "PROXY SHARDOF a")
	w.want("$1\r\nb\r\n", "ECHO b")
	seen := ""
	for cursor := "0"; ; {
		f := w.do("SCAN", cursor)
		seen += f
		if cursor = strings.Split(f, "\r\n")[2]; cursor == "0" {
			break
		}
	}
	if !strings.Contains(seen, bulk("b")) || !strings.Contains(seen, bulk("c")) {
		t.Errorf("SCAN: %q", seen)
	}
	tracks.want("_\r\n", "GET anybody")
	if got := f.client(t).do("TIME"); !strings.HasPrefix(got, "*2") {
		t.Errorf("a new client: %q", got)
	}
	if strings.Count(own.do("CLIENT", "LIST"), " addr=") != 2 {
		t.Error("clients come to a shard that was removed")
	}
}
