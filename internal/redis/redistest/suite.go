// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// Seat is one server under test, and the hands that a test needs beside redis.Node.
type Seat struct {
	Node  redis.Node
	Addr  string
	Write func(key string) error // a client's write
	Stop  func()                 // the process stops (SIGSTOP) …
	Cont  func()                 // … and goes on
	Crash func()                 // kill -9, by somebody else than the driver
}

// Factory returns a source of seats that can reach each other. Every server it starts is empty and managed.
type Factory func(t *testing.T) func() Seat

// NeedsAnyPrimary names the cases in which a server follows what is no primary of its own shard: a member of a cluster cannot.
func NeedsAnyPrimary() []string {
	return []string{"only the tenure's credentials replicate", "a promotion cuts what replicates"}
}

// Run holds a driver against the contract of redis.Node, but for the cases that are named in without.
func Run(t *testing.T, factory Factory, without ...string) {
	for name, test := range map[string]func(*testing.T, func() Seat){
		"a server boots frozen":                              bootsFrozen,
		"a promotion is conditional and idempotent":          promotesOnCondition,
		"a replica takes its primary's history and data":     follows,
		"a frozen replica stands still and continues":        freezes,
		"a switchover changes the history and loses nothing": switchesOver,
		"a fenced primary takes no write":                    fences,
		"a tail can be read before it is discarded":          readsTail,
		"a diverged tail is discarded":                       discardsTail,
		"a crash is seen and a restart forgets":              restartsFrozen,
		"a stopped primary is killed by its fence":           killsStoppedPrimary,
		"a stopped replica is never killed":                  sparesStoppedReplica,
		"only the tenure's credentials replicate":            admitsTenure,
		"a promotion cuts what replicates":                   cutsFormerReplicas,
		"the rest of the verbs":                              restOfVerbs,
	} {
		if slices.Contains(without, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, factory(t))
		})
	}
}

const patience = 10 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// see observes until cond holds and ends the test if it never does.
func see(t *testing.T, s Seat, what string, cond func(redis.Observation) bool) redis.Observation {
	t.Helper()
	ctx := within(t, patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		look, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		o := s.Node.Observe(look)
		cancel()
		if cond(o) {
			return o
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never saw %s; last look: %+v", what, o)
		}
	}
}

func up(o redis.Observation) bool { return o.Health == topo.HealthUp }

func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func want(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%s: got %v, want %v", what, err, kind)
	}
}

func elected(o redis.Observation) topo.Elected {
	return topo.Elected{RunID: o.RunID, ReplID: o.Pos.ReplID, Offset: o.Pos.Offset}
}

// tenure are the credentials of most tests: one primary, one secret.
func tenure() redis.Credentials { return redis.Credentials{Secret: "suite"} }

func promote(t *testing.T, s Seat) topo.Position {
	t.Helper()
	pos, err := s.Node.Promote(within(t, patience), elected(see(t, s, "an answer", up)), tenure())
	ok(t, "promote", err)
	return pos
}

func link(t *testing.T, r, p Seat) {
	t.Helper()
	see(t, r, "an answer", up)
	ok(t, "follow", r.Node.Follow(within(t, patience), p.Addr, tenure()))
	see(t, r, "the link", func(o redis.Observation) bool { return o.LinkUp && o.Whole && o.Following == p.Addr })
}

func catchUp(t *testing.T, r, p Seat) redis.Observation {
	t.Helper()
	goal := see(t, p, "the primary", up).Pos
	return see(t, r, "the replica catch up", func(o redis.Observation) bool { return o.Pos.ReplID == goal.ReplID && o.Pos.Offset >= goal.Offset })
}

func bootsFrozen(t *testing.T, seat func() Seat) {
	s := seat()
	o := see(t, s, "an answer", up)
	if !o.Frozen || o.Role != topo.RoleReplica || o.RunID == "" || o.PID == 0 || o.Following != "" || o.Keys != 0 || len(o.Settings) > 0 {
		t.Fatalf("after the start: %+v", o)
	}
	if s.Write("x") == nil {
		t.Fatal("a server that just started took a write")
	}
}

