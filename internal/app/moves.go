// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"redoubt/internal/coord"
	"redoubt/internal/redis"
	"redoubt/internal/redisd"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// A batch of slots that is on its way stands beside the slot map, in the same document: so one write of the store says both that the target
// has the slots and how far the batch has come, and nobody can know one without the other.

// movesOf reads what stands beside the map.
func movesOf(m *slots.Map) ([]reshard.Move, error) {
	if m == nil || len(m.Moves()) == 0 {
		return nil, nil
	}
	var moves []reshard.Move
	if err := json.Unmarshal(m.Moves(), &moves); err != nil {
		return nil, fmt.Errorf("decode the moves of slots: %w", err)
	}
	return moves, nil
}

func withMoves(m *slots.Map, moves []reshard.Move) (*slots.Map, error) {
	if len(moves) == 0 {
		return m.WithMoves(nil), nil
	}
	note, err := json.Marshal(moves)
	if err != nil {
		return nil, fmt.Errorf("encode the moves of slots: %w", err)
	}
	return m.WithMoves(note), nil
}

func sameBatch(a, b reshard.Move) bool {
	return a.From == b.From && a.To == b.To && slices.Equal(a.Slots, b.Slots)
}

// latest returns the map and its revision.
func (b *slotBook) latest() (*slots.Map, coord.Rev) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now, b.rev
}

// changeSlots changes the document of the slots: by what change makes of the present one; nil from it changes nothing.
func (m *member) changeSlots(ctx context.Context, change func(*slots.Map) (*slots.Map, error)) error {
	key, again := topo.KeySlots+m.deploy.Name, false
	doc, err := m.rewrite(ctx, key, func() ([]byte, coord.Rev, error) {
		if again { // somebody else wrote
			if known, err := m.readSlots(ctx, key, nil); err != nil || !known {
				return nil, 0, errors.Join(errors.New("the slots cannot be read"), err)
			}
		}
		again = true
		now, rev := m.slots.latest()
		if now == nil {
			return nil, 0, errors.New("it is not known yet which shard has which slots")
		}
		next, err := change(now)
		if err != nil || next == nil {
			return nil, 0, err
		}
		return next.Encode(), rev, nil
	})
	if err != nil || doc.Value == nil {
		return err
	}
	return m.slots.offer(doc)
}

// swapTries bounds how often a document is written anew because others write it.
const swapTries = 20

// rewrite replaces an agreed document by what next makes of its latest version, and asks next again whenever somebody else wrote meanwhile.
// nil from it changes nothing, and the document that rewrite returns is empty then.
func (m *member) rewrite(ctx context.Context, key string, next func() (value []byte, old coord.Rev, err error)) (coord.Doc, error) {
	for range swapTries {
		value, old, err := next()
		if err != nil || value == nil {
			return coord.Doc{}, err
		}
		rev, err := m.shared.Swap(ctx, key, value, old)
		if err == nil {
			return coord.Doc{Key: key, Value: value, Rev: rev}, nil
		}
		if !errors.Is(err, coord.ErrConflict) {
			return coord.Doc{}, err
		}
	}
	return coord.Doc{}, coord.ErrConflict
}

// errNotOurs ends a batch in this process: another member has gone on with it.
var errNotOurs = errors.New("another member goes on with this batch")

// storeMove stores how far a batch has come, from the stage in which it was last seen here.
func (m *member) storeMove(ctx context.Context, was, next reshard.Move) error {
	return m.changeSlots(ctx, func(now *slots.Map) (*slots.Map, error) {
		moves, err := movesOf(now)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(moves, func(x reshard.Move) bool { return sameBatch(x, next) })
		if i < 0 || moves[i].Stage != was.Stage {
			return nil, errNotOurs
		}
		if moves[i] = next; next.Over() {
			moves = slices.Delete(moves, i, i+1)
		}
		if next.Stage == reshard.Settling {
			now = now.WithAll(next.Slots, next.To)
		}
		return withMoves(now, moves)
	})
}

// beginMove takes up a batch, unless there is one, or its slots are not the source's any more: then it reports false.
func (m *member) beginMove(ctx context.Context, next reshard.Move) (begun bool, err error) {
	err = m.changeSlots(ctx, func(now *slots.Map) (*slots.Map, error) {
		begun = false
		moves, err := movesOf(now)
		if err != nil {
			return nil, err
		}
		if len(moves) > 0 {
			return nil, errNotOurs
		}
		if leaves, err := m.leaves(ctx, next.To); err != nil || leaves {
			return nil, cmp.Or(err, errLeaves)
		}
		from := now.Index(next.From)
		if slices.ContainsFunc(next.Slots, func(s int) bool { return now.Shard(s) != from }) {
			return nil, nil
		}
		begun = true
		return withMoves(now, []reshard.Move{next})
	})
	return begun, err
}

// between returns what each shard may have, or not: slots that the target may take at any moment, or took a moment ago, which its replicas may
// not have heard. They are not the source's.
func between(moves []reshard.Move) (of map[string]map[int]bool, flux map[int]bool) {
	of, flux = map[string]map[int]bool{}, map[int]bool{}
	for _, mv := range moves {
		if mv.Stage != reshard.LettingGo && mv.Stage != reshard.Settling {
			continue
		}
		for _, s := range mv.Slots {
			flux[s] = true
			if of[mv.To] == nil {
				of[mv.To] = map[int]bool{}
			}
			of[mv.To][s] = true
		}
	}
	return of, flux
}

// promotable is a node of a cluster. Before it is promoted, it is asked anew which slots are whose: what was stored before its election has to
// be known then, because a source that let go of slots must not be followed by one that has them.
type promotable struct {
	localNode
	m *member
}

// Clerk implements clerked.
func (p promotable) Clerk() *redisd.Clerk {
	if c, ok := p.localNode.(clerked); ok {
		return c.Clerk()
	}
	return nil
}

// Promote implements redis.Node.
func (p promotable) Promote(ctx context.Context, e topo.Elected, cred redis.Credentials) (topo.Position, error) {
	if known, err := p.m.readSlots(ctx, topo.KeySlots+p.m.deploy.Name, nil); err != nil || !known {
		return topo.Position{}, errors.Join(errors.New("promote: the slots of the shards could not be read: they are asked for again"), err)
	}
	return p.localNode.Promote(ctx, e, cred)
}
