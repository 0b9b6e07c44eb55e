// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// follow keeps a stream to the controller, whoever it is.
func (s *Store) follow() {
	var alone time.Time // since when no controller is known
	for turn := 0; s.ctx.Err() == nil && s.gone() == nil; {
		changed := s.raised.leader.Next()
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
	case kit.CodeOK, kit.CodeNotMember, kit.CodeForgot:
		return m.Address, m.ID
	case kit.CodeNotLeader:
		return raft.ServerAddress(welcome.Text), raft.ServerID(welcome.Key)
	}
	return "", ""
}

// knock opens a stream and returns the other side's answer.
func (s *Store) knock(addr, id string) (*kit.Conn, kit.Frame, *bufio.Reader, error) {
	c, err := s.port.dial(kit.DialMember, addr, id, s.opts.Timing.Election)
	if err != nil {
		return nil, kit.Frame{}, nil, fmt.Errorf("call member %s: %w", id, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(3 * s.opts.Timing.Election))
	in := bufio.NewReaderSize(c, kit.StreamBuf)
	welcome, err := kit.ReadFrame(in, kit.HelloMax)
	if err == nil && welcome.Kind != kit.KindWelcome {
		err = kit.ErrFrame
	}
	if err != nil {
		return nil, kit.Frame{}, nil, errors.Join(fmt.Errorf("call member %s: %w", id, err), c.Close())
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
	if code := welcome.Code; !s.admitted.Load() && (code == kit.CodeNotMember || code == kit.CodeForgot) {
		_ = c.Close()
		return fmt.Errorf("member %s does not know this one yet", id)
	}
	switch welcome.Code {
	case kit.CodeOK:
		s.named(string(welcome.Value))
	case kit.CodeNotMember:
		_ = c.Close()
		s.leave("this member was removed from the store; restart it with an empty directory to join again")
		return nil
	case kit.CodeForgot:
		_ = c.Close()
		s.leave("this member lost its data directory; remove it from the store, then let it join again")
		return nil
	default:
		_ = c.Close()
		return fmt.Errorf("member %s does not serve: code %d %s", id, welcome.Code, welcome.Text)
	}
	l := kit.NewLink(c)
	s.link.Store(l)
	s.news.Fire()
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		defer l.Close()
		_ = l.Write()
	}()
	go func() {
		defer wg.Done()
		defer l.Close()
		s.untilOther(l, known)
	}()
	err = s.read(l, in)
	l.Close()
	s.link.Store(nil)
	s.news.Fire()
	wg.Wait()
	return err
}

// untilOther returns when the stream should end.
func (s *Store) untilOther(l *kit.Link, known raft.ServerID) {
	for {
		changed := s.raised.leader.Next()
		if _, id := s.raft.Load().LeaderWithID(); id != known {
			return
		}
		select {
		case <-changed:
		case <-l.Ended():
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// read takes what the controller sends.
func (s *Store) read(l *kit.Link, in *bufio.Reader) error {
	for {
		f, err := kit.ReadFrame(in, kit.FrameMax)
		if err != nil {
			return err
		}
		l.Took(f)
		switch f.Kind {
		case kit.KindDoc:
			s.hub.Learn(coord.Doc{Key: f.Key, Value: f.Value, Rev: coord.Rev(f.Rev)})
		case kit.KindConfirm:
			// The controller counts this only if it is its own term. A vote for another raises the term first.
			term, age := s.oaths.swear(f.Rev, s.raft.Load().CurrentTerm)
			f.Rev, f.Value = term, encodeAge(age)
			l.Post(f) // the queue may be full of requests; then the round goes on without us
		}
	}
}

// leave stops taking part after this member learned that the store goes on without it.
func (s *Store) leave(why string) {
	s.log.Error(why)
	s.left.why.Store(&why)
	close(s.left.done)
	s.news.Fire()
	if err := s.raft.Load().Shutdown().Error(); err != nil {
		s.log.Warn("stop raft", "err", err)
	}
}
