// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// story builds a history in which each operation begins and ends one step after the one before, unless told otherwise.
type story struct{ ops []op }

func (s *story) add(o op) *story {
	n := time.Duration(len(s.ops)) * 10
	if o.End == 0 {
		o.Start, o.End = n, n+5
	}
	if o.Outcome == "" {
		o.Outcome = ok
	}
	s.ops = append(s.ops, o)
	return s
}

// TestJudge: each story holds one kind of fault, or none although it looks like one.
func TestJudge(t *testing.T) {
	final := func(kind, key, out string, all ...string) op {
		return op{Kind: kind, Key: key, Out: out, All: all, Final: true}
	}
	for _, c := range []struct {
		name   string
		linear bool
		ops    []op
		want   string // lost keys, lost elements, stale, lax, breaches
	}{
		{"a register that keeps its last write", false, []op{{Kind: "set", Key: "r:1", Arg: "a"}, {Kind: "setget", Key: "r:1", Arg: "b", Out: "a"}, final("get", "r:1", "b")}, "0 0 0 0 0"},
		{"an acknowledged write is lost", false, []op{{Kind: "set", Key: "r:1", Arg: "a"}, {Kind: "set", Key: "r:1", Arg: "b"}, final("get", "r:1", "a")}, "1 0 0 0 0"},
		{"an unanswered write is found later", false, []op{{Kind: "set", Key: "r:1", Arg: "a"}, {Kind: "set", Key: "r:1", Arg: "b", Outcome: unknown}, {Kind: "setget", Key: "r:1", Arg: "c", Out: "b"}, final("get", "r:1", "c")}, "0 0 0 0 0"},
		{"an unanswered write is seen and then gone", false, []op{{Kind: "set", Key: "r:1", Arg: "a", Outcome: unknown}, {Kind: "setget", Key: "r:1", Arg: "b", Out: "a"}, final("get", "r:1", "a")}, "1 0 0 0 0"},
		{"a refused write was executed", false, []op{{Kind: "set", Key: "r:1", Arg: "a", Outcome: refused}, final("get", "r:1", "a")}, "1 0 0 0 0"},
		{"a stale read where it matters", true, []op{{Kind: "set", Key: "r:1", Arg: "a"}, {Kind: "get", Key: "r:1"}, final("get", "r:1", "a")}, "1 0 0 0 0"},
		{"a stale local read proves nothing", false, []op{{Kind: "set", Key: "r:1", Arg: "a"}, {Kind: "get", Key: "r:1"}, final("get", "r:1", "a")}, "0 0 0 0 0"},
		{"a counter that goes on", true, []op{{Kind: "incr", Key: "c:1", Out: "1"}, {Kind: "incr", Key: "c:1", Outcome: unknown}, {Kind: "incr", Key: "c:1", Out: "3"}, final("get", "c:1", "3")}, "0 0 0 0 0"},
		{"a counter that goes back", true, []op{{Kind: "incr", Key: "c:1", Out: "1"}, {Kind: "incr", Key: "c:1", Out: "1"}, final("get", "c:1", "1")}, "1 0 0 0 0"},
		{"a counter that counted a refused step", true, []op{{Kind: "incr", Key: "c:1", Out: "1"}, {Kind: "incr", Key: "c:1", Outcome: refused}, final("get", "c:1", "2")}, "1 0 0 0 0"},
		{"pairs stay equal", false, []op{{Kind: "multi", Key: "t:1", Out: "1 1"}, final("counts", "t:1", "1 1")}, "0 0 0 0 0"},
		{"a torn transaction", false, []op{{Kind: "multi", Key: "t:1", Out: "1 1"}, final("counts", "t:1", "1 0")}, "0 0 0 0 1"},
		{"a set that keeps and removes", true, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "1"}, {Kind: "sadd", Key: "s:1", Arg: "b", Out: "1"}, {Kind: "srem", Key: "s:1", Arg: "a", Out: "1"}, final("smembers", "s:1", "", "b")}, "0 0 0 0 0"},
		{"a lost element", false, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "1"}, final("smembers", "s:1", "")}, "0 1 0 0 0"},
		{"an element that came back", false, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "1"}, {Kind: "srem", Key: "s:1", Arg: "a", Out: "1"}, final("smembers", "s:1", "", "a")}, "0 1 0 0 0"},
		{"an element that was refused and is there", false, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Outcome: refused}, final("smembers", "s:1", "", "a")}, "0 0 0 0 1"},
		{"an element that was added twice", false, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "0"}, final("smembers", "s:1", "", "a")}, "0 0 0 0 1"},
		{"a set read that misses something", true, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "1"}, {Kind: "smembers", Key: "s:1"}, final("smembers", "s:1", "", "a")}, "0 0 1 0 0"},
		{"a local set read that misses something", false, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "1"}, {Kind: "smembers", Key: "s:1"}, final("smembers", "s:1", "", "a")}, "0 0 0 1 0"},
		{"a set read beside the write", true, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Out: "1", Start: 1, End: 50}, {Kind: "smembers", Key: "s:1", Start: 40, End: 60}, {Kind: "smembers", Key: "s:1", All: []string{"a"}, Final: true, Start: 70, End: 80}}, "0 0 0 0 0"},
		{"an element seen and then gone", true, []op{{Kind: "sadd", Key: "s:1", Arg: "a", Outcome: unknown}, {Kind: "smembers", Key: "s:1", All: []string{"a"}}, final("smembers", "s:1", "")}, "0 0 1 0 0"},
		{"a queue that is used up", false, []op{{Kind: "rpush", Key: "l:1", Arg: "a"}, {Kind: "rpush", Key: "l:1", Arg: "b"}, {Kind: "lpop", Key: "l:1", Out: "a"}, final("lrange", "l:1", "", "b")}, "0 0 0 0 0"},
		{"a lost job", false, []op{{Kind: "rpush", Key: "l:1", Arg: "a"}, final("lrange", "l:1", "")}, "0 1 0 0 0"},
		{"a job taken by an unanswered pop", false, []op{{Kind: "rpush", Key: "l:1", Arg: "a"}, {Kind: "lpop", Key: "l:1", Outcome: unknown}, final("lrange", "l:1", "")}, "0 0 0 0 0"},
		{"a job done twice", false, []op{{Kind: "rpush", Key: "l:1", Arg: "a"}, {Kind: "lpop", Key: "l:1", Out: "a"}, {Kind: "lpop", Key: "l:1", Out: "a"}, final("lrange", "l:1", "")}, "0 1 0 0 0"},
		{"a job queued twice", false, []op{{Kind: "rpush", Key: "l:1", Arg: "a"}, final("lrange", "l:1", "", "a", "a")}, "0 0 0 0 1"},
		{"a job refused and queued", false, []op{{Kind: "rpush", Key: "l:1", Arg: "a", Outcome: refused}, final("lrange", "l:1", "", "a")}, "0 0 0 0 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s story
			for _, o := range c.ops {
				s.add(o)
			}
			v := judge(s.ops, judging{linearReads: c.linear})
			got := fmt.Sprint(len(v.unordered), len(v.lostElements), len(v.stale), v.lax, len(v.fatal))
			if got != c.want {
				t.Errorf("got %s, want %s: %+v", got, c.want, v)
			}
			if bad := c.want[:5] != "0 0 0" || c.want[8] != '0'; (v.verdict(true) != nil) != bad {
				t.Errorf("verdict %v", v.verdict(true))
			}
		})
	}
}

