// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// steady is a lease that a machine under load keeps.
const steady = topo.Duration(5 * time.Second)

func longLease(sp *spec, _ *Options) { sp.Timing.Lease, sp.Timing.Margin = steady, steady/10 }

func TestMaintenanceNotificationsNeedRESP3AndTheServersSyntax(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	if got := c.do("CLIENT", "MAINT_NOTIFICATIONS", "ON"); !strings.HasPrefix(got, "-ERR CLIENT MAINT_NOTIFICATIONS ON needs RESP3") {
		t.Fatal(got)
	}
	c.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "OFF")
	c.do("HELLO", "3")
	for _, bad := range [][]string{{}, {"MAYBE"}, {"OFF", "x"}, {"ON", "x"}, {"ON", "moving-endpoint-type"}, {"ON", "moving-endpoint-type", "pigeon"}} {
		if got := c.do(append([]string{"CLIENT", "MAINT_NOTIFICATIONS"}, bad...)...); !strings.HasPrefix(got, "-ERR ") {
			t.Fatalf("%v: %q", bad, got)
		}
	}
	c.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON", "moving-endpoint-type", "external-fqdn")
	c.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
}

func TestClientsThatAskAreToldOfAChangeOfThePrimary(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, o *Options) {
		longLease(sp, o)
		sp.Timing.Park = topo.Duration(7500 * time.Millisecond)
	})
	asked, other, changed, back := s.client(), s.client(), s.client(), s.client()
	for _, c := range []*wire{asked, other, changed, back} {
		c.do("HELLO", "3")
		if c != other {
			c.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
		}
	}
	changed.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "OFF")
	back.do("HELLO", "2")
	back.do("HELLO", "3")
	s.phase(topo.PhaseDraining)
	if got := asked.recv(); got != ">3 $12 FAILING_OVER :1 :8" {
		t.Fatal(got)
	}
	asked.want("PONG", "PING")
	late := s.client()
	late.do("HELLO", "3")
	late.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
	if got := late.recv(); got != ">3 $12 FAILING_OVER :1 :8" {
		t.Fatal(got)
	}
	s.switchover(s.nodes[0], s.nodes[1])
	for _, c := range []*wire{asked, late} {
		if got := c.recv(); got != ">2 $11 FAILED_OVER :2" {
			t.Fatal(got)
		}
	}
	for _, c := range []*wire{asked, other, changed, back, late} {
		c.want("OK", "SET", "a", "b") // and nothing in front of it
	}
}

func TestALostPrimaryIsAnnouncedBeforeTheFailoverBegins(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, longLease)
	c := s.client()
	c.do("HELLO", "3")
	c.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
	c.want("OK", "SET", "a", "1")
	waitFor(t, "the replica has it", func() bool { return s.caughtUp(s.nodes[0]) })
	s.nodes[0].signal(syscall.SIGKILL)
	<-s.nodes[0].gone
	if got := c.recv(); !strings.HasPrefix(got, ">3 $12 FAILING_OVER :1 ") {
		t.Fatal(got)
	}
	s.failover()
	if got := c.recv(); got != ">2 $11 FAILED_OVER :2" {
		t.Fatal(got)
	}
	c.want("1", "GET", "a")
}

// Replies of every size are read as single bytes arrive; a push must never be inside of one.
func TestNotificationsComeBetweenWholeReplies(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, longLease)
	c := s.client()
	big, long := strings.Repeat("x", 100<<10), strings.Repeat("y", streamMin+100<<10) // the second one passes piece by piece
	c.want("OK", "SET", "big", big)
	c.want("OK", "SET", "long", long)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	pushes := make([]int, 3)
	for i := range pushes {
		c := s.client()
		c.do("HELLO", "3")
		c.want("OK", "CLIENT", "MAINT_NOTIFICATIONS", "ON")
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var out []byte
				for n := range 8 {
					out = resp.AppendCommand(out, "ECHO", strconv.Itoa(n))
					out = resp.AppendCommand(out, "GET", "big")
				}
				out = resp.AppendCommand(out, "GET", "long")
				if _, err := c.c.Write(out); err != nil {
					t.Error(err)
					return
				}
				for n := range 17 {
					got := c.recv()
					for strings.HasPrefix(got, ">") {
						pushes[i]++
						got = c.recv()
					}
					if n == 16 && got != long || n < 16 && n%2 == 0 && got != strconv.Itoa(n/2) || n%2 == 1 && got != big {
						t.Errorf("reply %d: %d bytes, %.40q", n, len(got), got)
						return
					}
				}
			}
		})
	}
	for range 20 {
		s.phase(topo.PhaseFencing)
		waitFor(t, "the notification", func() bool { s.p.herald.mu.Lock(); defer s.p.herald.mu.Unlock(); return s.p.herald.away })
		s.phase(topo.PhaseServing)
		waitFor(t, "the notification", func() bool { s.p.herald.mu.Lock(); defer s.p.herald.mu.Unlock(); return !s.p.herald.away })
	}
	close(stop)
	wg.Wait()
	for i, n := range pushes {
		if n < 20 {
			t.Errorf("client %d saw %d notifications", i, n)
		}
	}
}

