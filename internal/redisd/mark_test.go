// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// mark writes a marker after a look, as an agent does, and returns what the data hold.
func mark(t *testing.T, n *Node, m topo.Mark) string {
	t.Helper()
	see(t, n, "an answering primary", func(o redis.Observation) bool { return isUp(o) && o.Role == topo.RolePrimary })
	if err := n.Mark(within(t, 2*time.Second), m); err != nil {
		t.Fatal(err)
	}
	c := client(t, n.addr, "")
	must(t, c, "SELECT", markDB)
	return must(t, c, "EVAL", "return redis.call('get', KEYS[1]) or ''", "1", topo.MarkKey).text
}

func TestAMarkerIsWrittenOnceForWhatWasWritten(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	c := client(t, n.addr, "")
	if got := mark(t, n, topo.Mark{Epoch: 3, Offset: 5}); got != "3 5" {
		t.Fatalf("a tenure begins with marker %q", got)
	}
	if got := mark(t, n, topo.Mark{Epoch: 3, Offset: 90}); got != "3 5" {
		t.Fatalf("nothing was written, and the marker became %q", got)
	}
	must(t, c, "SET", "k", "v")
	if got := mark(t, n, topo.Mark{Epoch: 3, Offset: 91}); got != "3 91" {
		t.Fatalf("after a write the marker is %q", got)
	}
	if got := mark(t, n, topo.Mark{Epoch: 4, Offset: 0}); got != "4 0" {
		t.Fatalf("another tenure has marker %q", got)
	}
	must(t, c, "FLUSHALL")
	if got := mark(t, n, topo.Mark{Epoch: 4, Offset: 200}); got != "4 200" {
		t.Fatalf("after FLUSHALL the marker is %q", got)
	}
	must(t, c, "SET", "k", "v")
	must(t, c, "CONFIG", "SET", "min-replicas-to-write", "1")
	if got := mark(t, n, topo.Mark{Epoch: 4, Offset: 300}); got != "4 200" {
		t.Fatalf("without replicas the marker is %q", got)
	}
	must(t, c, "CONFIG", "SET", "min-replicas-to-write", "0")
	if got := mark(t, n, topo.Mark{Epoch: 4, Offset: 301}); got != "4 301" {
		t.Fatalf("a refused marker was not written later: %q", got)
	}
}

func TestTheMarkerOfAFrozenServerIsReadFromItsData(t *testing.T) {
	t.Parallel()
	for _, persistence := range []Persistence{PersistAOF, PersistRDB, PersistNone} {
		t.Run(string(persistence), func(t *testing.T) {
			t.Parallel()
			n := primary(t, func(o *Options) { keepsAll(o); o.Persistence = persistence })
			c := client(t, n.addr, "")
			must(t, c, "MSET", "a", "1", "b", "2")
			mark(t, n, topo.Mark{Epoch: 3, Offset: 77})
			if persistence == PersistRDB {
				must(t, c, "SAVE")
			}
			must(t, c, "SET", "c", "3")
			if o := see(t, n, "an answer", isUp); o.Mark != nil {
				t.Fatalf("a primary shows marker %v, which may be old by now", o.Mark)
			}
			if err := n.Kill(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			see(t, n, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
			if err := n.Restart(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			o := see(t, n, "a frozen server whose marker was read", func(o redis.Observation) bool { return isUp(o) && o.Frozen && o.Mark != nil })
			want, keys := topo.Mark{Epoch: 3, Offset: 77}, int64(3)
			switch persistence {
			case PersistRDB:
				keys = 2
			case PersistNone:
				want, keys = topo.Mark{}, 0
			}
			if *o.Mark != want || o.Keys != keys {
				t.Fatalf("marker %v, %d keys", o.Mark, o.Keys)
			}
		})
	}
}

// What SWAPDB left behind is older than the data: no marker is better than a wrong one.
func TestAMarkerOutOfItsPlaceSaysNothing(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	c := client(t, n.addr, "")
	must(t, c, "SET", "a", "1")
	mark(t, n, topo.Mark{Epoch: 3, Offset: 77})
	must(t, c, "SWAPDB", markDB, "1")
	must(t, c, "SET", "b", "1")
	mark(t, n, topo.Mark{Epoch: 3, Offset: 99})
	if err := n.Fence(within(t, 2*time.Second)); err != nil {
		t.Fatal(err)
	}
	o := see(t, n, "the marker was read", func(o redis.Observation) bool { return isUp(o) && o.Frozen && o.Mark != nil })
	if (*o.Mark != topo.Mark{}) {
		t.Fatalf("two databases have a marker, and %v is believed", o.Mark)
	}
}

// A server with fewer databases has its marker in the first.
func TestAMarkerOfAServerWithOneDatabase(t *testing.T) {
	t.Parallel()
	n := primary(t, func(o *Options) { o.Directives = map[string]string{"databases": "1"} })
	c := client(t, n.addr, "")
	must(t, c, "SET", "a", "1")
	see(t, n, "an answering primary", func(o redis.Observation) bool { return isUp(o) && o.Role == topo.RolePrimary })
	if err := n.Mark(within(t, 2*time.Second), topo.Mark{Epoch: 3, Offset: 77}); err != nil {
		t.Fatal(err)
	}
	if err := n.Fence(within(t, 2*time.Second)); err != nil {
		t.Fatal(err)
	}
	o := see(t, n, "the marker was read", func(o redis.Observation) bool { return isUp(o) && o.Frozen && o.Mark != nil })
	if (*o.Mark != topo.Mark{Epoch: 3, Offset: 77}) || o.Keys != 1 {
		t.Fatalf("marker %v, %d keys", o.Mark, o.Keys)
	}
}
