// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

func TestAQuorumWriteWaitsForItsReplica(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) {
		sp.Durability, sp.AckReplicas = topo.Quorum, 1
		sp.Timing.Park = topo.Duration(3 * time.Second)
	})
	c, r, b, x := s.client(), s.client(), s.client(), s.client()
	c.want("OK", "SET", "a", "1")
	b.send("BLPOP", "l", "0")
	waitFor(t, "blocked", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("SET", "a", "2")
	x.send("EVAL", "return redis.call('rpush','l','x')", "1", "l")
	for _, w := range []*wire{c, b, x} {
		_ = w.c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if f, err := w.frame(); err == nil {
			t.Fatalf("answered %q without an acknowledgement", f)
		}
	}
	r.want("2", "GET", "a") // a local read waits for nobody
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	if got := b.recv(); got != "*2 $1 l $1 x" {
		t.Fatal(got)
	}
	if got := x.recv(); got != "1" {
		t.Fatal(got)
	}
	s.nodes[1].signal(syscall.SIGSTOP)
	if got := c.do("SET", "a", "3"); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN the write was applied by the primary, but only 0 of 1 replicas acknowledged it") {
		t.Fatal(got)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	c.want("OK", "SET", "a", "4")
	p := s.client()
	p.want("*3 $10 psubscribe $1 * :1", "PSUBSCRIBE", "*")
	c.want("OK", "SET", "a", "5")
	c.want("1", "PUBLISH", "seen", "x")
	if got := p.recv(); got != "*4 $8 pmessage $1 * $4 seen $1 x" {
		t.Fatal("a marker reached a client: ", got)
	}
}

// A command that is called back may have run just before: then it is the question for its replicas that is ended.
func TestAnAcknowledgementThatIsCalledBackIsAskedForAgain(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	s.inSync(s.nodes[0])
	s.client().want("1", "RPUSH", "from", "x")
	for name, ask := range map[string][]string{"shared": {"SET", "a", "1"}, "own": {"BLMOVE", "from", "to", "LEFT", "LEFT", "0"}} {
		c := s.client()
		s.nodes[1].signal(syscall.SIGSTOP)
		c.send(ask...)
		waitFor(t, "the question is waiting", func() bool { return s.nodes[0].info("blocked_clients") == "1" })
		for line := range strings.Lines(s.nodes[0].do(t, "CLIENT", "LIST")) {
			if id, _, _ := strings.Cut(strings.TrimPrefix(line, "id="), " "); strings.Contains(line, " cmd=wait ") && strings.Contains(line, " flags=b ") {
				if got := s.nodes[0].do(t, "CLIENT", "UNBLOCK", id, "ERROR"); got != "1" {
					t.Fatalf("%s: called back: %s", name, got)
				}
			}
		}
		_ = c.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if f, err := c.frame(); err == nil {
			t.Fatalf("%s: answered %q without an acknowledgement", name, f)
		}
		s.nodes[1].signal(syscall.SIGCONT)
		if got, want := c.recv(), map[string]string{"shared": "OK", "own": "x"}[name]; got != want {
			t.Fatalf("%s: got %s", name, got)
		}
	}
}

