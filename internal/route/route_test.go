// SPDX-License-Identifier: Apache-2.0

package route

import (
	"bytes"
	"strings"
	"testing"

	"redoubt/internal/resp"
)

func args(line string) [][]byte { return bytes.Fields([]byte(line)) }

func TestCommandsGetTheirClass(t *testing.T) {
	table := Builtin()
	for line, want := range map[string]Class{
		"get k": Read, "GET k": Read, "mGet a b": Read, "set k v": Write, "nosuch": Write, "eval x 0": Write, "publish a b": Write, "getex k": Write, "sort k": Write,
		"pfcount k": Write, "multi": Multi, "exec": Exec, "discard": Discard, "watch k": Watch, "unwatch": Unwatch, "blpop k 0": Block, "bzmpop 0 1 k min": Block,
		"xread streams s 0": Read, "xread block 0 streams s $": Block, "xread count 1 BLOCK 5 streams s $": Block, "xread count block streams block 0": Read,
		"xreadgroup group block c streams s >": Write, "xreadgroup group g c block 1 streams s >": Block, "wait 1 0": Wait, "subscribe a": Pubsub, "sunsubscribe": Pubsub,
		"monitor": Monitor, "client tracking on": Tracking, "client id": Local, "client": Read, "client pause 1": Local, "client unpause": Local, "hello 3": Local, "select 1": Local, "reset": Local,
		"info": Local, "info server": Read, "info server all": Local, "info redoubt": Local, "config get x": Read, "config set maxmemory 1": Write, "config rewrite": Forbidden, "config set maxmemory 1 REPLICAOF x": Forbidden,
		"replicaof no one": Forbidden, "slaveof no one": Forbidden, "shutdown": Forbidden, "failover": Forbidden, "psync ? -1": Forbidden, "cluster info": Local,
		"debug sleep 0": Write, "debug segfault": Forbidden, "debug change-repl-id": Forbidden, "debug": Forbidden, "script debug yes": Forbidden, "script load x": Write,
		"sentinel masters": Write, "post / http/1.1": Local, "host: a": Local, strings.Repeat("x", 100): Write, "role": Read, "ping": Read,
	} {
		v := table.Classify(args(line))
		if v.Class != want {
			t.Errorf("%s: class %d, want %d", line, v.Class, want)
		}
		if (v.Class == Forbidden) != (v.Why != "") {
			t.Errorf("%s: refusal %q", line, v.Why)
		}
		if v.Class == Read && !v.Row.Resendable() && v.Row.Name != "CLIENT" && v.Row.Name != "CONFIG" {
			t.Errorf("%s: a read that must not be sent again", line)
		}
	}
}

func TestAnUnknownCommandIsAWriteThatIsNeverSentTwice(t *testing.T) {
	if r := Builtin().Lookup([]byte("module.thing")); r.Resendable() || r.Class != Write {
		t.Fatalf("%+v", r)
	}
}

