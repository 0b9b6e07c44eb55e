// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bytes"
	"net"
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
	addr, release := lateAcknowledgements(t, p.addr)
	if err := n.Follow(within(t, 2*time.Second), addr, tenure()); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the link", func(o redis.Observation) bool { return o.LinkUp && o.Whole })
	role, pos, err := n.PrimaryPosition(within(t, time.Second), p.addr)
	if err != nil || role != topo.RolePrimary {
		t.Fatalf("%s, %v", role, err)
	}
	must(t, client(t, p.addr, ""), "SET", "k", "v")
	if o := see(t, n, "the replica", isUp); o.Pos.Offset >= pos.Offset || o.Keys != 0 {
		t.Fatalf("it has got nothing yet, and is at %d of %d with %d keys", o.Pos.Offset, pos.Offset, o.Keys)
	}
	release()
	see(t, n, "the write", func(o redis.Observation) bool { return o.Keys == 1 && o.Pos.Offset >= pos.Offset })
}

// lateAcknowledgements is a path to a primary which holds what a replica says behind its PSYNC until release is called.
func lateAcknowledgements(t *testing.T, to string) (addr string, release func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	pass := func(from, to net.Conn, hold []byte) {
		b := make([]byte, 32<<10)
		asked := false
		for {
			k, err := from.Read(b)
			if asked {
				<-held
			}
			if asked = asked || hold != nil && bytes.Contains(b[:k], hold); err != nil {
				_ = to.Close()
				return
			}
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
			go pass(from, up, []byte("PSYNC"))
			go pass(up, from, nil)
		}
	}()
	opened := false
	release = func() {
		if !opened {
			opened = true
			close(held)
		}
	}
	t.Cleanup(func() {
		_ = l.Close()
		release()
	})
	return l.Addr().String(), release
}
