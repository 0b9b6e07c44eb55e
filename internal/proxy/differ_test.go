// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

var (
	sequenceSeed = flag.Uint64("sequence", 0, "play this one sequence of TestSessionsAreAnsweredAsByTheServer")
	sequences    = flag.Int("sequences", 200, "play so many sequences")
	sequenceTime = flag.Duration("sequence-time", 15*time.Second, "for as long, in each mode")
	sequenceFrom = flag.Uint64("sequence-from", 1, "first sequence")
)

// rivals are a server behind a proxy and one without, with the same settings, which are given the same input.
type rivals struct {
	s        *shard
	quorum   bool
	plain    *node
	admin    []*wire  // directly to both servers
	by       [2]*wire // other clients of the proxy: RESP2, RESP3
	token    int
	nonce    int
	latest   string        // address of the client that gave the latest input
	patience time.Duration // for making an input short that finds something
}

const (
	left   = "something of the session is left: "
	harmed = "another client got "
)

const bulkMost = 1 << 20

const stall = 3 * time.Second // nothing takes so long unless it never comes

func newRivals(t testing.TB, quorum bool) *rivals {
	t.Helper()
	replicas := 0
	if quorum {
		replicas = 1
	}
	r := &rivals{plain: startNode(t, "plain"), quorum: quorum, patience: 20 * time.Second}
	r.s = newShard(t, replicas, func(sp *spec, o *Options) {
		o.Log = slog.New(slog.DiscardHandler) // half of the inputs are wrong
		o.Limits.Bulk = bulkMost
		if quorum {
			sp.Durability, sp.AckReplicas = topo.Quorum, 1
		}
	})
	r.admin = []*wire{dialWire(t, r.plain.addr), dialWire(t, r.s.nodes[0].addr)}
	for _, a := range r.admin {
		a.want("OK", "CONFIG", "SET", "proto-max-bulk-len", strconv.Itoa(bulkMost)) // SETRANGE must not make huge strings
	}
	for i := range r.by {
		r.by[i] = r.s.client()
		if i == 1 {
			r.by[i].do("HELLO", "3")
		}
	}
	waitFor(t, "the proxy knows the server", func() bool { return r.s.p.server.Load().databases > 0 })
	return r
}

// fresh brings both servers to the same state.
func (r *rivals) fresh(t testing.TB) {
	r.by[0].t = t
	for _, a := range r.admin {
		a.t = t
		_ = a.c.SetWriteDeadline(time.Now().Add(10 * stall))
		a.send("FLUSHALL")
		a.send("SCRIPT", "FLUSH")
	}
	for _, a := range r.admin {
		a.recv()
		a.recv()
	}
	r.by[0].want("OK", "SCRIPT", "FLUSH") // what the proxy knows of them
}

// tap collects what a connection says.
type tap struct {
	conn   *net.TCPConn
	mu     sync.Mutex // guards what follows
	said   []byte
	frames [][2]int
	news   chan struct{}
	done   chan struct{}
}

func dialTap(t testing.TB, addr string) *tap {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * stall)) // so that nothing waits for ever
	p := &tap{conn: c.(*net.TCPConn), news: make(chan struct{}, 1), done: make(chan struct{})}
	go p.read()
	return p
}

func (p *tap) read() {
	defer close(p.done)
	buf := make([]byte, 32<<10)
	var sc resp.Scanner
	at := 0
	for {
		n, err := p.conn.Read(buf)
		p.mu.Lock()
		p.said = append(p.said, buf[:n]...)
		for {
			size, bad := sc.Next(p.said[at:])
			if bad != nil || size == 0 {
				break
			}
			p.frames = append(p.frames, [2]int{at, at + size})
			at += size
		}
		p.mu.Unlock()
		poke(p.news)
		if err != nil {
			return
		}
	}
}

func (p *tap) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.frames)
}

// list returns the frames, and as the last one whatever is no frame. Only when reading is over.
func (p *tap) list() [][]byte {
	var all [][]byte
	end := 0
	for _, f := range p.frames {
		all = append(all, p.said[f[0]:f[1]])
		end = f[1]
	}
	if end < len(p.said) {
		all = append(all, p.said[end:])
	}
	return all
}

