// SPDX-License-Identifier: Apache-2.0

package coord

import "context"

// Peers is how members talk to each other while the store is away: one question, one answer, between two processes. It is
// implemented by stores whose members reach each other anyway. Nothing that was agreed depends on it.
type Peers interface {
	// Ask sends a question (at most PeerMax bytes) to a member and returns its answer. It needs no majority and no
	// controller. ErrUnavailable: there is no answer; the member may have got the question all the same.
	Ask(ctx context.Context, member string, question []byte) ([]byte, error)
	// Answer sets who answers the other members' questions in this process; nil: nobody. It is called by several
	// goroutines at once, and from is the member that asks.
	Answer(with func(from string, question []byte) []byte)
}

// PeerMax bounds a question and an answer, in bytes. Whoever carries them takes PeerSpare more, for what a shared store adds.
const (
	PeerMax   = 16 << 10
	PeerSpare = 256
)
