// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
	"redoubt/internal/coord/kit"
)

// Members implements coord.Members.
func (s *Store) Members(ctx context.Context) ([]coord.Member, error) {
	reply, err := s.call(ctx, true, kit.Frame{Kind: kit.KindMembers})
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return kit.DecodeMembers(reply.Value)
}

// AddMember implements coord.Members. Adding a member again, also with another address, is no error. The new member
// must be running before it is added: it counts towards the majority at once. One that joins by itself (Options.Join) does not
// before it has what the others have.
func (s *Store) AddMember(ctx context.Context, m coord.Member) error {
	if m.ID == "" || m.Addr == "" {
		return errors.New("add member: id or address is missing")
	}
	if _, err := s.call(ctx, true, kit.Frame{Kind: kit.KindAdd, Key: m.ID, Text: m.Addr}); err != nil {
		return fmt.Errorf("add member %s: %w", m.ID, err)
	}
	return nil
}

// RemoveMember implements coord.Members. ErrNotFound: there is no such member. A controller that is removed hands over first.
func (s *Store) RemoveMember(ctx context.Context, id string) error {
	if _, err := s.call(ctx, true, kit.Frame{Kind: kit.KindRemove, Key: id}); err != nil {
		return fmt.Errorf("remove member %s: %w", id, err)
	}
	return nil
}

func (s *Store) membersHere(ctx context.Context, g *reign) ([]coord.Member, error) {
	if err := g.confirm(ctx); err != nil {
		return nil, err
	}
	var ms []coord.Member
	for _, m := range s.raft.Load().GetConfiguration().Configuration().Servers {
		ms = append(ms, coord.Member{ID: string(m.ID), Addr: string(m.Address), Controller: string(m.ID) == s.opts.ID})
	}
	sort.Slice(ms, func(i, j int) bool { return ms[i].ID < ms[j].ID })
	return ms, nil
}

// addHere adds a member or changes its address, and returns where the log says so. seat is the directory of a process that asks for
// itself, else "". Such a one has no vote until it has caught up: with half of the log, and an old list of members in it, it would
// refuse its vote to the others, who need it when the controller is lost in that moment.
func (s *Store) addHere(ctx context.Context, g *reign, m coord.Member, seat string, ready bool) (uint64, error) {
	if err := g.confirm(ctx); err != nil {
		return 0, err
	}
	future := s.raft.Load().GetConfiguration()
	suffrage := raft.Voter
	if seat != "" && !ready {
		suffrage = raft.Nonvoter
	}
	known := s.machine.seat(m.ID)
	for _, old := range future.Configuration().Servers {
		itself, sameAddr := string(old.ID) == m.ID, string(old.Address) == m.Addr
		switch {
		case itself && seat != "" && known != "" && known != seat:
			return 0, fmt.Errorf("%s is a member already, with another data directory; if that is lost, remove the member first, else choose another id", m.ID)
		case itself && sameAddr && (old.Suffrage == raft.Voter || !ready):
			return future.Index(), nil
		case itself && !ready:
			suffrage = old.Suffrage // it has another address, and no more
		case !itself && sameAddr:
			return 0, fmt.Errorf("address %s belongs to member %s; remove that one first", m.Addr, old.ID)
		}
	}
	return s.change(ctx, func(r *raft.Raft) raft.IndexFuture {
		if suffrage == raft.Nonvoter {
			return r.AddNonvoter(raft.ServerID(m.ID), raft.ServerAddress(m.Addr), 0, s.opts.Timing.Election)
		}
		return r.AddVoter(raft.ServerID(m.ID), raft.ServerAddress(m.Addr), 0, s.opts.Timing.Election)
	})
}

func (s *Store) removeHere(ctx context.Context, g *reign, id string) error {
	if err := g.confirm(ctx); err != nil {
		return err
	}
	config := s.raft.Load().GetConfiguration().Configuration()
	switch {
	case !isMember(&config, id):
		return coord.ErrNotFound
	case isVoter(&config, id) && len(votersOf(&config)) == 1:
		return fmt.Errorf("%s is the last member; stop it instead", id)
	case id == s.opts.ID:
		if err := (lease{g}).Release(ctx); err != nil {
			return fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
		}
		return errNotInOffice // the next controller does it
	}
	_, err := s.change(ctx, func(r *raft.Raft) raft.IndexFuture {
		return r.RemoveServer(raft.ServerID(id), 0, s.opts.Timing.Election)
	})
	return err
}

