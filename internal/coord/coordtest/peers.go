// SPDX-License-Identifier: Apache-2.0

package coordtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"redoubt/internal/coord"
)

// peersAnswer: every member's question gets the asked member's own answer, large or small, and none where nobody answers.
func peersAnswer(t *testing.T, c *Cluster) {
	if _, ok := c.Stores[0].(coord.Peers); !ok {
		t.Skip("members of this store do not talk to each other")
	}
	peers := make([]coord.Peers, len(c.Stores))
	for i, s := range c.Stores {
		peers[i] = s.(coord.Peers)
		id := c.IDs[i]
		peers[i].Answer(func(from string, question []byte) []byte {
			return append([]byte(from+" asks "+id+": "), question...)
		})
	}
	var asked sync.WaitGroup
	for i, from := range peers {
		for j, to := range c.IDs {
			if i == j {
				continue
			}
			for n := range 4 {
				asked.Go(func() {
					want := fmt.Sprintf("%s asks %s: %d", c.IDs[i], to, n)
					if got, err := from.Ask(bounded(t), to, fmt.Append(nil, n)); err != nil || string(got) != want {
						t.Errorf("%q, %v; want %q", got, err, want)
					}
				})
			}
		}
	}
	asked.Wait()
	refused := func(what string, i int, to string, question []byte) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if got, err := peers[i].Ask(ctx, to, question); !errors.Is(err, coord.ErrUnavailable) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	refused("a stranger was asked", 0, "nobody", nil)
	if len(peers) == 1 {
		return
	}
	refused("a question beyond the limit", 0, c.IDs[1], make([]byte, coord.PeerMax+coord.PeerSpare+1))
	large := bytes.Repeat([]byte("x"), coord.PeerMax)
	peers[1].Answer(func(_ string, question []byte) []byte { return question })
	if got, err := peers[0].Ask(bounded(t), c.IDs[1], large); err != nil || !bytes.Equal(got, large) {
		t.Errorf("a question at the limit: %d bytes, %v", len(got), err)
	}
	peers[1].Answer(nil)
	refused("nobody answers any more", 0, c.IDs[1], nil)
}
