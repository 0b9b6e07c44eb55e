// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/internal/reshard"
)

var large = flag.Bool("large", false, "move a list of 1,000,000 elements, a value of 100 MiB, and others of that kind")

// grow writes a value of each type, and returns their keys.
func grow(t *testing.T, c *cluster, addr, tag string, n, bytes int) []string {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	l := c.connect(addr)
	rng := rand.New(rand.NewPCG(1, 1))
	flush := func() {
		if _, err := l.must(ctx); err != nil {
			t.Fatal(err)
		}
	}
	blob := make([]byte, bytes)
	for i := range blob {
		blob[i] = byte(rng.Uint32())
	}
	others := min(n, 200000) // elements of what is no list
	l.addValues([]string{"SET", "string" + tag}, blob)
	for at := 0; at < n; at += 1000 {
		for kind, head := range map[string][]string{"list": {"RPUSH"}, "set": {"SADD"}, "hash": {"HSET"}, "zset": {"ZADD"}} {
			if kind != "list" && at >= others {
				continue
			}
			args := append(head, kind+tag)
			for i := at; i < min(at+1000, n); i++ {
				e := fmt.Sprintf("element %d", i)
				switch kind {
				case "hash":
					args = append(args, e, strconv.Itoa(i))
				case "zset":
					args = append(args, strconv.FormatFloat(rng.Float64()*1e9, 'g', -1, 64), e)
				default:
					args = append(args, e)
				}
			}
			l.add(args...)
		}
		for i := at; i < min(at+1000, others); i++ {
			l.add("XADD", "stream"+tag, strconv.Itoa(i+1)+"-7", "field", strconv.Itoa(i))
		}
		flush()
	}
	for _, cmd := range [][]string{
		{"ZADD", "zset" + tag, "inf", "highest", "-inf", "lowest"},
		{"XGROUP", "CREATE", "stream" + tag, "g1", "0"}, {"XGROUP", "CREATE", "stream" + tag, "g2", "$"}, {"XGROUP", "CREATECONSUMER", "stream" + tag, "g2", "idle"},
		{"XREADGROUP", "GROUP", "g1", "one", "COUNT", "50", "STREAMS", "stream" + tag, ">"}, {"XREADGROUP", "GROUP", "g1", "two", "COUNT", "30", "STREAMS", "stream" + tag, ">"},
		{"XACK", "stream" + tag, "g1", "3-7", "4-7"}, {"XDEL", "stream" + tag, "100-7", strconv.Itoa(others) + "-7"}, {"PEXPIREAT", "hash" + tag, "4102444800000"},
		{"PEXPIREAT", "stream" + tag, "4102444800000"},
	} {
		l.add(cmd...)
	}
	flush()
	return []string{"string" + tag, "list" + tag, "set" + tag, "hash" + tag, "zset" + tag, "stream" + tag}
}

// groups tells what a stream has besides its entries, without what counts time.
func groups(ctx context.Context, t *testing.T, l *link, key string) string {
	t.Helper()
	l.add("XINFO", "STREAM", key)
	l.add("XINFO", "GROUPS", key)
	l.add("XPENDING", key, "g1", "-", "+", "1000")
	l.add("XINFO", "CONSUMERS", key, "g2")
	reps, err := l.must(ctx)
	if err != nil {
		t.Fatal(err)
	}
	x := flat(reps[0])
	out := text(x["length"]) + text(x["last-generated-id"]) + text(x["entries-added"]) + text(x["max-deleted-entry-id"]) + text(x["groups"]) + text(reps[1])
	for _, e := range reps[2].items {
		out += " " + text(e.items[0]) + text(e.items[1]) + text(e.items[3])
	}
	return out + " " + text(flat(reps[3].items[0])["name"])
}

