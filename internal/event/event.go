// SPDX-License-Identifier: Apache-2.0

// Package event holds the typed things that happened. Log line, history entry, metric and dashboard update all derive
// from one Event. No goroutines.
package event

import "time"

// Event is something worth telling an operator.
type Event struct {
	At    time.Time         `json:"at"`
	Kind  string            `json:"kind"` // decision, fence, promote, exit, health, intent, …
	Shard string            `json:"shard,omitempty"`
	Node  string            `json:"node,omitempty"`
	Epoch uint64            `json:"epoch,omitempty"`
	Rule  string            `json:"rule,omitempty"`
	Text  string            `json:"text"` // one sentence for people
	Facts map[string]string `json:"facts,omitempty"`
}

// Sink takes events. Implementations are safe for concurrent use and never block.
type Sink func(Event)
