// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"redoubt/internal/coord"
)

// The bounds of streams.
const (
	QueueMax     = 256             // frames that wait to be sent on a stream; a peer that is further behind is cut off
	RequestsMax  = 64              // requests of one member that wait at the controller; more are refused
	WriteTimeout = 2 * time.Second // a peer that takes nothing for so long is cut off
)

// Link is a member's end of its stream to the controller. Safe for concurrent use.
type Link struct {
	c     net.Conn
	out   chan []byte
	ended chan struct{}
	once  sync.Once

	mu      sync.Mutex
	closed  bool
	last    uint64
	waiting map[uint64]chan Frame // answers by request; capacity one each
	heard   time.Time             // when the controller last sent anything
}

// What can become of a request on a link.
var (
	ErrNotSent  = errors.New("request was not sent")
	ErrLinkLost = errors.New("the stream to the controller broke before the answer")
)

// NewLink begins a stream on a connection whose greetings have been exchanged. Its owner runs Write, reads frames and gives
// them to Took.
func NewLink(c net.Conn) *Link {
	return &Link{c: c, out: make(chan []byte, QueueMax), ended: make(chan struct{}), waiting: map[uint64]chan Frame{}, heard: time.Now()}
}

// Ended is closed when the stream has ended.
func (l *Link) Ended() <-chan struct{} { return l.ended }

// Close ends the stream.
func (l *Link) Close() {
	l.once.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		close(l.ended)
		_ = l.c.Close()
	})
}

// deaf is how long a stream may stay silent under a request before it is taken for dead.
const deaf = 500 * time.Millisecond

// Ask sends a request and waits for its answer. ErrNotSent: the controller cannot have seen it.
func (l *Link) Ask(ctx context.Context, f Frame) (Frame, error) {
	answer := make(chan Frame, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return Frame{}, ErrNotSent
	}
	l.last++
	f.ID = l.last
	l.waiting[f.ID] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, f.ID)
		l.mu.Unlock()
	}()
	asked := time.Now()
	select {
	case l.out <- f.Encode():
	case <-l.ended:
		return Frame{}, ErrNotSent
	case <-ctx.Done():
		return Frame{}, fmt.Errorf("%w: %w", ErrNotSent, ctx.Err())
	}
	select {
	case reply := <-answer:
		return reply, nil
	case <-l.ended:
		select {
		case reply := <-answer:
			return reply, nil
		default:
			return Frame{}, ErrLinkLost
		}
	case <-ctx.Done():
		if l.Heard().Before(asked) && time.Since(asked) > deaf {
			l.Close()
		}
		return Frame{}, ctx.Err()
	}
}

// Post queues a frame that has no answer; false when the stream has ended or is blocked.
func (l *Link) Post(f Frame) bool {
	select {
	case <-l.ended:
		return false
	default:
	}
	select {
	case <-l.ended:
	case l.out <- f.Encode():
		return true
	default:
	}
	return false
}

// Took notes that the controller sent a frame, and gives an answer to who waits for it.
func (l *Link) Took(f Frame) {
	l.mu.Lock()
	l.heard = time.Now()
	answer := l.waiting[f.ID]
	l.mu.Unlock()
	if f.Kind == KindReply && answer != nil {
		select {
		case answer <- f:
		default: // answered twice: a broken peer
		}
	}
}

// Heard is when the controller last sent anything.
func (l *Link) Heard() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

// Write sends what is queued until the stream ends.
func (l *Link) Write() error { return write(l.c, l.out, l.ended) }

// Peer is a member's stream, at the controller. Safe for concurrent use.
type Peer struct {
	ID    string
	Slots chan struct{} // one for each request that waits
	c     net.Conn
	out   chan []byte
	ended chan struct{}
	once  sync.Once
}

// NewPeer begins a stream on a connection whose greetings have been exchanged. Its owner runs Write and reads frames.
func NewPeer(id string, c net.Conn) *Peer {
	return &Peer{ID: id, c: c, Slots: make(chan struct{}, RequestsMax), out: make(chan []byte, QueueMax), ended: make(chan struct{})}
}

// Send queues an encoded frame. It never blocks: a stream whose queue is full is closed, and begins anew with the present state.
func (p *Peer) Send(f []byte) {
	select {
	case p.out <- f:
	case <-p.ended:
	default:
		p.Close()
	}
}

// Close ends the stream.
func (p *Peer) Close() {
	p.once.Do(func() {
		close(p.ended)
		_ = p.c.Close()
	})
}

// Write sends what is queued until the stream ends; first, before all else, the given frames.
func (p *Peer) Write(first ...Frame) error {
	for _, f := range first {
		_ = p.c.SetWriteDeadline(time.Now().Add(WriteTimeout))
		if _, err := p.c.Write(f.Encode()); err != nil {
			return err
		}
	}
	return write(p.c, p.out, p.ended)
}

// Serve carries a request out in a goroutine of wg and sends its answer, unless too many wait already.
func (p *Peer) Serve(wg *sync.WaitGroup, f Frame, answer func(Frame) Frame) {
	select {
	case p.Slots <- struct{}{}:
	default:
		p.Send(Frame{Kind: KindReply, ID: f.ID, Code: CodeUnavailable, Text: "too many requests wait"}.Encode())
		return
	}
	wg.Go(func() {
		defer func() { <-p.Slots }()
		reply := answer(f)
		reply.Kind, reply.ID = KindReply, f.ID
		p.Send(reply.Encode())
	})
}

// write sends queued frames until the stream ends, flushing whenever the queue is empty.
func write(c net.Conn, out <-chan []byte, ended <-chan struct{}) error {
	w := bufio.NewWriterSize(c, StreamBuf)
	for {
		select {
		case f := <-out:
			if err := c.SetWriteDeadline(time.Now().Add(WriteTimeout)); err != nil {
				return err
			}
			if _, err := w.Write(f); err != nil {
				return err
			}
			if len(out) > 0 {
				continue
			}
			if err := w.Flush(); err != nil {
				return err
			}
		case <-ended:
			return nil
		}
	}
}

// Outcome puts an error into the reply.
func Outcome(err error, reply Frame) Frame {
	if err == nil {
		return reply
	}
	reply = Frame{Code: CodeRefused, Text: err.Error()}
	for _, e := range codes() {
		if errors.Is(err, e.err) {
			reply.Code = e.code
			break
		}
	}
	return reply
}

type codeErr struct {
	code Code
	err  error
}

// codes pairs outcomes on the wire with the port's errors.
func codes() []codeErr {
	return []codeErr{{CodeNotFound, coord.ErrNotFound}, {CodeConflict, coord.ErrConflict}, {CodeUnsure, coord.ErrUnsure},
		{CodeUnavailable, coord.ErrUnavailable}, {CodeUnavailable, coord.ErrClosed}}
}

// Err turns a reply into the error that its code stands for.
func (f Frame) Err() error {
	if f.Code == CodeOK {
		return nil
	}
	for _, e := range codes() {
		if e.code == f.Code {
			return fmt.Errorf("controller: %s: %w", f.Text, e.err)
		}
	}
	return fmt.Errorf("controller refused: %s", f.Text)
}
