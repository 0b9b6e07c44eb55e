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

// A cluster's data have no place for a key that is nobody's: each belongs to a slot, and slots move. Functions belong to none, and are
// replicated, saved and loaded with the data. There the marker is the only function of a library of ours.
const (
	MarkLibrary = "redoubt_commit"
	// MarkLibraryHead is what its code begins with.
	MarkLibraryHead = "#!lua name=" + MarkLibrary + "\n"
	markFunction    = MarkLibraryHead + "redis.register_function('" + MarkLibrary + "',function() return '"
	markFunctionEnd = "' end)"
)

// Library is the code of the library that holds the mark.
func (m Mark) Library() string { return markFunction + m.String() + markFunctionEnd }

// ParseMarkLibrary reads it; other code than what Library writes holds no mark.
func ParseMarkLibrary(code string) (Mark, bool) {
	text, head := strings.CutPrefix(code, markFunction)
	text, end := strings.CutSuffix(text, markFunctionEnd)
	m, ok := ParseMark(text)
	return m, head && end && ok
}
