// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bytes"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// TestAReplicaThatGetsNoStreamIsNotInSync: behind a full sync a primary sends nothing before the replica has acknowledged, which may
// take a second although the link is up (its first acknowledgement comes before the primary has seen its child end). Who goes on
// with that replica, which stands where the primary stood, loses all writes since.
func TestAReplicaThatGetsNoStreamIsNotInSync(t *testing.T) {
	t.Parallel()
	p, n := primary(t, nil), open(t, nil)
	see(t, n, "the replica", isUp)
	addr, restore, said := lostAcknowledgements(t, p.addr)
	if err := n.Follow(within(t, 2*time.Second), addr, tenure()); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the link", func(o redis.Observation) bool { return o.LinkUp && o.Whole })
	role, pos, err := n.StreamPosition(within(t, time.Second), p.addr)
	if err != nil || role != topo.RolePrimary {
		t.Fatalf("%s, %v", role, err)
	}
	must(t, client(t, p.addr, ""), "SET", "k", "v")
	if o := see(t, n, "the replica", isUp); o.Pos.Offset >= pos.Offset || o.Keys != 0 {
		t.Fatalf("it has got nothing yet, and is at %d of %d with %d keys", o.Pos.Offset, pos.Offset, o.Keys)
	}
	began := time.Now()
	for range 10 { // by itself it acknowledges once a second
		if err := n.Acknowledge(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for said() < 10 {
		if <-time.After(time.Millisecond); time.Since(began) > 5*time.Second {
			t.Fatalf("asked for 10 acknowledgements, it has sent %d", said())
		}
	}
	restore()
	see(t, n, "the write", func(o redis.Observation) bool { return o.Keys == 1 && o.Pos.Offset >= pos.Offset })
}

// lostAcknowledgements is a path to a primary which loses what a replica says behind its PSYNC until restore is called. said counts
// what it has acknowledged.
func lostAcknowledgements(t *testing.T, to string) (addr string, restore func(), said func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var restored atomic.Bool
	var acks atomic.Int32
	pass := func(from, to net.Conn, lose bool) {
		b := make([]byte, 32<<10)
		for begun := false; ; {
			k, err := from.Read(b)
			if err != nil {
				_ = to.Close()
				return
			}
			if begun {
				acks.Add(int32(bytes.Count(b[:k], []byte("ACK"))))
			}
			if begun && !restored.Load() {
				continue
			}
			begun = begun || lose && bytes.Contains(b[:k], []byte("PSYNC"))
			if _, err := to.Write(b[:k]); err != nil {
				_ = from.Close()
				return
			}
		}
	}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close()
				continue
			}
			go pass(from, up, true)
			go pass(up, from, false)
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String(), func() { restored.Store(true) }, func() int { return int(acks.Load()) }
}
