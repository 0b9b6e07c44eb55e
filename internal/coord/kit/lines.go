// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"redoubt/internal/coord"
)

// Lines are the connections for questions between members, which need no majority and no controller. One question at a time
// goes to each member. Safe for concurrent use.
type Lines struct {
	// Dial opens a connection of kind DialPeer to the member at addr, and says who we are.
	Dial func(addr, member string, timeout time.Duration) (net.Conn, error)
	Idle time.Duration // a question without a deadline gives up after this

	with  atomic.Pointer[func(from string, question []byte) []byte]
	mu    sync.Mutex
	lines map[string]*line
}

// line is the connection to one member.
type line struct {
	turn chan struct{} // the right to use it
	c    net.Conn      // nil: none
	in   *bufio.Reader
}

// askIdle is how long a connection without questions is kept by who answers. Who asks begins a new one then.
const askIdle = time.Minute

// askMax bounds a frame with a question or an answer, in bytes.
const askMax = coord.PeerMax + coord.PeerSpare + HelloMax

// Answer sets who answers others' questions here; nil: nobody.
func (p *Lines) Answer(with func(from string, question []byte) []byte) { p.with.Store(&with) }

// Ask sends a question to the member at addr and returns its answer; addr is empty when the member is not known.
func (p *Lines) Ask(ctx context.Context, addr, member string, question []byte) ([]byte, error) {
	no := func(err error) error { return fmt.Errorf("ask member %s: %w: %w", member, coord.ErrUnavailable, err) }
	if limit := coord.PeerMax + coord.PeerSpare; len(question) > limit {
		return nil, no(fmt.Errorf("the question has %d bytes, the limit is %d", len(question), limit))
	}
	if addr == "" {
		return nil, no(errors.New("the store knows no such member"))
	}
	l := p.to(member)
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, no(ctx.Err())
	}
	defer func() { <-l.turn }()
	used := l.c != nil
	answer, err := p.askOn(ctx, l, addr, member, question)
	if err != nil && used && ctx.Err() == nil { // the other side may have closed what was idle
		answer, err = p.askOn(ctx, l, addr, member, question)
	}
	if err != nil {
		return nil, no(err)
	}
	return answer, nil
}

func (p *Lines) to(member string) *line {
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
func (p *Lines) askOn(ctx context.Context, l *line, addr, member string, question []byte) (_ []byte, err error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(p.Idle)
	}
	if l.c == nil {
		c, err := p.Dial(addr, member, max(time.Until(deadline), time.Millisecond))
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
	if _, err := c.Write(Frame{Kind: KindAsk, Value: question}.Encode()); err != nil {
		return nil, err
	}
	f, err := ReadFrame(l.in, askMax)
	if err != nil {
		return nil, err
	}
	if f.Kind != KindReply || f.Code != CodeOK {
		return nil, fmt.Errorf("it answers code %d %s", f.Code, f.Text)
	}
	return f.Value, nil
}

// Serve answers one member's questions until its connection ends. Whether that member may ask was checked before.
func (p *Lines) Serve(c net.Conn, in *bufio.Reader, from string) {
	for {
		_ = c.SetDeadline(time.Now().Add(askIdle))
		f, err := ReadFrame(in, askMax)
		if err != nil || f.Kind != KindAsk {
			return
		}
		reply := Frame{Kind: KindReply, Code: CodeUnavailable, Text: "nobody answers questions here"}
		if with := p.with.Load(); with != nil && *with != nil {
			reply = Frame{Kind: KindReply, Value: (*with)(from, f.Value)}
		}
		_ = c.SetDeadline(time.Now().Add(WriteTimeout))
		if _, err := c.Write(reply.Encode()); err != nil {
			return
		}
	}
}
