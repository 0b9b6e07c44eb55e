// SPDX-License-Identifier: Apache-2.0

// Package placement compares internal/ring with the real nutcracker (twemproxy): one nutcracker with many pools stands in
// front of servers that answer each GET with their own number, so that the placement of a key is the reply. The tests are
// skipped where nutcracker is not installed; what it said once is kept in internal/ring/testdata for the quick gate.
package placement

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt/internal/resp"
	"redoubt/internal/ring"
	"redoubt/test/ports"
)

// server answers every command with its number. Its address is host and port, or a path.
type server struct {
	host, port string
	number     int
}

// serve starts a server on l, which ends with the test.
func serve(t *testing.T, l net.Listener, number int) {
	var conns sync.WaitGroup
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { answer(c, number) })
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		conns.Wait() // nutcracker is gone by then: cleanups run last in, first out
	})
}

// answer replies ":number" to each command of a connection until it ends.
func answer(c net.Conn, number int) {
	defer c.Close()
	var p resp.Parser
	buf, have := make([]byte, 1<<20), 0
	reply := fmt.Appendf(nil, "$%d\r\n%d\r\n", len(strconv.Itoa(number)), number)
	for {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		at, out := 0, []byte(nil)
		for at < have {
			n, err := p.Next(buf[at:have], resp.Limits{})
			if err != nil {
				return
			}
			if n == 0 {
				break
			}
			at += n
			out = append(out, reply...)
		}
		have = copy(buf, buf[at:have])
		p.Reset()
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// listenTCP starts a server on a free port of 127.0.0.1.
func listenTCP(t *testing.T, number int) server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, number)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return server{"127.0.0.1", port, number}
}

// listenMemcachePort starts a server on port 11211 of some address of the loopback network.
func listenMemcachePort(t *testing.T, number int) server {
	t.Helper()
	for range 100 {
		host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254))
		if l, err := net.Listen("tcp", host+":11211"); err == nil {
			serve(t, l, number)
			return server{host, "11211", number}
		}
	}
	t.Skip("no loopback address with a free port 11211")
	return server{}
}

// listenUnix starts a server on a Unix socket.
func listenUnix(t *testing.T, number int) server {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, number)
	return server{path, "", number}
}

// shortDir is a directory whose path fits into the address of a Unix socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// pool is one pool of nutcracker.
type pool struct {
	title   string
	spec    ring.Spec // its nodes are those of the lines
	lines   []string  // the entries of "servers:"
	numbers []int     // of each node: what its server answers
	more    string    // further settings
	socket  string
}

// add appends a node. An unnamed one gets its name from its address.
func (p *pool) add(s server, name string, weight uint32) {
	line := s.host
	if s.port != "" {
		line += ":" + s.port
	}
	line += ":" + strconv.Itoa(int(weight))
	if name != "" {
		line += " " + name
	}
	p.lines = append(p.lines, line)
	p.numbers = append(p.numbers, s.number)
	p.spec.Nodes = append(p.spec.Nodes, ring.Node{Name: ring.NodeName(name, s.host, s.port), Weight: weight})
}

func (p *pool) yaml(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "p%d:\n  listen: %s\n  redis: true\n  hash: %s\n  distribution: %s\n", i, p.socket, p.spec.Hash, p.spec.Distribution)
	if p.spec.HashTag != "" {
		fmt.Fprintf(&b, "  hash_tag: %q\n", p.spec.HashTag)
	}
	b.WriteString(p.more + "  servers:\n")
	for _, line := range p.lines {
		b.WriteString("    - " + line + "\n")
	}
	return b.String()
}

// nutcracker starts one in front of all pools and waits until it listens. It ends with the test.
func nutcracker(t *testing.T, pools []*pool) {
	t.Helper()
	path, err := exec.LookPath("nutcracker")
	if err != nil {
		t.Skip("nutcracker is not installed")
	}
	dir := shortDir(t)
	var conf strings.Builder
	for i, p := range pools {
		p.socket = filepath.Join(dir, strconv.Itoa(i))
		conf.WriteString(p.yaml(i))
	}
	file, log := filepath.Join(dir, "nutcracker.yml"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	readBack(t, file, pools)
	for range 5 { // another process may take the port for statistics
		cmd := exec.Command(path, "-c", file, "-o", log, "-a", "127.0.0.1", "-s", strconv.Itoa(ports.Free(t)), "-p", filepath.Join(dir, "pid"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = cmd.Wait() }()
		if listens(pools[len(pools)-1].socket, ended) {
			t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
			return
		}
		_ = cmd.Process.Kill()
		<-ended
	}
	said, _ := os.ReadFile(log)
	t.Fatalf("nutcracker does not start:\n%s", said)
}

// listens waits until somebody accepts on socket; false if the process ended first, or did not in ten seconds.
func listens(socket string, ended <-chan struct{}) bool {
	late := time.After(10 * time.Second)
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-late:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ask sends a GET for each key through a pool and returns which server answered: its number, or -1 for an error.
func ask(t *testing.T, socket string, keys [][]byte) []int {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sent := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(c, 64<<10)
		for _, k := range keys {
			_, _ = w.Write(resp.AppendCommand(nil, []byte("GET"), k))
		}
		sent <- w.Flush()
	}()
	r, got := bufio.NewReaderSize(c, 64<<10), make([]int, len(keys))
	for i := range keys {
		if got[i], err = readNumber(r); err != nil {
			t.Fatalf("after %d replies of %d: %v", i, len(keys), err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return got
}

func readNumber(r *bufio.Reader) (int, error) {
	head, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if head[0] == '-' {
		return -1, nil
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(head[1:])))
	if err != nil || head[0] != '$' {
		return 0, fmt.Errorf("unexpected reply %q", head)
	}
	body := make([]byte, n+2)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, err
	}
	return strconv.Atoi(string(body[:n]))
}
