// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// offsetOf reads how far a primary's stream is.
func offsetOf(t *testing.T, c *conn) int64 {
	t.Helper()
	return parseInfo(must(t, c, "INFO", "replication").text).num("master_repl_offset")
}

// TestTheMarkerOfAClustersServerMovesItsOffset: it touches no key and adds no function, and the WAIT behind it is not satisfied by a
// replica that has not got it, also where nothing was written before; PUBLISH, the marker of a server by itself, moves nothing here.
func TestTheMarkerOfAClustersServerMovesItsOffset(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	c := client(t, p.addr, "")
	put(t, p, "k", "v")
	must(t, c, "CONFIG", "SET", pingPeriod, "3600")
	caughtUp(t, r, p)
	mark := redis.Marker(true)
	before := offsetOf(t, c)
	must(t, c, redis.Marker(false)...)
	if now := offsetOf(t, c); now != before {
		t.Errorf("PUBLISH moved the offset of a cluster's server by %d: it would do as the marker", now-before)
	}
	must(t, c, mark...)
	must(t, c, mark...)
	if now := offsetOf(t, c); now < before+2*40 || now > before+200 {
		t.Errorf("two markers moved the offset by %d", now-before)
	}
	if got := must(t, c, "WAIT", "1", "2000").num; got != 1 {
		t.Errorf("%d replicas have the marker", got)
	}
	for args, want := range map[string]string{"FUNCTION LIST": "", "DBSIZE": "1"} {
		rep := must(t, c, strings.Fields(args)...)
		if len(rep.items) > 0 || want != "" && rep.num != 1 {
			t.Errorf("%s after markers: %+v", args, rep)
		}
	}
	caughtUp(t, r, p)
	stop(t, r)
	put(t, p, "k", "fresh")
	if got := must(t, c, "GET", "k").text; got != "fresh" {
		t.Fatalf("read %q", got)
	}
	must(t, c, mark...)
	if got := must(t, c, "WAIT", "1", "100").num; got != 0 {
		t.Errorf("%d replicas that do not run acknowledge", got)
	}
	cont(t, r)
	if got := must(t, c, "WAIT", "1", "3000").num; got != 1 {
		t.Errorf("%d replicas acknowledge later", got)
	}
}

// TestAFullServerOfAClusterTakesTheOtherMarker: a server that is out of memory refuses the usual one, and takes what frees memory.
func TestAFullServerOfAClusterTakesTheOtherMarker(t *testing.T) {
	t.Parallel()
	f := cluster(t, 1, 2, nil)
	p, r := f.shards[0][0], f.shards[0][1]
	c := client(t, p.addr, "")
	put(t, p, "k", "v")
	caughtUp(t, r, p)
	must(t, c, "CONFIG", "SET", "maxmemory", "1")
	reps, err := c.do(within(t, time.Second), redis.Marker(true))
	if err != nil || !isCode(reps[0].err(), "OOM") {
		t.Fatalf("the usual marker: %+v, %v", reps, err)
	}
	before := offsetOf(t, c)
	if got := must(t, c, redis.FullMarker("x")...).text; got != "OK" {
		t.Errorf("the other marker: %q", got)
	}
	if now := offsetOf(t, c); now <= before {
		t.Error("it did not move the offset")
	}
	if got := must(t, c, "WAIT", "1", "2000").num; got != 1 {
		t.Errorf("%d replicas acknowledge", got)
	}
	if n := must(t, c, "DBSIZE").num; n != 1 {
		t.Errorf("%d keys", n)
	}
}

