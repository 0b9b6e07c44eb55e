// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"strconv"
	"testing"
	"time"
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
