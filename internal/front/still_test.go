// SPDX-License-Identifier: Apache-2.0

package front

import (
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/route"
)

// turning is a front whose ring a test changes: first the keys are on shard 0, then on shard 1.
func turning(t *testing.T) (f *Front, change func()) {
	t.Helper()
	var now atomic.Pointer[Ring]
	f, _ = servers(t, 2, func(o *Options) {
		o.Place = nil
		o.Ring = now.Load
		now.Store(&Ring{Place: func([]byte) int { return 0 }, Live: []int{0}})
	})
	return f, func() { now.Store(&Ring{Gen: 1, Place: func([]byte) int { return 1 }, Live: []int{0, 1}}) }
}

// TestNothingIsGivenToAShardWhileARingChanges: a command that is said meanwhile waits, is carried out where the next ring has it, and what was said before is
// known to be answered.
func TestNothingIsGivenToAShardWhileARingChanges(t *testing.T) {
	t.Parallel()
	f, change := turning(t)
	w, s := f.client(t), f.client(t)
	if got := w.do("SET", "k", "1"); got != "+OK\r\n" {
		t.Fatal(got)
	}
	f.Still()
	if !until(5*time.Second, func() bool { return f.Busy(true) == 0 }) {
		t.Fatal("it does not become still")
	}
	w.send("SET", "k", "2")
	if got, err := w.try(50 * time.Millisecond); err == nil {
		t.Fatalf("it was answered: %q", got)
	}
	if n := f.Busy(true); n != 0 {
		t.Errorf("%d clients are busy, and all wait in front of a command", n)
	}
	change()
	f.Resume()
	w.want("+OK\r\n", "SET")
	if got := s.do("PROXY", "SHARDOF", "k"); got != bulk(f.shards()[1].Name) {
		t.Errorf("the key is on %q", got)
	}
	if got := s.do("DBSIZE"); got != ":2\r\n" {
		t.Errorf("DBSIZE %q: the key of before and that of behind are on two shards here", got)
	}
}

// TestACursorOfAnEarlierRingBeginsAnew: by it a key that has changed its shard might be missed.
func TestACursorOfAnEarlierRingBeginsAnew(t *testing.T) {
	t.Parallel()
	f, change := turning(t)
	w := f.client(t)
	if got := w.do("SET", "k", "1"); got != "+OK\r\n" {
		t.Fatal(got)
	}
	change()
	want := "*2\r\n" + bulk("65") + "*1\r\n" + bulk("k") // shard 0 is done: cursor 1, turned by 64
	if got := w.do("SCAN", "0"); got != want {
		t.Errorf("%q, expected %q", got, want)
	}
	if got := w.do("SCAN", "1"); got != want {
		t.Errorf("a cursor of before: %q, expected %q", got, want)
	}
	if got := w.do("SCAN", "65"); got != "*2\r\n"+bulk("0")+"*0\r\n" {
		t.Errorf("a cursor of this ring: %q", got)
	}
}

// TestATransactionGoesWhereItsKeysAre: unless it watched keys, which makes EXEC null.
func TestATransactionGoesWhereItsKeysAre(t *testing.T) {
	t.Parallel()
	f, change := turning(t)
	plain, watching := f.client(t), f.client(t)
	for _, do := range []struct {
		w    *wire
		args []string
		want string
	}{
		{plain, []string{"MULTI"}, "+OK\r\n"}, {plain, []string{"INCR", "n"}, "+QUEUED\r\n"},
		{watching, []string{"WATCH", "k"}, "+OK\r\n"}, {watching, []string{"MULTI"}, "+OK\r\n"}, {watching, []string{"INCR", "k"}, "+QUEUED\r\n"},
	} {
		if got := do.w.do(do.args...); got != do.want {
			t.Fatalf("%v: %q", do.args, got)
		}
	}
	f.Still()
	if !until(5*time.Second, func() bool { return f.Busy(true) == 0 }) {
		t.Fatal("it does not become still")
	}
	change()
	f.Resume()
	if got := plain.do("INCR", "m"); got != "+QUEUED\r\n" {
		t.Error(got)
	}
	if got := plain.do("EXEC"); got != "*2\r\n:1\r\n:1\r\n" {
		t.Errorf("EXEC: %q", got)
	}
	if got := watching.do("EXEC"); got != "*-1\r\n" {
		t.Errorf("EXEC of what was watched: %q", got)
	}
	if got := watching.do("MGET", "k", "n", "m"); got != "*3\r\n$-1\r\n$1\r\n1\r\n$1\r\n1\r\n" {
		t.Errorf("behind it: %q", got)
	}
}

// TestAPopThatWaitsIsAskedAgain: when its shard will not send it any more, it waits where its key is then.
func TestAPopThatWaitsIsAskedAgain(t *testing.T) {
	t.Parallel()
	var now atomic.Pointer[Ring]
	now.Store(&Ring{Place: func([]byte) int { return 0 }, Live: []int{0, 1}})
	f, a, b := fakes(t, func(o *Options) { o.Place, o.Ring = nil, now.Load })
	a.says(says("-" + route.KeysMove + "\r\n"))
	b.says(says("*2\r\n$1\r\nk\r\n$1\r\nv\r\n"))
	f.Still()
	w := f.client(t)
	w.send("BLPOP", "k", "0")
	if got, err := w.try(50 * time.Millisecond); err == nil {
		t.Fatalf("it was answered: %q", got)
	}
	f.Resume() // the first shard refuses it until the ring has changed
	if !until(5*time.Second, func() bool { return a.commands() != "" }) {
		t.Fatal("it was not asked")
	}
	now.Store(&Ring{Gen: 1, Place: func([]byte) int { return 1 }, Live: []int{0, 1}})
	if got := w.next(); got != "*2\r\n$1\r\nk\r\n$1\r\nv\r\n" {
		t.Errorf("%q", got)
	}
}