// TestFrozenReplicasOfAClusterAcknowledgeNothing: of two replicas one is frozen; the primary writes on, and is acknowledged by the
// other one alone, and by nobody when that is frozen, too, although it knows nothing of any of this.
func TestFrozenReplicasOfAClusterAcknowledgeNothing(t *testing.T) {
	t.Parallel()
	f := cluster(t, 2, 3, nil)
	p := f.shards[0][0]
	c := client(t, p.addr, "")
	acks := func(want int64) {
		t.Helper()
		put(t, p, f.keys[0], "x")
		must(t, c, redis.Marker(true)...)
		must(t, c, "WAIT", strconv.FormatInt(want, 10), "5000")
		if got := must(t, c, "WAIT", "2", strconv.FormatInt(1+150*(2-want), 10)).num; got != want {
			t.Errorf("%d replicas acknowledge, expected %d", got, want)
		}
	}
	for _, r := range f.shards[0][1:] {
		caughtUp(t, r, p)
	}
	acks(2)
	for i, r := range f.shards[0][1:] {
		if err := r.Freeze(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		acks(int64(1 - i))
	}
	stays(t, f.shards[0][1], 1200*time.Millisecond, "frozen", func(o redis.Observation) bool { return o.Frozen })
	acks(0)
}

// libraries is what the data of a member say, and how many keys there are.
func libraries(t *testing.T, n *Node) (code string, keys int64) {
	t.Helper()
	c := client(t, n.addr, "")
	for _, l := range must(t, c, "FUNCTION", "LIST", "WITHCODE").items {
		code += l.pairs()["library_code"]
	}
	return code, must(t, c, "DBSIZE").num
}

// TestTheMarkerOfAClustersDataIsAFunction: it is no key, so that neither clients nor FLUSHALL meet it, and it is kept as the data are.
func TestTheMarkerOfAClustersDataIsAFunction(t *testing.T) {
	t.Parallel()
	for _, persistence := range []Persistence{PersistAOF, PersistRDB, PersistNone} {
		t.Run(string(persistence), func(t *testing.T) {
			t.Parallel()
			f := cluster(t, 1, 2, func(o *Options) { keepsAll(o); o.Persistence = persistence })
			n := f.shards[0][0]
			set := func(m topo.Mark, want string) {
				t.Helper()
				see(t, n, "an answering primary", func(o redis.Observation) bool { return isUp(o) && o.Role == topo.RolePrimary })
				if err := n.Mark(within(t, 2*time.Second), m); err != nil {
					t.Fatal(err)
				}
				if code, _ := libraries(t, n); !strings.Contains(code, "'"+want+"'") || strings.Count(code, "register_function") != 1 {
					t.Fatalf("the libraries are %q, expected %s", code, want)
				}
			}
			c := client(t, n.addr, "")
			put(t, n, "a", "1")
			set(topo.Mark{Epoch: 3, Offset: 70}, "3 70")
			set(topo.Mark{Epoch: 3, Offset: 75}, "3 70") // nothing was written
			must(t, c, "FLUSHALL")
			put(t, n, "b", "2")
			set(topo.Mark{Epoch: 3, Offset: 77}, "3 77")
			must(t, c, "FUNCTION", "FLUSH")
			set(topo.Mark{Epoch: 3, Offset: 78}, "3 78")
			if persistence == PersistRDB {
				see(t, n, "its snapshot written, which waits for that of the replica's sync", func(redis.Observation) bool { return run(t, c, "SAVE").err() == nil })
			}
			r := f.shards[0][1]
			caughtUp(t, r, n)
			if code, keys := libraries(t, r); !strings.Contains(code, "'3 78'") || keys != 1 {
				t.Errorf("the replica has %q and %d keys", code, keys)
			}
			if o := see(t, n, "an answer", isUp); o.Mark != nil || o.Keys != 1 {
				t.Fatalf("a primary shows marker %v, which may be old by now, and %d keys", o.Mark, o.Keys)
			}
			if err := r.Freeze(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			if o := see(t, r, "a frozen server whose marker was read", func(o redis.Observation) bool { return o.Frozen && o.Mark != nil }); *o.Mark != (topo.Mark{Epoch: 3, Offset: 78}) {
				t.Errorf("the replica's marker is %v", o.Mark)
			}
			crash(t, n, nil)
			o := see(t, n, "a frozen server whose marker was read", func(o redis.Observation) bool { return isUp(o) && o.Frozen && o.Mark != nil })
			want, keys := topo.Mark{Epoch: 3, Offset: 78}, int64(1)
			if persistence == PersistNone {
				want, keys = topo.Mark{}, 0
			}
			if *o.Mark != want || o.Keys != keys {
				t.Fatalf("marker %v, %d keys", o.Mark, o.Keys)
			}
		})
	}
}
