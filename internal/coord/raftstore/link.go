// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
)

// link is this member's stream to the controller.
type link struct {
	c     *conn
	out   chan []byte
	ended chan struct{}
	once  sync.Once

	mu      sync.Mutex
	closed  bool
	last    uint64
	waiting map[uint64]chan frame // answers by request; capacity one each
	heard   time.Time             // when the controller last sent anything
}

var (
	errNotSent  = errors.New("request was not sent")
	errLinkLost = errors.New("the stream to the controller broke before the answer")
)

func (l *link) close() {
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

// ask sends a request and waits for its answer. errNotSent: the controller cannot have seen it.
func (l *link) ask(ctx context.Context, f frame) (frame, error) {
	answer := make(chan frame, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return frame{}, errNotSent
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
	case l.out <- f.encode():
	case <-l.ended:
		return frame{}, errNotSent
	case <-ctx.Done():
		return frame{}, fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
	select {
	case reply := <-answer:
		return reply, nil
	case <-l.ended:
		select {
		case reply := <-answer:
			return reply, nil
		default:
			return frame{}, errLinkLost
		}
	case <-ctx.Done():
		l.mu.Lock()
		silent := l.heard.Before(asked) && time.Since(asked) > deaf
		l.mu.Unlock()
		if silent {
			l.close()
		}
		return frame{}, ctx.Err()
	}
}

// follow keeps a stream to the controller, whoever it is.
func (s *Store) follow() {
	var alone time.Time // since when no controller is known
	for turn := 0; s.ctx.Err() == nil && s.gone() == nil; {
		changed := s.raised.leader.next()
		addr, id := s.raft.Load().LeaderWithID()
		known := id
		if id == "" {
			if alone.IsZero() {
				alone = time.Now()
			}
			if time.Since(alone) < seekAfter {
				s.pause(s.ctx, changed, seekAfter)
				continue
			}
			turn++
			addr, id = s.seek(turn)
		} else {
			alone = time.Time{}
		}
		if id == raft.ServerID(s.opts.ID) {
			s.pause(s.ctx, changed, time.Second)
			continue
		}
		if addr == "" {
			s.pause(s.ctx, changed, seekAfter)
			continue
		}
		if err := s.attach(string(addr), string(id), known); err != nil {
			s.log.Debug("stream to the controller", "controller", id, "err", err)
		}
		s.pause(s.ctx, changed, retry)
	}
}

// seekAfter is how long a member waits for a controller to call before it asks the others who it is.
const seekAfter = time.Second

// seek asks one other member who the controller is: this member's address may have changed, or it may have been removed.
func (s *Store) seek(turn int) (raft.ServerAddress, raft.ServerID) {
	var others []raft.Server
	for _, m := range s.raft.Load().GetConfiguration().Configuration().Servers {
		if string(m.ID) != s.opts.ID {
			others = append(others, m)
		}
	}
	if len(others) == 0 {
		return "", ""
	}
	m := others[turn%len(others)]
	c, welcome, _, err := s.knock(string(m.Address), string(m.ID))
	if err != nil {
		return "", ""
	}
	_ = c.Close()
	switch welcome.Code {
	case codeOK, codeNotMember, codeForgot:
		return m.Address, m.ID
	case codeNotLeader:
		return raft.ServerAddress(welcome.Text), raft.ServerID(welcome.Key)
	}
	return "", ""
}

// knock opens a stream and returns the other side's answer.
func (s *Store) knock(addr, id string) (*conn, frame, *bufio.Reader, error) {
	c, err := s.port.dial(dialMember, addr, id, s.opts.Timing.Election)
	if err != nil {
		return nil, frame{}, nil, fmt.Errorf("call member %s: %w", id, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(3 * s.opts.Timing.Election))
	in := bufio.NewReaderSize(c, streamBuf)
	welcome, err := readFrame(in, helloMax)
	if err == nil && welcome.Kind != kindWelcome {
		err = errFrame
	}
	if err != nil {
		return nil, frame{}, nil, errors.Join(fmt.Errorf("call member %s: %w", id, err), c.Close())
	}
	_ = c.SetReadDeadline(time.Time{})
	return c, welcome, in, nil
}

// attach runs one stream to the controller until it breaks or package raft knows another leader than known.
func (s *Store) attach(addr, id string, known raft.ServerID) error {
	c, welcome, in, err := s.knock(addr, id)
	if err != nil {
		return err
	}
	switch welcome.Code {
	case codeOK:
		s.named(string(welcome.Value))
	case codeNotMember:
		_ = c.Close()
		s.leave("this member was removed from the store; restart it with an empty directory to join again")
		return nil
	case codeForgot:
		_ = c.Close()
		s.leave("this member lost its data directory; remove it from the store, then let it join again")
		return nil
	default:
		_ = c.Close()
		return fmt.Errorf("member %s does not serve: code %d %s", id, welcome.Code, welcome.Text)
	}
	l := &link{c: c, out: make(chan []byte, queueMax), ended: make(chan struct{}), waiting: map[uint64]chan frame{}, heard: time.Now()}
	s.link.Store(l)
	s.news.fire()
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		defer l.close()
		_ = write(c, l.out, l.ended)
	}()
	go func() {
		defer wg.Done()
		defer l.close()
		s.untilOther(l, known)
	}()
	err = s.read(l, in)
	l.close()
	s.link.Store(nil)
	s.news.fire()
	wg.Wait()
	return err
}

// untilOther returns when the stream should end.
func (s *Store) untilOther(l *link, known raft.ServerID) {
	for {
		changed := s.raised.leader.next()
		if _, id := s.raft.Load().LeaderWithID(); id != known {
			return
		}
		select {
		case <-changed:
		case <-l.ended:
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// read takes what the controller sends.
func (s *Store) read(l *link, in *bufio.Reader) error {
	for {
		f, err := readFrame(in, frameMax)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.heard = time.Now()
		answer := l.waiting[f.ID]
		l.mu.Unlock()
		switch f.Kind {
		case kindReply:
			if answer != nil {
				select {
				case answer <- f:
				default: // answered twice: a broken peer
				}
			}
		case kindDoc:
			s.hub.learn(coord.Doc{Key: f.Key, Value: f.Value, Rev: coord.Rev(f.Rev)})
		case kindConfirm:
			// The controller counts this only if it is its own term. A vote for another raises the term first.
			term, age := s.oaths.swear(f.Rev, s.raft.Load().CurrentTerm)
			f.Rev, f.Value = term, encodeAge(age)
			select {
			case l.out <- f.encode():
			case <-l.ended:
			default: // the queue is full of requests; the round goes on without us
			}
		}
	}
}

// leave stops taking part after this member learned that the store goes on without it.
func (s *Store) leave(why string) {
	s.log.Error(why)
	s.left.why.Store(&why)
	close(s.left.done)
	s.news.fire()
	if err := s.raft.Load().Shutdown().Error(); err != nil {
		s.log.Warn("stop raft", "err", err)
	}
}
