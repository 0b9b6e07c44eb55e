// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"redoubt/internal/coord"
)

// learnRoll takes a version of the list of members.
func (s *Store) learnRoll(d coord.Doc) {
	r, err := decodeRoll(d)
	if err != nil {
		s.log.Error("the list of members cannot be used", "err", err)
		return
	}
	for {
		old := s.roll.Load()
		if old != nil && old.rev >= r.rev {
			return
		}
		if s.roll.CompareAndSwap(old, r) {
			s.news.Fire()
			return
		}
	}
}

// readRoll reads the list of members; rev is zero when there is none yet.
func (s *Store) readRoll(ctx context.Context) (*roll, error) {
	docs, err := s.back.Read(ctx, keyRoll)
	if err != nil {
		return nil, err
	}
	d, ok := docs[keyRoll]
	if !ok {
		return &roll{}, nil
	}
	r, err := decodeRoll(d)
	if err == nil {
		s.learnRoll(d)
	}
	return r, err
}

// writeRoll replaces the list r by one without id, or with e in its place.
func (s *Store) writeRoll(ctx context.Context, r *roll, id string, e *entry) error {
	next := roll{Format: format}
	for _, m := range r.Members {
		if m.ID != id {
			next.Members = append(next.Members, m)
		}
	}
	if e != nil {
		next.Members = append(next.Members, *e)
	}
	if len(next.Members) > membersMax {
		return fmt.Errorf("there are %d members already: remove those that are gone", membersMax)
	}
	slices.SortFunc(next.Members, func(x, y entry) int { return cmp.Compare(x.ID, y.ID) })
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode %s: %w", keyRoll, err)
	}
	rev, err := s.back.Swap(ctx, keyRoll, b, r.rev)
	if err == nil {
		s.learnRoll(coord.Doc{Key: keyRoll, Value: b, Rev: rev})
	}
	return err
}

// enrol puts this process on the list of members, and afterwards sees that it stays there.
func (s *Store) enrol() {
	for s.gone() == nil {
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.Timing.Request)
		done, err := s.register(ctx)
		cancel()
		if done {
			break
		}
		if err != nil && s.ctx.Err() == nil && unlike(err) {
			s.log.Warn("put this member on the list", "err", err)
		}
		s.pause(nil, 5*retry)
	}
	for s.gone() == nil {
		next := s.news.Next()
		switch e, ok := s.roll.Load().find(s.opts.ID); {
		case !ok:
			s.leave(fmt.Sprintf("member %s was removed; start it again if it is to come back", s.opts.ID))
		case e.Run != s.run:
			s.leave(fmt.Sprintf("another process, at %s, is member %s now; give each member an id of its own", e.Addr, s.opts.ID))
		}
		select {
		case <-next:
		case <-s.ctx.Done():
		}
	}
}

// register tries once. A living process of the same name, which answers at another address, is not replaced.
func (s *Store) register(ctx context.Context) (bool, error) {
	r, err := s.readRoll(ctx)
	if err != nil {
		return false, err
	}
	e, ok := r.find(s.opts.ID)
	if ok && e.Run == s.run {
		return true, nil
	}
	if ok && e.Addr != s.advertise && e.Run != "" {
		if c, _, _, err := s.knock(e.Addr, s.opts.ID, time.Second); err == nil {
			_ = c.Close()
			s.leave(fmt.Sprintf("member %s runs at %s already: give each member an id of its own, and each deployment a name or prefix of its own in the store", s.opts.ID, e.Addr))
			return false, nil
		}
	}
	err = s.writeRoll(ctx, r, s.opts.ID, &entry{s.opts.ID, s.advertise, s.run})
	return err == nil, err
}

// Members implements coord.Members.
func (s *Store) Members(ctx context.Context) ([]coord.Member, error) {
	r, err := s.rollNow(ctx)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	holder := s.Controller()
	var ms []coord.Member
	for _, e := range r.Members {
		ms = append(ms, coord.Member{ID: e.ID, Addr: e.Addr, Controller: e.ID == holder})
	}
	return ms, nil
}

func (s *Store) rollNow(ctx context.Context) (*roll, error) {
	if err := s.gone(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.Request)
	defer cancel()
	return s.readRoll(ctx)
}

// AddMember implements coord.Members. A process that starts adds itself; this only records where it will be.
func (s *Store) AddMember(ctx context.Context, m coord.Member) error {
	if m.ID == "" || m.Addr == "" {
		return errors.New("add member: id or address is missing")
	}
	err := s.change(ctx, func(ctx context.Context, r *roll) error {
		e, _ := r.find(m.ID)
		e.ID, e.Addr = m.ID, m.Addr
		return s.writeRoll(ctx, r, m.ID, &e)
	})
	if err != nil {
		return fmt.Errorf("add member %s: %w", m.ID, err)
	}
	return nil
}

// RemoveMember implements coord.Members. ErrNotFound: there is no such member. If its process runs, it learns it and stops taking part.
func (s *Store) RemoveMember(ctx context.Context, id string) error {
	err := s.change(ctx, func(ctx context.Context, r *roll) error {
		if _, ok := r.find(id); !ok {
			return coord.ErrNotFound
		}
		return s.writeRoll(ctx, r, id, nil)
	})
	if err != nil {
		return fmt.Errorf("remove member %s: %w", id, err)
	}
	return nil
}

// change tries a change of the list again while somebody else is faster.
func (s *Store) change(ctx context.Context, try func(context.Context, *roll) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.Request)
	defer cancel()
	for {
		r, err := s.rollNow(ctx)
		if err == nil {
			err = try(ctx, r)
		}
		if !errors.Is(err, coord.ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
}

// Ask implements coord.Peers. Where members are is known from the list, also while the store is away.
func (s *Store) Ask(ctx context.Context, member string, question []byte) ([]byte, error) {
	addr := ""
	if r := s.roll.Load(); r != nil {
		e, _ := r.find(member)
		addr = e.Addr
	}
	return s.lines.Ask(ctx, addr, member, question)
}

// Answer implements coord.Peers.
func (s *Store) Answer(with func(from string, question []byte) []byte) { s.lines.Answer(with) }
