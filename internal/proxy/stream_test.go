// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"redoubt/internal/topo"
)

// A value of 512 MiB, the server's limit, passes to its client in bounded memory. Counts in the whole process, so it does not
// run beside others.
func TestAHugeValueComesInBoundedMemory(t *testing.T) {
	s := newShard(t, 0, nil)
	const size = 512 << 20
	s.nodes[0].do(t, "SETRANGE", "huge", strconv.Itoa(size-1), "x")
	c := s.client()
	c.want("PONG", "PING")
	before := resident(t)
	for _, pinned := range []bool{false, true} {
		if pinned {
			c.want("OK", "WATCH", "w") // on a connection of its own
		}
		c.send("GET", "huge")
		readHuge(t, c.r, size)
		c.want("1", "EXISTS", "huge")
	}
	if grown := resident(t) - before; grown > 64<<20 {
		t.Errorf("%d MiB more resident than before", grown>>20)
	}
}

func readHuge(t *testing.T, r *bufio.Reader, size int) {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil || line != "$"+strconv.Itoa(size)+"\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	if n, err := io.CopyN(io.Discard, r, int64(size-1)); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	tail := make([]byte, 3)
	if _, err := io.ReadFull(r, tail); err != nil || string(tail) != "x\r\n" {
		t.Fatalf("%q %v", tail, err)
	}
}

func TestAClientThatIsSlowToTakeALongValueDoesNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Loops = 1 })
	const size = 100 << 20
	s.nodes[0].do(t, "SETRANGE", "long", strconv.Itoa(size-1), "x")
	slow, other := s.client(), s.client()
	other.want("OK", "SET", "a", "1")
	slow.send("GET", "long")
	waitFor(t, "the long value is on its way", func() bool { return s.p.Stats().InFlight > 0 })
	began := time.Now()
	for range 20 {
		other.want("1", "GET", "a")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("others waited %s", took)
	}
	readHuge(t, slow.r, size)
	slow.want("1", "GET", "a")
}

// Those that come while its connection is already not read wait no longer than those that were there before.
func TestAClientThatIsSlowToTakeALongValueDoesNotHoldUpThoseThatComeLater(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Loops = 1 })
	const size = 64 << 20
	s.nodes[0].do(t, "SETRANGE", "long", strconv.Itoa(size-1), "x")
	slow, other := s.client(), s.client()
	other.want("OK", "SET", "a", "1")
	slow.send("GET", "long")
	waitFor(t, "replies wait for the client, and no more are read", func() bool {
		for _, c := range s.p.everybody() {
			if before := c.out.pending(); before >= streamAhead {
				return !until(2*streamPatience, func() bool { return c.out.pending() != before })
			}
		}
		return false
	})
	began := time.Now()
	other.want("1", "GET", "a")
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("others waited %s", took)
	}
	readHuge(t, slow.r, size)
	slow.want("1", "GET", "a")
}

func TestAClientWhoseLongValueIsCutShortIsDisconnected(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	const size = 64 << 20
	s.nodes[0].do(t, "SETRANGE", "long", strconv.Itoa(size-1), "x")
	waitFor(t, "replicated", func() bool { return s.nodes[1].do(t, "STRLEN", "long") == strconv.Itoa(size) })
	c, other := s.client(), s.client()
	c.send("GET", "long")
	if b, err := c.r.Peek(1); err != nil || b[0] != '$' {
		t.Fatal(b, err)
	}
	_ = s.nodes[0].cmd.Process.Kill()
	<-s.nodes[0].gone
	s.failover()
	if n, err := io.Copy(io.Discard, c.r); err == nil && n >= size {
		t.Skip("everything had arrived before the kill")
	}
	other.want(strconv.Itoa(size), "STRLEN", "long")
}

