// SPDX-License-Identifier: Apache-2.0

package seat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"redoubt/internal/coord"
)

// The documents of the election and of the list of members, beside those of the store's users.
const (
	keyChair = "store/seat"
	keyRoll  = "store/members"
)

// format is written into both.
const format = 1

// chair is the document that says who is the controller.
type chair struct {
	Format     int    `json:"format"`
	Deployment string `json:"deployment"` // random, made with the document: tells one deployment's members from another's
	Term       uint64 `json:"term"`       // grows with every holder
	Holder     string `json:"holder"`     // member; empty: nobody
	Run        string `json:"run"`        // of the holder's process
	Addr       string `json:"addr"`       // where the members reach it
	Doubt      string `json:"doubt"`      // a member that does not reach the holder asks whether it lives; empty: nobody asks

	rev coord.Rev // of this version; zero: there is no document
}

// roll is the document that lists the members.
type roll struct {
	Format  int     `json:"format"`
	Members []entry `json:"members"` // sorted by id

	rev coord.Rev
}

// entry is one member: its address, and the process that is this member now.
type entry struct {
	ID   string `json:"id"`
	Addr string `json:"addr"`
	Run  string `json:"run"`
}

// membersMax bounds the list.
const membersMax = 256

func decodeChair(d coord.Doc) (*chair, error) {
	c := &chair{rev: d.Rev}
	if err := json.Unmarshal(d.Value, c); err != nil {
		return nil, fmt.Errorf("decode %s: %w", keyChair, err)
	}
	if c.Format != format {
		return nil, fmt.Errorf("%s has format %d, this version knows %d: upgrade this member", keyChair, c.Format, format)
	}
	return c, nil
}

func decodeRoll(d coord.Doc) (*roll, error) {
	r := &roll{rev: d.Rev}
	if err := json.Unmarshal(d.Value, r); err != nil {
		return nil, fmt.Errorf("decode %s: %w", keyRoll, err)
	}
	if r.Format != format {
		return nil, fmt.Errorf("%s has format %d, this version knows %d: upgrade this member", keyRoll, r.Format, format)
	}
	return r, nil
}

func (r *roll) find(id string) (entry, bool) {
	if r == nil {
		return entry{}, false
	}
	for _, e := range r.Members {
		if e.ID == id {
			return e, true
		}
	}
	return entry{}, false
}

// learnChair takes a version of the seat, wherever it comes from.
func (s *Store) learnChair(d coord.Doc) {
	c, err := decodeChair(d)
	if err != nil {
		s.log.Error("the election's document cannot be used", "err", err)
		return
	}
	s.seen(c)
}

// seen keeps the newest version.
func (s *Store) seen(c *chair) {
	for {
		old := s.chair.Load()
		if old != nil && old.rev >= c.rev {
			return
		}
		if s.chair.CompareAndSwap(old, c) {
			s.news.Fire()
			return
		}
	}
}

// readChair reads the seat; rev is zero when there is none yet.
func (s *Store) readChair(ctx context.Context) (*chair, error) {
	docs, err := s.back.Read(ctx, keyChair)
	if err != nil {
		return nil, err
	}
	d, ok := docs[keyChair]
	if !ok {
		return &chair{}, nil
	}
	c, err := decodeChair(d)
	if err != nil {
		return nil, err
	}
	s.seen(c)
	return c, nil
}

// writeChair replaces version rev by c.
func (s *Store) writeChair(ctx context.Context, c chair, rev coord.Rev) (*chair, error) {
	c.Format = format
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", keyChair, err)
	}
	if c.rev, err = s.back.Swap(ctx, keyChair, b, rev); err != nil {
		return nil, err
	}
	s.seen(&c)
	return &c, nil
}

// mine reports whether the seat is this process's.
func (s *Store) mine(c *chair) bool { return c.Holder == s.opts.ID && c.Run == s.run }

// errNotInOffice: somebody else is, or nobody.
var errNotInOffice = fmt.Errorf("this member is no longer the controller: %w", coord.ErrUnavailable)

// unlike reports whether an error is none of those that say "somebody else wrote" or "try again".
func unlike(err error) bool {
	return !errors.Is(err, coord.ErrConflict) && !errors.Is(err, coord.ErrUnavailable) && !errors.Is(err, coord.ErrUnsure) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}
