// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// StateKey is the target's key, in database 0, that says how far a migration is, for as long as there is one.
	StateKey  = "__redoubt:migration"
	ownPrefix = "__redoubt:"
	orderKey  = StateKey + ":order"
	orderTime = 60 // seconds for which an order waits for somebody who carries it out
)

// point says how far the copy of one origin is: everything that its stream says up to Offset is at the target for the keys that a scan
// has passed at DB and Cursor.
type point struct {
	Addr   string `json:"addr"`
	RunID  string `json:"run_id"` // whose cursor it is
	ReplID string `json:"repl_id"`
	Offset int64  `json:"offset"`
	DB     int    `json:"db"`
	Cursor string `json:"cursor"`
	Copied bool   `json:"copied"`
	Mirror bool   `json:"mirror"` // the target may have keys that the source has no more
}

// state is what the target keeps about a migration into it.
type state struct {
	Format int     `json:"format"` // 1
	Token  string  `json:"token"`  // of the process that works on it
	Source string  `json:"source"`
	Points []point `json:"points"`
	Layout string  `json:"layout,omitempty"` // of a cluster, for which the points hold
	Was    []door  `json:"was"`              // what is changed where the source is closed
}

var errTaken = errors.New("another process goes on with this migration")

// load reads what an earlier process has stored, and makes this one the one that works on it.
func (w *Whole) load(ctx context.Context) error {
	rep, err := w.tgt.ask(ctx, "GET", StateKey)
	if err != nil {
		return err
	}
	s := state{Format: 1, Source: w.o.Source.String()}
	if !rep.null {
		if err := json.Unmarshal(rep.body, &s); err != nil || s.Format != 1 {
			return fmt.Errorf("the target's key %s is not what this version writes: %w", StateKey, errors.Join(err, errors.New("delete it to begin anew")))
		}
		if s.Source != w.o.Source.String() {
			return fmt.Errorf("the target is in the middle of a migration from %s: go on with that one, or delete its key %s", s.Source, StateKey)
		}
	}
	if w.token != "" && s.Token != w.token {
		return errTaken
	}
	if layout := w.legs[0].from.layout; s.Layout != layout {
		s.Layout, s.Points = layout, nil // keys are elsewhere
	}
	s.Token = rand.Text()
	w.state = s
	w.known = !rep.null
	return nil
}

// begin writes the first state, or takes over the one that was found.
func (w *Whole) begin(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.put(ctx)
	if err == nil {
		w.token = w.state.Token
	}
	return err
}

func (w *Whole) put(ctx context.Context) error {
	text, err := json.Marshal(w.state)
	if err != nil {
		return err
	}
	_, err = w.tgt.ask(ctx, "SET", StateKey, string(text))
	return err
}

// save stores how far an origin is. A process that was replaced notices it here.
func (w *Whole) save(ctx context.Context, change func(*state)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	rep, err := w.tgt.ask(ctx, "GET", StateKey)
	if err != nil {
		return err
	}
	var there state
	if rep.null || json.Unmarshal(rep.body, &there) != nil || there.Token != w.state.Token {
		return fmt.Errorf("%w, or the target's key %s was removed", errTaken, StateKey)
	}
	change(&w.state)
	return w.put(ctx)
}

// OrderCutOver tells the process that is at work on a migration into a target to cut over when the target is in step.
func OrderCutOver(ctx context.Context, target Endpoint) error {
	l, err := target.any(ctx, "redoubt-migrate")
	if err != nil {
		return err
	}
	defer l.close()
	rep, err := l.ask(ctx, "EXISTS", StateKey)
	if err != nil {
		return err
	}
	if rep.num == 0 {
		return fmt.Errorf("%w: no migration into %s is under way", ErrRefused, l.addr)
	}
	_, err = l.ask(ctx, "SET", orderKey, "cut-over", "EX", strconv.Itoa(orderTime))
	return err
}

// ordered says whether somebody has given the order.
func (w *Whole) ordered(ctx context.Context) (bool, error) {
	rep, err := w.tgt.ask(ctx, "UNLINK", orderKey)
	return rep.num > 0, err
}

func (s *state) set(p point) {
	for i := range s.Points {
		if s.Points[i].Addr == p.Addr {
			s.Points[i] = p
			return
		}
	}
	s.Points = append(s.Points, p)
}

// find returns the point of a server, by its address or, after a failover of the source, by its history.
func (s *state) find(addr, replid, replid2 string) (point, bool) {
	for _, p := range s.Points {
		if p.Addr == addr {
			return p, true
		}
	}
	for _, p := range s.Points {
		if p.ReplID != "" && (p.ReplID == replid || p.ReplID == replid2) {
			return p, true
		}
	}
	return point{}, false
}

// String names a source without its passwords.
func (s Source) String() string {
	text := strings.Join(s.At.Addrs, ",")
	if s.Master != "" {
		text = "sentinel " + text + " " + s.Master
	}
	if s.DB >= 0 {
		text += fmt.Sprintf(" database %d", s.DB)
	}
	return text
}
