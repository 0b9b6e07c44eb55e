// SPDX-License-Identifier: Apache-2.0

package front

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/proxy"
)

// giveTo sends clients to a front as the hatch does: as bytes, with copies of their descriptors.
func giveTo(t *testing.T, h *member) func(Given) error {
	return func(g Given) error {
		b, err := g.Record.Encode()
		if err != nil {
			return err
		}
		n := Given{}
		if n.Record, err = DecodeRecord(b); err != nil {
			return err
		}
		n.Client = copyOf(t, g.Client)
		for _, fd := range g.Shards {
			n.Shards = append(n.Shards, copyOf(t, fd))
		}
		return h.Adopt(n)
	}
}

func copyOf(t *testing.T, fd int) int {
	if fd < 0 {
		return -1
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
	}
	return n
}

func (m *member) leaveAll(give func(Given) error, within time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return m.Leave(ctx, Farewell{Give: give, Free: func() {
		for _, p := range m.proxies {
			p.FreeBlocked()
		}
	}})
}

// handOver hands all clients over, and fails the test if any stays.
func (m *member) handOver() *member {
	m.t.Helper()
	h := m.heir()
	if left, err := m.leaveAll(giveTo(m.t.(*testing.T), h), 10*time.Second); left != 0 || err != nil {
		m.t.Fatalf("%d clients are left, %v", left, err)
	}
	return h
}

// A client goes on with what it had said about itself, and with what it had begun.
func TestClientsGoOnInAnotherProcess(t *testing.T) {
	m := startMember(t, 3, func(_ *Options, po *proxy.Options) { po.SplitReads = true })
	a, b := keyOn(3, 0, "a"), keyOn(3, 1, "b")
	plain, three, half, fresh := m.client(t), m.client(t), m.client(t), m.client(t)
	plain.want("+OK\r\n", "SELECT 3")
	plain.want("+OK\r\n", "CLIENT SETNAME ann")
	plain.want("+OK\r\n", "CLIENT SETINFO LIB-NAME lib")
	plain.want("+OK\r\n", "MSET "+a+" 1 "+b+" 2")
	id := plain.do("CLIENT", "ID")
	three.do("HELLO", "3")
	three.want("+OK\r\n", "CLIENT NO-EVICT ON")
	half.raw("*2\r\n$4\r\nECHO\r\n$3\r\nx")
	silent := m.client(t)
	silent.send("CLIENT", "REPLY", "OFF")
	h := m.handOver()
	if got := plain.do("CLIENT", "ID"); got != id {
		t.Errorf("the id is %q, was %q", got, id)
	}
	info := plain.do("CLIENT", "INFO")
	for _, part := range []string{" name=ann ", " db=3 ", " lib-name=lib", " addr=" + plain.conn.LocalAddr().String() + " "} {
		if !strings.Contains(info, part) {
			t.Errorf("%q is not in %q", part, info)
		}
	}
	plain.want("*2\r\n"+bulk("1")+bulk("2"), "MGET "+a+" "+b)
	if got := three.do("GET", a); got != "_\r\n" {
		t.Errorf("RESP3: %q", got)
	}
	half.raw("yz\r\n")
	if got := half.next(); got != bulk("xyz") {
		t.Errorf("the rest of a command: %q", got)
	}
	silent.send("SET", a, "quietly")
	silent.want("+OK\r\n", "CLIENT REPLY ON")
	fresh.want("+PONG\r\n", "PING")
	if n := m.Stats().Clients; n != 0 {
		t.Errorf("%d clients in the old process", n)
	}
	late := h.client(t)
	late.want("+PONG\r\n", "PING")
}