func promotesOnCondition(t *testing.T, seat func() Seat) {
	s := seat()
	o := see(t, s, "an answer", up)
	for _, e := range []topo.Elected{
		{RunID: "other", ReplID: o.Pos.ReplID, Offset: o.Pos.Offset},
		{RunID: o.RunID, ReplID: "other", Offset: o.Pos.Offset},
		{RunID: o.RunID, ReplID: o.Pos.ReplID, Offset: o.Pos.Offset + 1},
	} {
		_, err := s.Node.Promote(within(t, patience), e, tenure())
		want(t, "promote on a wrong condition", err, redis.ErrRefused)
	}
	if o := see(t, s, "an answer", up); !o.Frozen {
		t.Fatalf("a refused promotion changed %+v", o)
	}
	pos, err := s.Node.Promote(within(t, patience), elected(o), tenure())
	ok(t, "promote", err)
	if now := see(t, s, "an answer", up); now.Role != topo.RolePrimary || !now.Backlog || !now.Whole || now.Frozen || now.Pos != pos || pos.ReplID == o.Pos.ReplID {
		t.Fatalf("promoted to %+v; now %+v", pos, now)
	}
	again, err := s.Node.Promote(within(t, patience), elected(o), tenure())
	if ok(t, "promote again", err); again != pos {
		t.Fatalf("the second promotion moved from %+v to %+v", pos, again)
	}
	other := elected(o)
	other.Offset += 7
	_, err = s.Node.Promote(within(t, patience), other, tenure())
	want(t, "promote a primary by another election", err, redis.ErrRefused)
	ok(t, "write", s.Write("x"))
}

func follows(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	pos := promote(t, p)
	ok(t, "write", p.Write("a"))
	link(t, r, p)
	ok(t, "write", p.Write("b"))
	o := catchUp(t, r, p)
	if o.Pos.ReplID != pos.ReplID || o.Keys != 2 || o.Role != topo.RoleReplica || o.Frozen {
		t.Fatalf("the replica of %+v: %+v", pos, o)
	}
	ok(t, "follow again", r.Node.Follow(within(t, patience), p.Addr, tenure()))
	if o := see(t, r, "an answer", up); !o.LinkUp {
		t.Fatal("following the same primary again cut the link")
	}
	ahead := elected(o)
	ahead.Offset += 1000
	_, err := r.Node.Promote(within(t, patience), ahead, tenure())
	want(t, "promote a replica that may still get there", err, redis.ErrBehind)
	if o := see(t, r, "an answer", up); !o.LinkUp || o.Frozen {
		t.Fatalf("a promotion that came too early changed %+v", o)
	}
	role, at, err := r.Node.PrimaryPosition(within(t, patience), p.Addr)
	if ok(t, "primary position", err); role != topo.RolePrimary || at.ReplID != pos.ReplID {
		t.Fatalf("the primary is %s at %+v", role, at)
	}
	role, at, err = r.Node.StreamPosition(within(t, patience), p.Addr)
	if ok(t, "stream position", err); role != topo.RolePrimary || at.ReplID != pos.ReplID {
		t.Fatalf("the primary is %s at %+v", role, at)
	}
	ok(t, "acknowledge", r.Node.Acknowledge(within(t, patience)))
	if r.Write("c") == nil {
		t.Fatal("a replica took a write")
	}
}

func freezes(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	promote(t, p)
	link(t, r, p)
	ok(t, "write", p.Write("a"))
	before := catchUp(t, r, p)
	ok(t, "freeze", r.Node.Freeze(within(t, patience)))
	ok(t, "freeze again", r.Node.Freeze(within(t, patience)))
	ok(t, "write", p.Write("b"))
	if o := see(t, r, "an answer", up); !o.Frozen || !o.Whole || o.Keys != 1 || o.Pos.ReplID != before.Pos.ReplID {
		t.Fatalf("frozen at %+v, now %+v", before, o)
	}
	link(t, r, p)
	if o := catchUp(t, r, p); o.Keys != 2 {
		t.Fatalf("after following again: %+v", o)
	}
}

