// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/clock"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// heir is a second proxy of the same shard, with the ports of the first, as another process would be.
func (s *shard) heir() *Proxy {
	t := s.t
	t.Helper()
	ports, err := s.p.Ports()
	if err != nil {
		t.Fatal(err)
	}
	o := s.p.o
	o.Clock, o.Inherited, o.FirstID = clock.Real{}, ports, s.p.LastID()+1000
	o.View = view.New(s.docs, o.Clock, shardKey, o.Log)
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		_ = port.File.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = o.View.Run(ctx) })
	wg.Go(func() { _ = p.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	waitFor(t, "the heir may send", func() bool { return p.maySend(p.order.Load()) })
	return p
}

// giveTo sends clients to a proxy as the hatch does: as bytes, with copies of their sockets.
func giveTo(p *Proxy) func(Given) error {
	return func(g Given) error {
		b, err := g.Record.Encode()
		if err != nil {
			return err
		}
		n := Given{Client: -1, Upstream: -1}
		if n.Record, err = DecodeRecord(b); err != nil {
			return err
		}
		if n.Client, err = unix.FcntlInt(uintptr(g.Client), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		if g.Upstream >= 0 {
			if n.Upstream, err = unix.FcntlInt(uintptr(g.Upstream), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return err
			}
		}
		return p.Adopt(n)
	}
}

func leaveAll(t *testing.T, from *Proxy, give func(Given) error, within time.Duration) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return from.Leave(ctx, give)
}

func TestClientsGoOnInAnotherProcess(t *testing.T) {
	s := newShard(t, 0, nil)
	plain, three, half := s.client(), s.client(), s.client()
	plain.want("OK", "SELECT", "3")
	plain.want("OK", "CLIENT", "SETNAME", "ann")
	plain.want("OK", "CLIENT", "SETINFO", "LIB-NAME", "lib")
	plain.want("OK", "SET", "k", "v")
	id := plain.do("CLIENT", "ID")
	three.do("HELLO", "3")
	three.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
	if _, err := half.c.Write([]byte("*2\r\n$4\r\nECHO\r\n$5\r\nhe")); err != nil {
		t.Fatal(err)
	}
	quiet, skip, fresh := s.client(), s.client(), s.client()
	quiet.send("CLIENT", "REPLY", "OFF")
	skip.send("CLIENT", "REPLY", "SKIP")
	waitFor(t, "all are in the state that is meant", func() bool {
		return quiets(s.p) == 2 && s.p.Stats().Clients == 6
	})
	heir := s.heir()
	if left, err := leaveAll(t, s.p, giveTo(heir), 10*time.Second); left != 0 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	if n := heir.Stats().Clients; n != 6 {
		t.Errorf("%d clients were taken over", n)
	}
	plain.want("v", "GET", "k")
	plain.want(id, "CLIENT", "ID")
	if info := plain.do("CLIENT", "INFO"); !strings.Contains(info, " name=ann ") || !strings.Contains(info, " db=3 ") || !strings.Contains(info, " lib-name=lib ") || !strings.Contains(info, "addr="+plain.c.LocalAddr().String()+" ") {
		t.Errorf("client information %q", info)
	}
	if got := three.do("GET", "nothing"); got != "_" {
		t.Errorf("RESP3 null is %q", got)
	}
	if n := len(heir.listeners()); n != 1 {
		t.Errorf("%d clients want notifications", n)
	}
	if _, err := half.c.Write([]byte("llo\r\n")); err != nil {
		t.Fatal(err)
	}
	if got := half.recv(); got != "hello" {
		t.Errorf("a command in two halves: %q", got)
	}
	quiet.send("SET", "q", "1")
	quiet.want("OK", "CLIENT", "REPLY", "ON")
	quiet.want("1", "GET", "q")
	skip.send("SET", "skipped", "1")
	skip.want("1", "GET", "skipped")
	fresh.want("PONG", "PING")
	newcomer := dialWire(t, heir.Addr().String())
	newcomer.want("PONG", "PING")
}

func quiets(p *Proxy) int {
	n := 0
	for _, s := range p.everybody() {
		done := make(chan bool, 1)
		if s.driven.Load() && s.sock.loop.post(func() {
			done <- s.vis.row.Load() != nil && s.vis.row.Load().Name == "CLIENT" && s.vis.sub.Load() != nil && *s.vis.sub.Load() == "REPLY"
		}) && <-done {
			n++
		}
	}
	return n
}

func TestOwnConnectionsGoAlong(t *testing.T) {
	s := newShard(t, 0, nil)
	multi, watch, broken, sub, tracking, monitor := s.client(), s.client(), s.client(), s.client(), s.client(), s.client()
	multi.want("OK", "MULTI")
	multi.want("QUEUED", "SET", "m", "1")
	watch.want("OK", "SET", "w", "1")
	watch.want("OK", "WATCH", "w")
	broken.want("OK", "WATCH", "b")
	sub.do("SUBSCRIBE", "c")
	sub.do("PSUBSCRIBE", "p*")
	tracking.do("HELLO", "3")
	tracking.want("OK", "CLIENT", "TRACKING", "ON")
	tracking.do("GET", "t")
	monitor.want("OK", "MONITOR")
	direct := dialWire(t, s.nodes[0].addr)
	subs := direct.do("CLIENT", "LIST", "TYPE", "pubsub")
	heir := s.heir()
	if left, err := leaveAll(t, s.p, giveTo(heir), 10*time.Second); left != 0 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	if now := direct.do("CLIENT", "LIST", "TYPE", "pubsub"); clientIDs(now) != clientIDs(subs) {
		t.Errorf("subscribed connections are %s, were %s: they must be the same", clientIDs(now), clientIDs(subs))
	}
	direct.do("PUBLISH", "c", "hello")
	if got := sub.recv(); !strings.Contains(got, "hello") {
		t.Errorf("a message: %q", got)
	}
	if got := multi.do("EXEC"); got != "*1 +OK" {
		t.Errorf("EXEC: %q", got)
	}
	watch.want("OK", "MULTI")
	watch.want("QUEUED", "INCR", "w")
	if got := watch.do("EXEC"); got != "*1 :2" {
		t.Errorf("EXEC of what was watched and not changed: %q", got)
	}
	direct.want("OK", "SET", "b", "other")
	broken.want("OK", "MULTI")
	broken.want("QUEUED", "SET", "b", "mine")
	if got := broken.do("EXEC"); got != "*-1" {
		t.Errorf("EXEC of what was watched and changed: %q", got)
	}
	direct.want("OK", "SET", "t", "1")
	if got := tracking.recv(); !strings.Contains(got, "invalidate") {
		t.Errorf("tracking: %q", got)
	}
	waitFor(t, "the monitor shows what happens", func() bool { return strings.Contains(monitor.recv(), `"SET" "t" "1"`) })
}

func clientIDs(list string) string {
	var ids []string
	for line := range strings.Lines(list) {
		if id, _, ok := strings.Cut(line, " "); ok {
			ids = append(ids, id)
		}
	}
	return strings.Join(ids, " ")
}

func TestBlockedClientsWaitOnInAnotherProcess(t *testing.T) {
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	forever, short, stream := s.client(), s.client(), s.client()
	forever.send("BLPOP", "box", "0")
	short.send("BLPOP", "empty", "1")
	began := time.Now()
	stream.send("XREAD", "BLOCK", "0", "STREAMS", "log", "$")
	waitFor(t, "three are blocked", func() bool { return s.nodes[0].info("blocked_clients") == "3" })
	heir := s.heir()
	if left, err := leaveAll(t, s.p, giveTo(heir), 10*time.Second); left != 0 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	waitFor(t, "they are blocked again", func() bool { return s.nodes[0].info("blocked_clients") == "3" })
	other := dialWire(t, heir.Addr().String())
	other.want("1", "RPUSH", "box", "letter")
	if got := forever.recv(); !strings.Contains(got, "letter") {
		t.Errorf("BLPOP: %q", got)
	}
	if got := short.recv(); got != "*-1" {
		t.Errorf("BLPOP of a second: %q", got)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("BLPOP of a second took %s", took)
	}
	other.do("XADD", "log", "*", "f", "v")
	if got := stream.recv(); !strings.Contains(got, "log") {
		t.Errorf("XREAD: %q", got)
	}
	forever.want("PONG", "PING")
}

func TestUsersOfTheBackendGoAlong(t *testing.T) {
	s := newShard(t, 0, nil)
	s.nodes[0].do(t, "ACL", "SETUSER", "ann", "on", ">pw", "~a:*", "+@all")
	c := s.client()
	c.want("OK", "AUTH", "ann", "pw")
	c.want("OK", "SET", "a:1", "x")
	heir := s.heir()
	if left, err := leaveAll(t, s.p, giveTo(heir), 10*time.Second); left != 0 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	c.want("x", "GET", "a:1")
	if got := c.do("GET", "b"); !strings.HasPrefix(got, "-NOPERM") {
		t.Errorf("another's key: %q", got)
	}
}

// TestNothingIsLostUnderLoad: clients that write without a pause, some with pipelines, go back and forth.
func TestNothingIsLostUnderLoad(t *testing.T) {
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	counts := make([]int, 8)
	errs := make([]error, len(counts))
	for i := range counts {
		c := s.client()
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				depth := 1 + i%2*15
				var b []byte
				for j := range depth {
					b = fmt.Appendf(b, "RPUSH list:%d %d\r\n", i, counts[i]+j)
				}
				if _, errs[i] = c.c.Write(b); errs[i] != nil {
					return
				}
				for range depth {
					_ = c.c.SetReadDeadline(time.Now().Add(10 * time.Second))
					f, err := c.frame()
					if err == nil && f[0] != ':' {
						err = errors.New(show(f))
					}
					if errs[i] = err; err != nil {
						return
					}
					counts[i]++
				}
			}
		})
	}
	from := s.p
	for range 3 {
		s.p = from
		heir := s.heir()
		if left, err := leaveAll(t, from, giveTo(heir), 10*time.Second); left != 0 || err != nil {
			t.Fatalf("%d clients left, %v", left, err)
		}
		from = heir
	}
	close(stop)
	wg.Wait()
	for i, n := range counts {
		if errs[i] != nil {
			t.Errorf("client %d: %v", i, errs[i])
		}
		if got := s.nodes[0].do(t, "LLEN", fmt.Sprintf("list:%d", i)); got != fmt.Sprint(n) || n == 0 {
			t.Errorf("client %d wrote %d, the list has %s", i, n, got)
		}
	}
}

