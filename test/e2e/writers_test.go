// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// attempt is one RPUSH of one writer.
type attempt struct {
	seq        int64
	start, end time.Time
	ok         bool
	err        string
}

// writer is one unmodified client with default settings that appends 1, 2, 3, … to its own list.
type writer struct {
	name string
	key  string
	stop func()
	done chan struct{}

	mu       sync.Mutex
	attempts []attempt
}

func (w *writer) add(a attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts = append(w.attempts, a)
}

func (w *writer) all() []attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.attempts)
}

// finish stops the writer and waits for its last attempt.
func (w *writer) finish() {
	w.stop()
	<-w.done
}

// startWriters starts the four clients that the issue names, each through the proxy at addr.
func startWriters(t *testing.T, run string, addr string) []*writer {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	ws := []*writer{
		goRedisWriter("go-redis", "w:go:"+run, redis.NewClient(&redis.Options{Addr: addr})),
		cliWriter(t, "w:cli:"+run, host, port),
		processWriter(t, "redis-py", "w:py:"+run, "/usr/bin/python3", "../clients/redispy_writer.py", "w:py:"+run, host, port),
	}
	if _, err := exec.LookPath("node"); err == nil {
		ws = append(ws, processWriter(t, "ioredis", "w:io:"+run, "node", "../clients/ioredis_writer.js", "w:io:"+run, host, port))
	}
	t.Cleanup(func() {
		for _, w := range ws {
			w.finish()
		}
	})
	for _, w := range ws {
		waitAcked(t, w, 20)
	}
	return ws
}

func waitAcked(t *testing.T, w *writer, n int) {
	t.Helper()
	end := time.Now().Add(15 * time.Second)
	for {
		acked, last := 0, ""
		for _, a := range w.all() {
			if a.ok {
				acked++
			} else {
				last = a.err
			}
		}
		if acked >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s acknowledged %d writes in 15 s; last error: %s", w.name, acked, last)
		}
		wait(20 * time.Millisecond)
	}
}

func goRedisWriter(name, key string, c redis.UniversalClient) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{name: name, key: key, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer c.Close()
		for seq := int64(1); ctx.Err() == nil; seq++ {
			start := time.Now()
			err := c.RPush(context.Background(), key, seq).Err()
			w.add(attempt{seq, start, time.Now(), err == nil, errText(err)})
			wait(time.Millisecond)
		}
	}()
	return w
}

// cliWriter drives redis-cli, one command after the other, over one connection.
func cliWriter(t *testing.T, key, host, port string, more ...string) *writer {
	t.Helper()
	cmd := exec.Command("redis-cli", append(more, "-h", host, "-p", port)...)
	in, out := pipes(t, cmd)
	stopped := make(chan struct{})
	w := &writer{name: "redis-cli", key: key, stop: sync.OnceFunc(func() { close(stopped) }), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer cmd.Wait()
		defer in.Close()
		lines := bufio.NewScanner(out)
		for seq := int64(1); ; seq++ {
			select {
			case <-stopped:
				return
			default:
			}
			start := time.Now()
			fmt.Fprintf(in, "RPUSH %s %d\n", key, seq)
			if !lines.Scan() {
				w.add(attempt{seq, start, time.Now(), false, "redis-cli ended"})
				return
			}
			_, err := strconv.Atoi(lines.Text())
			w.add(attempt{seq, start, time.Now(), err == nil, map[bool]string{false: lines.Text()}[err == nil]})
			for err != nil && lines.Text() != "" { // an error is followed by an empty line
				if !lines.Scan() {
					return
				}
			}
			wait(time.Millisecond)
		}
	}()
	return w
}

// processWriter runs a client program that prints its attempts.
func processWriter(t *testing.T, name, key string, argv ...string) *writer {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	in, out := pipes(t, cmd)
	w := &writer{name: name, key: key, done: make(chan struct{})}
	w.stop = sync.OnceFunc(func() {
		in.Close()
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() }) // some do not end while they connect
		go func() {
			<-w.done
			late.Stop()
		}()
	})
	go func() {
		defer close(w.done)
		defer cmd.Wait()
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			f := strings.SplitN(lines.Text(), " ", 5)
			if len(f) < 4 {
				continue
			}
			n := func(s string) int64 { v, _ := strconv.ParseInt(s, 10, 64); return v }
			a := attempt{seq: n(f[1]), start: time.UnixMicro(n(f[2])), end: time.UnixMicro(n(f[3])), ok: f[0] == "ok"}
			if len(f) > 4 {
				a.err = f[4]
			}
			w.add(a)
		}
	}()
	return w
}

func pipes(t *testing.T, cmd *exec.Cmd) (io.WriteCloser, io.Reader) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v (make test installs it)", cmd.Path, err)
	}
	return in, out
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