func TestASessionMayAskForLessThanQuorum(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	c, lax := s.client(), s.client()
	lax.want("OK", "SET", "a", "0") // from here on the proxy knows what is promised
	lax.want("quorum", "PROXY", "DURABILITY")
	lax.want("OK", "PROXY", "DURABILITY", "async")
	lax.want("async", "PROXY", "DURABILITY")
	s.nodes[1].signal(syscall.SIGSTOP)
	c.send("SET", "a", "1")
	lax.want("OK", "SET", "b", "1")
	lax.want("1", "GET", "b")
	lax.want("OK", "MULTI")
	lax.want("QUEUED", "INCR", "b")
	lax.want("*1 :2", "EXEC")
	lax.want("1", "INCR", "n")
	_ = c.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if f, err := c.frame(); err == nil {
		t.Fatalf("a quorum write was answered without its replica: %q", f)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	if got := c.recv(); got != "OK" {
		t.Fatal(got)
	}
	lax.want("OK", "PROXY", "DURABILITY", "QUORUM")
	lax.want("quorum", "PROXY", "DURABILITY")
	lax.want("-ERR durability is QUORUM+DISK, QUORUM or ASYNC", "PROXY", "DURABILITY", "maybe")
	s.nodes[1].signal(syscall.SIGSTOP)
	lax.send("SET", "c", "1")
	_ = lax.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if f, err := lax.frame(); err == nil {
		t.Fatalf("a quorum write was answered without its replica: %q", f)
	}
	s.nodes[1].signal(syscall.SIGCONT)
	if got := lax.recv(); got != "OK" {
		t.Fatal(got)
	}
	lax.want("OK", "PROXY", "DURABILITY", "ASYNC")
	lax.want("RESET", "RESET")
	lax.want("quorum", "PROXY", "DURABILITY")
}

func TestWritesThatTheServerRefusedForLackOfReplicasAreTriedAgain(t *testing.T) {
	t.Parallel()
	s := newShard(t, 0, nil)
	c := s.client()
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "1")
	c.send("SET", "a", "1")
	c.send("GET", "a")
	_ = c.c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if f, err := c.frame(); err == nil {
		t.Fatalf("answered %q", f)
	}
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "0")
	if got := c.recv() + c.recv(); got != "OK1" {
		t.Fatal(got)
	}
}

// A fresh primary gets its replicas in the middle of what has waited for it.
func TestAPipelineDoesNotSeeHowAFreshPrimaryGetsItsReplicas(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "1")
	c := s.client()
	const writes = 500
	var all []byte
	for i := range writes {
		all = resp.AppendCommand(all, "SET", "k"+strconv.Itoa(i), strings.Repeat("v", 4<<10))
	}
	for in, tries := 0, 0; in < 3; tries++ {
		s.phase(topo.PhaseFencing)
		waitFor(t, "nothing is sent", func() bool { return !s.p.Stats().Sending })
		s.nodes[1].do(t, "REPLICAOF", "NO", "ONE")
		waitFor(t, "the primary is alone", func() bool { return s.nodes[0].info("connected_slaves") == "0" })
		if _, err := c.c.Write(all); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "parked", func() bool { return s.p.Stats().Parked == writes })
		s.serve(s.nodes[0])
		begun := time.Now()
		<-time.After(5 * time.Millisecond) // as long as it takes the replicas of a failover
		s.follow(s.nodes[1], s.nodes[0])
		waitFor(t, "the primary has its replica", func() bool { return s.nodes[0].info("min_slaves_good_slaves") == "1" })
		took, refused := time.Since(begun), ""
		for i := range writes {
			if got := c.recv(); got != "OK" && refused == "" {
				refused = fmt.Sprintf("write %d: %s", i, got)
			}
		}
		switch { // they are waited for 50 ms
		case refused == "":
			in++
		case took < 40*time.Millisecond || tries > 20:
			t.Fatalf("%s, %s after the replica was told", refused, took)
		}
		waitFor(t, "replicated", func() bool { return s.nodes[1].info("master_link_status") == "up" })
	}
}

// The reply of a read that was under way when an earlier write was refused comes after the write was sent again.
func TestAReplyUnderWayDoesNotOvertakeAWriteThatIsSentAgain(t *testing.T) {
	t.Parallel()
	var r *relay
	s := newShard(t, 0, func(sp *spec, _ *Options) {
		r = newRelay(t, sp.Nodes[0].Addr)
		sp.Nodes[0].Addr = r.addr
	})
	c := s.client()
	c.want("OK", "SET", "b", "old")
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "1")
	r.hold("SET")
	c.send("SET", "a", "1")
	c.send("GET", "b")
	waitFor(t, "the server answered both", func() bool { return r.has(3) })
	s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "0")
	r.line(t)                            // the refusal
	<-time.After(100 * time.Millisecond) // longer than the write waits until it is sent again
	r.open(t)
	if got := c.recv() + " " + c.recv(); got != "OK old" {
		t.Fatalf("answered %q", got)
	}
}

