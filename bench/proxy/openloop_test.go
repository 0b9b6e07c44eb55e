// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakeServer answers every probe request. The answer to the one numbered stallAt, of all, waits for stall.
func fakeServer(t *testing.T, stallAt int, stall time.Duration, reply []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen int
	var serving sync.WaitGroup
	serve := func(c net.Conn) {
		defer c.Close()
		in, request := bufio.NewReader(c), make([]byte, len(probeRequest()))
		for {
			if _, err := io.ReadFull(in, request); err != nil {
				return
			}
			mu.Lock() // one request at a time, as the server does
			if seen++; seen == stallAt {
				<-time.After(stall)
			}
			_, err := c.Write(reply)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l.Addr().String()
}

func TestOpenLoopCountsAStallForEveryRequestItDelayed(t *testing.T) {
	const rate, total, stall = 1000, 600, 200 * time.Millisecond
	addr := fakeServer(t, 100, stall, probeReply())
	begun := time.Now()
	all, err := runOpenLoop(addr, 10, rate, total, probeRequest(), probeReply())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < total*time.Second/rate {
		t.Errorf("%d requests at %d/s took only %s", total, rate, took)
	}
	// Some 200 requests were to be sent in the stall; on average each of them waited for half of it.
	late := 0
	for _, l := range all {
		if l <= 0 {
			t.Fatalf("a latency of %s", l)
		}
		if l > stall/2 {
			late++
		}
	}
	if late < 90 {
		t.Errorf("only %d requests waited for more than %s; the generator stood still with the server", late, stall/2)
	}
	if longest := slices.Max(all); longest < stall-2*time.Second/rate {
		t.Errorf("the longest latency is %s in a stall of %s", longest, stall)
	}
}

func TestOpenLoopRefusesAWrongReply(t *testing.T) {
	addr := fakeServer(t, 0, 0, []byte("$-1\r\n"))
	if _, err := runOpenLoop(addr, 2, 1000, 100, probeRequest(), probeReply()); err == nil {
		t.Fatal("a null counts as an answer")
	}
}

func TestOpenLoopReportsAClosedConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
		}
	})
	defer accepting.Wait()
	defer l.Close()
	if _, err := runOpenLoop(l.Addr().String(), 1, 1000, 100, probeRequest(), probeReply()); err == nil {
		t.Fatal("a closed connection goes unnoticed")
	}
}
