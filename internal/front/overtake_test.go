// SPDX-License-Identifier: Apache-2.0

package front

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/slots"
)

// A pipeline meets a shard that has given a slot away: all of it is carried out, in its order, and what is said meanwhile behind it.
func TestAPipelineIsNotRefusedBecauseASlotHasMoved(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"by the loop", "by a goroutine"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			m, now := startCluster(t, time.Minute)
			w := m.client(t)
			w.raw("SET b 1\r\nAPPEND b 2\r\nSET f 3\r\nAPPEND b 4\r\nGET a\r\nAPPEND b 5\r\nMGET b f a\r\n")
			if !until(10*time.Second, func() bool { return m.detours() == 1 }) {
				t.Fatal("nothing is on a detour")
			}
			if strings.HasSuffix(how, "goroutine") {
				w.raw("MULTI\r\nAPPEND b 6\r\nEXEC\r\n")
			} else {
				w.raw("APPEND b 6\r\n")
			}
			if got, err := w.try(50 * time.Millisecond); err == nil {
				t.Fatalf("an answer before the map is new: %q", got)
			}
			now.Store(now.Load().With(3300, "s1"))
			want := []string{"+OK\r\n", ":2\r\n", "+OK\r\n", ":3\r\n", "$-1\r\n", ":4\r\n", "*3\r\n" + bulk("1245") + bulk("3") + "$-1\r\n", ":5\r\n"}
			if strings.HasSuffix(how, "goroutine") {
				want = append(want[:7], "+OK\r\n", "+QUEUED\r\n", "*1\r\n:5\r\n")
			}
			for _, reply := range want {
				if got := w.next(); got != reply {
					t.Fatalf("%q instead of %q", got, reply)
				}
			}
			w.want(bulk("12456"), "GET b")
		})
	}
}

// fakeCluster is two shards of a cluster; the slot of b (3300) is the first one's.
func fakeCluster(t *testing.T) (f *Front, a, b *fake, now *atomic.Pointer[slots.Map]) {
	now = &atomic.Pointer[slots.Map]{}
	now.Store(slots.Even("a", "b"))
	f, a, b = fakes(t, func(o *Options) { o.Place, o.Cluster = nil, &Cluster{Map: now.Load} })
	return f, a, b, now
}

// A shard refuses a command and carries out the next one about the same key, because it has got its slot in between.
func TestARefusedCommandWaitsForWhatBecomesOfThoseBehindIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		first, second string
		want          []string
	}{
		{"-MOVED 3300 10.0.0.1:1\r\n", ":5\r\n", []string{"-TRYAGAIN the command", ":5\r\n", ":7\r\n"}},
		{"-MOVED 3300 10.0.0.1:1\r\n", "-MOVED 3300 10.0.0.1:1\r\n", []string{"+OK\r\n", ":6\r\n", ":7\r\n"}},
		{"-CLUSTERDOWN Hash slot not served\r\n", "-MOVED 3300 10.0.0.1:1\r\n", []string{"+OK\r\n", ":6\r\n", ":7\r\n"}},
		{"-TRYAGAIN the command was not executed: because\r\n", "-TRYAGAIN the command was not executed: so\r\n", []string{"+OK\r\n", ":6\r\n", ":7\r\n"}},
	} {
		second, want := c.second, c.want
		t.Run(c.first+second, func(t *testing.T) {
			t.Parallel()
			f, a, b, now := fakeCluster(t)
			asked, go_ := make(chan struct{}), make(chan struct{})
			a.says(func(conn net.Conn, args []string) {
				switch args[0] {
				case "SET":
					_, _ = conn.Write([]byte(c.first))
				case "GET":
					_, _ = conn.Write([]byte("$-1\r\n"))
				default:
					close(asked)
					<-go_
					_, _ = conn.Write([]byte(second[:3]))
					<-time.After(10 * time.Millisecond)
					_, _ = conn.Write([]byte(second[3:]))
				}
			})
			b.says(func(conn net.Conn, args []string) {
				_, _ = conn.Write([]byte(map[string]string{"SET": "+OK\r\n", "APPEND": ":6\r\n", "STRLEN": ":7\r\n"}[args[0]]))
			})
			w := f.client(t)
			w.raw("SET b 1\r\nGET f\r\nAPPEND b 2\r\n")
			<-asked
			if !until(10*time.Second, func() bool { return f.detours() == 1 }) {
				t.Fatal("the refusal is not waited with")
			}
			now.Store(now.Load().With(3300, "b"))
			w.raw("STRLEN b\r\n")
			if got, err := w.try(50 * time.Millisecond); err == nil {
				t.Fatalf("%q, and nothing is known of the second one", got)
			}
			if got := b.commands(); got != "" {
				t.Fatalf("the other shard has heard %q", got)
			}
			close(go_)
			for _, reply := range []string{want[0], "$-1\r\n", want[1], want[2]} {
				if got := w.next(); !strings.HasPrefix(got, reply) {
					t.Fatalf("%q instead of %q; the other shard has heard %q", got, reply, b.commands())
				}
			}
		})
	}
}

// A refused command is not carried out behind one about its key that has run.
func TestARefusedCommandOvertakesNothing(t *testing.T) {
	t.Parallel()
	for _, behind := range []string{"SET b 2", "FLUSHALL", "BLPOP b 1", "MGET b f"} {
		t.Run(behind, func(t *testing.T) {
			t.Parallel()
			f, a, b, now := fakeCluster(t)
			asked, go_ := make(chan struct{}), make(chan struct{})
			a.says(func(conn net.Conn, args []string) {
				if args[0] == "SET" {
					close(asked)
					<-go_
					_, _ = conn.Write([]byte("-MOVED 3300 10.0.0.1:1\r\n"))
				} else {
					_, _ = conn.Write([]byte("+OK\r\n"))
				}
			})
			w := f.client(t)
			w.raw("SET b 1\r\n")
			<-asked
			now.Store(now.Load().With(3300, "b"))
			w.raw(behind + "\r\n")
			if !until(10*time.Second, func() bool { return strings.Contains(b.commands(), behind[:4]) }) {
				t.Fatalf("the other shard has heard %q", b.commands())
			}
			close(go_)
			if got := w.next(); !strings.HasPrefix(got, "-TRYAGAIN the command was not executed") {
				t.Fatalf("%q; the other shard has heard %q", got, b.commands())
			}
			if got := b.commands(); strings.Contains(got, "SET b 1") {
				t.Fatal(got)
			}
		})
	}
}
