// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// shardWriter writes to one shard, one write after the other, and knows how long it waited.
type shardWriter struct {
	shard string
	key   string
	stop  chan struct{}
	done  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	last    time.Time  // of the latest acknowledgement
	longest time.Duration
	acked   int
	tried   int
	errs    []string
}

// startShardWriter begins to write to a shard. The key is one that the ring places there.
func startShardWriter(t *testing.T, addr, shard string) *shardWriter {
	t.Helper()
	c, err := redis.Dial("tcp", addr, redis.DialReadTimeout(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	w := &shardWriter{shard: shard, stop: make(chan struct{})}
	for i := 0; w.key == ""; i++ {
		key := fmt.Sprint("load:", i)
		at, err := redis.String(c.Do("PROXY", "SHARDOF", key))
		if err != nil || i > 1000 {
			t.Fatalf("no key of %s after %d: %v", shard, i, err)
		}
		if at == shard {
			w.key = key
		}
	}
	w.last = time.Now()
	w.done.Go(func() {
		defer c.Close()
		for n := 1; ; n++ {
			select {
			case <-w.stop:
				return
			case <-time.After(time.Millisecond):
			}
			_, err := c.Do("SET", w.key, n)
			w.mu.Lock()
			w.tried = n
			if err == nil {
				w.longest, w.last, w.acked = max(w.longest, time.Since(w.last)), time.Now(), n
			} else {
				w.errs = append(w.errs, err.Error())
			}
			w.mu.Unlock()
			if c.Err() != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		select {
		case <-w.stop:
		default:
			close(w.stop)
		}
		w.done.Wait()
	})
	return w
}

// gap returns the longest wait for an acknowledgement since it was asked last, one that goes on included.
func (w *shardWriter) gap() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := max(w.longest, time.Since(w.last))
	w.longest, w.last = 0, time.Now()
	return g
}

// TestRingUnderLoad: what befalls one shard's primary is seen on that shard, and by nobody else.
func TestRingUnderLoad(t *testing.T) {
	d := up(t, "--mode", "ring", "--shards", "4", "--replicas", "2")
	s := d.waitHealthy(60 * time.Second)
	var writers []*shardWriter
	for _, sh := range s.Deployments[0].Shards {
		writers = append(writers, startShardWriter(t, d.proxyAddr(0), sh.ID))
	}
	for _, f := range []struct {
		name  string
		limit time.Duration // generous: a busy machine is no fault
		do    func(sh shard, primary node)
	}{
		{"kill -9 of one primary's server", 2 * time.Second, func(_ shard, p node) { signal(t, p.PID, syscall.SIGKILL) }},
		{"SIGSTOP of one primary's server", 5 * time.Second, func(_ shard, p node) {
			signal(t, p.PID, syscall.SIGSTOP)
			t.Cleanup(func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) })
		}},
		{"switchover of one shard", 2 * time.Second, func(sh shard, _ node) {
			if _, err := d.run("switchover", "--shard", sh.ID, "--yes"); err != nil {
				t.Error(err)
			}
		}},
	} {
		var hit, before, others []float64
		for i := range roundsOr(2) {
			s := d.waitHealthy(60 * time.Second)
			shards := s.Deployments[0].Shards
			sh := shards[i%len(shards)]
			p := sh.Nodes[slices.IndexFunc(sh.Nodes, func(n node) bool { return n.ID == sh.Primary })]
			for _, w := range writers {
				w.gap()
			}
			wait(500 * time.Millisecond)
			calm := time.Duration(0)
			for _, w := range writers {
				calm = max(calm, w.gap())
			}
			f.do(sh, p)
			wait(1500 * time.Millisecond)
			for _, w := range writers {
				if g := w.gap().Seconds() * 1000; w.shard == sh.ID {
					hit = append(hit, g)
				} else {
					others = append(others, g)
				}
			}
			before = append(before, calm.Seconds()*1000)
		}
		t.Logf("%s: its shard waited %.1f ms (median), %.1f ms (worst of %d); the others at most %.1f ms, median %.1f ms; before it anybody at most %.1f ms (median)",
			f.name, middle(hit), slices.Max(hit), len(hit), slices.Max(others), middle(others), middle(before))
		if worst := time.Duration(slices.Max(hit) * float64(time.Millisecond)); worst > f.limit {
			t.Errorf("%s: the shard was away for %s", f.name, worst)
		}
	}
	d.waitHealthy(60 * time.Second)
	c, err := redis.Dial("tcp", d.proxyAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, w := range writers {
		close(w.stop)
		w.done.Wait()
		got, err := redis.Int(c.Do("GET", w.key))
		if err != nil || got < w.acked || got > w.tried {
			t.Errorf("%s: %d is there, %d was acknowledged last and %d tried (%v)", w.shard, got, w.acked, w.tried, err)
		}
		for _, e := range w.errs {
			if !strings.HasPrefix(e, "OUTCOMEUNKNOWN ") {
				t.Errorf("%s: %s", w.shard, e)
			}
		}
		t.Logf("%s: %d of %d writes acknowledged, %d unknown outcomes", w.shard, w.acked-len(w.errs), w.tried, len(w.errs))
	}
}