// sendHuge writes MSET before 1 huge <size bytes> after 2, in the middle of a pipeline.
func sendHuge(t *testing.T, w io.Writer, size int) {
	t.Helper()
	chunk := []byte(strings.Repeat("0123456789abcdef", 1<<12))
	send := func(b []byte) {
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	send([]byte("*1\r\n$4\r\nPING\r\n*7\r\n$4\r\nMSET\r\n$6\r\nbefore\r\n$1\r\n1\r\n$4\r\nhuge\r\n$" + strconv.Itoa(size) + "\r\n"))
	for left := size; left > 0; left -= len(chunk) {
		send(chunk[:min(left, len(chunk))])
	}
	send([]byte("\r\n$5\r\nafter\r\n$1\r\n2\r\n*2\r\n$3\r\nGET\r\n$5\r\nafter\r\n"))
}

func TestAHugeValueGoesInBoundedMemory(t *testing.T) {
	for _, quorum := range []bool{false, true} {
		size, replicas := 512<<20, 0
		if quorum {
			size, replicas = 64<<20, 1
		}
		s := newShard(t, replicas, func(sp *spec, _ *Options) {
			if quorum {
				sp.Durability, sp.AckReplicas = topo.Quorum, 1
			}
		})
		c := s.client()
		c.want("PONG", "PING")
		before := resident(t)
		sendHuge(t, c.c, size)
		for _, want := range []string{"PONG", "OK", "2"} {
			if got := c.recv(); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
		if grown := resident(t) - before; grown > 64<<20 {
			t.Errorf("%d MiB more resident than before", grown>>20)
		}
		c.want(strconv.Itoa(size), "STRLEN", "huge")
		c.want("0123456789abcdef", "GETRANGE", "huge", strconv.Itoa(size-16), "-1")
		c.want("1", "GET", "before")
	}
}

func TestALongValueThatItsPrimaryDidNotGetAsAWholeIsNotExecuted(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, nil)
	c := s.client()
	c.want("OK", "SET", "huge", "old")
	const size = 64 << 20
	half := strings.Repeat("h", size/2)
	if _, err := io.WriteString(c.c, "*3\r\n$3\r\nSET\r\n$4\r\nhuge\r\n$"+strconv.Itoa(size)+"\r\n"+half); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "on its way", func() bool { return s.p.Stats().InFlight > 0 })
	waitFor(t, "replicated", func() bool { return s.nodes[1].do(t, "GET", "huge") == "old" })
	_ = s.nodes[0].cmd.Process.Kill()
	<-s.nodes[0].gone
	s.failover()
	if _, err := io.WriteString(c.c, half+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := c.recv(); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Fatal(got)
	}
	c.want("old", "GET", "huge")
	// A client that leaves in the middle has sent nothing.
	gone := s.client()
	if _, err := io.WriteString(gone.c, "*3\r\n$3\r\nSET\r\n$4\r\nhuge\r\n$"+strconv.Itoa(size)+"\r\n"+half); err != nil {
		t.Fatal(err)
	}
	_ = gone.c.Close()
	waitFor(t, "its session ends", func() bool { return s.p.Stats().Clients == 1 && s.p.Stats().InFlight == 0 })
	c.want("old", "GET", "huge")
}

// A connection that has to end does not wait for the client that takes a long value from it.
func TestAClientThatTakesNothingDoesNotKeepItsConnection(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.Loops = 1 })
	const size = 64 << 20
	s.nodes[0].do(t, "SETRANGE", "long", strconv.Itoa(size-1), "x")
	slow, other := s.client(), s.client()
	other.want("OK", "SET", "a", "1")
	slow.send("GET", "long")
	waitFor(t, "the connection is not read", func() bool {
		for _, o := range s.p.everybody() {
			if o.out.pending() >= streamAhead {
				return true
			}
		}
		return false
	})
	s.p.mu.Lock()
	for l := range s.p.lanes {
		if k := l.current(); k != nil {
			k.demote() // as when a replica becomes unfit
		}
	}
	s.p.mu.Unlock()
	other.want("1", "GET", "a")
}
