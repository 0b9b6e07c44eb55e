// SPDX-License-Identifier: Apache-2.0

package topo

import "math"

// Salvage describes what one node kept of the writes that a failover discarded: its tail, which lies beyond the offset at
// which the history that goes on left its own.
type Salvage struct {
	Format    int    `json:"format"` // 1
	ID        string `json:"id"`     // names the file, and is unique in a shard
	Shard     string `json:"shard"`
	Node      NodeID `json:"node"`
	Epoch     Epoch  `json:"epoch"`  // whose history goes on without these writes
	RunID     string `json:"run_id"` // the server process that had them
	ReplID    string `json:"replid"`
	From      int64  `json:"from"`      // offset at which the histories part: the last byte that both have
	To        int64  `json:"to"`        // offset of the last byte that was kept
	End       int64  `json:"end"`       // offset at which the node stood
	AtMS      int64  `json:"at_ms"`     // wall clock of the agent, Unix ms
	Journal   bool   `json:"journal"`   // from the append-only file since its last rewrite: more than what was discarded; offsets count from its beginning
	Reason    string `json:"reason"`    // why it was kept
	Bytes     int64  `json:"bytes"`     // of the kept stream
	Commands  int64  `json:"commands"`  // that change data; messages and what keeps the stream alive are not counted
	Truncated bool   `json:"truncated"` // the limit was reached: the commands after To are lost
	SHA256    string `json:"sha256"`    // of the kept stream

	Replayed *Replay `json:"replayed,omitempty"` // not in the file: noted beside it
}

// Replay says that somebody sent kept commands again.
type Replay struct {
	AtMS   int64  `json:"at_ms"`
	By     string `json:"by,omitempty"`
	Keys   int    `json:"keys"` // how many keys were chosen; 0: all
	Sent   int    `json:"sent"`
	Failed int    `json:"failed"` // of these, commands that were answered with an error
}

// Lost is how many bytes of its stream the node had that the history which goes on does not.
func (s Salvage) Lost() int64 { return s.End - s.From }

// Branch tells where the data at p leave the history that goes on: what lies behind from is in the latest recorded history
// no more. ok is false when nothing does, and when nobody can tell, because the history at p was never recorded or was
// forgotten (HistoryMax).
func Branch(h []HistoryEntry, p Position) (from int64, ok bool) {
	e, known := entryOf(h, p.ReplID)
	if !known {
		return 0, false
	}
	left := leaves(h)
	from = math.MaxInt64
	for {
		if at, common := left[e.Epoch]; common {
			from = min(from, at)
			return from, p.Offset > from
		}
		from = min(from, e.Start)
		if e, known = entryAt(h, e.Parent); !known || e.Epoch == 0 {
			return 0, false
		}
	}
}

// leaves tells of each history that the latest one descends from the offset up to which both are the same.
func leaves(h []HistoryEntry) map[Epoch]int64 {
	left := map[Epoch]int64{}
	at := int64(math.MaxInt64)
	for e, known := h[len(h)-1], true; known; e, known = entryAt(h, e.Parent) {
		if _, seen := left[e.Epoch]; seen {
			break
		}
		left[e.Epoch] = at
		at = min(at, e.Start)
	}
	return left
}
