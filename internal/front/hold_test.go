// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"testing"
	"time"

	"redoubt/internal/slots"
)

// TestCommandsAboutHeldSlotsWait: those, and no others, in their order; and what was under way is waited for.
func TestCommandsAboutHeldSlotsWait(t *testing.T) {
	t.Parallel()
	f, _ := clusterFront(t, 2)
	w, other := dial(t, f.Addr().String()), dial(t, f.Addr().String())
	key, free := "{a}1", "{b}1"
	if got := w.do("SET", key, "1"); got != "+OK\r\n" {
		t.Fatal(got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if left := f.Hold(ctx, []int{slots.Of([]byte(key))}, time.Minute); left != 0 {
		t.Fatalf("%d commands are under way", left)
	}
	answers := make(chan string, 3)
	go func() {
		answers <- w.do("INCR", key)
		answers <- w.do("MGET", free, key)
		answers <- w.do("FLUSHALL")
	}()
	for range 20 {
		if got := other.do("SET", free, "x"); got != "+OK\r\n" {
			t.Fatal(got)
		}
	}
	select {
	case got := <-answers:
		t.Fatalf("a command about a held slot was answered: %q", got)
	case <-time.After(100 * time.Millisecond):
	}
	f.Release()
	for _, want := range []string{":2\r\n", "*2\r\n$1\r\nx\r\n$1\r\n2\r\n", "+OK\r\n"} {
		if got := <-answers; got != want {
			t.Errorf("%q, expected %q", got, want)
		}
	}
	for i := range f.holds.flying {
		if n := f.holds.flying[i].Load(); n != 0 {
			t.Errorf("%d commands are counted as under way (%d)", n, i)
		}
	}
}

// TestAHoldEndsByItself: who asked for it may be gone.
func TestAHoldEndsByItself(t *testing.T) {
	t.Parallel()
	f, _ := clusterFront(t, 1)
	w := dial(t, f.Addr().String())
	began := time.Now()
	f.Hold(t.Context(), []int{slots.Of([]byte("k"))}, 50*time.Millisecond)
	if got := w.do("SET", "k", "1"); got != "+OK\r\n" || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%q after %s", got, time.Since(began))
	}
}
