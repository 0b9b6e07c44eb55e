// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
	"redoubt/test/ports"
)

// fencedWithTail promotes n, writes, fences it, and returns where the last two writes begin.
func fencedWithTail(t *testing.T, n *Node, c *conn) (from int64) {
	t.Helper()
	must(t, c, "SET", "before", "1")
	from = see(t, n, "the branch", isUp).Pos.Offset
	must(t, c, "SET", "tail1", "1")
	must(t, c, "SELECT", "5")
	must(t, c, "SET", "tail2", "1")
	if err := n.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	return from
}

func TestReadingATailLeavesNoTrace(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	from := fencedWithTail(t, n, client(t, n.addr, ""))
	admin := adminClient(t, n.addr, n.managed.o.Dir)
	must(t, admin, "CONFIG", "SET", "masteruser", "somebody")
	must(t, admin, "CONFIG", "SET", "masterauth", "something")
	before := see(t, n, "the fenced server", isUp)
	var stream bytes.Buffer
	began := time.Now()
	tail, err := n.Tail(within(t, 2*time.Second), from, 1<<20, &stream)
	if err != nil || tail.To != before.Pos.Offset || int64(stream.Len()) != tail.To-from {
		t.Fatalf("%+v, %v: %q", tail, err, stream.String())
	}
	t.Logf("%d bytes in %s", stream.Len(), time.Since(began))
	if s := stream.String(); !strings.Contains(s, "tail1") || !strings.Contains(s, "tail2") || !strings.Contains(s, "$1\r\n5") || strings.Contains(s, "before") {
		t.Fatalf("%q", s)
	}
	for name, want := range map[string]string{"masteruser": "somebody", "masterauth": "something"} {
		if got := must(t, admin, "CONFIG", "GET", name).pairs()[name]; got != want {
			t.Errorf("%s is %q, was %q", name, got, want)
		}
	}
	if list := must(t, admin, "CLIENT", "LIST").text; strings.Contains(list, tailName) || strings.Contains(list, "flags=S") || strings.Contains(list, "flags=M") {
		t.Errorf("connections are left:\n%s", list)
	}
	if now := see(t, n, "an answer", isUp); now.Pos != before.Pos || !now.Frozen || now.Keys != 3 {
		t.Errorf("%+v became %+v", before, now)
	}
}

func TestATailOfAnAttachedServer(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	supervised(t, addr, t.TempDir(), append(FrozenArguments(), "--requirepass", "sesame")...)
	n := attach(t, AttachOptions{Addr: addr, Password: "sesame", StateDir: t.TempDir()})
	promote(t, n)
	from := fencedWithTail(t, n, client(t, addr, "sesame"))
	var stream bytes.Buffer
	if _, err := n.Tail(within(t, 2*time.Second), from, 1<<20, &stream); err != nil || !strings.Contains(stream.String(), "tail2") || strings.Contains(stream.String(), "sesame") {
		t.Fatalf("%v: %q", err, stream.String())
	}
	if _, err := n.Journal(within(t, time.Second), 1<<20, &stream); !errors.Is(err, redis.ErrNoTail) {
		t.Fatalf("the files of another supervisor: %v", err)
	}
}

func TestATailThatTheBacklogHasForgotten(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	admin := adminClient(t, n.addr, n.managed.o.Dir)
	must(t, admin, "CONFIG", "SET", "repl-backlog-size", "16384")
	c := client(t, n.addr, "")
	from := see(t, n, "the branch", isUp).Pos.Offset
	for i := range 64 {
		must(t, c, "SET", fmt.Sprint("k", i), strings.Repeat("x", 64<<10))
	}
	if err := n.Fence(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := n.Tail(within(t, 2*time.Second), from, 1<<30, new(bytes.Buffer))
	if !errors.Is(err, redis.ErrNoTail) || !strings.Contains(err.Error(), "repl-backlog-size is 16384") {
		t.Fatal(err)
	}
	if !see(t, n, "an answer", isUp).Frozen {
		t.Fatal("it is not frozen any more")
	}
}

// silently opens a primary that has nothing to say, and a connection to it.
func silently(t *testing.T) (*silent, *conn) {
	t.Helper()
	s, err := listenSilently("127.0.0.1", "sesame", topo.Position{ReplID: "abc", Offset: 41})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	c, err := dial(within(t, time.Second), net.JoinHostPort(s.host, s.port), [][]string{{"PING"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return s, c
}

func TestASilentPrimarySpeaksToItsServerOnly(t *testing.T) {
	t.Parallel()
	s, c := silently(t)
	for _, cmd := range [][]string{{"PSYNC", "abc", "42"}, {"AUTH", "wrong"}, {"AUTH", "u", "sesam"}, {"PSYNC", "abc", "42"}} {
		if run(t, c, cmd...).err() == nil {
			t.Fatalf("%q was answered without the password", cmd)
		}
	}
	must(t, c, "AUTH", "u", "sesame")
	must(t, c, "REPLCONF", "capa", "psync2")
	if got := must(t, c, "PSYNC", "abc", "42").text; got != "CONTINUE abc" {
		t.Fatal(got)
	}
	<-s.continued
}

func TestASilentPrimaryNeverChangesAPosition(t *testing.T) {
	t.Parallel()
	for _, cmd := range [][]string{{"PSYNC", "?", "-1"}, {"PSYNC", "abc", "41"}, {"PSYNC", "xyz", "42"}, {"PSYNC"}} {
		s, c := silently(t)
		must(t, c, "AUTH", "sesame")
		if reps, err := c.do(within(t, time.Second), cmd); err == nil {
			t.Errorf("%q: %+v", cmd, reps)
		}
		select {
		case <-s.failed:
		case <-within(t, time.Second).Done():
			t.Errorf("%q is not known to have failed", cmd)
		}
	}
}

func TestAReaderThatGivesUpLeavesTheServerFrozen(t *testing.T) {
	t.Parallel()
	n := primary(t, nil)
	from := fencedWithTail(t, n, client(t, n.addr, ""))
	ctx, cancel := context.WithCancel(within(t, 2*time.Second))
	_, err := n.Tail(ctx, from, 1<<20, cancelling{cancel})
	if err == nil {
		t.Fatal("it was read to the end")
	}
	if !see(t, n, "an answer", isUp).Frozen {
		t.Fatal("it is not frozen any more")
	}
}

// cancelling ends the time of its reader with the first bytes.
type cancelling struct{ cancel func() }

func (c cancelling) Write([]byte) (int, error) {
	c.cancel()
	return 0, context.Canceled
}

func TestTheManifestNamesTheIncrements(t *testing.T) {
	manifest := "file a.aof.2.base.rdb seq 2 type b\nfile a.aof.1.incr.aof seq 1 type h\nfile a.aof.2.incr.aof seq 2 type i\nfile a.aof.3.incr.aof seq 3 type i\n"
	if got := increments("/d", manifest); !slices.Equal(got, []string{"/d/a.aof.2.incr.aof", "/d/a.aof.3.incr.aof"}) {
		t.Fatal(got)
	}
}
