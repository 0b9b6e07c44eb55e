// SPDX-License-Identifier: Apache-2.0

package topk

// Load is what was seen of clients' commands in some time.
type Load struct {
	MS       int64   `json:"ms"`
	Commands int64   `json:"commands"` // that were answered
	Reads    int64   `json:"reads"`    // of them, estimated
	Writes   int64   `json:"writes"`
	Bytes    int64   `json:"bytes"` // of commands and replies, estimated
	Hot      []Count `json:"hot"`
	Big      []Size  `json:"big"`
	Slots    []int64 `json:"slots,omitempty"` // commands by slot, estimated; none outside of a cluster
}

// kept of what several have seen.
const kept = 256

// Join adds up what several have seen at the same time.
func Join(loads ...Load) (sum Load) {
	var hot [][]Count
	var big [][]Size
	for _, l := range loads {
		sum.MS = max(sum.MS, l.MS)
		sum.Commands, sum.Reads, sum.Writes, sum.Bytes = sum.Commands+l.Commands, sum.Reads+l.Reads, sum.Writes+l.Writes, sum.Bytes+l.Bytes
		hot, big = append(hot, l.Hot), append(big, l.Big)
		if len(sum.Slots) < len(l.Slots) {
			sum.Slots = append(sum.Slots, make([]int64, len(l.Slots)-len(sum.Slots))...)
		}
		for i, n := range l.Slots {
			sum.Slots[i] += n
		}
	}
	sum.Hot, sum.Big = Merge(kept, hot...), MergeSizes(kept, big...)
	return sum
}
