// SPDX-License-Identifier: Apache-2.0

package reshard

import (
	"fmt"
	"strings"
)

// ranges writes slots, which ascend, as they are usually written: 0-99,120.
func ranges(slots []int) string {
	var b strings.Builder
	for i := 0; i < len(slots); {
		j := i
		for j+1 < len(slots) && slots[j+1] == slots[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		if fmt.Fprintf(&b, "%d", slots[i]); j > i {
			fmt.Fprintf(&b, "-%d", slots[j])
		}
		i = j + 1
	}
	return b.String()
}

// String is the plan as it is shown before it is carried out.
func (p Plan) String() string {
	var b strings.Builder
	if len(p.Transfers) == 0 {
		fmt.Fprintf(&b, "nothing to move: balanced by %s\n", p.Measure)
	} else {
		fmt.Fprintf(&b, "%d of %d slots move, balanced by %s\n", p.Moved(), SlotCount, p.Measure)
	}
	width := len("shard")
	for _, s := range p.Shards {
		width = max(width, len(s.ID))
	}
	row := fmt.Sprintf("  %%-%ds  %%6s  %%6s  %%6s", width)
	fmt.Fprintf(&b, row, "shard", "weight", "now", "then")
	if p.Measure != BySlots {
		fmt.Fprintf(&b, "  %12s  %12s  %12s", "load now", "then", "its part")
	}
	b.WriteByte('\n')
	for i, s := range p.Shards {
		fmt.Fprintf(&b, row, s.ID, fmt.Sprint(s.Weight), fmt.Sprint(p.Before[i].Slots), fmt.Sprint(p.After[i].Slots))
		if p.Measure != BySlots {
			fmt.Fprintf(&b, "  %12.0f  %12.0f  %12.0f", p.Before[i].Cost, p.After[i].Cost, p.Before[i].Want)
		}
		if s.Weight == 0 && p.Before[i].Slots > 0 {
			b.WriteString("  drained")
		}
		b.WriteByte('\n')
	}
	for _, t := range p.Transfers {
		from, to := p.Shards[t.From], p.Shards[t.To]
		fmt.Fprintf(&b, "  %s gives %s %d: %s", from.ID, to.ID, len(t.Slots), ranges(t.Slots))
		if from.Zone != "" && to.Zone != "" && from.Zone != to.Zone {
			fmt.Fprintf(&b, " (zone %s to %s)", from.Zone, to.Zone)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// String is a move in a line of a status.
func (m Move) String() string {
	stage := m.Stage
	if stage == Planned {
		stage = "planned"
	}
	text := fmt.Sprintf("%s: %s to %s: %s", ranges(m.Slots), m.From, m.To, stage)
	if m.Wish != GoOn && !m.Over() {
		text += fmt.Sprintf(" (%s)", m.Wish)
	}
	return text
}

// Moves cuts the plan into batches of at most perBatch slots, the transfers in turn, so that no shard gives or gets all of its
// load in one piece.
func (p Plan) Moves(perBatch int) []Move {
	perBatch = max(perBatch, 1)
	var out []Move
	for at, more := 0, true; more; at += perBatch {
		more = false
		for _, t := range p.Transfers {
			if at >= len(t.Slots) {
				continue
			}
			end := min(at+perBatch, len(t.Slots))
			out = append(out, Move{Slots: t.Slots[at:end:end], From: p.Shards[t.From].ID, To: p.Shards[t.To].ID})
			more = more || end < len(t.Slots)
		}
	}
	return out
}
