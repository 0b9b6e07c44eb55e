// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/reshard"
	"redoubt/internal/resp"
	"redoubt/internal/route"
)

func note(t *testing.T, l *listener, cmds ...[]string) {
	t.Helper()
	var b []byte
	for _, c := range cmds {
		b = resp.AppendCommand(b, c...)
	}
	r := bufio.NewReaderSize(bytes.NewReader(b), 64)
	before, cmd := l.at, command{}
	for range cmds {
		if err := cmd.read(r); err != nil {
			t.Fatal(err)
		}
		l.note(&cmd)
	}
	if got := l.at - before; got != int64(len(b)) {
		t.Fatalf("%d bytes were counted, there were %d", got, len(b))
	}
}

func TestTheListenerKnowsWhichKeysWereWritten(t *testing.T) {
	in := func(name string) string { return name + "{a}" }
	slot := slotOf([]byte("a"))
	long := strings.Repeat("x", keptOfArgument+1)
	for _, c := range []struct {
		cmd  []string
		want string // keys; all: everything
	}{
		{[]string{"SET", in("k"), "v"}, "k{a}"},
		{[]string{"SET", in("k"), long}, "k{a}"},
		{[]string{"set", "elsewhere", "v"}, ""},
		{[]string{"MSET", in("k"), long, in("l"), long}, "k{a} l{a}"},
		{[]string{"DEL", in("k"), in("l")}, "k{a} l{a}"},
		{[]string{"UNLINK", in("k")}, "k{a}"},
		{[]string{"RENAME", in("k"), in("l")}, "k{a} l{a}"},
		{[]string{"ZUNIONSTORE", in("d"), "2", in("k"), in("l")}, "d{a} k{a} l{a}"},
		{[]string{"SORT", in("k"), "BY", "nosort", "STORE", in("d")}, "d{a} k{a}"},
		{[]string{"XCLAIM", in("x"), "g", "c", "0", "1-1", "TIME", "1", "RETRYCOUNT", "1", "FORCE", "JUSTID", "LASTID", "1-1"}, "x{a}"},
		{[]string{"XGROUP", "SETID", in("x"), "g", "1-1", "ENTRIESREAD", "1"}, "x{a}"},
		{[]string{"PEXPIREAT", in("k"), "1"}, "k{a}"},
		{[]string{"RESTORE", in("k"), "0", long, "REPLACE"}, "k{a}"},
		{[]string{"PFADD", in("k"), "x"}, "k{a}"},
		{[]string{"SETRANGE", in("k"), "5", long}, "k{a}"},
		{[]string{"PING"}, ""},
		{[]string{"MULTI"}, ""},
		{[]string{"PUBLISH", "a", long}, ""},
		{[]string{"REPLCONF", "GETACK", "*"}, ""},
		{[]string{"FLUSHALL"}, "all"},
		{[]string{"FLUSHDB", "ASYNC"}, "all"},
		{[]string{"MODULE.WRITE", in("k")}, "all"},
		{[]string{"SET", "{a}" + long, "v"}, "all"},
	} {
		l := &listener{keys: keysBy(route.Builtin()), slot: slotOf, watch: map[int]bool{slot: true}, dirty: map[name]struct{}{}}
		note(t, l, c.cmd)
		names, all, err := l.take()
		var keys []string
		for _, n := range names {
			keys = append(keys, n.key)
		}
		slices.Sort(keys)
		got := strings.Join(keys, " ")
		if all {
			got = "all"
		}
		if err != nil || got != c.want {
			t.Errorf("%.40q: %q (%v), want %q", c.cmd, got, err, c.want)
		}
	}
}

func TestTheListenerForgetsBeyondItsBound(t *testing.T) {
	l := &listener{keys: keysBy(route.Builtin()), slot: func([]byte) int { return 1 }, watch: map[int]bool{1: true}, dirty: map[name]struct{}{}}
	for i := range dirtyKeysMax {
		l.dirty[name{key: fmt.Sprint(i)}] = struct{}{}
	}
	note(t, l, []string{"SET", "one more", "v"})
	if n, _, _ := l.debt(nil, 1); n < reshard.SlotCount || len(l.dirty) > 0 || !l.written(name{key: "any"}) {
		t.Fatalf("%d keys are to be copied, %d are remembered", n, len(l.dirty))
	}
}

func TestWhatIsNoStreamIsAnError(t *testing.T) {
	for _, s := range []string{"+OK\r\n", "*1\r\n:5\r\n", "*1\r\n$-1\r\n", "*x\r\n", "*2\r\n$1\r\na\r\n\n", "*99999999999\r\n"} {
		var c command
		if err := c.read(bufio.NewReader(strings.NewReader(s))); err == nil {
			t.Errorf("%q was taken for a command: %q", s, c.args)
		}
	}
	var c command
	if err := c.read(bufio.NewReader(strings.NewReader("\n\n*1\r\n$4\r\nPING\r\n"))); err != nil || c.size != 16 || string(c.args[0]) != "PING" {
		t.Errorf("empty lines in front: %v, %d bytes", err, c.size)
	}
}