// over reports whether the peer has closed; it waits at most so long.
func (p *tap) over(patience time.Duration) bool {
	select {
	case <-p.done:
		return true
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// await waits for so many frames.
func (p *tap) await(frames int) {
	timer := time.NewTimer(stall)
	defer timer.Stop()
	for p.count() < frames {
		select {
		case <-p.news:
		case <-p.done:
			return
		case <-timer.C:
			return
		}
	}
}

// duel gives the input to both, compares what they say, and makes an input that finds something short.
func (r *rivals) duel(t testing.TB, sc *script) {
	fault, want, got := r.round(t, sc)
	if fault == "" {
		return
	}
	first := told(fault, sc, want, got)
	short := time.Now().Add(r.patience)
	for size := max(len(sc.parts)/2, 1); size > 0; size /= 2 {
		for at := 0; at+size <= len(sc.parts) && time.Now().Before(short) && !lasting(fault); {
			less := &script{parts: slices.Delete(slices.Clone(sc.parts), at, at+size), end: sc.end}
			if sc.cuts != nil {
				less.cuts = borders(less.parts)
			}
			if f, w, g := r.round(t, less); f != "" {
				sc, fault, want, got = less, f, w, g
			} else {
				at += size
			}
		}
	}
	t.Fatalf("%s\n\nat first: %s", told(fault, sc, want, got), first) // making it short may have found something else
}

func told(fault string, sc *script, want, got [][]byte) string {
	return fmt.Sprintf("%s\ninput: %s\ncuts: %v end: %d\nserver: %s\nproxy:  %s", fault, quoteAll(sc.parts), sc.cuts, sc.end, quoteAll(want), quoteAll(got))
}

// borders returns where each part ends.
func borders(parts [][]byte) []int {
	var cuts []int
	at := 0
	for _, p := range parts {
		at += len(p)
		cuts = append(cuts, at)
	}
	return cuts
}

// lasting reports whether the proxy will not be as before.
func lasting(fault string) bool {
	return strings.HasPrefix(fault, left) || strings.HasPrefix(fault, harmed)
}

// round returns what is wrong; empty: nothing.
func (r *rivals) round(t testing.TB, sc *script) (fault string, want, got [][]byte) {
	r.fresh(t)
	stream := bytes.Join(sc.parts, nil)
	if r.quorum { // a replica less, a replica more
		stream = waits.ReplaceAll(stream, []byte("ECHO"))
	}
	want, closes := r.direct(t, stream)
	got, fault = r.proxied(t, sc, stream, len(want), closes)
	if said := bytes.ToUpper(stream); bytes.Contains(said, []byte("REPLY")) && bytes.Contains(said, []byte("MULTI")) {
		// With replies off, Redis 7.0 sends the messages out of the reply of an EXEC, and not the reply; and nobody sees that
		// the proxy refuses SUBSCRIBE there.
		want, got = slices.DeleteFunc(want, pushed), slices.DeleteFunc(got, pushed)
	}
	want, got = settled(want, r.quorum), settled(got, r.quorum)
	if diff := compare(want, got, sc.end == endAtOnce); fault == "" {
		fault = diff
	}
	if sc.end == endBroken {
		fault = ""
	}
	if harm := r.vouch(t); harm != "" {
		return harm, want, got
	}
	if !until(stall, func() bool {
		st := r.s.p.Stats()
		return !r.known() && st.Pinned == 0 && st.InFlight == 0 && st.Parked == 0
	}) && fault == "" {
		fault = fmt.Sprintf("%s%+v", left, r.s.p.Stats())
	}
	return fault, want, got
}

// known reports whether the proxy has a session of the latest input. Others may have come by mistake: ports are used again.
func (r *rivals) known() bool {
	return slices.ContainsFunc(r.s.p.snapshot(), func(o *session) bool { return o.sock.far.String() == r.latest })
}

func quoteAll(parts [][]byte) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(" ")
		if len(p) > 160 {
			p = append(append(slices.Clone(p[:80]), "…"...), p[len(p)-20:]...)
		}
		b.WriteString(strconv.Quote(string(p)))
	}
	return b.String()
}

// direct returns the server's replies and whether it closed the connection.
func (r *rivals) direct(t testing.TB, stream []byte) (frames [][]byte, closes bool) {
	p := dialTap(t, r.plain.addr)
	defer p.conn.Close()
	_, _ = p.conn.Write(stream)
	r.settle(t, p, len(stream))
	select {
	case <-p.done:
		closes = true
	default:
		_ = p.conn.CloseWrite()
		if !p.over(stall) {
			t.Fatal("the server does not close")
		}
	}
	return p.list(), closes
}

// settle waits until the server has handled everything that it was sent: it must have had several turns, in each of
// which it reads up to 16 kB of a client, without the client being blocked.
func (r *rivals) settle(t testing.TB, p *tap, sent int) {
	me := " addr=" + p.conn.LocalAddr().String() + " "
	turns := 3 + sent/(16<<10)
	calm := time.NewTimer(300 * time.Millisecond) // longer than anything blocks on purpose
	defer calm.Stop()
	for free, end := 0, time.Now().Add(10*stall); free < turns; {
		if time.Now().After(end) {
			t.Fatal("the server is not done with the input")
		}
		list := r.admin[0].do("CLIENT", "LIST")
		at := strings.Index(list, me)
		if at < 0 { // not accepted yet, or closed
			if p.over(time.Millisecond) {
				return
			}
			continue
		}
		line, _, _ := strings.Cut(list[at:], "\n")
		_, flags, _ := strings.Cut(line, " flags=")
		flags, _, _ = strings.Cut(flags, " ")
		if !strings.Contains(flags, "b") {
			free++
			continue
		}
		select {
		case <-calm.C:
			return
		case <-p.news:
		case <-time.After(time.Millisecond):
		}
	}
}

