// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/topo"
)

// A WAIT that was parked while its primary died says nothing about the next one, which may never have got the writes.
func TestAWaitThatOutlivesItsPrimaryVouchesForNothing(t *testing.T) {
	t.Parallel()
	s := newShard(t, 2, nil)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	s.nodes[0].signal(syscall.SIGKILL)
	<-s.nodes[0].gone
	c.send("WAIT", "1", "3000")
	waitFor(t, "it is parked", func() bool { return s.p.Stats().Parked > 0 })
	s.failover()
	if got := c.recv(); got != "0" {
		t.Errorf("%s replicas are said to hold the write", got)
	}
	c.want("OK", "SET", "b", "1")
	c.want("1", "WAIT", "1", "3000")
}

// A client that has closed its side and is disconnected while its commands are parked leaves nothing behind.
func TestAClientThatIsGoneWhileItsCommandsAreParkedIsForgotten(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c, other := s.client(), s.client()
	id := c.do("CLIENT", "ID")
	s.phase(topo.PhaseFencing)
	waitFor(t, "nothing is sent", func() bool { return !s.p.Stats().Sending })
	c.send("SET", "a", "1")
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
	if err := c.c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its end is seen", func() bool {
		for _, o := range s.p.everybody() {
			o.sock.mu.Lock()
			left := o.sock.hungUp
			o.sock.mu.Unlock()
			if left {
				return true
			}
		}
		return false
	})
	other.want("1", "CLIENT", "KILL", "ID", id)
	s.serve(s.nodes[0])
	waitFor(t, "the client is forgotten, and its command", func() bool {
		st := s.p.Stats()
		return st.Clients == 1 && st.InFlight == 0
	})
	other.want("0", "EXISTS", "a")
}

// crowded is a shard without a primary, where no more commands can be parked.
func crowded(t *testing.T) (s *shard, c *wire, settle func()) {
	s = newShard(t, 0, func(_ *spec, o *Options) { o.Limits.ParkedCommands = 1 })
	c = s.client()
	other := s.client()
	return s, c, func() {
		s.phase(topo.PhaseFencing)
		waitFor(t, "nothing is sent", func() bool { return !s.p.Stats().Sending })
		other.send("SET", "other", "1")
		waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
		t.Cleanup(func() { _ = other.c.Close() })
	}
}

func TestAnExecThatFindsNoRoomEndsItsTransaction(t *testing.T) {
	t.Parallel()
	s, c, settle := crowded(t)
	c.want("OK", "SET", "x", "1")
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "x", "2")
	settle()
	if got := c.do("EXEC"); !strings.HasPrefix(got, "-EXECABORT ") {
		t.Error(got)
	}
	s.serve(s.nodes[0])
	waitFor(t, "served", func() bool { return s.p.Stats().Parked == 0 })
	c.want("1", "GET", "x")
}

func TestATransactionWhoseMultiFoundNoRoomRunsNoPartOfIt(t *testing.T) {
	t.Parallel()
	s, c, settle := crowded(t)
	settle()
	if got := c.do("MULTI"); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Error(got)
	}
	s.serve(s.nodes[0])
	waitFor(t, "served", func() bool { return s.p.Stats().Parked == 0 })
	if got := c.do("SET", "x", "1"); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Error(got)
	}
	if got := c.do("EXEC"); !strings.HasPrefix(got, "-EXECABORT ") {
		t.Error(got)
	}
	c.want("$-1", "GET", "x")
}

func TestACommandThatFindsNoRoomIsRefusedOnce(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Limits.ParkedCommands = 1 })
	c, quiet, other := s.client(), s.client(), s.client()
	c.want("OK", "SET", "x", "1")
	quiet.want("OK", "SET", "y", "1")
	s.nodes[0].signal(syscall.SIGKILL)
	<-s.nodes[0].gone
	other.send("SET", "other", "1")
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
	if got := c.do("WAIT", "1", "10"); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Fatal(got)
	}
	c.want("OK", "CLIENT", "SETNAME", "ann")
	quiet.send("CLIENT", "REPLY", "OFF")
	quiet.send("SET", "y", "2")
	quiet.want("OK", "CLIENT", "REPLY", "ON")
}

func TestASubscriptionThatWasGivenUpIsNone(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, func(sp *spec, _ *Options) { sp.Timing.Park = topo.Duration(200 * time.Millisecond) })
	c := s.client()
	c.want("OK", "CLIENT", "SETNAME", "ann")
	s.phase(topo.PhaseFencing)
	waitFor(t, "nothing is sent", func() bool { return !s.p.Stats().Sending })
	if got := c.do("SUBSCRIBE", "ch"); !strings.HasPrefix(got, "-TRYAGAIN ") {
		t.Fatal(got)
	}
	s.serve(s.nodes[0])
	c.want("ann", "CLIENT", "GETNAME")
	waitFor(t, "its connection serves others", func() bool { return s.p.Stats().Pinned == 0 })
}

// A subscriber that says no more is owed its replies as others are, also when they take a moment.
func TestASubscriberThatClosesItsSideGetsItsReplies(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	c.want("*3 $10 psubscribe $1 * :1", "PSUBSCRIBE", "*")
	s.nodes[0].signal(syscall.SIGSTOP)
	c.send("SET", "a", "b")
	c.send("ZADD", "z", "1", "a")
	_ = c.c.(*net.TCPConn).CloseWrite()
	<-time.After(250 * time.Millisecond) // longer than a client is waited for that has left
	s.nodes[0].signal(syscall.SIGCONT)
	all, err := io.ReadAll(c.r)
	if n := strings.Count(string(all), "-ERR Can't execute"); n != 2 || err != nil {
		t.Errorf("%d of 2 replies: %q, %v", n, all, err)
	}
}