// change commits a new membership, and returns where the log has it.
func (s *Store) change(ctx context.Context, start func(*raft.Raft) raft.IndexFuture) (uint64, error) {
	var index uint64
	done := make(chan error, 1)
	ask := func() {
		f := start(s.raft.Load())
		err := f.Error()
		index = f.Index()
		done <- err
	}
	if !s.spawn(ask) {
		return 0, coord.ErrClosed
	}
	select {
	case err := <-done:
		switch {
		case err == nil:
			return index, nil
		case surelyNot(err):
			return 0, fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
		}
		return 0, fmt.Errorf("%w: %w", coord.ErrUnsure, err)
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", coord.ErrUnsure, ctx.Err())
	}
}

// readdress records that a member came back with another address. Package raft needs it to reach that member.
func (s *Store) readdress(id, addr string) {
	for _, m := range s.raft.Load().GetConfiguration().Configuration().Servers {
		if string(m.ID) != id || string(m.Address) == addr || addr == "" {
			continue
		}
		s.log.Info("member has a new address", "peer", id, "address", addr)
		s.spawn(func() {
			ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
			defer cancel()
			if err := s.AddMember(ctx, coord.Member{ID: id, Addr: addr}); err != nil {
				s.log.Warn("record a member's new address", "peer", id, "err", err)
			}
		})
	}
}

// admit answers a process that asks to be added.
func (s *Store) admit(c *kit.Conn, hello kit.Frame, seat string) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
	defer cancel()
	_ = c.SetDeadline(time.Now().Add(2 * s.opts.Timing.Request))
	added, err := s.call(ctx, true, kit.Frame{Kind: kit.KindAdd, Key: hello.Key, Text: hello.Text, Value: []byte(seat), Rev: hello.Rev})
	reply := kit.Outcome(err, kit.Frame{Value: []byte(s.Deployment()), Rev: added.Rev})
	reply.Kind = kit.KindReply
	_, _ = c.Write(reply.Encode())
	if err == nil && hello.Rev == caughtUp {
		s.log.Info("member joined", "peer", hello.Key, "address", hello.Text)
	}
}

// caughtUp is the Rev of a KindAdd and of the hello in front of it: who asks has all of the log up to where it was added.
const caughtUp = 1

// join asks the member at addr, again and again until ctx ends, to have this one added, waits until it has what the others have,
// and asks for a vote.
func (s *Store) join(ctx context.Context, addr string) error {
	index, err := s.askUntilAdded(ctx, addr, joinTarget)
	if err != nil {
		return err
	}
	s.admitted.Store(true)
	for s.raft.Load().AppliedIndex() < index {
		if err := s.gone(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("join the store through %s: the controller does not send what the others have: %w", addr, ctx.Err())
		}
		s.pause(ctx, nil, retry)
	}
	if _, err := s.askUntilAdded(ctx, addr, risesTarget); err != nil {
		return err
	}
	_, _, err = s.route(ctx)
	return err
}

// askUntilAdded returns where the log has what was asked for.
func (s *Store) askUntilAdded(ctx context.Context, addr, target string) (uint64, error) {
	var last error
	for {
		index, err := s.askToJoin(ctx, addr, target)
		if err == nil {
			return index, nil
		}
		if !errors.Is(err, coord.ErrUnavailable) {
			return 0, fmt.Errorf("join the store through %s: %w", addr, err)
		}
		last = err
		s.pause(ctx, nil, 10*retry)
		if err := s.gone(); err != nil {
			return 0, fmt.Errorf("join the store through %s: %w", addr, err)
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("join the store through %s (is a member running there, and a majority alive?): %w", addr, errors.Join(ctx.Err(), last))
		}
	}
}

// rise asks for the vote of a member that ended between the two halves of its join.
func (s *Store) rise() {
	for s.gone() == nil {
		config := s.raft.Load().GetConfiguration().Configuration()
		if !isMember(&config, s.opts.ID) || isVoter(&config, s.opts.ID) {
			return
		}
		s.disk.mu.Lock()
		seat := s.disk.me.Seat
		s.disk.mu.Unlock()
		if _, err := s.call(s.ctx, true, kit.Frame{Kind: kit.KindAdd, Key: s.opts.ID, Text: s.advertise, Value: []byte(seat), Rev: caughtUp}); err != nil {
			s.log.Warn("ask for a vote", "err", err)
		}
		s.pause(s.ctx, nil, time.Second)
	}
}

func (s *Store) askToJoin(ctx context.Context, addr, target string) (uint64, error) {
	again := func(err error) error { return fmt.Errorf("%w: %w", coord.ErrUnavailable, err) }
	c, err := s.port.dial(kit.DialMember, addr, target, time.Second)
	if err != nil {
		return 0, again(err)
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(time.Now().Add(2 * s.opts.Timing.Request))
	reply, err := kit.ReadFrame(bufio.NewReader(c), kit.HelloMax)
	if err != nil {
		return 0, again(err)
	}
	if err = reply.Err(); errors.Is(err, coord.ErrUnsure) {
		return 0, again(err)
	}
	return reply.Rev, err
}