// TestWhatWasLostIsDated: the dial of async bounds the time over which lost writes were acknowledged.
func TestWhatWasLostIsDated(t *testing.T) {
	var s story
	for i, e := range []string{"a", "b", "c", "d"} {
		at := time.Duration(i) * 100 * time.Millisecond
		s.add(op{Kind: "sadd", Key: "s:1", Arg: e, Out: "1", Start: at, End: at + time.Millisecond})
	}
	s.add(op{Kind: "rpush", Key: "l:1", Arg: "x", Start: 1, End: time.Second}).add(op{Kind: "lpop", Key: "l:1", Out: "x", Start: time.Second + 1, End: time.Second + 2})
	s.add(op{Kind: "lrange", Key: "l:1", All: []string{"x"}, Final: true, Start: 2 * time.Second, End: 3 * time.Second})
	s.add(op{Kind: "smembers", Key: "s:1", All: []string{"a"}, Final: true, Start: 2 * time.Second, End: 3 * time.Second})
	v := judge(s.ops, judging{})
	if want := 900*time.Millisecond - 999998; len(v.lostElements) != 4 || v.again != 1 || v.span() != want {
		t.Errorf("%d lost, %d of them again, over %s; want 4, 1, %s: %v", len(v.lostElements), v.again, v.span(), want, v.lostElements)
	}
	one := options{maxLoss: 500 * time.Millisecond, script: make([]fault, 1)}
	if v.withinDial(one) == nil {
		t.Error("a loss beyond the dial passes")
	}
	one.maxLoss = time.Second
	if err := v.withinDial(one); err != nil {
		t.Error(err)
	}
}

