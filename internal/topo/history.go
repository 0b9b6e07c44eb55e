// SPDX-License-Identifier: Apache-2.0

package topo

// Placed is a position that can be compared with others: normalised against the recorded histories.
type Placed struct {
	Epoch  Epoch // effective epoch: the newest history that the data really reaches into
	Offset int64
}

// Less orders positions: history before offset.
func (p Placed) Less(q Placed) bool {
	if p.Epoch != q.Epoch {
		return p.Epoch < q.Epoch
	}
	return p.Offset < q.Offset
}

// Place normalises a position. A replica takes a new history's id before it receives one byte of it, so a node whose
// offset lies below the start of the history it names is in that history's parent at that offset (SAFETY A2). A node
// whose id nobody recorded was promoted without being recorded: it is placed in the history it says it came from, at
// the branching point at the latest, which it certainly holds (SAFETY A3). Otherwise ok is false: the position cannot
// be compared, and must block an election instead of being ranked last.
func Place(h []HistoryEntry, p Position) (placed Placed, ok bool) {
	if e, known := entryOf(h, p.ReplID); known {
		return descend(h, e, p.Offset), true
	}
	if e, known := entryOf(h, p.ReplID2); known && p.Offset2 >= 0 {
		return descend(h, e, min(p.Offset, p.Offset2-1)), true
	}
	return Placed{}, false
}

func entryOf(h []HistoryEntry, replid string) (HistoryEntry, bool) {
	for i := len(h) - 1; i >= 0 && replid != ""; i-- {
		if h[i].ReplID == replid {
			return h[i], true
		}
	}
	return HistoryEntry{}, false
}

// descend walks from e towards older histories until offset is not below the start. The walk ends because a parent's
// epoch is always smaller.
func descend(h []HistoryEntry, e HistoryEntry, offset int64) Placed {
	for offset < e.Start && e.Parent != 0 {
		parent, ok := entryAt(h, e.Parent)
		if !ok {
			break // forgotten because of HistoryMax: the oldest epoch that we know of is the best name for it
		}
		e = parent
	}
	return Placed{Epoch: e.Epoch, Offset: offset}
}

func entryAt(h []HistoryEntry, epoch Epoch) (HistoryEntry, bool) {
	for _, e := range h {
		if e.Epoch == epoch {
			return e, true
		}
	}
	return HistoryEntry{}, false
}

// Latest returns the newest recorded history.
func (a Assigned) Latest() (HistoryEntry, bool) {
	if len(a.History) == 0 {
		return HistoryEntry{}, false
	}
	return a.History[len(a.History)-1], true
}

// SameTenure reports whether two versions of an assignment let the same process write in the same epoch: then a lease
// that counts from a read of the one is as good for the other.
func (a Assigned) SameTenure(b Assigned) bool {
	writable := func(p Phase) bool { return p == PhasePromoting || p == PhaseServing || p == PhaseDraining }
	return a.Epoch == b.Epoch && a.Primary == b.Primary && a.RunID == b.RunID && writable(a.Phase) && writable(b.Phase)
}
