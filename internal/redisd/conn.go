// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"redoubt/internal/redis"
)

const (
	pendingCallsMax = 32 // unanswered batches on one connection; beyond it nothing is sent
	writeTimeout    = time.Second
)

var (
	errPending = errors.New("too many commands of ours are still unanswered")
	errFenced  = errors.New("a fence overtook this command")
)

// call is one batch of commands and, once done is closed, its replies or the reason why there are none.
type call struct {
	want    int
	replies []reply
	err     error
	done    chan struct{}
}

// wait returns the replies. When ctx ends first the call stays queued on its connection: the server may still carry it
// out, before anything that is sent there later.
func (c *call) wait(ctx context.Context) ([]reply, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		if !c.finished() { // an answer that is there counts, however late we look
			return nil, fmt.Errorf("%w: %w", redis.ErrUnanswered, ctx.Err())
		}
	}
	return c.replies, c.err
}

func (c *call) finished() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// conn is one RESP2 connection with strict order: batches are executed and answered in the order of send, whoever gave
// up waiting meanwhile. One goroutine reads; close waits for it.
type conn struct {
	nc    net.Conn
	setup *call         // AUTH, CLIENT SETNAME, CLIENT ID, CLIENT KILL of the predecessor
	gone  chan struct{} // closed by the reader when the connection is over

	answers sync.Once // who answers here was read off setup
	pid     int       // its process; zero if it does not say

	mu      sync.Mutex // guards the fields below; also held while writing, so that order of queue = order on the wire
	pending []*call
	err     error
}

// dial opens a connection and queues the setup batch without waiting for its replies.
func dial(ctx context.Context, addr string, setup [][]string, lost func()) (*conn, error) {
	nc, err := connect(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	c := &conn{nc: nc, gone: make(chan struct{})}
	go c.read(lost)
	if c.setup, err = c.send(setup...); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// socketPrefix marks a directory, whose server is reached by its Unix socket, where otherwise a host:port stands.
const socketPrefix = "unix:"

// connect opens a connection to a host:port, or to the socket in a directory. That is reached through the directory's own
// descriptor, because the path may be longer than the name of a socket can be.
func connect(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	dir, ok := strings.CutPrefix(addr, socketPrefix)
	if !ok {
		return d.DialContext(ctx, "tcp", addr)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), socketName))
}

// local is our end of the connection as the server names it.
func (c *conn) local() string {
	if c.nc.RemoteAddr().Network() == "unix" {
		return socketName + ":0"
	}
	return c.nc.LocalAddr().String()
}

// read delivers replies to the oldest call until the connection ends.
func (c *conn) read(lost func()) {
	defer close(c.gone)
	r := bufio.NewReaderSize(c.nc, 16<<10)
	for {
		rep, err := readReply(r, 0)
		if err != nil {
			c.fail(err)
			if lost != nil {
				lost()
			}
			return
		}
		c.deliver(rep)
	}
}

func (c *conn) deliver(rep reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 { // for example "-ERR max number of clients reached" before we asked anything
		if e := rep.err(); e != nil {
			c.err = e
		}
		return
	}
	p := c.pending[0]
	p.replies = append(p.replies, rep)
	if len(p.replies) == p.want {
		c.pending = c.pending[1:]
		close(p.done)
	}
}

// fail ends all open calls. A connection that answered with errors only keeps the server's own words as the reason.
func (c *conn) fail(err error) {
	_ = c.nc.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("%w: the connection ended: %w", redis.ErrUnanswered, err)
	}
	for _, p := range c.pending {
		p.err = c.err
		for _, rep := range p.replies {
			if e := rep.err(); e != nil {
				p.err = e
				break
			}
		}
		close(p.done)
	}
	c.pending = nil
}

// send queues a batch of commands and returns at once.
func (c *conn) send(cmds ...[]string) (*call, error) { return c.sendIf(nil, cmds...) }

// sendIf queues a batch if cond holds at the moment at which it goes onto the wire. The lock is held during the write:
// what may be pending fits into a socket buffer, so that the write does not block.
func (c *conn) sendIf(cond func() bool, cmds ...[]string) (*call, error) {
	var b []byte
	for _, cmd := range cmds {
		b = appendCommand(b, cmd)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, c.err
	case len(c.pending) >= pendingCallsMax:
		return nil, fmt.Errorf("%w: %w", redis.ErrUnanswered, errPending)
	case cond != nil && !cond():
		return nil, errFenced
	}
	p := &call{want: len(cmds), done: make(chan struct{})}
	_ = c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := c.nc.Write(b); err != nil {
		_ = c.nc.Close() // the reader notices and ends the calls before this one
		c.err = fmt.Errorf("%w: write: %w", redis.ErrUnanswered, err)
		return nil, c.err
	}
	c.pending = append(c.pending, p)
	return p, nil
}

// do sends a batch and waits for its replies. Error replies are replies, not errors.
func (c *conn) do(ctx context.Context, cmds ...[]string) ([]reply, error) {
	p, err := c.send(cmds...)
	if err != nil {
		return nil, err
	}
	return p.wait(ctx)
}

// last returns the newest unanswered call, nil when everything is answered.
func (c *conn) last() *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return nil
	}
	return c.pending[len(c.pending)-1]
}

func (c *conn) ended() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// close ends the connection and waits for its reader.
func (c *conn) close() {
	_ = c.nc.Close()
	<-c.gone
}