// WATCH, open transactions, subscriptions, tracking and commands that block go along.
func TestWhatIsHeldAtShardsGoesAlong(t *testing.T) {
	m := startMember(t, 3)
	a, b, box := keyOn(3, 0, "a"), keyOn(3, 1, "b"), keyOn(3, 2, "box")
	watch, broken, open, held := m.client(t), m.client(t), m.client(t), m.client(t)
	watch.want("+OK\r\n", "SET "+a+" 1")
	watch.want("+OK\r\n", "WATCH "+a)
	broken.want("+OK\r\n", "WATCH "+a)
	open.want("+OK\r\n", "MULTI")
	open.want("+QUEUED\r\n", "INCR "+b)
	held.want("+OK\r\n", "MULTI")
	held.want("+QUEUED\r\n", "ECHO x")
	sub, psub, track := m.client(t), m.client(t), m.client(t)
	sub.want("*3\r\n"+bulk("subscribe")+bulk(a)+":1\r\n", "SUBSCRIBE "+a)
	sub.want("*3\r\n"+bulk("subscribe")+bulk(b)+":2\r\n", "SUBSCRIBE "+b)
	psub.do("HELLO", "3")
	psub.want(">3\r\n"+bulk("psubscribe")+bulk("*")+":1\r\n", "PSUBSCRIBE *")
	track.do("HELLO", "3")
	track.want("+OK\r\n", "CLIENT TRACKING ON")
	track.want("_\r\n", "GET "+box)
	block, soon := m.client(t), m.client(t)
	block.send("BLPOP", box, "0")
	began := time.Now()
	soon.send("BLPOP", box+"2", "1.5")
	type answer struct {
		text string
		took time.Duration
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := soon.try(10 * time.Second)
		answered <- answer{fmt.Sprint(text, err), time.Since(began)}
	}()
	mute := m.client(t)
	mute.send("CLIENT", "REPLY", "SKIP")
	mute.send("BLPOP", box+"3", "0")
	mute.send("ECHO", "behind")
	h := m
	for range 3 { // over and over
		<-time.After(50 * time.Millisecond)
		h = h.handOver()
	}
	watch.want("+OK\r\n", "MULTI")
	watch.want("+QUEUED\r\n", "INCR "+a)
	watch.want("*1\r\n:2\r\n", "EXEC")
	broken.want("+OK\r\n", "MULTI")
	broken.want("+QUEUED\r\n", "INCR "+a)
	broken.want("*-1\r\n", "EXEC")
	open.want("*1\r\n:1\r\n", "EXEC")
	held.want("+QUEUED\r\n", "INCR "+b)
	held.want("*2\r\n"+bulk("x")+":2\r\n", "EXEC")
	w := h.client(t)
	w.want(":2\r\n", "PUBLISH "+a+" one")
	if got := sub.next(); got != "*3\r\n"+bulk("message")+bulk(a)+bulk("one") {
		t.Errorf("subscriber: %q", got)
	}
	if got := psub.next(); got != ">4\r\n"+bulk("pmessage")+bulk("*")+bulk(a)+bulk("one") {
		t.Errorf("pattern: %q", got)
	}
	sub.want("*3\r\n"+bulk("unsubscribe")+bulk(a)+":1\r\n", "UNSUBSCRIBE "+a)
	w.want(":1\r\n", "RPUSH "+box+"3 unseen")
	if got := mute.next(); got != bulk("behind") {
		t.Errorf("behind what is not answered: %q", got)
	}
	w.want(":1\r\n", "RPUSH "+box+" letter")
	if got := block.next(); got != "*2\r\n"+bulk(box)+bulk("letter") {
		t.Errorf("blocked: %q", got)
	}
	block.want("+OK\r\n", "SET "+a+" 3")
	if got := track.next(); got != ">2\r\n"+bulk("invalidate")+"*1\r\n"+bulk(box) {
		t.Errorf("tracking: %q", got)
	}
	if got := <-answered; got.text != "*-1\r\n<nil>" || got.took < 1400*time.Millisecond || got.took > 2400*time.Millisecond {
		t.Errorf("a command that blocks for 1.5 s: %q after %s", got.text, got.took)
	}
}

// Who is busy loses nothing: each number comes once, in order, and no message is missed.
func TestBusyClientsAreHandedOver(t *testing.T) {
	m := startMember(t, 3)
	const writers, rounds = 12, 6
	stop := make(chan struct{})
	var all sync.WaitGroup
	counts := make([]int, writers)
	sub := m.client(t)
	sub.do("SUBSCRIBE", "news")
	for n := range writers {
		w := m.client(t)
		all.Go(func() {
			key := "list:" + strconv.Itoa(n)
			for {
				select {
				case <-stop:
					return
				default:
				}
				for range n + 1 { // pipelines of different lengths
					w.send("RPUSH", key, "x")
					w.send("PUBLISH", "news", strconv.Itoa(n))
					w.send("MGET", "a", "b", "c")
				}
				for range n + 1 {
					counts[n]++
					if got, err := w.try(10 * time.Second); err != nil || got != ":"+strconv.Itoa(counts[n])+"\r\n" {
						t.Errorf("%s: %q, want %d: %v", key, got, counts[n], err)
						return
					}
					for range 2 {
						if got, err := w.try(10 * time.Second); err != nil || got[0] == '-' {
							t.Errorf("%s: %q, %v", key, got, err)
							return
						}
					}
				}
			}
		})
	}
	heard := make(chan int, 1)
	go func() {
		n := 0
		for ; ; n++ {
			if f, err := sub.try(10 * time.Second); err != nil || strings.HasSuffix(f, bulk("end")) {
				break
			}
		}
		heard <- n
	}()
	h := m
	for range rounds {
		<-time.After(100 * time.Millisecond)
		h = h.handOver()
	}
	close(stop)
	all.Wait()
	sent := 0
	for _, n := range counts {
		sent += n
	}
	h.client(t).do("PUBLISH", "news", "end")
	if n := <-heard; n != sent {
		t.Errorf("%d messages of %d", n, sent)
	}
	t.Logf("%d writes over %d hand-overs", sent, rounds)
}