func TestWhatTheTargetTakesStaysItsOwn(t *testing.T) {
	const a, b, c = "aa", "bb", "cc"
	for _, x := range []struct {
		source uint64
		heard  map[string]uint64
		want   bool
	}{
		{1, map[string]uint64{a: 1, b: 2, c: 3}, true},
		{5, map[string]uint64{a: 5, b: 2, c: 3}, true},
		{5, map[string]uint64{a: 1, b: 2, c: 3}, false}, // it has not heard of the source's epoch
		{5, map[string]uint64{a: 1, b: 6, c: 3}, false}, // nor whether it is above the next
		{5, map[string]uint64{a: 5, b: 5, c: 3}, false}, // a tie, of which one side will be raised
		{5, map[string]uint64{a: 4, b: 5, c: 3}, false},
		{1, map[string]uint64{a: 1, b: 3, c: 3}, true}, // a tie that the source has no part in
		{1, map[string]uint64{b: 3, c: 3}, false},
	} {
		s := &session{from: Shard{Primary: Node{ID: a}}, to: Shard{Primary: Node{ID: b}}, epoch: x.source, heard: view{me: b, epoch: x.heard}}
		if got := s.settled(); got != x.want {
			t.Errorf("source %d, the target knows %v: %v", x.source, x.heard, got)
		}
	}
}

// TestSlotsGoThereAndBackAtOnce: faster than gossip.
func TestSlotsGoThereAndBackAtOnce(t *testing.T) {
	unhurried(t)
	cl := newCluster(t, 3, 1, 0)
	g, s := newGate(func(slot int) string { return shardNames[slot*3/reshard.SlotCount] }), &shelf{}
	slots := []int{40, 41}
	w := newClients(t, cl, g, slots)
	w.perKey = 3
	w.fill(t, 2, 60)
	w.run(t, 2)
	m := cl.mover(cl.options(g, s))
	owner := map[int]string{40: "a", 41: "a"}
	for i := range 36 {
		slot, to := slots[i%2], []string{"b", "a", "c", "b", "c", "a"}[i%6]
		if owner[slot] == to {
			continue
		}
		mustRun(t, m, reshard.Move{Slots: []int{slot}, From: owner[slot], To: to})
		owner[slot] = to
	}
	w.compare(t)
}

// TestASlotIsNotTakenBackByAnOldClaim: while gossip is slow, two shards that take slots from each other would come to the same epoch, and the
// repair of that tie would give the slot to whoever has it no more.
func TestASlotIsNotTakenBackByAnOldClaim(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	w := newClients(t, c, g, []int{9042})
	w.fill(t, 2, 60)
	w.run(t, 2)
	o := c.options(g, s)
	held, waited := true, 0
	c.gossip.Lock()
	release := func() {
		if held {
			held = false
			c.gossip.Unlock()
		}
	}
	t.Cleanup(release)
	o.Before = func(step reshard.Step) error {
		if step.Rule == "epochs" {
			if waited++; waited == 20 { // 100 ms
				release()
			}
		}
		return nil
	}
	m := c.mover(o)
	mustRun(t, m, reshard.Move{Slots: []int{9042}, From: "b", To: "a"}) // it takes an epoch above both
	if waited > 0 {
		t.Fatalf("the first move waited %d times", waited)
	}
	mustRun(t, m, reshard.Move{Slots: []int{9042}, From: "a", To: "b"})
	if release(); waited < 20 {
		t.Errorf("the slot went back after %d looks, before gossip had told of the first move", waited)
	}
	for _, addr := range []string{c.primary("a").Addr, c.primary("b").Addr} { // and ties have been repaired
		eventually(t, "epochs that differ", func() bool {
			v, err := readView(c.try(addr, "CLUSTER", "NODES"), []int{9042})
			a, b := v.epoch[c.primary("a").ID], v.epoch[c.primary("b").ID]
			return err == nil && b > a && a >= 3
		})
	}
	w.compare(t)
}

// lateStream is a connection that is slow once a stream was asked for on it.
type lateStream struct {
	net.Conn
	asked atomic.Bool
}

func (l *lateStream) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("PSYNC")) {
		l.asked.Store(true)
	}
	return l.Conn.Write(b)
}

func (l *lateStream) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if l.asked.Load() {
		_ = rest(context.Background(), 20*time.Millisecond)
	}
	return n, err
}

func TestWhatWasWrittenLastIsCopiedHoweverLateItIsHeard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 1, 0)
	g, s := newGate(half), &shelf{}
	slots := slotsFrom(50, 2)
	w := newClients(t, c, g, slots)
	w.fill(t, 2, 200)
	w.run(t, 3)
	o := c.options(g, s)
	o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", addr)
		return &lateStream{Conn: nc}, err
	}
	from, to := "a", "b"
	for range 4 {
		mustRun(t, c.mover(o), reshard.Move{Slots: slots, From: from, To: to})
		from, to = to, from
	}
	w.compare(t)
}