func TestATransactionThatWasRefusedForLackOfReplicasIsSaidAgain(t *testing.T) {
	t.Parallel()
	for _, quorum := range []bool{false, true} {
		s := newShard(t, 1, func(sp *spec, _ *Options) {
			if quorum {
				sp.Durability, sp.AckReplicas = topo.Quorum, 1
			}
		})
		c, slow := s.client(), s.client()
		c.want("OK", "SET", "n", "1")
		slow.want("OK", "MULTI")
		slow.want("QUEUED", "INCR", "n")
		s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "2")
		for _, words := range [][]string{{"MULTI"}, {"INCR", "n"}, {"SET", "m", "x"}, {"EXEC"}} {
			c.send(words...)
		}
		slow.send("INCR", "n")
		waitFor(t, "the transactions are tried again", func() bool {
			refused, err := strconv.Atoi(strings.TrimPrefix(s.nodes[0].info("errorstat_NOREPLICAS"), "count="))
			return err == nil && refused > 10
		})
		s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "1")
		for _, want := range []string{"OK", "QUEUED", "QUEUED", "*2 :2 +OK"} {
			if got := c.recv(); got != want {
				t.Fatalf("quorum %v: %q, want %q", quorum, got, want)
			}
		}
		if got := slow.recv(); got != "QUEUED" {
			t.Fatal(got)
		}
		slow.want("*2 :3 :4", "EXEC")
		c.want("4", "GET", "n")
	}
}

// A write that is refused for a moment, and overtaken by one that ran, is answered together with that one: also when nobody can
// tell in the end what became of it.
func TestWhatWasOvertakenIsAnsweredWithAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	for _, cut := range []bool{false, true} {
		t.Run("cut="+strconv.FormatBool(cut), func(t *testing.T) {
			t.Parallel()
			s := newShard(t, 1, func(sp *spec, _ *Options) {
				sp.Durability, sp.AckReplicas = topo.Quorum, 1
				sp.Timing.Park = topo.Duration(2 * time.Second)
			})
			c := s.client()
			c.want("OK", "SET", "a", "1")
			s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "9")
			s.nodes[1].signal(syscall.SIGSTOP)
			ran := func() string {
				return s.nodes[0].do(t, "EVAL", "return string.match(redis.call('info','commandstats'),'cmdstat_spublish:calls=(%d+)')", "0")
			}
			before := ran()
			c.batch("SET a 2", "SPUBLISH nobody hears")
			if waitFor(t, "it ran", func() bool { return ran() != before }); cut {
				s.nodes[0].do(t, "CLIENT", "KILL", "TYPE", "normal")
			}
			if got := c.recv(); !strings.HasPrefix(got, "-NOREPLICAS ") {
				t.Fatalf("the first: %q", got)
			}
			if got := c.recv(); !strings.HasPrefix(got, "-OUTCOMEUNKNOWN ") {
				t.Fatalf("the second: %q", got)
			}
			s.nodes[1].signal(syscall.SIGCONT)
			s.nodes[0].do(t, "CONFIG", "SET", "min-replicas-to-write", "0")
			c.want("OK", "SET", "a", "3")
		})
	}
}

