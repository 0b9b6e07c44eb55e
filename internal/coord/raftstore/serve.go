// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"context"
	"fmt"
	"sync"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// serve answers one incoming member stream until it ends.
func (s *Store) serve(c *kit.Conn) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReaderSize(c, kit.StreamBuf)
	hello, err := kit.ReadFrame(in, kit.HelloMax)
	if err != nil {
		return
	}
	said, err := s.checkHello(hello)
	if err != nil {
		s.log.Warn("refused a member's stream", "peer", hello.Key, "from", c.RemoteAddr().String(), "err", err)
		_, _ = c.Write(kit.Frame{Kind: kit.KindWelcome, Code: kit.CodeRefused, Text: err.Error()}.Encode())
		return
	}
	if hello.Kind == kit.KindJoin {
		s.admit(c, hello, said.seat)
		return
	}
	g, welcome := s.welcome(hello.Key, said.seat)
	welcome.Kind, welcome.Value = kit.KindWelcome, []byte(s.Deployment())
	if _, err := c.Write(welcome.Encode()); err != nil || g == nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	p := kit.NewPeer(hello.Key, c)
	s.readdress(hello.Key, hello.Text)
	s.servePeer(g, p, in)
}

// welcome decides whether the caller may have a stream: from the controller only, for members only.
func (s *Store) welcome(member, seat string) (*reign, kit.Frame) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Election)
	defer cancel()
	for {
		next := s.news.Next()
		if g := s.reign.Load(); g != nil {
			config := s.raft.Load().GetConfiguration().Configuration()
			known := s.machine.seat(member)
			if isMember(&config, member) && (known == seat || known == "") {
				if known == "" {
					s.spawn(func() { s.giveSeat(g, member, seat) })
				}
				return g, kit.Frame{}
			}
			// These are sent away for good, so be sure: a majority, and committed state.
			committed := s.members.Load()
			switch {
			case g.confirm(ctx) != nil || committed == nil:
			case !isMember(committed, member):
				return nil, kit.Frame{Code: kit.CodeNotMember}
			case isMember(&config, member):
				return nil, kit.Frame{Code: kit.CodeForgot}
			}
			return nil, kit.Frame{Code: kit.CodeNotLeader}
		}
		addr, id := s.raft.Load().LeaderWithID()
		if string(id) != s.opts.ID {
			return nil, kit.Frame{Code: kit.CodeNotLeader, Key: string(id), Text: string(addr)}
		}
		select { // elected, but not in office yet
		case <-next:
		case <-ctx.Done():
			return nil, kit.Frame{Code: kit.CodeNotLeader}
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
func (s *Store) servePeer(g *reign, p *kit.Peer, in *bufio.Reader) {
	if !g.join(p) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer g.leave(p)
	defer p.Close()
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer p.Close()
		var docs []kit.Frame
		for _, doc := range s.machine.all() { // after join: what changes from here on is in the queue
			docs = append(docs, kit.Frame{Kind: kit.KindDoc, Key: doc.Key, Value: doc.Value, Rev: uint64(doc.Rev)})
		}
		_ = p.Write(docs...)
	}()
	for {
		f, err := kit.ReadFrame(in, kit.FrameMax)
		if err != nil {
			return
		}
		arrived := s.opts.Clock.Uptime()
		switch f.Kind {
		case kit.KindConfirm:
			g.confirmed(p.ID, f, arrived)
			continue
		case kit.KindBeat:
			if len(f.Value) <= coord.BeatMax {
				s.inbox.Put(g.beats, f.Key, f.Value, time.Duration(f.Rev))
			}
			continue
		case kit.KindGet:
			doc, _ := s.machine.get(f.Key)
			g.ages.Note(p.ID, f.Key, doc.Rev, arrived)
		}
		p.Serve(&wg, f, func(f kit.Frame) kit.Frame { return s.answer(g, f) })
	}
}

// answer carries out another member's request as the controller.
func (s *Store) answer(g *reign, f kit.Frame) kit.Frame {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
	defer cancel()
	return s.answerWithin(ctx, g, f)
}

func (s *Store) answerWithin(ctx context.Context, g *reign, f kit.Frame) kit.Frame {
	switch f.Kind {
	case kit.KindGet:
		doc, err := s.readHere(ctx, g, f.Key)
		return kit.Outcome(err, kit.Frame{Key: doc.Key, Value: doc.Value, Rev: uint64(doc.Rev)})
	case kit.KindSwap:
		rev, err := s.swapHere(ctx, g, f.Key, f.Value, coord.Rev(f.Rev))
		return kit.Outcome(err, kit.Frame{Rev: uint64(rev)})
	case kit.KindAll:
		return kit.Frame{Value: kit.EncodeBeats(g.beats.Some(nil))}
	case kit.KindMembers:
		ms, err := s.membersHere(ctx, g)
		return kit.Outcome(err, kit.Frame{Value: kit.EncodeMembers(ms)})
	case kit.KindAdd:
		index, err := s.addHere(ctx, g, coord.Member{ID: f.Key, Addr: f.Text}, string(f.Value), f.Rev == caughtUp)
		return kit.Outcome(err, kit.Frame{Rev: index})
	case kit.KindRemove:
		return kit.Outcome(s.removeHere(ctx, g, f.Key), kit.Frame{})
	default:
		return kit.Outcome(fmt.Errorf("request %d is unknown to this version; upgrade all members", f.Kind), kit.Frame{})
	}
}