func switchesOver(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	promote(t, p)
	link(t, r, p)
	ok(t, "write", p.Write("a"))
	ok(t, "fence", p.Node.Fence(within(t, patience)))
	final := see(t, p, "the final position", up)
	o := see(t, r, "the candidate drained", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
	pos, err := r.Node.Promote(within(t, patience), elected(o), tenure())
	ok(t, "promote", err)
	if pos.ReplID2 != final.Pos.ReplID || pos.Offset2 != final.Pos.Offset+1 {
		t.Fatalf("promoted from %+v to %+v", final.Pos, pos)
	}
	ok(t, "write", r.Write("b"))
	link(t, p, r)
	if o := catchUp(t, p, r); o.Keys != 2 || o.Pos.ReplID != pos.ReplID {
		t.Fatalf("the old primary: %+v", o)
	}
}

func fences(t *testing.T, seat func() Seat) {
	for _, verb := range []func(redis.Node, context.Context) error{redis.Node.Fence, redis.Node.Freeze} {
		p := seat()
		promote(t, p)
		ok(t, "write", p.Write("a"))
		before := see(t, p, "an answer", up)
		ok(t, "fence", verb(p.Node, within(t, patience)))
		ok(t, "fence again", verb(p.Node, within(t, patience)))
		if p.Write("b") == nil {
			t.Fatal("a fenced server took a write")
		}
		if o := see(t, p, "an answer", up); !o.Frozen || !o.Whole || o.Keys != 1 || o.Pos.Offset != before.Pos.Offset {
			t.Fatalf("fenced at %+v, now %+v", before, o)
		}
	}
}

func discardsTail(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	promote(t, p)
	link(t, r, p)
	ok(t, "write", p.Write("a"))
	o := catchUp(t, r, p)
	ok(t, "freeze", r.Node.Freeze(within(t, patience)))
	ok(t, "write", p.Write("tail"))
	ok(t, "write", p.Write("tail2"))
	o = see(t, r, "an answer", func(now redis.Observation) bool { return now.Frozen && now.Pos.Offset >= o.Pos.Offset })
	_, err := r.Node.Promote(within(t, patience), elected(o), tenure())
	ok(t, "promote", err)
	ok(t, "write", r.Write("b"))
	link(t, p, r)
	if o := catchUp(t, p, r); o.Keys != 2 {
		t.Fatalf("the diverged primary kept its tail: %+v", o)
	}
}

func restartsFrozen(t *testing.T, seat func() Seat) {
	s := seat()
	promote(t, s)
	ok(t, "write", s.Write("a"))
	first := see(t, s, "an answer", up)
	for len(s.Node.Wake()) > 0 {
		<-s.Node.Wake()
	}
	s.Crash()
	select {
	case <-s.Node.Wake():
	case <-within(t, patience).Done():
		t.Fatal("nobody was woken by a crash")
	}
	o := see(t, s, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
	if o.RunID != first.RunID {
		t.Fatalf("which process exited: %+v", o)
	}
	_, refused := s.Node.SetAside(within(t, patience))
	want(t, "set sound data aside", refused, redis.ErrRefused)
	ok(t, "fence of an exited server", s.Node.Fence(within(t, patience)))
	want(t, "follow on an exited server", s.Node.Follow(within(t, patience), "127.0.0.1:1", tenure()), redis.ErrUnanswered)
	ok(t, "restart", s.Node.Restart(within(t, patience)))
	o = see(t, s, "the new process", up)
	if !o.Frozen || o.RunID == first.RunID || o.Pos.ReplID == first.Pos.ReplID {
		t.Fatalf("restarted from %+v to %+v", first, o)
	}
	_, err := s.Node.SetAside(within(t, patience))
	want(t, "set the data of a running server aside", err, redis.ErrRefused)
	ok(t, "restart of a running server", s.Node.Restart(within(t, patience)))
	if now := see(t, s, "an answer", up); now.RunID != o.RunID {
		t.Fatal("restart ended a running server")
	}
	_, err = s.Node.Promote(within(t, patience), elected(first), tenure())
	want(t, "promote with the run id of the former process", err, redis.ErrRefused)
}

func killsStoppedPrimary(t *testing.T, seat func() Seat) {
	s := seat()
	promote(t, s)
	see(t, s, "the primary", up)
	s.Stop()
	o := see(t, s, "the stop", func(o redis.Observation) bool { return o.Health != topo.HealthUp })
	if o.Health != topo.HealthStopped || o.RunID == "" {
		t.Fatalf("a stopped server: %+v", o)
	}
	ok(t, "fence", s.Node.Fence(within(t, 300*time.Millisecond)))
	see(t, s, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
}

func sparesStoppedReplica(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	promote(t, p)
	link(t, r, p)
	before := see(t, r, "an answer", up)
	r.Stop()
	want(t, "freeze of a stopped replica", r.Node.Freeze(within(t, 50*time.Millisecond)), redis.ErrUnanswered)
	want(t, "fence of a stopped replica", r.Node.Fence(within(t, 100*time.Millisecond)), redis.ErrUnanswered)
	r.Cont()
	o := see(t, r, "the replica go on", func(o redis.Observation) bool { return up(o) && o.Frozen })
	if o.RunID != before.RunID {
		t.Fatal("a stopped replica was killed")
	}
}

func restOfVerbs(t *testing.T, seat func() Seat) {
	s := seat()
	promote(t, s)
	for range 2 {
		ok(t, "configure", s.Node.Configure(within(t, patience), redis.Settings{MinReplicas: 1, MinReplicasMaxLag: 1}))
	}
	if s.Write("x") == nil {
		t.Fatal("a write without replicas was taken in spite of min-replicas")
	}
	ok(t, "configure", s.Node.Configure(within(t, patience), redis.Settings{}))
	ok(t, "write", s.Write("x"))
	n, err := s.Node.ProxyConnections(within(t, patience))
	if ok(t, "proxy connections", err); n != 0 {
		t.Fatalf("%d proxies on a server that nobody uses", n)
	}
	want(t, "follow oneself", s.Node.Follow(within(t, patience), s.Addr, tenure()), redis.ErrRefused)
	ok(t, "kill", s.Node.Kill(within(t, patience)))
	ok(t, "kill again", s.Node.Kill(within(t, patience)))
	if o := see(t, s, "a look", func(o redis.Observation) bool { return !up(o) }); o.Health != topo.HealthExited {
		t.Fatalf("killed: %+v", o)
	}
}

// staysOut looks for a while and ends the test if r is ever attached.
func staysOut(t *testing.T, r, p Seat, keys int64) {
	t.Helper()
	deadline := time.Now().Add(200 * time.Millisecond)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; time.Now().Before(deadline); <-tick.C {
		o := see(t, r, "an answer", up)
		if o.LinkUp || o.Keys != keys {
			t.Fatalf("a server without the tenure's credentials replicates: %+v", o)
		}
		if at := see(t, p, "the primary", up); len(at.Replicas) > 0 {
			t.Fatalf("attached to the primary: %v", at.Replicas)
		}
	}
}

func admitsTenure(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	other := redis.Credentials{Secret: "another epoch"}
	promote(t, p)
	ok(t, "write", p.Write("a"))
	see(t, r, "an answer", up)
	for _, cred := range []redis.Credentials{{}, other} {
		ok(t, "follow", r.Node.Follow(within(t, patience), p.Addr, cred))
		staysOut(t, r, p, 0)
	}
	link(t, r, p) // the same address with the right ones: at once, not at the server's next attempt
	if o := see(t, p, "the replica attached", func(o redis.Observation) bool { return len(o.Replicas) > 0 }); o.Replicas[0] != r.Addr {
		t.Fatalf("attached: %v, followed by %s", o.Replicas, r.Addr)
	}
	catchUp(t, r, p)
	ok(t, "follow with the next epoch's credentials", r.Node.Follow(within(t, patience), "127.0.0.1:1", other))
	see(t, p, "the replica gone", func(o redis.Observation) bool { return len(o.Replicas) == 0 })
	ok(t, "follow with the next epoch's credentials", r.Node.Follow(within(t, patience), p.Addr, other))
	staysOut(t, r, p, 1) // refused, and it keeps its data
	ok(t, "configure", p.Node.Configure(within(t, patience), redis.Settings{Admit: other}))
	see(t, r, "the replica admitted", func(o redis.Observation) bool { return o.LinkUp })
}

func cutsFormerReplicas(t *testing.T, seat func() Seat) {
	p, middle, leaf := seat(), seat(), seat()
	promote(t, p)
	ok(t, "write", p.Write("a"))
	link(t, middle, p)
	ok(t, "configure", middle.Node.Configure(within(t, patience), redis.Settings{Admit: tenure()}))
	link(t, leaf, middle)
	catchUp(t, leaf, p)
	ok(t, "fence", p.Node.Fence(within(t, patience)))
	final := see(t, p, "the final position", up)
	o := see(t, middle, "the candidate drained", func(o redis.Observation) bool { return o.Pos.Offset == final.Pos.Offset })
	_, err := middle.Node.Promote(within(t, patience), elected(o), redis.Credentials{Secret: "next"})
	ok(t, "promote", err)
	see(t, leaf, "the cut", func(o redis.Observation) bool { return !o.LinkUp })
	staysOut(t, leaf, middle, 1)
	ok(t, "follow", leaf.Node.Follow(within(t, patience), middle.Addr, redis.Credentials{Secret: "next"}))
	see(t, leaf, "the link", func(o redis.Observation) bool { return o.LinkUp })
}
