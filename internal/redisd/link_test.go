// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"net"
	"sync"
	"testing"
	"time"

	"redoubt/internal/redis"
)

// relay is a path to a server whose connections can be silenced without an end, as by a network that drops everything.
type relay struct {
	to      string
	l       net.Listener
	serving sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	dead  chan struct{} // closed: connections that were open bring nothing any more
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{to: to, l: l, dead: make(chan struct{})}
	r.serving.Go(r.serve)
	t.Cleanup(func() {
		_ = l.Close()
		r.silence()
		r.mu.Lock()
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.serving.Wait()
	})
	return r
}

func (r *relay) serve() {
	for {
		from, err := r.l.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", r.to)
		if err != nil {
			_ = from.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, from, to)
		dead := r.dead
		r.mu.Unlock()
		r.serving.Go(func() { pass(from, to, dead) })
		r.serving.Go(func() { pass(to, from, dead) })
	}
}

// pass copies until the connection ends or is dead; a dead one stays open.
func pass(from, to net.Conn, dead chan struct{}) {
	b := make([]byte, 32<<10)
	for {
		k, err := from.Read(b)
		select {
		case <-dead:
			return
		default:
		}
		if err != nil {
			_ = to.Close()
			return
		}
		if _, err := to.Write(b[:k]); err != nil {
			return
		}
	}
}

func (r *relay) silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.dead)
	r.dead = make(chan struct{})
}

func TestASilentLinkIsStartedAnew(t *testing.T) {
	t.Parallel()
	p, n := primary(t, nil), open(t, nil)
	path := newRelay(t, p.addr)
	addr := path.l.Addr().String()
	see(t, n, "the replica", isUp)
	if err := n.Follow(within(t, 2*time.Second), addr, tenure()); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the link", func(o redis.Observation) bool { return o.LinkUp && o.Whole })
	if _, _, err := n.PrimaryPosition(within(t, time.Second), addr); err != nil {
		t.Fatal(err)
	}
	idle := time.Now() // a link on which nobody writes is not silent
	see(t, n, "an idle time", func(o redis.Observation) bool {
		if isUp(o) && !o.LinkUp {
			t.Fatalf("an idle link counts as down after %s:\n%s", time.Since(idle), must(t, client(t, n.addr, ""), "INFO", "replication").text)
		}
		return time.Since(idle) > 4500*time.Millisecond
	})
	path.silence()
	began := time.Now()
	see(t, n, "the silence", func(o redis.Observation) bool { return !o.LinkUp })
	noticed := time.Since(began)
	if err := n.Follow(within(t, 2*time.Second), addr, tenure()); err != nil {
		t.Fatal(err)
	}
	see(t, n, "the new link", func(o redis.Observation) bool { return o.LinkUp && o.Whole })
	t.Logf("noticed after %s, up again after %s", noticed, time.Since(began))
	if full := parseInfo(must(t, client(t, p.addr, ""), "INFO", "stats").text).num("sync_full"); full > 2 { // priming counts as one
		t.Errorf("%d full syncs", full)
	}
	m := info{"role": "slave", "master_host": "127.0.0.1", "master_port": addr[len("127.0.0.1:"):], "master_link_status": "up", "master_last_io_seconds_ago": "3"}
	if n.renewed = n.clk.Uptime(); n.mustRenew(m) {
		t.Error("a link is started anew twice within the pause")
	}
	m["master_sync_in_progress"] = "1"
	if n.linkSilent(m) {
		t.Error("a sync counts as a silent link")
	}
}

func TestAPrimaryThatSendsMoreRarelyMayBeSilent(t *testing.T) {
	t.Parallel()
	p := primary(t, func(o *Options) { o.Directives = map[string]string{"Repl-Ping-Replica-Period": "10"} })
	n := open(t, nil)
	follow(t, n, p)
	if _, _, err := n.PrimaryPosition(within(t, time.Second), p.addr); err != nil {
		t.Fatal(err)
	}
	silent := see(t, n, "a long silence", func(redis.Observation) bool {
		return parseInfo(must(t, client(t, n.addr, ""), "INFO", "replication").text).num("master_last_io_seconds_ago") >= linkSilence
	})
	if silent = n.Observe(within(t, time.Second)); !silent.LinkUp {
		t.Fatalf("a primary that sends every 10 s: %+v", silent)
	}
}
