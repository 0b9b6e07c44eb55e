// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
)

var _ coord.Peers = (*Store)(nil)

// peers are the connections for questions between members, which need no majority and no controller. One question at a time
// goes to each member.
type peers struct {
	with atomic.Pointer[func(from string, question []byte) []byte]

	mu    sync.Mutex
	lines map[string]*line
}

// line is the connection to one member.
type line struct {
	turn chan struct{} // the right to use it
	c    *conn         // nil: none
	in   *bufio.Reader
}

// askIdle is how long a connection without questions is kept by who answers. Who asks begins a new one then.
const askIdle = time.Minute

// Answer implements coord.Peers.
func (s *Store) Answer(with func(from string, question []byte) []byte) { s.peers.with.Store(&with) }

// Ask implements coord.Peers.
func (s *Store) Ask(ctx context.Context, member string, question []byte) ([]byte, error) {
	no := func(err error) error { return fmt.Errorf("ask member %s: %w: %w", member, coord.ErrUnavailable, err) }
	if limit := coord.PeerMax + coord.PeerSpare; len(question) > limit {
		return nil, no(fmt.Errorf("the question has %d bytes, the limit is %d", len(question), limit))
	}
	addr := s.addressOf(member)
	if addr == "" {
		return nil, no(errors.New("the store knows no such member"))
	}
	l := s.peers.to(member)
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, no(ctx.Err())
	}
	defer func() { <-l.turn }()
	used := l.c != nil
	answer, err := s.askOn(ctx, l, addr, member, question)
	if err != nil && used && ctx.Err() == nil { // the other side may have closed what was idle
		answer, err = s.askOn(ctx, l, addr, member, question)
	}
	if err != nil {
		return nil, no(err)
	}
	return answer, nil
}

func (s *Store) addressOf(member string) string {
	for _, m := range s.raft.Load().GetConfiguration().Configuration().Servers {
		if string(m.ID) == member {
			return string(m.Address)
		}
	}
	return ""
}

func (p *peers) to(member string) *line {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lines == nil {
		p.lines = map[string]*line{}
	}
	l := p.lines[member]
	if l == nil {
		l = &line{turn: make(chan struct{}, 1)}
		p.lines[member] = l
	}
	return l
}

// askOn sends the question on the line, which it opens first if need be, and closes it after an error: a late answer must not
// be taken for that to another question.
func (s *Store) askOn(ctx context.Context, l *line, addr, member string, question []byte) (_ []byte, err error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(s.opts.Timing.Request)
	}
	if l.c == nil {
		c, err := s.port.dial(dialPeer, addr, member, max(time.Until(deadline), time.Millisecond))
		if err != nil {
			return nil, err
		}
		l.c, l.in = c, bufio.NewReaderSize(c, 4<<10)
	}
	defer func() {
		if err != nil {
			_ = l.c.Close()
			l.c, l.in = nil, nil
		}
	}()
	c := l.c
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(deadline)
	if _, err := c.Write(frame{Kind: kindAsk, Value: question}.encode()); err != nil {
		return nil, err
	}
	f, err := readFrame(l.in, coord.PeerMax+coord.PeerSpare+helloMax)
	if err != nil {
		return nil, err
	}
	if f.Kind != kindReply || f.Code != codeOK {
		return nil, fmt.Errorf("it answers code %d %s", f.Code, f.Text)
	}
	return f.Value, nil
}

// serveAsks answers one member's questions until its connection ends.
func (s *Store) serveAsks(c *conn) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReaderSize(c, 4<<10)
	hello, err := readFrame(in, helloMax)
	if err == nil {
		err = s.checkRaft(hello)
	}
	if err != nil {
		s.log.Warn("refused a member's questions", "peer", hello.Key, "from", c.RemoteAddr().String(), "err", err)
		_, _ = c.Write(frame{Kind: kindReply, Code: codeRefused, Text: err.Error()}.encode())
		return
	}
	for {
		_ = c.SetDeadline(time.Now().Add(askIdle))
		f, err := readFrame(in, coord.PeerMax+coord.PeerSpare+helloMax)
		if err != nil || f.Kind != kindAsk {
			return
		}
		reply := frame{Kind: kindReply, Code: codeUnavailable, Text: "nobody answers questions here"}
		if with := s.peers.with.Load(); with != nil && *with != nil {
			reply = frame{Kind: kindReply, Value: (*with)(hello.Key, f.Value)}
		}
		_ = c.SetDeadline(time.Now().Add(writeTimeout))
		if _, err := c.Write(reply.encode()); err != nil {
			return
		}
	}
}