func TestTheBackendsTableTeachesNewCommands(t *testing.T) {
	b := resp.AppendArray(nil, 4)
	for _, c := range [][]string{{"m.get", "readonly"}, {"m.pop", "write", "blocking"}, {"m.set", "write"}, {"ping", "fast"}} {
		b = resp.AppendArray(b, 6)
		b = resp.AppendInt(resp.AppendBulk(b, c[0]), -2)
		b = resp.AppendArray(b, len(c)-1)
		for _, f := range c[1:] {
			b = resp.AppendSimple(b, f)
		}
		b = resp.AppendInt(resp.AppendInt(resp.AppendInt(b, 1), 1), 1)
	}
	table, ok := FromCommand(b)
	if !ok {
		t.Fatal("refused")
	}
	for name, want := range map[string]Class{"m.get": Read, "M.POP": Block, "m.set": Write, "ping": Read, "multi": Multi, "get": Read, "replicaof": Forbidden} {
		if got := table.Lookup([]byte(name)).Class; got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	if _, ok := FromCommand([]byte("-NOPERM no\r\n")); ok {
		t.Fatal("an error is no table")
	}
}

func TestRepliesTellWhatBecameOfTheCommand(t *testing.T) {
	for reply, want := range map[string]Fate{
		"+OK\r\n": Deliver, "-ERR x\r\n": Deliver, "-WRONGTYPE x\r\n": Deliver, "-OOM x\r\n": Deliver, "-MISCONF x\r\n": Deliver, "-BUSY x\r\n": Deliver, "$9\r\nREADONLY x\r\n": Deliver,
		"-READONLY You can't write against a read only replica.\r\n": NotExecuted, "-LOADING Redis is loading the dataset in memory\r\n": NotExecuted,
		"-MASTERDOWN Link with MASTER is down\r\n": NotExecuted, "-NOMASTERLINK x\r\n": NotExecuted, "-UNBLOCKED force unblock\r\n": NotExecuted,
		"-NOREPLICAS Not enough good replicas to write.\r\n": NotYet, "-READONLYX\r\n": Deliver, "-R\r\n": Deliver,
	} {
		if got := ClassifyReply([]byte(reply)); got != want {
			t.Errorf("%q: %d, want %d", reply, got, want)
		}
	}
}

func TestTheTimeoutsPlaceIsKnown(t *testing.T) {
	for line, want := range map[string]int{"BLPOP a b 5": 3, "BLMOVE a b left left 5": 5, "BLMPOP 5 1 a left": 1, "XREAD BLOCK 5 STREAMS a 0": 2, "WAIT 1 5": 2, "GET k": 0,
		"XREADGROUP GROUP g c COUNT 1 BLOCK 7 STREAMS a >": 7} {
		a := args(line)
		if got := BlockIndex(string(a[0]), a); got != want {
			t.Errorf("%s: %d, want %d", line, got, want)
		}
	}
}

func TestLookingUpAllocatesNothing(t *testing.T) {
	table, get, xread := Builtin(), args("get k"), args("xread block 0 streams a 0")
	reply := []byte("-NOREPLICAS Not enough good replicas to write.\r\n")
	if n := testing.AllocsPerRun(1000, func() {
		table.Classify(get)
		table.Classify(xread)
		ClassifyReply(reply)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestOnlyPlainCommandsGoIntoATransaction(t *testing.T) {
	check := func(table *Table) {
		t.Helper()
		for line, want := range map[string]bool{
			"incr k": true, "INCR": false, "incr k k": false, "set k v": true, "set k v px 5": true, "set k": false, "del a b c": true, "del": false, "get k": true, "lpush k v": true,
			"blpop k 0": false, "watch k": false, "multi": false, "exec": false, "eval x 0": false, "evalsha x 0": false, "fcall f 0": false, "subscribe c": false, "publish c m": false, "save": false, "flushall": false,
			"flushdb": false, "swapdb 0 1": false, "move k 1": false, "config set a b": false, "wait 1 0": false, "xreadgroup group g c streams s >": false, "migrate h p k 0 5": false, "restore k 0 x": false,
			"nosuch k": false, "scan 0": false, "shutdown": false, "select 1": false, "sort k": false, "xgroup create a b c": false,
		} {
			a := args(line)
			if got := table.Classify(a).Row.Plain(len(a)); got != want {
				t.Errorf("%s: %v, want %v", line, got, want)
			}
		}
	}
	check(Builtin())
	row := func(b []byte, name string, flags ...string) []byte {
		b = resp.AppendInt(resp.AppendBulk(resp.AppendArray(b, 6), name), 2)
		b = resp.AppendArray(b, len(flags))
		for _, f := range flags {
			b = resp.AppendSimple(b, f)
		}
		return resp.AppendInt(resp.AppendInt(resp.AppendInt(b, 1), 1), 1)
	}
	b := row(row(row(resp.AppendArray(nil, 3), "incr", "write", "denyoom"), "decr", "write", "no_multi"), "lpop", "write", "blocking")
	table, ok := FromCommand(b)
	if !ok {
		t.Fatal("refused")
	}
	check(table)
	for _, line := range []string{"decr k", "lpop k"} {
		if a := args(line); table.Classify(a).Row.Plain(len(a)) {
			t.Errorf("%s goes into a transaction although the server's flags speak against it", line)
		}
	}
}