// TestTheOutageOfOthers: what a host that was cut off still writes hides nothing of what the others miss.
func TestTheOutageOfOthers(t *testing.T) {
	var s story
	for i := range 10 {
		s.add(op{Host: 1, Kind: "incr", Key: "c:1", Out: strconv.Itoa(i + 1), Start: time.Duration(100*i + 1), End: time.Duration(100*i + 2)})
	}
	s.add(op{Host: 2, Kind: "set", Key: "r:1", Arg: "a", Start: 1, End: 100}).add(op{Host: 2, Kind: "set", Key: "r:1", Arg: "b", Start: 810, End: 820})
	if v := judge(s.ops, judging{hit: 1}); v.gap > 100 || v.others != 720 {
		t.Errorf("longest times without an acknowledged write: %d of all, %d of the others; want below 100, and 720", v.gap, v.others)
	}
}

// TestAClockThatIsSet: a program in a host reads another time, at once, and the right one again afterwards.
func TestAClockThatIsSet(t *testing.T) {
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("no C compiler here")
	}
	b := &base{r: &run{dir: t.TempDir(), o: options{hosts: 1}, history: newHistory()}}
	if err := b.makeClocks(); err != nil || b.clocks == "" {
		t.Fatalf("library %q, %v", b.clocks, err)
	}
	for _, off := range []int{-600, 0, 30} {
		if err := b.setClock(1, off); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("date", "+%s")
		cmd.Env = b.clockEnv(1)
		before := time.Now().Unix()
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if lo, hi := before+int64(off), time.Now().Unix()+int64(off); err != nil || got < lo || got > hi {
			t.Errorf("%+d s off: the program reads %d, want %d to %d (%v)", off, got, lo, hi, err)
		}
	}
}

// TestClassify: only what certainly was not executed counts as refused.
func TestClassify(t *testing.T) {
	dial := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for err, want := range map[error]outcome{
		redis.Nil:                    ok,
		dial:                         refused,
		fmt.Errorf("pool: %w", dial): refused,
		&net.OpError{Op: "read", Err: syscall.ECONNRESET}: unknown,
		context.DeadlineExceeded:                          unknown,
		errors.New("EOF"):                                 unknown,
	} {
		if got := classify(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
	for text, want := range map[string]outcome{
		"TRYAGAIN the command was not executed: x": refused, "OUTCOMEUNKNOWN x": unknown, "ERR x": unknown,
		"NOREPLICAS Not enough good replicas to write.": refused, "EXECABORT x": refused,
	} {
		if got := classify(reply(t, text)); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// reply is an error reply as the client library makes it.
func reply(t *testing.T, text string) error {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		b := make([]byte, 4096)
		for { // every command, those of the greeting, too, is answered so
			if _, err := far.Read(b); err != nil {
				return
			}
			if _, err := far.Write([]byte("-" + text + "\r\n")); err != nil {
				return
			}
		}
	}()
	c := redis.NewClient(&redis.Options{Protocol: 2, DisableIdentity: true, MaxRetries: -1, Dialer: func(context.Context, string, string) (net.Conn, error) { return near, nil }})
	defer c.Close()
	return c.Ping(t.Context()).Err()
}

// TestLotteryIsOfTheSeed: the same seed draws the same, another one something else, and all ends in time.
func TestLotteryIsOfTheSeed(t *testing.T) {
	draw := func(seed int64, persistence string) []fault {
		r := &run{o: options{mode: "quorum", hosts: 3, seconds: 60}, seed: seed, persistence: persistence}
		fs := r.lottery()
		for _, f := range fs {
			if f.at+f.lasts > r.o.faultTime() {
				t.Errorf("seed %d: %s ends at %s, after the time for faults", seed, f.kind, f.at+f.lasts)
			}
		}
		return fs
	}
	if !slices.Equal(draw(1, "aof"), draw(1, "aof")) {
		t.Error("one seed, two schedules")
	}
	if slices.Equal(draw(1, "aof"), draw(2, "aof")) {
		t.Error("two seeds, one schedule")
	}
	met := map[string]bool{}
	for seed := range int64(100) {
		for _, f := range draw(seed, "aof") {
			met[f.kind] = true
		}
		for _, f := range draw(seed, "none") {
			if !f.alone || f.kind == "kill-everything" {
				t.Errorf("seed %d: %s is not alone although the servers keep nothing", seed, f.kind)
			}
		}
	}
	for _, k := range kinds() {
		if !met[k.name] {
			t.Errorf("%s is never drawn", k.name)
		}
	}
}

// TestScript: a schedule by hand says what it says, and what cannot be is refused.
func TestScript(t *testing.T) {
	got, err := script("cut@2s+6s:primary,kill-server@9s:3", 3, time.Minute)
	want := []fault{{at: 2 * time.Second, lasts: 6 * time.Second, kind: "cut", target: "primary"}, {at: 9 * time.Second, kind: "kill-server", target: "any", dice: 2}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	for _, bad := range []string{"cut@2s+6s", "cut@2s+6s:4", "bite@2s+6s:primary", "cut@2+6s:primary", "cut@2s+x:primary", "cut@50s+20s:primary"} {
		if _, err := script(bad, 3, time.Minute); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