// What is pipelined behind a write does not take its acknowledgement away: in RESP2 a subscriber may not WAIT any more.
func TestAWriteInFrontOfASubscriptionWaitsForItsReplica(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	for _, pause := range []time.Duration{0, 1200 * time.Millisecond} { // longer than one WAIT
		c := s.client()
		s.nodes[1].signal(syscall.SIGSTOP)
		c.batch("MULTI", "SET a 1", "EXEC") // together: MULTI alone would be answered at once
		if pause > 0 {
			waitFor(t, "the transaction has run", func() bool { return s.nodes[0].do(t, "EXISTS", "a") == "1" })
		}
		c.send("SUBSCRIBE", "ch")
		_ = c.c.SetReadDeadline(time.Now().Add(max(pause, 300*time.Millisecond)))
		if f, err := c.frame(); err == nil {
			t.Errorf("answered %q without an acknowledgement", f)
		}
		s.nodes[1].signal(syscall.SIGCONT)
		_ = c.c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for _, want := range []string{"OK", "QUEUED", "*1 +OK", "*3 $9 subscribe $2 ch :1"} {
			f, err := c.frame()
			if err != nil {
				t.Fatal(err)
			}
			if got := show(f); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
		c.want("*3 $11 unsubscribe $2 ch :0", "UNSUBSCRIBE", "ch")
		c.want("OK", "SET", "b", "1")
		s.nodes[0].do(t, "DEL", "a")
	}
}

// A write that ran pins earlier refusals in front of its reply. They go out with it, also when it is not acknowledged, or
// its connection ends: every command is answered once.
func TestWhatWasRefusedInFrontOfAWriteIsAnsweredWithIt(t *testing.T) {
	const refusal, done = "-NOREPLICAS x\r\n", "+OK\r\n"
	for _, ends := range []bool{false, true} {
		for _, mute := range []flags{0, muted} {
			p := bareProxy()
			out, far := outputOf(t, p)
			s := out.s
			s.inflight.Store(2)
			l, b := p.newLane(poolKey{}, 0), &batch{need: need{acks: 1}, head: 1, held: []byte(refusal)}
			l.commit = 1
			b.buf, b.wrote = []byte("x"), 1
			b.ents = []entry{{s: s, n: 1, x: &extra{piece: []byte(refusal), more: 1}, flags: commits | writes | mute}}
			if mute == 0 {
				b.held = append(b.held, done...)
			}
			b.ends = []int{len(b.held)}
			l.unacked = []*batch{b}
			if ends {
				l.recover(&link{l: l})
			} else {
				var answers []answer
				l.expireUnacked(1, 0, p.order.Load(), &answers)
				deliver(answers)
			}
			if left := s.inflight.Load(); left != 0 {
				t.Errorf("connection ends %v, muted %v: %d commands are unanswered", ends, mute != 0, left)
			}
			got := make([]byte, 1000)
			n, _ := unix.Read(far, got)
			rest, ok := strings.CutPrefix(string(got[:max(n, 0)]), refusal)
			if !ok || strings.HasPrefix(rest, "-OUTCOMEUNKNOWN ") != (mute == 0) || strings.Count(rest, "\r\n") > 1 || mute != 0 && rest != "" {
				t.Errorf("connection ends %v, muted %v: answered %q", ends, mute != 0, got[:max(n, 0)])
			}
		}
	}
}

// Replies of one acknowledged batch go out together, but for one that means the end of its client.
func TestAnUnknownOutcomeBehindAReadDisconnectsItsClient(t *testing.T) {
	p := bareProxy()
	p.o.HangUp = true
	out, far := outputOf(t, p)
	out.s.inflight.Store(2)
	const read = "$1\r\nv\r\n"
	verdict := diedUnanswered()
	b := &batch{need: need{acks: 1}, head: 2, held: append([]byte(read), verdict...), ends: []int{len(read), len(read) + len(verdict)},
		ents: []entry{{s: out.s, n: 1, flags: resendable}, {s: out.s, flags: commits | writes, x: &extra{canned: verdict}}}}
	k := &link{l: p.newLane(poolKey{}, 0)}
	k.hand(b)
	got := make([]byte, 1000)
	n, _ := unix.Read(far, got)
	if string(got[:max(n, 0)]) != read || !out.s.closed.Load() {
		t.Errorf("answered %q, disconnected %v", got[:max(n, 0)], out.s.closed.Load())
	}
}

// Whether a write behind (UN)SUBSCRIBE in the same pipeline can be followed by a marker is known when that is confirmed.
func TestAWriteBehindASubscriptionWaitsForItsReplica(t *testing.T) {
	t.Parallel()
	s := newShard(t, 1, func(sp *spec, _ *Options) { sp.Durability, sp.AckReplicas = topo.Quorum, 1 })
	for name, lines := range map[string][]string{
		"the last one ends": {"UNSUBSCRIBE ch", "SET a 1"},
		"all end":           {"UNSUBSCRIBE", "SET a 1"},
		"one is refused":    {"UNSUBSCRIBE", "SUBSCRIBE", "SET a 1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.client()
			c.want("*3 $9 subscribe $2 ch :1", "SUBSCRIBE", "ch")
			s.nodes[1].signal(syscall.SIGSTOP)
			c.batch(lines...)
			for range lines[1:] {
				c.recv()
			}
			_ = c.c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if f, err := c.frame(); err == nil {
				t.Errorf("answered %q without an acknowledgement", f)
			}
			s.nodes[1].signal(syscall.SIGCONT)
			if got := c.recv(); got != "OK" {
				t.Errorf("%q", got)
			}
		})
	}
}
