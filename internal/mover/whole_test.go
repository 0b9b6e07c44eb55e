// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/reshard"
	"redoubt/internal/route"
	"redoubt/test/ports"
)

// alone starts a server outside of any cluster.
func alone(t *testing.T, more ...string) *link {
	t.Helper()
	s := &server{port: ports.Free(t), dir: t.TempDir()}
	start(t, s, more...)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
	var l *link
	eventually(t, "the server answers", func() bool {
		var err error
		l, err = Endpoint{}.dial(t.Context(), addr, "")
		return err == nil
	})
	t.Cleanup(l.close)
	return l
}

func must(t *testing.T, l *link, args ...string) reply {
	t.Helper()
	rep, err := l.ask(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func wholeOf(src, tgt *link, change func(*WholeOptions)) *Whole {
	o := WholeOptions{
		Source: Source{At: Endpoint{Addrs: []string{src.addr}}, DB: -1}, Target: Endpoint{Addrs: []string{tgt.addr}}, After: ReadOnly,
		Keys: func(command []byte) func([][]byte, []int) ([]int, bool) {
			table, _ := route.FromCommand(command)
			return keysBy(table)
		},
	}
	if change != nil {
		change(&o)
	}
	return NewWhole(o)
}

// begun connects a migration whose first copy is done.
func begun(t *testing.T, w *Whole) *leg {
	t.Helper()
	ctx := t.Context()
	if err := w.connect(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.disconnect)
	if err := errors.Join(w.load(ctx), w.begin(ctx), w.startLeg(ctx, w.legs[0]), w.first(ctx)); err != nil {
		t.Fatal(err)
	}
	return w.legs[0]
}

func TestTheListenerOfAWholeServerKnowsDatabases(t *testing.T) {
	for _, c := range []struct {
		cmds [][]string
		want string
	}{
		{[][]string{{"SET", "a", "1"}}, "-1:a"},
		{[][]string{{"SELECT", "3"}, {"SET", "a", "1"}, {"DEL", "b"}}, "3:a 3:b"},
		{[][]string{{"SELECT", "3"}, {"MOVE", "a", "4"}}, "-1:a"},
		{[][]string{{"SELECT", "3"}, {"COPY", "a", "b", "DB", "4"}}, "-1:a -1:b"},
		{[][]string{{"SELECT", "3"}, {"SELECT", "x"}, {"SET", "a", "1"}}, "-1:a"},
		{[][]string{{"FUNCTION", "FLUSH"}}, "libraries"},
		{[][]string{{"SWAPDB", "0", "1"}}, "all"},
		{[][]string{{"FLUSHDB"}}, "all"},
	} {
		l := &listener{keys: keysBy(route.Builtin()), whole: true, db: -1, dirty: map[name]struct{}{}}
		note(t, l, c.cmds...)
		names, all, libs, _, _ := l.takeTo()
		var got []string
		for _, db := range []int{-1, 3} {
			for _, key := range []string{"a", "b"} {
				for _, n := range names {
					if n == (name{db, key}) {
						got = append(got, fmt.Sprintf("%d:%s", db, key))
					}
				}
			}
		}
		if all {
			got = append(got, "all")
		}
		if libs {
			got = append(got, "libraries")
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%q: %s, want %s", c.cmds, s, c.want)
		}
	}
	l := &listener{whole: true, dirty: map[name]struct{}{{-1, "a"}: {}}}
	if !l.written(name{5, "a"}) || l.written(name{5, "b"}) {
		t.Error("a key whose database is not known counts in all of them")
	}
}

func TestAPointIsGoneOnFromOnlyWhileTheBacklogReachesBack(t *testing.T) {
	info := map[string]string{"repl_backlog_active": "1", "master_replid": "new", "master_replid2": "old", "second_repl_offset": "501", "repl_backlog_first_byte_offset": "101", "master_repl_offset": "900"}
	for _, c := range []struct {
		p    point
		want bool
	}{
		{point{ReplID: "new", Offset: 900}, true},
		{point{ReplID: "new", Offset: 901}, false},
		{point{ReplID: "new", Offset: 100}, true},
		{point{ReplID: "new", Offset: 99}, false},
		{point{ReplID: "old", Offset: 500}, true},
		{point{ReplID: "old", Offset: 501}, false},
		{point{ReplID: "other", Offset: 500}, false},
		{point{}, false},
	} {
		if got := (&leg{info: info}).reaches(c.p); got != c.want {
			t.Errorf("%+v: %v", c.p, got)
		}
	}
	s := state{Points: []point{{Addr: "a:1", ReplID: "x", Offset: 1}, {Addr: "b:1", ReplID: "y", Offset: 2}}}
	if p, ok := s.find("c:1", "z", "y"); !ok || p.Offset != 2 {
		t.Errorf("by its earlier history: %+v", p)
	}
	if p, ok := s.find("a:1", "z", "y"); !ok || p.Offset != 1 {
		t.Errorf("by its address: %+v", p)
	}
	if _, ok := s.find("c:1", "z", ""); ok {
		t.Error("a server that nobody knows")
	}
}

// TestADifferenceIsFound: a comparison that could not fail would say nothing.
func TestADifferenceIsFound(t *testing.T) {
	src, tgt := alone(t), alone(t)
	for _, cmd := range [][]string{
		{"SET", "s", "v"}, {"SET", "t", "v", "PX", "1000000"}, {"RPUSH", "l", "a", "b"}, {"SADD", "e", "a", "b"}, {"ZADD", "z", "1", "a"},
		{"HSET", "h", "f", "v"}, {"XADD", "x", "1-1", "f", "v"}, {"SETRANGE", "big", "400000", "end"},
	} {
		must(t, src, cmd...)
	}
	w := wholeOf(src, tgt, func(o *WholeOptions) { o.Verify = -1 })
	g := begun(t, w)
	compare := func() error { return (&verifier{leg: g, began: time.Now()}).run(t.Context()) }
	if err := compare(); err != nil {
		t.Fatalf("right behind the copy: %v", err)
	}
	for _, c := range [][2][]string{
		{{"SET", "s", "w"}, {"SET", "s", "v"}},
		{{"PERSIST", "t"}, {"PEXPIRE", "t", "1000000"}},
		{{"PEXPIRE", "s", "1000000"}, {"PERSIST", "s"}},
		{{"LSET", "l", "0", "c"}, {"LSET", "l", "0", "a"}},
		{{"SREM", "e", "b"}, {"SADD", "e", "b"}},
		{{"ZADD", "z", "2", "a"}, {"ZADD", "z", "1", "a"}},
		{{"HSET", "h", "g", "v"}, {"HDEL", "h", "g"}},
		{{"XADD", "x", "1-2", "f", "v"}, nil},
		{{"SETRANGE", "big", "7", "x"}, {"SETRANGE", "big", "7", "\x00"}},
		{{"SET", "more", "x"}, {"DEL", "more"}},
		{{"DEL", "h"}, {"HSET", "h", "f", "v"}},
	} {
		must(t, tgt, c[0]...)
		if err := compare(); !errors.Is(err, ErrDiffer) {
			t.Errorf("after %q: %v", c[0], err)
		}
		if c[1] == nil {
			must(t, tgt, "COPY", "x", "y")
			must(t, tgt, "DEL", "x", "y")
			if err := g.c.copyKeys(t.Context(), pageOf([]string{"x"}), reshard.Rate{}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		must(t, tgt, c[1]...)
	}
	if err := compare(); err != nil {
		t.Errorf("in the end: %v", err)
	}
}

// TestEndsOfLifeAreCarriedWhenTheyAreToldRelatively: where ends of life are told by how far away they are, they arrive all the same, in pieces, too.
func TestEndsOfLifeAreCarriedWhenTheyAreToldRelatively(t *testing.T) {
	src, tgt := alone(t), alone(t)
	must(t, src, "SET", "small", "v", "PX", "500000")
	must(t, src, "SET", "never", "v")
	must(t, src, "SETRANGE", "large", "600000", "end")
	must(t, src, "PEXPIRE", "large", "700000")
	w := wholeOf(src, tgt, nil)
	g := begun(t, w)
	g.c.relative = true
	must(t, tgt, "FLUSHALL")
	if err := g.c.copyKeys(t.Context(), pageOf([]string{"small", "never", "large"}), reshard.Rate{}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]int64{"small": 500_000, "large": 700_000, "never": -1} {
		if got := must(t, tgt, "PTTL", key).num; got != want && (want < 0 || got > want || got < want-60_000) {
			t.Errorf("%s ends in %d ms, not %d", key, got, want)
		}
	}
}

// TestACutOverThatTakesTooLongGivesWritersBack: the source is as it was, with its own settings, and takes writes.
func TestACutOverThatTakesTooLongGivesWritersBack(t *testing.T) {
	src, tgt := alone(t, "--min-replicas-max-lag", "0"), alone(t)
	must(t, src, "SET", "k", "v")
	w := wholeOf(src, tgt, func(o *WholeOptions) { o.Pause = 300 * time.Millisecond })
	g := begun(t, w)
	if err := g.store(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, tgt, "CLIENT", "PAUSE", "100000", "ALL") // the target answers no more
	must(t, src, "SET", "k", "w")
	var out Outcome
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	soft, end := context.WithTimeout(ctx, w.o.Pause)
	defer end()
	if err := g.findDoors(ctx); err != nil {
		t.Fatal(err)
	}
	err := w.closing(soft, &out)
	if err == nil {
		t.Fatal("it is over, and the target has answered nothing")
	}
	if err := w.reopen(ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	must(t, src, "SET", "k", "x")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a writer waited for %s", took)
	}
	if rep := must(t, src, "CONFIG", "GET", "min-replicas-max-lag"); string(rep.items[1].body) != "0" {
		t.Errorf("the source's setting is %s", rep.items[1].body)
	}
}

// TestAnotherProcessGoesOn: two that work at one migration do not go on both.
func TestAnotherProcessGoesOn(t *testing.T) {
	src, tgt := alone(t), alone(t)
	must(t, src, "SET", "k", "v")
	first := begun(t, wholeOf(src, tgt, nil))
	second := begun(t, wholeOf(src, tgt, nil))
	if err := first.store(t.Context()); !errors.Is(err, errTaken) {
		t.Errorf("the first one: %v", err)
	}
	if err := first.load(t.Context()); !errors.Is(err, errTaken) {
		t.Errorf("the first one, trying again: %v", err)
	}
	if err := second.store(t.Context()); err != nil {
		t.Errorf("the second one: %v", err)
	}
	if _, err := wholeOf(tgt, tgt, nil).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "in the middle of a migration") {
		t.Errorf("from elsewhere: %v", err)
	}
}

// TestEverythingIsFlushedInAMigration: what the source has no more goes from the target, too.
func TestEverythingIsFlushedInAMigration(t *testing.T) {
	src, tgt := alone(t), alone(t)
	for i := range 3000 {
		src.add("SET", fmt.Sprint("old:", i), "v")
	}
	if _, err := src.must(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := begun(t, wholeOf(src, tgt, nil))
	must(t, src, "FLUSHALL")
	must(t, src, "SET", "new", "v")
	end, err := offsetOf(t.Context(), g.src)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.stream.readTo(t.Context(), end), g.catchUp(t.Context(), reshard.Rate{})); err != nil {
		t.Fatal(err)
	}
	if n := must(t, tgt, "DBSIZE").num; n != 2 { // with the state
		t.Errorf("the target has %d keys", n)
	}
}

// TestALayoutIsThatOfSlots: a failover changes nothing about it, a slot that moves does, and one on its way is an error.
func TestALayoutIsThatOfSlots(t *testing.T) {
	node := func(id, flags, slots string) string {
		return id + " 127.0.0.1:7000@17000 " + flags + " - 0 0 1 connected " + slots + "\n"
	}
	before, err := layoutOf(node("a", "myself,master", "0-99 200") + node("b", "master", "100-199"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		same bool
	}{
		{node("c", "master", "100-199") + node("a", "master", "0-99 200") + node("b", "myself,slave", ""), true},
		{node("a", "myself,master", "0-99") + node("b", "master", "100-200"), false},
	} {
		if now, err := layoutOf(c.text); err != nil || (now == before) != c.same {
			t.Errorf("%q, before it was %q (%v)", now, before, err)
		}
	}
	if _, err := layoutOf(node("a", "myself,master", "0-99 [99->-b]")); err == nil {
		t.Error("a slot on its way is taken")
	}
}

func TestIdsBehindIds(t *testing.T) {
	for id, want := range map[string]string{"5-1": "5-2", "5-18446744073709551615": "(5-18446744073709551615", "7-9": "7-10"} {
		if got := after(id); got != want {
			t.Errorf("behind %s comes %s, want %s", id, got, want)
		}
	}
	if a := nodeAddr(":6379@16379", "10.0.0.1:7000"); a != "10.0.0.1:6379" {
		t.Errorf("a node without an address of its own: %s", a)
	}
	if a := nodeAddr("10.0.0.2:6379@16379,host", "10.0.0.1:7000"); a != "10.0.0.2:6379" {
		t.Errorf("%s", a)
	}
}

// TestAMigrationThatLeavesTheSource: from the beginning to the end, into a server; the source takes writes again.
func TestAMigrationThatLeavesTheSource(t *testing.T) {
	src, tgt := alone(t), alone(t)
	for i := range 2500 {
		src.add("SET", fmt.Sprint("k:", i), "v")
	}
	src.add("SELECT", "7")
	src.add("RPUSH", "list", "a", "b")
	src.add("SELECT", "0")
	if _, err := src.must(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, tgt, "SET", "theirs", "v")
	if _, err := wholeOf(src, tgt, nil).Check(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("a target with keys: %v", err)
	}
	change := func(o *WholeOptions) { o.CutOver, o.After, o.Verify, o.Overwrite = true, Leave, -1, true }
	p, err := wholeOf(src, tgt, change).Check(t.Context())
	if err != nil || len(p.Servers) != 1 || p.Servers[0].Keys[0] != 2500 || p.Servers[0].Keys[7] != 1 || p.Has != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	out, err := wholeOf(src, tgt, change).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if out.Keys < 2501 || out.Verified.Keys != 2501 || out.CutOver <= 0 || len(out.Reopen) > 0 {
		t.Errorf("%+v", out)
	}
	if n := must(t, tgt, "DBSIZE").num; n != 2500 {
		t.Errorf("the target has %d keys", n)
	}
	must(t, tgt, "SELECT", "7")
	if n := must(t, tgt, "LLEN", "list").num; n != 2 {
		t.Errorf("a list in database 7 has %d elements", n)
	}
	began := time.Now()
	must(t, src, "SET", "later", "v")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a writer waited for %s", took)
	}
}