func TestWhoCannotBeGivenAwayStays(t *testing.T) {
	s := newShard(t, 0, nil)
	var all []*wire
	for i := range 20 {
		c := s.client()
		c.want("OK", "SET", fmt.Sprint("k", i), fmt.Sprint(i))
		all = append(all, c)
	}
	blocked, sub := s.client(), s.client()
	blocked.send("BLPOP", "box", "0")
	sub.do("SUBSCRIBE", "c")
	waitFor(t, "one is blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	full := errors.New("the other process is gone")
	given := 0
	_, err := leaveAll(t, s.p, func(Given) error {
		if given++; given > 5 {
			return full
		}
		return nil // lost with the other process
	}, 10*time.Second)
	if !errors.Is(err, full) {
		t.Fatalf("Leave: %v", err)
	}
	s.p.Stay()
	alive := 0
	for i, c := range all {
		if got, err := c.try("GET", fmt.Sprint("k", i)); err == nil && got == fmt.Sprint(i) {
			alive++
		}
	}
	if n := s.p.Stats().Clients; alive < 20-5 || n != 22-5 {
		t.Errorf("%d of 20 clients go on, %d in all", alive, n)
	}
	s.client().want("PONG", "PING")
}

func TestWhoReadsNothingIsToldToMove(t *testing.T) {
	s := newShard(t, 0, nil)
	s.nodes[0].do(t, "SET", "big", strings.Repeat("x", 900<<10))
	slow := s.client()
	slow.do("HELLO", "3")
	slow.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
	for range 40 {
		slow.send("GET", "big")
	}
	waitFor(t, "replies wait for the client", func() bool {
		for _, c := range s.p.everybody() {
			return c.out.pending() > 1<<20 && c.inflight.Load() == 0
		}
		return false
	})
	heir := s.heir()
	left, err := leaveAll(t, s.p, giveTo(heir), lingerNotice+500*time.Millisecond)
	if left != 1 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	for range 40 {
		if got := slow.recv(); len(got) != 900<<10 {
			t.Fatalf("a reply of %d bytes", len(got))
		}
	}
	if got := slow.recv(); !strings.HasPrefix(got, ">4 $6 MOVING :1 :") || !strings.HasSuffix(got, " _") {
		t.Errorf("the notification is %q", got)
	}
	if left, err = leaveAll(t, s.p, giveTo(heir), 5*time.Second); left != 0 || err != nil {
		t.Errorf("%d clients left, %v", left, err)
	}
	slow.want("921600", "STRLEN", "big")
}

func TestAUnixSocketGoesToTheHeir(t *testing.T) {
	path := t.TempDir() + "/s"
	s := newShard(t, 0, func(_ *spec, o *Options) { o.Listen = UnixPrefix + path })
	dial := func() *wire {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		w := dialWire(t, s.nodes[0].addr)
		_ = w.c.Close()
		w.c = c
		w.r.Reset(c)
		return w
	}
	c := dial()
	c.want("OK", "SET", "k", "v")
	heir := s.heir()
	if left, err := leaveAll(t, s.p, giveTo(heir), 10*time.Second); left != 0 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	s.p.GaveAway()
	s.p.stop()
	c.want("v", "GET", "k")
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	dial().want("v", "GET", "k")
}

// WAIT speaks for writes that went out on other connections. Taken out of its wait, it cannot be asked again.
func TestAnInterruptedWaitVouchesForNothing(t *testing.T) {
	s := newShard(t, 1, nil)
	c := s.client()
	c.want("OK", "SET", "a", "1")
	s.nodes[1].signal(syscall.SIGSTOP)
	defer s.nodes[1].signal(syscall.SIGCONT)
	c.want("OK", "SET", "a", "2")
	c.send("WAIT", "1", "0")
	waitFor(t, "it waits", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	heir := s.heir()
	if left, err := leaveAll(t, s.p, giveTo(heir), 10*time.Second); left != 0 || err != nil {
		t.Fatalf("%d clients left, %v", left, err)
	}
	if got := c.recv(); got != "0" {
		t.Errorf("%s replicas are said to hold what none has", got)
	}
	c.want("2", "GET", "a")
}

// One client that is too large for the other process does not end the hand-over of all.
func TestAClientThatIsTooLargeStaysAndTheOthersLeave(t *testing.T) {
	s := newShard(t, 0, nil)
	large, small := s.client(), s.client()
	large.want("OK", "MULTI")
	large.want("QUEUED", "SET", "a", strings.Repeat("v", 500<<10))
	small.want("OK", "SET", "b", "1")
	heir := s.heir()
	give, refused := giveTo(heir), 0
	left, err := leaveAll(t, s.p, func(g Given) error {
		if g.Record.Multi {
			refused++
			return fmt.Errorf("give: %w", ErrTooLarge)
		}
		return give(g)
	}, time.Second)
	if left != 1 || err != nil || refused != 1 {
		t.Fatalf("%d clients left, %v, %d refusals", left, err, refused)
	}
	small.want("1", "GET", "b")
	large.want("*1 +OK", "EXEC")
	if n := heir.Stats().Clients; n != 1 {
		t.Errorf("%d clients were taken over", n)
	}
}
