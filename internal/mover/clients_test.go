// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"redoubt/test/ports"
)

// clients write random commands of every type through the gate, and the same ones to a server beside the cluster. Each key
// belongs to one writer, so both must have the same in the end.
type clients struct {
	c      *cluster
	g      *gate
	slots  []int
	tags   []string
	beside *server
	stop   atomic.Bool
	done   sync.WaitGroup
	count  atomic.Int64
	pause  time.Duration // between two commands of a writer
	perKey int           // keys of a writer in each slot
}

func newClients(t testing.TB, c *cluster, g *gate, slots []int) *clients {
	t.Helper()
	w := &clients{c: c, g: g, slots: slots, beside: &server{port: ports.Free(t), dir: t.TempDir()}, perKey: 20}
	w.beside.Addr = fmt.Sprintf("127.0.0.1:%d", w.beside.port)
	start(t, w.beside)
	eventually(t, "the server beside", func() bool { return c.try(w.beside.Addr, "PING") == "PONG" })
	for _, s := range slots {
		w.tags = append(w.tags, tagOf(s))
	}
	return w
}

// run starts writers; end stops them.
func (w *clients) run(t testing.TB, writers int) {
	t.Helper()
	for i := range writers {
		w.done.Add(1)
		go func() {
			defer w.done.Done()
			w.write(t, i, func() bool { return w.stop.Load() })
		}()
	}
	t.Cleanup(func() { w.end() })
}

func (w *clients) end() {
	w.stop.Store(true)
	w.done.Wait()
}

// fill writes n commands of each of a few writers, and returns.
func (w *clients) fill(t testing.TB, writers, n int) {
	t.Helper()
	for i := range writers {
		left := n
		w.write(t, i, func() bool { left--; return left < 0 })
	}
}

func (w *clients) write(t testing.TB, id int, over func() bool) {
	rng := rand.New(rand.NewPCG(uint64(id), rand.Uint64()))
	links := map[string]*link{}
	beside := w.c.connect(w.beside.Addr)
	ctx := context.Background()
	for !over() {
		at := rng.IntN(len(w.slots))
		cmds := command1(rng, fmt.Sprintf("%d:%d%s", id, rng.IntN(w.perKey), w.tags[at]))
		shard := w.g.enter(w.slots[at])
		addr := w.c.primary(shard).Addr
		if links[addr] == nil {
			links[addr] = w.c.connect(addr)
		}
		got, err := say(ctx, links[addr], cmds)
		w.g.leave(w.slots[at])
		if err != nil {
			t.Errorf("writer %d at %s (%s): %v", id, shard, addr, err)
			return
		}
		want, err := say(ctx, beside, cmds)
		if err != nil || got != want {
			t.Errorf("writer %d, %q: %s at shard %s, %s beside (%v)", id, cmds, got, shard, want, err)
			return
		}
		w.count.Add(1)
		if w.pause > 0 {
			_ = rest(ctx, w.pause)
		}
	}
}

func say(ctx context.Context, l *link, cmds [][]string) (string, error) {
	for _, c := range cmds {
		l.add(c...)
	}
	reps, err := l.round(ctx)
	var out []string
	for _, r := range reps {
		out = append(out, text(r))
	}
	return strings.Join(out, ","), err
}

// command1 is one command, or a transaction, about one key (or two of one writer and slot).
func command1(rng *rand.Rand, key string) [][]string {
	kind, n := rng.IntN(7), strconv.Itoa(rng.IntN(50))
	k := key
	one := func(args ...string) [][]string { return [][]string{args} }
	far := strconv.FormatInt(time.Now().Add(time.Duration(600+rng.IntN(600))*time.Second).UnixMilli(), 10)
	if rng.IntN(12) == 0 {
		return one("DEL", []string{"s", "l", "h", "e", "z", "x", "c"}[kind]+k)
	}
	if rng.IntN(15) == 0 {
		return one("PEXPIREAT", []string{"s", "l", "h", "e", "z", "x", "c"}[kind]+k, far)
	}
	switch kind {
	case 0:
		if rng.IntN(2) == 0 {
			return one("SET", "s"+k, strings.Repeat(n, rng.IntN(200)), "PXAT", far)
		}
		return one("APPEND", "s"+k, n)
	case 1:
		if rng.IntN(3) == 0 {
			return one("LPOP", "l"+k)
		}
		return one("RPUSH", "l"+k, n, "x")
	case 2:
		if rng.IntN(5) == 0 {
			return one("HDEL", "h"+k, n)
		}
		return one("HSET", "h"+k, n, n+"v")
	case 3:
		if rng.IntN(5) == 0 {
			return one("SREM", "e"+k, n)
		}
		return one("SADD", "e"+k, n, "m"+n)
	case 4:
		return one("ZADD", "z"+k, strconv.FormatFloat(rng.Float64()*1e6, 'g', -1, 64), n)
	case 5:
		return one("XADD", "x"+k, "MAXLEN", "30", strconv.FormatInt(time.Now().UnixNano(), 10)+"-1", "f", n)
	}
	switch rng.IntN(4) {
	case 0:
		return [][]string{{"MULTI"}, {"INCR", "c" + k}, {"SET", "d" + k, n}, {"EXEC"}}
	case 1:
		return one("EVAL", "redis.call('SET', KEYS[1], ARGV[1]); return redis.call('INCR', KEYS[2])", "2", "d"+k, "c"+k, n)
	case 2:
		return one("RENAME", "d"+k, "r"+k)
	}
	return one("COPY", "c"+k, "d"+k, "REPLACE")
}

// compare ends the writers, and says whether everything is where it belongs.
func (w *clients) compare(t testing.TB) {
	t.Helper()
	w.end()
	ctx := within(t, time.Minute)
	beside := w.c.connect(w.beside.Addr)
	rep, err := beside.ask(ctx, "KEYS", "*")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]*link{}
	perSlot := map[int]int64{}
	for _, it := range rep.items {
		key := string(it.body)
		slot := slotOf(it.body)
		perSlot[slot]++
		addr := w.c.primary(w.g.owner[slot]).Addr
		if have[addr] == nil {
			have[addr] = w.c.connect(addr)
		}
		got := content(ctx, t, have[addr], key)
		if want := content(ctx, t, beside, key); got != want {
			t.Errorf("%s at %s: %s, written was %s", key, addr, got, want)
		}
	}
	for i, slot := range w.slots {
		for _, s := range w.c.topology() {
			want := int64(0)
			if s.ID == w.g.owner[slot] {
				want = perSlot[slot]
			}
			for _, n := range append([]Node{s.Primary}, s.Replicas...) {
				var got int64
				tick := time.NewTicker(10 * time.Millisecond)
				for range 300 { // replicas are a moment behind
					if got = w.c.count(n.Addr, []int{slot}); got == want {
						break
					}
					<-tick.C
				}
				tick.Stop()
				if got != want {
					t.Errorf("slot %d (%s): %d keys at %s of shard %s, %d were written", slot, w.tags[i], got, n.Addr, s.ID, want)
				}
			}
		}
	}
}

func content(ctx context.Context, t testing.TB, l *link, key string) string {
	t.Helper()
	l.add("DEBUG", "DIGEST-VALUE", key)
	l.add("PEXPIRETIME", key)
	l.add("TYPE", key)
	got, err := say(ctx, l, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}
