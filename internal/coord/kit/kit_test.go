// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"fmt"
	"testing"
	"time"

	"redoubt/internal/coord"
)

func FuzzDecodersRefuseOrReturnWhatWasEncoded(f *testing.F) {
	f.Add(Frame{Kind: KindSwap, ID: 7, Rev: 9, Key: "k", Text: "t", Value: []byte("v")}.Encode()[4:])
	f.Add(EncodeMembers([]coord.Member{{ID: "a", Addr: "b", Controller: true}}))
	f.Add(EncodeBeats(map[string]coord.Beat{"a": {Body: []byte("b"), Age: time.Second}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := decodeFrame(data); err == nil {
			b, err := decodeFrame(a.Encode()[4:])
			if err != nil || fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%v became %v, %v", a, b, err)
			}
		}
		if a, err := DecodeMembers(data); err == nil {
			if b, err := DecodeMembers(EncodeMembers(a)); err != nil || fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%v became %v, %v", a, b, err)
			}
		}
		_, _ = DecodeBeats(data)
	})
}

func TestAHubGivesTheLatestAndNeverGoesBack(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := NewHub()
	h.Learn(coord.Doc{Key: "k", Rev: 3, Value: []byte("three")})
	ch := h.Watch(ctx, "k")
	h.Learn(coord.Doc{Key: "k", Rev: 2, Value: []byte("two")})
	if d := <-ch; d.Rev != 3 || h.Rev("k") != 3 {
		t.Fatalf("began with %+v", d)
	}
	h.Learn(coord.Doc{Key: "k", Rev: 4})
	h.Learn(coord.Doc{Key: "k", Rev: 5})
	h.Learn(coord.Doc{Key: "k", Rev: 4})
	if d := <-ch; d.Rev != 5 {
		t.Fatalf("then came %+v", d)
	}
	cancel()
	if d, ok := <-ch; ok {
		t.Fatalf("after its end came %+v", d)
	}
}

func TestReadsThatOvertakeEachOtherCountTheLatestOfOlderState(t *testing.T) {
	const s = time.Second
	a := NewAges(10 * s)
	present := func(string) coord.Rev { return 2 }
	if got := a.Latest("m", present); got != 10*s {
		t.Fatalf("without a read %s", got)
	}
	a.Note("m", "k", 1, 12*s)
	if got := a.Latest("m", present); got != 12*s {
		t.Fatalf("a read of an older revision counts from %s", got)
	}
	a.Note("m", "k", 2, 14*s)
	a.Note("m", "k", 1, 13*s) // came later, arrived earlier
	a.Note("other", "k", 1, 20*s)
	if got := a.Latest("m", present); got != 13*s {
		t.Fatalf("counts from %s", got)
	}
	a.Vacant(9 * s)
	if got := a.Latest("nobody", present); got != 9*s || a.Since() != 9*s {
		t.Fatalf("without a read %s", got)
	}
}