// What cannot be sent is taken back, and so is everything when the other process fails.
func TestAHandOverThatFailsIsTakenBack(t *testing.T) {
	m := startMember(t, 2)
	a := keyOn(2, 0, "a")
	var some []*wire
	for n := range 40 {
		w := m.client(t)
		w.want("+OK\r\n", "CLIENT SETNAME n"+strconv.Itoa(n))
		some = append(some, w)
	}
	sub, watch, block := m.client(t), m.client(t), m.client(t)
	sub.do("SUBSCRIBE", a)
	watch.want("+OK\r\n", "WATCH "+a)
	block.send("BLPOP", a+"box", "0")
	<-time.After(20 * time.Millisecond)
	if left, err := m.leaveAll(func(Given) error { return errors.New("it is gone") }, 5*time.Second); err == nil || left == 0 {
		t.Fatalf("%d are left, %v", left, err)
	}
	m.Stay()
	for _, p := range m.proxies {
		p.Stay()
	}
	if left, err := m.leaveAll(func(Given) error { return ErrTooLarge }, 300*time.Millisecond); err != nil || left != 43 {
		t.Fatalf("%d are left, %v", left, err)
	}
	m.Stay()
	for _, p := range m.proxies {
		p.Stay()
	}
	for n, w := range some {
		w.want(bulk("n"+strconv.Itoa(n)), "CLIENT GETNAME")
	}
	w := m.client(t)
	w.want(":1\r\n", "PUBLISH "+a+" x")
	if got := sub.next(); !strings.HasSuffix(got, bulk("x")) {
		t.Errorf("%q", got)
	}
	watch.want("+OK\r\n", "MULTI")
	watch.want("+QUEUED\r\n", "SET "+a+" 1")
	watch.want("*1\r\n+OK\r\n", "EXEC")
	w.want(":1\r\n", "RPUSH "+a+"box letter")
	if got := block.next(); got != "*2\r\n"+bulk(a+"box")+bulk("letter") {
		t.Errorf("%q", got)
	}
}

// A client that takes no replies stays, and the others leave.
func TestWhoCannotLeaveStays(t *testing.T) {
	m := startMember(t, 2)
	a := keyOn(2, 0, "a")
	slow, other := m.client(t), m.client(t)
	slow.want("+OK\r\n", "SET "+a+" "+strings.Repeat("x", 1<<20))
	for range 64 {
		slow.send("GET", a)
	}
	other.want("+PONG\r\n", "PING")
	h := m.heir()
	left, err := m.leaveAll(giveTo(t, h), 500*time.Millisecond)
	if left != 1 || err != nil {
		t.Fatalf("%d are left, %v", left, err)
	}
	other.want("+PONG\r\n", "PING")
	m.Stay()
	for range 64 {
		if got := slow.next(); len(got) < 1<<20 {
			t.Fatalf("%q", got)
		}
	}
	slow.want("+PONG\r\n", "PING")
}

// Whose command runs on is told after a second that it has to move, if it wanted to know, and leaves when it is answered.
func TestWhoLingersIsTold(t *testing.T) {
	m := startMember(t, 2)
	told, deaf := m.client(t), m.client(t)
	told.do("HELLO", "3")
	told.want("+OK\r\n", "CLIENT MAINT_NOTIFICATIONS ON")
	for _, w := range []*wire{told, deaf} {
		w.want("+OK\r\n", "SET "+keyOn(2, 0, "a")+" 1")
		w.send("WAIT", "5", "1600")
	}
	<-time.After(20 * time.Millisecond)
	h := m.heir()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	left, err := m.Leave(ctx, Farewell{Give: giveTo(t, h), Linger: func() { m.proxies[0].SayMoving(ctx) }})
	if left != 0 || err != nil {
		t.Fatalf("%d are left, %v", left, err)
	}
	if got := told.next(); !strings.HasPrefix(got, ">4\r\n"+bulk("MOVING")) {
		t.Errorf("told: %q", got)
	}
	for _, w := range []*wire{told, deaf} {
		if got := w.next(); got != ":0\r\n" {
			t.Errorf("%q", got)
		}
		w.want(bulk("1"), "GET "+keyOn(2, 0, "a"))
	}
	m.park(0) // notifications go on there
	if got := told.next(); !strings.Contains(got, "FAILING_OVER") {
		t.Errorf("afterwards: %q", got)
	}
}

// A record of another version is refused, whatever it says.
func TestARecordOfAnotherVersionIsRefused(t *testing.T) {
	for _, text := range []string{"", "{}", `{"format":2,"id":1,"proto":2}`, `{"format":1,"id":0,"proto":2}`, `{"format":1,"id":1,"proto":4}`, `{"format":1,"id":1,"proto":2,"new":1}`} {
		if _, err := DecodeRecord([]byte(text)); !errors.Is(err, ErrRecord) {
			t.Errorf("%q: %v", text, err)
		}
	}
	b, err := (&Record{ID: 7, Proto: 3, User: []byte{}, Subs: []RecordSub{{1, []byte{0xff}, "s"}}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRecord(b)
	if err != nil || r.User == nil || r.Password != nil || fmt.Sprint(r.Subs) != "[{1 [255] s}]" {
		t.Errorf("%+v, %v", r, err)
	}
}
