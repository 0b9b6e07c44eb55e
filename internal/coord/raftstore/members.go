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
// must be running (Options.Join) before it is added: it counts towards the majority at once.
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

// addHere adds a member or changes its address. seat is the directory of a process that asks for itself, else "".
func (s *Store) addHere(ctx context.Context, g *reign, m coord.Member, seat string) error {
	if err := g.confirm(ctx); err != nil {
		return err
	}
	for _, old := range s.raft.Load().GetConfiguration().Configuration().Servers {
		if known := s.machine.seat(m.ID); string(old.ID) == m.ID && seat != "" && known != "" && known != seat {
			return fmt.Errorf("%s is a member already, with another data directory; if that is lost, remove the member first, else choose another id", m.ID)
		}
		if string(old.ID) == m.ID && string(old.Address) == m.Addr {
			return nil
		}
		if string(old.ID) != m.ID && string(old.Address) == m.Addr {
			return fmt.Errorf("address %s belongs to member %s; remove that one first", m.Addr, old.ID)
		}
	}
	return s.change(ctx, func(r *raft.Raft) raft.Future {
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
	case len(config.Servers) == 1:
		return fmt.Errorf("%s is the last member; stop it instead", id)
	case id == s.opts.ID:
		if err := (lease{g}).Release(ctx); err != nil {
			return fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
		}
		return errNotInOffice // the next controller does it
	}
	return s.change(ctx, func(r *raft.Raft) raft.Future { return r.RemoveServer(raft.ServerID(id), 0, s.opts.Timing.Election) })
}

// change commits a new membership.
func (s *Store) change(ctx context.Context, start func(*raft.Raft) raft.Future) error {
	done := make(chan error, 1)
	if !s.spawn(func() { done <- start(s.raft.Load()).Error() }) {
		return coord.ErrClosed
	}
	select {
	case err := <-done:
		switch {
		case err == nil:
			return nil
		case surelyNot(err):
			return fmt.Errorf("%w: %w", coord.ErrUnavailable, err)
		}
		return fmt.Errorf("%w: %w", coord.ErrUnsure, err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", coord.ErrUnsure, ctx.Err())
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
	_, err := s.call(ctx, true, kit.Frame{Kind: kit.KindAdd, Key: hello.Key, Text: hello.Text, Value: []byte(seat)})
	reply := kit.Outcome(err, kit.Frame{Value: []byte(s.Deployment())})
	reply.Kind = kit.KindReply
	_, _ = c.Write(reply.Encode())
	if err == nil {
		s.log.Info("member joined", "peer", hello.Key, "address", hello.Text)
	}
}

// join asks the member at addr, again and again until ctx ends, to have this one added, and waits until it was.
func (s *Store) join(ctx context.Context, addr string) error {
	var last error
	for {
		err := s.askToJoin(ctx, addr)
		if err == nil {
			break
		}
		if !errors.Is(err, coord.ErrUnavailable) {
			return fmt.Errorf("join the store through %s: %w", addr, err)
		}
		last = err
		s.pause(ctx, nil, 10*retry)
		if ctx.Err() != nil {
			return fmt.Errorf("join the store through %s (is a member running there, and a majority alive?): %w", addr, errors.Join(ctx.Err(), last))
		}
	}
	_, _, err := s.route(ctx)
	return err
}

func (s *Store) askToJoin(ctx context.Context, addr string) error {
	again := func(err error) error { return fmt.Errorf("%w: %w", coord.ErrUnavailable, err) }
	c, err := s.port.dial(kit.DialMember, addr, joinTarget, time.Second)
	if err != nil {
		return again(err)
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(time.Now().Add(2 * s.opts.Timing.Request))
	reply, err := kit.ReadFrame(bufio.NewReader(c), kit.HelloMax)
	if err != nil {
		return again(err)
	}
	if err = reply.Err(); errors.Is(err, coord.ErrUnsure) {
		return again(err)
	}
	return err
}