func TestGoRedisAsksByDefaultAndWaitsLonger(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, longLease)
	c := redis.NewClient(&redis.Options{Addr: s.p.Addr().String(), PoolSize: 1, ReadTimeout: 300 * time.Millisecond, MaxRetries: -1})
	defer c.Close()
	ctx := context.Background()
	if err := c.Set(ctx, "a", "b", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.p.listeners()); n != 1 {
		t.Fatalf("%d sessions asked for notifications", n)
	}
	s.phase(topo.PhaseDraining)
	waitFor(t, "told", func() bool { s.p.herald.mu.Lock(); defer s.p.herald.mu.Unlock(); return s.p.herald.away })
	if err := c.ClientID(ctx).Err(); err != nil { // it reads the notification; that of its own reply it did not know yet
		t.Fatal(err)
	}
	done := make(chan error, 1)
	begun := time.Now()
	go func() { done <- c.Set(ctx, "a", "c", 0).Err() }()
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
	waitFor(t, "well beyond the client's own timeout", func() bool { return time.Since(begun) > 900*time.Millisecond })
	s.switchover(s.nodes[0], s.nodes[1])
	if err := <-done; err != nil {
		t.Fatalf("after %v: %v", time.Since(begun), err)
	}
}

// TestRedisPyAsksByDefault runs where redis-py 8 or later is installed, or where REDIS_PY names its directory.
func TestRedisPyAsksByDefaultAndWaitsLonger(t *testing.T) {
	t.Parallel()
	env := append(os.Environ(), "PYTHONPATH="+os.Getenv("REDIS_PY"))
	probe := exec.Command("python3", "-c", "import redis.maint_notifications")
	probe.Env = env
	if err := probe.Run(); err != nil {
		t.Skip("redis-py 8 is not installed")
	}
	s := newShard(t, 1, longLease)
	_, port, _ := net.SplitHostPort(s.p.Addr().String())
	cmd := exec.Command("python3", "-c", `
import redis, sys
c = redis.Redis(host="127.0.0.1", port=int(sys.argv[1]), socket_timeout=0.3, retry=None)
c.set("a", "b"); print("ready", flush=True)
sys.stdin.readline(); c.set("a", "c"); print(c.get("a"), flush=True)
sys.stdin.readline(); print(c.get("a"), flush=True)`, port)
	cmd.Env = env
	in, _ := cmd.StdinPipe()
	var out, errs bytes.Buffer
	var mu sync.Mutex
	cmd.Stdout, cmd.Stderr = &locked{mu: &mu, b: &out}, &locked{mu: &mu, b: &errs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return bytes.Count(out.Bytes(), []byte("\n")) == n || errs.Len() > 0
		}
	}
	waitFor(t, "redis-py is ready", said(1))
	if n := len(s.p.listeners()); n != 1 {
		t.Errorf("%d sessions asked for notifications", n)
	}
	s.phase(topo.PhaseDraining)
	waitFor(t, "told", func() bool { s.p.herald.mu.Lock(); defer s.p.herald.mu.Unlock(); return s.p.herald.away })
	begun := time.Now()
	_, _ = in.Write([]byte("\n"))
	waitFor(t, "parked", func() bool { return s.p.Stats().Parked == 1 })
	waitFor(t, "well beyond the client's own timeout", func() bool { return time.Since(begun) > 900*time.Millisecond })
	s.switchover(s.nodes[0], s.nodes[1])
	waitFor(t, "an answer", said(2))
	_, _ = in.Write([]byte("\n"))
	if err := cmd.Wait(); err != nil || out.String() != "ready\nb'c'\nb'c'\n" {
		t.Fatalf("%v: %s\n%s", err, out.String(), errs.String())
	}
}

type locked struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