func TestLargeValuesMoveInPieces(t *testing.T) {
	t.Parallel()
	n, bytes := 20000, 3<<20
	if *large {
		n, bytes = 1000000, 100<<20
	}
	c := newCluster(t, 2, 1, 0)
	tag := tagOf(1300)
	a, b := c.primary("a"), c.primary("b")
	keys := grow(t, c, a.Addr, tag, n, bytes)
	ctx := within(t, 4*time.Minute)
	la, lb := c.connect(a.Addr), c.connect(b.Addr)
	want := map[string]string{}
	for _, k := range keys {
		want[k] = content(ctx, t, la, k)
	}
	stream := groups(ctx, t, la, "stream"+tag)
	g, s := newGate(half), &shelf{}
	o := c.options(g, s)
	var r Report
	o.Done = func(done Report) { r = done }
	stall := [2]*prober{probe(t, c, a.Addr), probe(t, c, b.Addr)}
	mustRun(t, c.mover(o), reshard.Move{Slots: []int{1300}, From: "a", To: "b"})
	t.Logf("%d pieces, %d bytes in %s, clients waited %s %v; the longest PING took %s at the source, %s at the target",
		r.Pieces, r.Bytes, r.Took.Round(time.Millisecond), r.Parked.Round(10*time.Microsecond), r.Steps, stall[0].end(), stall[1].end())
	if r.Parked > time.Second {
		t.Errorf("clients waited %s for values that had been copied before", r.Parked)
	}
	if r.Pieces < int64(len(keys)*3) {
		t.Fatalf("only %d pieces", r.Pieces)
	}
	for _, k := range keys {
		if got := content(ctx, t, lb, k); got != want[k] {
			t.Errorf("%s: %s, at the source it was %s", k, got, want[k])
		}
	}
	if got := groups(ctx, t, lb, "stream"+tag); got != stream {
		t.Errorf("groups of the stream:\n%s\nat the source:\n%s", got, stream)
	}
	if got := c.count(b.Addr, []int{1300}); got != int64(len(keys)) {
		t.Errorf("%d keys at the target, %d were moved", got, len(keys))
	}
}

// prober asks a server all the time, and remembers its longest answer.
type prober struct {
	stop atomic.Bool
	done chan struct{}
	most time.Duration
}

func probe(t *testing.T, c *cluster, addr string) *prober {
	p := &prober{done: make(chan struct{})}
	l := c.connect(addr)
	go func() {
		defer close(p.done)
		for !p.stop.Load() {
			began := time.Now()
			if _, err := l.ask(context.Background(), "PING"); err != nil {
				return
			}
			p.most = max(p.most, time.Since(began))
			_ = rest(context.Background(), time.Millisecond)
		}
	}()
	t.Cleanup(func() { p.end() })
	return p
}

func (p *prober) end() time.Duration {
	p.stop.Store(true)
	<-p.done
	return p.most
}

func TestALargeValueThatIsWrittenAllTheTime(t *testing.T) {
	unhurried(t)
	c := newCluster(t, 2, 1, 0)
	tag := tagOf(1400)
	a := c.primary("a").Addr
	grow(t, c, a, tag, 5000, 1<<20)
	g, s := newGate(half), &shelf{}
	w := newClients(t, c, g, []int{1400})
	grow(t, c, w.beside.Addr, tag, 5000, 1<<20)
	w.done.Add(1)
	go func() { // an element in front and behind, all the time
		defer w.done.Done()
		beside := c.connect(w.beside.Addr)
		links := map[string]*link{}
		for i := 0; !w.stop.Load(); i++ {
			shard := g.enter(1400)
			if links[shard] == nil {
				links[shard] = c.connect(c.primary(shard).Addr)
			}
			cmds := [][]string{{"LPUSH", "list" + tag, strconv.Itoa(i)}, {"RPUSH", "list" + tag, strings.Repeat("x", i%50)}, {"SETRANGE", "string" + tag, strconv.Itoa(i), "y"}}
			got, err := say(context.Background(), links[shard], cmds)
			g.leave(1400)
			want, err2 := say(context.Background(), beside, cmds)
			if got != want || err != nil || err2 != nil {
				t.Errorf("%s at shard %s, %s beside: %v %v", got, shard, want, err, err2)
				return
			}
		}
	}()
	o := c.options(g, s)
	o.BigBytes = 32 << 10
	o.Limits = reshard.Limits{ParkKeys: 10, ParkBytes: 1000, Rounds: 3, HardKeys: 1000, HardBytes: 10000}
	hot := 0
	o.Before = func(step reshard.Step) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if step.Rule == "hot" {
			if hot++; hot == 2 {
				s.wish = reshard.Cancel
			}
		}
		return nil
	}
	got, err := c.mover(o).Run(within(t, time.Minute), reshard.Move{Slots: []int{1400}, From: "a", To: "b"})
	if err != nil || got.Stage != reshard.Cancelled || len(g.waits) > 0 {
		t.Fatalf("without force: %s: %v, %d stops", got, err, len(g.waits))
	}
	s.wish = reshard.GoOn
	mustRun(t, c.mover(o), reshard.Move{Slots: []int{1400}, From: "a", To: "b", Force: true})
	w.compare(t)
	t.Logf("clients waited %s", g.waits)
}
