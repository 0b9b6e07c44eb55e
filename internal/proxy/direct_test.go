// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strings"
	"sync"
	"testing"

	"redoubt/internal/resp"
)

// inside is a client within the process.
type inside struct {
	t  *testing.T
	st *Stream
	p  *Proxy

	mu    sync.Mutex
	got   string
	heard int // replies that were not read
	deaf  bool
}

func joinShard(t *testing.T, p *Proxy) *inside {
	t.Helper()
	c := &inside{t: t, p: p}
	var err error
	c.mu.Lock()
	c.st, err = p.Join(0, c.event)
	c.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	c.st.Hear(c.hear)
	t.Cleanup(c.st.Close)
	return c
}

func (c *inside) event() {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := make([]byte, 4096)
	n, _ := c.st.Read(b)
	c.got += string(b[:n])
}

func (c *inside) hear(b []byte, replies int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf {
		return false
	}
	c.got += string(b)
	c.heard += replies
	return true
}

// onLoop has f called on the loop, and waits for it.
func (c *inside) onLoop(f func()) {
	done := make(chan struct{})
	c.st.c.loop.post(func() { f(); close(done) })
	<-done
}

// offer offers a command; on the loop only.
func (c *inside) offer(words ...string) bool {
	var args [][]byte
	for _, w := range words {
		args = append(args, []byte(w))
	}
	return c.st.Offer(c.p.table.Load().Classify(args), len(words), resp.AppendCommand(nil, words...))
}

func (c *inside) want(text string) {
	c.t.Helper()
	waitFor(c.t, "the replies are "+text, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return strings.ReplaceAll(c.got, "\r\n", " ") == text
	})
}

func TestACommandIsHandedOverAndItsReplyBack(t *testing.T) {
	s := newShard(t, 0, nil)
	c := joinShard(t, s.p)
	c.onLoop(func() {
		for _, words := range [][]string{{"SET", "k", "v"}, {"GET", "k"}, {"INCR", "n"}} {
			if !c.offer(words...) {
				t.Errorf("%v is not taken", words)
			}
		}
		for _, words := range [][]string{{"MULTI"}, {"BLPOP", "l", "0"}, {"PING"}, {"SCAN", "0"}, {"SUBSCRIBE", "c"}} {
			if c.offer(words...) {
				t.Errorf("%v is taken", words)
			}
		}
	})
	c.want("+OK $1 v :1 ")
	if c.heard != 3 {
		t.Errorf("%d replies were handed back", c.heard)
	}
}

func TestWhatIsWrittenStaysInFrontOfWhatIsOffered(t *testing.T) {
	s := newShard(t, 0, nil)
	c := joinShard(t, s.p)
	c.onLoop(func() {
		if n, err := c.st.Write(resp.AppendCommand(nil, "SET", "k", "1")); n == 0 || err != nil {
			t.Error(n, err)
		}
		if c.offer("GET", "k") {
			t.Error("taken in front of what is in the pipe")
		}
	})
	c.want("+OK ")
	c.onLoop(func() {
		c.deaf = true // what comes has to be read
		for range 3 {
			if !c.offer("INCR", "k") {
				t.Error("not taken")
			}
		}
	})
	c.want("+OK :2 :3 :4 ")
}

func TestNothingIsOfferedToWhoHasToWait(t *testing.T) {
	s := newShard(t, 0, nil)
	c := joinShard(t, s.p)
	s.client().want("OK", "CLIENT", "PAUSE", "60000", "WRITE")
	c.onLoop(func() {
		if c.offer("SET", "k", "v") {
			t.Error("taken while clients are paused")
		}
		if _, err := c.st.Write(resp.AppendCommand(nil, "MULTI")); err != nil {
			t.Error(err)
		}
	})
	s.client().want("OK", "CLIENT", "UNPAUSE")
	c.want("+OK ")
	c.onLoop(func() {
		if c.offer("SET", "k", "v") {
			t.Error("taken within a transaction")
		}
	})
}