// proxied returns the proxy's replies, or what is wrong with how it ended.
func (r *rivals) proxied(t testing.TB, sc *script, stream []byte, want int, closes bool) (frames [][]byte, fault string) {
	p := dialTap(t, r.s.p.Addr().String())
	defer p.conn.Close()
	r.latest = p.conn.LocalAddr().String()
	from := 0
	for _, cut := range sc.cuts {
		_, _ = p.conn.Write(stream[from:cut])
		from = cut
		if harm := r.echo(t, r.by[0]); harm != "" { // meanwhile the piece is read
			fault = harm
		}
	}
	_, _ = p.conn.Write(stream[from:])
	switch sc.end {
	case endBroken:
		_ = p.conn.SetLinger(0)
		_ = p.conn.Close()
		<-p.done
		return nil, ""
	case endAtOnce:
		_ = p.conn.CloseWrite()
	default:
		p.await(want)
	}
	if !closes && sc.end != endAtOnce {
		if p.over(0) && !bytes.Contains(bytes.ToUpper(stream), []byte("REPLY")) {
			// Redis 7.0 forgets to close after QUIT or a protocol error when replies are off.
			fault = "the proxy closed the connection, the server did not"
		}
		_ = p.conn.CloseWrite()
	}
	if !p.over(stall) {
		_ = p.conn.Close()
		<-p.done
		fault = "the proxy does not close the connection"
	}
	return p.list(), fault
}

// echo asserts that another client gets its own reply.
func (r *rivals) echo(t testing.TB, by *wire) (harm string) {
	r.token++
	token := "token-" + strconv.Itoa(r.token)
	by.t = t
	_ = by.c.SetWriteDeadline(time.Now().Add(10 * stall))
	if got := by.do("ECHO", token); got != token {
		return harmed + strconv.Quote(got)
	}
	return ""
}

// vouch asserts that other clients are in order, on shared connections and on one that the session may have used.
func (r *rivals) vouch(t testing.TB) (harm string) {
	for _, by := range r.by {
		harm := r.echo(t, by)
		token := "token-" + strconv.Itoa(r.token)
		for _, c := range [][]string{{"MULTI"}, {"ECHO", token}, {"EXEC"}} {
			by.send(c...)
		}
		if a, b, c := by.recv(), by.recv(), by.recv(); harm == "" && (a != "OK" || b != "QUEUED" || c != "*1 $"+strconv.Itoa(len(token))+" "+token) {
			harm = harmed + strconv.Quote(a+" "+b+" "+c)
		}
		if more := r.echo(t, by); harm == "" {
			harm = more // and gives the connection back
		}
		if harm != "" {
			return harm
		}
	}
	return ""
}

// sequence returns the bytes that a seed stands for.
func sequence(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, 20+rng.IntN(400))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

func TestWhatOnceDifferedDoesNot(t *testing.T) {
	for _, quorum := range []bool{false, true} {
		r := newRivals(t, quorum)
		for _, line := range found {
			t.Run("quorum="+strconv.FormatBool(quorum)+"/"+line, func(t *testing.T) {
				var parts [][]byte
				for c := range strings.SplitSeq(line+"|QUIT", "|") {
					parts = append(parts, resp.AppendCommand(nil, strings.Fields(c)...))
				}
				r.duel(t, &script{parts: parts})
				r.duel(t, &script{parts: parts[:len(parts)-1], end: endAtOnce})
				r.duel(t, &script{parts: parts, cuts: borders(parts)})
			})
		}
	}
}

func TestSessionsAreAnsweredAsByTheServer(t *testing.T) {
	t.Parallel()
	for _, quorum := range []bool{false, true} {
		t.Run("quorum="+strconv.FormatBool(quorum), func(t *testing.T) {
			t.Parallel()
			r := newRivals(t, quorum)
			from, n := *sequenceFrom, *sequences
			if *sequenceSeed != 0 {
				from, n = *sequenceSeed, 1
			}
			enough := time.Now().Add(*sequenceTime)
			for seed := from; seed < from+uint64(n) && time.Now().Before(enough); seed++ {
				r.nonce++
				ok := t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { r.duel(t, decode(sequence(seed), r.nonce)) })
				if !ok {
					t.Fatalf("replay with -run %s -args -sequence %d", t.Name(), seed)
				}
			}
		})
	}
}

// seedCorpus is what FuzzSession starts with.
func seedCorpus() [][]byte {
	var all [][]byte
	for seed := range uint64(20) {
		all = append(all, sequence(seed+1_000_000))
	}
	return all
}
