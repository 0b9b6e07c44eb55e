// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// written names the keys of the SETs in a stream.
func written(t *testing.T, stream []byte) (keys []string) {
	t.Helper()
	var p resp.Parser
	for len(stream) > 0 {
		n, err := p.Next(stream, resp.Limits{})
		if err != nil || n == 0 {
			t.Fatalf("not a whole number of commands: %v, %q", err, stream)
		}
		if len(p.Args) > 2 && string(bytes.ToUpper(p.Args[0])) == "SET" {
			keys = append(keys, string(p.Args[1]))
		}
		stream = stream[n:]
	}
	return keys
}

// full refuses what is written to it.
type full struct{}

var errFull = errors.New("no space left")

func (full) Write([]byte) (int, error) { return 0, errFull }

func readsTail(t *testing.T, seat func() Seat) {
	p, r := seat(), seat()
	promote(t, p)
	link(t, r, p)
	ok(t, "write", p.Write("both"))
	branch := catchUp(t, r, p).Pos
	ok(t, "freeze", r.Node.Freeze(within(t, patience)))
	branch = see(t, r, "the branch", func(o redis.Observation) bool { return o.Frozen && o.Pos.Offset >= branch.Offset }).Pos
	ok(t, "write", p.Write("tail1"))
	ok(t, "write", p.Write("tail2"))
	var stream bytes.Buffer
	_, err := p.Node.Tail(within(t, patience), branch.Offset, 1<<20, &stream)
	want(t, "the tail of a server that is not frozen", err, redis.ErrRefused)

	ok(t, "fence", p.Node.Fence(within(t, patience)))
	before := see(t, p, "the fenced server", up)
	for range 2 { // reading changes nothing
		stream.Reset()
		tail, err := p.Node.Tail(within(t, patience), branch.Offset, 1<<20, &stream)
		ok(t, "tail", err)
		if keys := written(t, stream.Bytes()); !slices.Equal(keys, []string{"tail1", "tail2"}) || tail.To != before.Pos.Offset || tail.End != tail.To || tail.ReplID != before.Pos.ReplID || tail.RunID != before.RunID {
			t.Fatalf("%+v: %q of %+v", tail, stream.String(), before)
		}
		if o := see(t, p, "an answer", up); !o.Frozen || !o.Whole || o.Pos != before.Pos || o.Keys != before.Keys {
			t.Fatalf("reading the tail changed %+v into %+v", before, o)
		}
		if p.Write("x") == nil {
			t.Fatal("a server whose tail was read takes a write")
		}
	}
	limit := (before.Pos.Offset - branch.Offset) / 2
	if tail, err := p.Node.Tail(within(t, patience), branch.Offset, limit, new(bytes.Buffer)); err != nil || tail.To != branch.Offset+limit || tail.End != before.Pos.Offset {
		t.Fatalf("half of a tail: %+v, %v", tail, err)
	}
	_, err = p.Node.Tail(within(t, patience), branch.Offset, 1<<20, full{})
	want(t, "a disk that is full", err, errFull)
	_, err = p.Node.Tail(within(t, patience), before.Pos.Offset, 1<<20, &stream)
	want(t, "a tail of nothing", err, redis.ErrRefused)
	if o := see(t, p, "an answer", up); !o.Frozen || o.Pos != before.Pos {
		t.Fatalf("failures changed %+v into %+v", before, o)
	}

	// It still joins the history that goes on, without its tail.
	_, err = r.Node.Promote(within(t, patience), elected(see(t, r, "the replica", up)), tenure())
	ok(t, "promote", err)
	link(t, p, r)
	if o := catchUp(t, p, r); o.Keys != 1 {
		t.Fatalf("after following: %+v", o)
	}

	p.Crash()
	see(t, p, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
	ok(t, "restart", p.Node.Restart(within(t, patience)))
	o := see(t, p, "the new process", up)
	_, err = p.Node.Tail(within(t, patience), o.Pos.Offset-1, 1<<20, &stream)
	if !errors.Is(err, redis.ErrNoTail) && !errors.Is(err, redis.ErrRefused) {
		t.Fatalf("the tail of a server that restarted: %v", err)
	}
}

// readsJournal is for servers with an append-only file.
func readsJournal(t *testing.T, seat func() Seat) {
	p := seat()
	promote(t, p)
	for _, k := range []string{"a", "b"} {
		ok(t, "write", p.Write(k))
	}
	_, err := p.Node.Journal(within(t, patience), 1<<20, new(bytes.Buffer))
	want(t, "the journal of a server that is not frozen", err, redis.ErrRefused)
	p.Crash()
	see(t, p, "the exit", func(o redis.Observation) bool { return o.Health == topo.HealthExited })
	ok(t, "restart", p.Node.Restart(within(t, patience)))
	o := see(t, p, "the new process with its data", func(o redis.Observation) bool { return up(o) && o.Keys == 2 })
	var stream bytes.Buffer
	size, err := p.Node.Journal(within(t, patience), 1<<20, &stream)
	ok(t, "journal", err)
	if keys := written(t, stream.Bytes()); !slices.Equal(keys, []string{"a", "b"}) || size != int64(stream.Len()) {
		t.Fatalf("%d bytes: %q", size, stream.String())
	}
	_, err = p.Node.Journal(within(t, patience), size-1, new(bytes.Buffer))
	want(t, "a journal beyond the limit", err, redis.ErrNoTail)
	if now := see(t, p, "an answer", up); !now.Frozen || now.Pos != o.Pos {
		t.Fatalf("reading the journal changed %+v into %+v", o, now)
	}
}

// RunWithJournal holds a driver of servers that keep an append-only file against the part of the contract that is about it.
func RunWithJournal(t *testing.T, factory Factory) { readsJournal(t, factory(t)) }
