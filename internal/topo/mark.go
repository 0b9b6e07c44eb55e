// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"fmt"
	"strconv"
	"strings"
)

// MarkKey is the key of the commit marker, in the last of the usual sixteen databases.
const MarkKey = "__redoubt:commit"

// Mark is a commit marker: a point of a primary's stream that travels with the data, in append-only files and snapshots too.
// Of two data sets that grew from one stream, the one with the greater mark holds everything that the other one holds
// (SAFETY A9). The zero value: there is none.
type Mark struct {
	Epoch  Epoch `json:"epoch"`  // of the tenure that wrote it
	Offset int64 `json:"offset"` // at least where the primary stood when it wrote it; grows within a tenure
}

// Less orders marks: tenure before offset.
func (m Mark) Less(n Mark) bool {
	if m.Epoch != n.Epoch {
		return m.Epoch < n.Epoch
	}
	return m.Offset < n.Offset
}

// String is the value of the key.
func (m Mark) String() string { return fmt.Sprintf("%d %d", m.Epoch, m.Offset) }

// ParseMark reads it; anything else than what String writes is no mark.
func ParseMark(s string) (Mark, bool) {
	epoch, offset, _ := strings.Cut(s, " ")
	e, err1 := strconv.ParseUint(epoch, 10, 64)
	o, err2 := strconv.ParseInt(offset, 10, 64)
	m := Mark{Epoch(e), o}
	return m, err1 == nil && err2 == nil && e > 0 && m.String() == s
}
