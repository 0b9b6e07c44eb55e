// SPDX-License-Identifier: Apache-2.0

package memstore

import (
	"context"
	"fmt"

	"redoubt/internal/coord"
)

var _ coord.Peers = (*Store)(nil)

// Sever separates members from each other, not from the store: their questions to others get no answer, nor do those of others
// to them. false undoes it.
func (c *Cluster) Sever(on bool, ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if s := c.members[id]; s != nil {
			s.severed = on
		}
	}
}

// Ask implements coord.Peers. An outage of the store does not matter.
func (s *Store) Ask(ctx context.Context, member string, question []byte) ([]byte, error) {
	s.c.mu.Lock()
	to := s.c.members[member]
	var with func(string, []byte) []byte
	if to != nil && !to.closed && !to.severed && !s.severed {
		with = to.answer
	}
	s.c.mu.Unlock()
	if with == nil || ctx.Err() != nil || len(question) > coord.PeerMax+coord.PeerSpare {
		return nil, fmt.Errorf("ask member %s: %w", member, coord.ErrUnavailable)
	}
	return with(s.id, append([]byte(nil), question...)), nil
}

// Answer implements coord.Peers.
func (s *Store) Answer(with func(from string, question []byte) []byte) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.answer = with
}
