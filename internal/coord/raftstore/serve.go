// SPDX-License-Identifier: Apache-2.0

package raftstore

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

// peer is a member's stream, at the controller.
type peer struct {
	id    string
	c     net.Conn
	out   chan []byte
	ended chan struct{}
	once  sync.Once
	slots chan struct{} // one per request that waits
}

const (
	queueMax    = 256 // frames that wait to be sent on a stream; a peer that is further behind is cut off
	requestsMax = 64  // requests of one member that wait at the controller; more are refused
)

// send queues a frame. It never blocks: a stream whose queue is full is closed, and begins anew with the present state.
func (p *peer) send(f []byte) {
	select {
	case p.out <- f:
	case <-p.ended:
	default:
		p.close()
	}
}

func (p *peer) close() {
	p.once.Do(func() {
		close(p.ended)
		_ = p.c.Close()
	})
}

// write sends queued frames until the stream ends, flushing whenever the queue is empty.
func write(c net.Conn, out <-chan []byte, ended <-chan struct{}) error {
	w := bufio.NewWriterSize(c, streamBuf)
	for {
		select {
		case f := <-out:
			if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
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

// serve answers one incoming member stream until it ends.
func (s *Store) serve(c *conn) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReaderSize(c, streamBuf)
	hello, err := readFrame(in, helloMax)
	if err != nil {
		return
	}
	said, err := s.checkHello(hello)
	if err != nil {
		s.log.Warn("refused a member's stream", "peer", hello.Key, "from", c.RemoteAddr().String(), "err", err)
		_, _ = c.Write(frame{Kind: kindWelcome, Code: codeRefused, Text: err.Error()}.encode())
		return
	}
	if hello.Kind == kindJoin {
		s.admit(c, hello, said.seat)
		return
	}
	g, welcome := s.welcome(hello.Key, said.seat)
	welcome.Kind, welcome.Value = kindWelcome, []byte(s.Deployment())
	if _, err := c.Write(welcome.encode()); err != nil || g == nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	p := &peer{id: hello.Key, c: c, out: make(chan []byte, queueMax), ended: make(chan struct{}), slots: make(chan struct{}, requestsMax)}
	s.readdress(hello.Key, hello.Text)
	s.servePeer(g, p, in)
}

// welcome decides whether the caller may have a stream: from the controller only, for members only.
func (s *Store) welcome(member, seat string) (*reign, frame) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Election)
	defer cancel()
	for {
		next := s.news.next()
		if g := s.reign.Load(); g != nil {
			config := s.raft.Load().GetConfiguration().Configuration()
			known := s.machine.seat(member)
			if isMember(&config, member) && (known == seat || known == "") {
				if known == "" {
					s.spawn(func() { s.giveSeat(g, member, seat) })
				}
				return g, frame{}
			}
			// These are sent away for good, so be sure: a majority, and committed state.
			committed := s.members.Load()
			switch {
			case g.confirm(ctx) != nil || committed == nil:
			case !isMember(committed, member):
				return nil, frame{Code: codeNotMember}
			case isMember(&config, member):
				return nil, frame{Code: codeForgot}
			}
			return nil, frame{Code: codeNotLeader}
		}
		addr, id := s.raft.Load().LeaderWithID()
		if string(id) != s.opts.ID {
			return nil, frame{Code: codeNotLeader, Key: string(id), Text: string(addr)}
		}
		select { // elected, but not in office yet
		case <-next:
		case <-ctx.Done():
			return nil, frame{Code: codeNotLeader}
		}
	}
}

// giveSeat records the directory of a member that was not heard of before.
func (s *Store) giveSeat(g *reign, member, seat string) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
	defer cancel()
	if _, err := s.apply(ctx, g, seatCommand(member, seat)); err != nil {
		s.log.Debug("record the directory of a member", "peer", member, "err", err) // its next stream tries again
	}
}

// servePeer runs a member's stream: first the present version of every document, then answers and pushes.
func (s *Store) servePeer(g *reign, p *peer, in *bufio.Reader) {
	if !g.join(p) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer g.leave(p)
	defer p.close()
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer p.close()
		for _, doc := range s.machine.all() { // after join: what changes from here on is in the queue
			f := frame{Kind: kindDoc, Key: doc.Key, Value: doc.Value, Rev: uint64(doc.Rev)}.encode()
			_ = p.c.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := p.c.Write(f); err != nil {
				return
			}
		}
		_ = write(p.c, p.out, p.ended)
	}()
	for {
		f, err := readFrame(in, frameMax)
		if err != nil {
			return
		}
		arrived := s.opts.Clock.Uptime()
		switch f.Kind {
		case kindConfirm:
			g.confirmed(p.id, f, arrived)
			continue
		case kindBeat:
			if len(f.Value) <= coord.BeatMax {
				s.beatHere(g, f.Key, f.Value, time.Duration(f.Rev))
			}
			continue
		case kindGet:
			doc, _ := s.machine.get(f.Key)
			g.ages.note(p.id, f.Key, doc.Rev, arrived)
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.send(frame{Kind: kindReply, ID: f.ID, Code: codeUnavailable, Text: "too many requests wait"}.encode())
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-p.slots }()
			reply := s.answer(g, f)
			reply.Kind, reply.ID = kindReply, f.ID
			p.send(reply.encode())
		}()
	}
}

// answer carries out another member's request as the controller.
func (s *Store) answer(g *reign, f frame) frame {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
	defer cancel()
	return s.answerWithin(ctx, g, f)
}

func (s *Store) answerWithin(ctx context.Context, g *reign, f frame) frame {
	switch f.Kind {
	case kindGet:
		doc, err := s.readHere(ctx, g, f.Key)
		return outcome(err, frame{Key: doc.Key, Value: doc.Value, Rev: uint64(doc.Rev)})
	case kindSwap:
		rev, err := s.swapHere(ctx, g, f.Key, f.Value, coord.Rev(f.Rev))
		return outcome(err, frame{Rev: uint64(rev)})
	case kindAll:
		return frame{Value: encodeBeats(g.beats.all())}
	case kindMembers:
		ms, err := s.membersHere(ctx, g)
		return outcome(err, frame{Value: encodeMembers(ms)})
	case kindAdd:
		return outcome(s.addHere(ctx, g, coord.Member{ID: f.Key, Addr: f.Text}, string(f.Value)), frame{})
	case kindRemove:
		return outcome(s.removeHere(ctx, g, f.Key), frame{})
	default:
		return outcome(fmt.Errorf("request %d is unknown to this version; upgrade all members", f.Kind), frame{})
	}
}

// outcome puts an error into the reply.
func outcome(err error, reply frame) frame {
	if err == nil {
		return reply
	}
	reply = frame{Code: codeRefused, Text: err.Error()}
	for _, e := range codes() {
		if errors.Is(err, e.err) {
			reply.Code = e.code
			break
		}
	}
	return reply
}

type codeErr struct {
	code code
	err  error
}

// codes pairs outcomes on the wire with the port's errors.
func codes() []codeErr {
	return []codeErr{{codeNotFound, coord.ErrNotFound}, {codeConflict, coord.ErrConflict}, {codeUnsure, coord.ErrUnsure},
		{codeUnavailable, coord.ErrUnavailable}, {codeUnavailable, coord.ErrClosed}}
}

// err turns a reply into the error that its code stands for.
func (f frame) err() error {
	if f.Code == codeOK {
		return nil
	}
	for _, e := range codes() {
		if e.code == f.Code {
			return fmt.Errorf("controller: %s: %w", f.Text, e.err)
		}
	}
	return fmt.Errorf("controller refused: %s", f.Text)
}
