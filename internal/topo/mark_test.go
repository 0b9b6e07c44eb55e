// SPDX-License-Identifier: Apache-2.0

package topo

import "testing"

func TestAMarkIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	for _, m := range []Mark{{1, 0}, {7, 1 << 50}} {
		if got, ok := ParseMark(m.String()); !ok || got != m {
			t.Errorf("%q is read as %v, %v", m.String(), got, ok)
		}
	}
	for _, s := range []string{"", "1", "1 ", " 1", "0 5", "1 x", "1 2 3", "01 2", "-1 2"} {
		if m, ok := ParseMark(s); ok {
			t.Errorf("%q is read as %v", s, m)
		}
	}
	if !(Mark{1, 900}).Less(Mark{2, 5}) || !(Mark{2, 4}).Less(Mark{2, 5}) || (Mark{2, 5}).Less(Mark{2, 5}) {
		t.Error("marks are not ordered by tenure, then offset")
	}
}

func TestAMarkIsReadFromItsLibrary(t *testing.T) {
	m := Mark{Epoch: 7, Offset: 1234567}
	if got, ok := ParseMarkLibrary(m.Library()); !ok || got != m {
		t.Errorf("%+v, %v, from %q", got, ok, m.Library())
	}
	for _, code := range []string{"", MarkLibraryHead, m.Library() + " ", " " + m.Library(), (Mark{}).Library()} {
		if got, ok := ParseMarkLibrary(code); ok {
			t.Errorf("%q is taken for %+v", code, got)
		}
	}
}
