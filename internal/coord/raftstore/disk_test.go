// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord"
)

func entries(from, to uint64) []*raft.Log {
	var out []*raft.Log
	for i := max(1, from); i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: i / 3, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, int(i)), AppendedAt: time.Unix(0, int64(i))})
	}
	return out
}

func store(t *testing.T, j *journal, from, to uint64) {
	t.Helper()
	if err := j.StoreLogs(entries(from, to)); err != nil {
		t.Fatal(err)
	}
}

// holds checks that the journal holds at least from … to, ends at to, and that all entries are as written.
func holds(t *testing.T, j *journal, from, to uint64) {
	t.Helper()
	first, _ := j.FirstIndex()
	last, _ := j.LastIndex()
	if first > from || last != to || (first == 0) != (to == 0) {
		t.Fatalf("journal holds %d to %d, want %d to %d", first, last, from, to)
	}
	for _, want := range entries(from, to) {
		var got raft.Log
		if err := j.GetLog(want.Index, &got); err != nil || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) || !got.AppendedAt.Equal(want.AppendedAt) {
			t.Fatalf("entry %d: %+v, %v", want.Index, got, err)
		}
	}
	if err := j.GetLog(to+1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("entry behind the end: %v", err)
	}
}

func reopen(t *testing.T, j *journal) *journal {
	t.Helper()
	_ = j.Close()
	next, err := openJournal(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	next.rollAt = j.rollAt
	t.Cleanup(func() { _ = next.Close() })
	return next
}

func TestJournalKeepsItsEntriesThroughRollingDeletingAndReopening(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	j.rollAt = 300
	holds(t, j, 0, 0)
	store(t, j, 1, 5)
	for i := uint64(6); i <= 40; i++ {
		store(t, j, i, i)
	}
	holds(t, reopen(t, j), 1, 40)
	j = reopen(t, j)
	if err := j.DeleteRange(1, 20); err != nil {
		t.Fatal(err)
	}
	if first, _ := j.FirstIndex(); first == 1 || first > 21 {
		t.Fatalf("first entry is %d after the deletion of 1 to 20", first)
	}
	holds(t, j, 21, 40)
	if err := j.DeleteRange(30, 40); err != nil {
		t.Fatal(err)
	}
	holds(t, j, 21, 29)
	j = reopen(t, j)
	holds(t, j, 21, 29)
	store(t, j, 30, 33)
	if err := j.StoreLog(entries(40, 40)[0]); err == nil {
		t.Fatal("a gap was taken")
	}
	holds(t, reopen(t, j), 21, 33)
	j = reopen(t, j)
	first, _ := j.FirstIndex()
	if err := j.DeleteRange(first, 33); err != nil {
		t.Fatal(err)
	}
	holds(t, j, 0, 0)
	store(t, j, 100, 102) // after a snapshot was installed
	holds(t, reopen(t, j), 100, 102)
}

func TestJournalTellsATornEndFromDamage(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	store(t, j, 1, 4)
	acknowledged := j.files[0].size
	store(t, j, 5, 8) // one batch
	_ = j.Close()
	name := j.onDisk()[0]
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for at := journalHeader; at < len(whole); at++ {
		for what, data := range map[string][]byte{"cut": whole[:at], "flipped": flipped(whole, at)} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			torn, err := openJournal(j.dir)
			switch {
			case err == nil:
				last, _ := torn.LastIndex()
				if what == "flipped" && int64(at) < acknowledged || last < 4 && int64(at) >= acknowledged {
					t.Fatalf("%s at %d: opened with %d entries", what, at, last)
				}
				holds(t, torn, min(1, last), last)
				_ = torn.Close()
			case !errors.Is(err, errJournalDamaged) || what == "cut" || int64(at) >= acknowledged:
				t.Fatalf("%s at %d: %v", what, at, err)
			}
		}
	}
}

// onDisk lists the files on disk.
func (j *journal) onDisk() []string {
	names, _ := filepath.Glob(filepath.Join(j.dir, journalPattern))
	return names
}

func flipped(data []byte, at int) []byte {
	out := bytes.Clone(data)
	out[at] ^= 0xff
	return out
}

// TestJournalGoesOnWhenTheDiskHasSpaceAgain: a write that fails half-way is no entry, what it has left is not in the way of the next
// one, and nobody has to restart anything.
func TestJournalGoesOnWhenTheDiskHasSpaceAgain(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	store(t, j, 1, 2)
	full := func(f *os.File, data []byte, at int64) (int, error) {
		n, _ := f.WriteAt(data[:len(data)-3], at) // the first of its entries is whole
		return n, syscall.ENOSPC
	}
	j.writeAt = full
	for range 2 {
		if err := j.StoreLogs(entries(3, 5)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write to a full disk: %v", err)
		}
		holds(t, j, 1, 2)
	}
	j.writeAt = (*os.File).WriteAt
	store(t, j, 3, 3)
	holds(t, j, 1, 3)
	j = reopen(t, j)
	holds(t, j, 1, 3) // and not 4, which the failed write had left behind

	j.rollAt, j.writeAt = 1, full // the next entry begins a new file
	if err := j.StoreLogs(entries(4, 4)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write to a full disk: %v", err)
	}
	j = reopen(t, j)
	holds(t, j, 1, 3)
	j.rollAt, j.writeAt = 1, full
	if err := j.StoreLogs(entries(4, 4)); err == nil {
		t.Fatal("written to a full disk")
	}
	j.writeAt = (*os.File).WriteAt
	if err := j.DeleteRange(3, 3); err != nil { // another controller has another entry there
		t.Fatal(err)
	}
	store(t, j, 3, 5)
	j = reopen(t, j)
	holds(t, j, 1, 5)
}

func TestJournalTakesNothingWhileItsEndCannotBeCut(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	store(t, j, 1, 2)
	_ = j.files[0].f.Close()
	for range 2 {
		if err := j.StoreLogs(entries(3, 3)); !errors.Is(err, os.ErrClosed) {
			t.Fatalf("write to a closed file: %v", err)
		}
	}
	j = reopen(t, j)
	holds(t, j, 1, 2)
}

func TestVotesSurviveATornWrite(t *testing.T) {
	dir := t.TempDir()
	for n := uint64(1); n < 6; n++ {
		v, err := openVotes(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.SetUint64([]byte("term"), n); err != nil {
			t.Fatal(err)
		}
		_ = v.Close()
		name := filepath.Join(dir, "votes.rdb")
		good, _ := os.ReadFile(name)
		at := int((v.number + 1) % 2 * voteSlot) // the next write is torn
		if err := os.WriteFile(name, flipped(good, at+5), 0o600); err != nil {
			t.Fatal(err)
		}
		v, err = openVotes(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := v.GetUint64([]byte("term")); err != nil || got != n {
			t.Fatalf("term %d, %v; want %d", got, err, n)
		}
		if _, err := v.Get([]byte("nothing")); err == nil || err.Error() != "not found" {
			t.Fatalf("absent value: %v", err)
		}
		_ = v.Close()
		if err := os.WriteFile(name, flipped(flipped(good, 5), voteSlot+5), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openVotes(dir); err == nil {
			t.Fatal("two damaged copies were taken")
		}
		_ = os.WriteFile(name, good, 0o600)
	}
}

func FuzzDecodersRefuseOrReturnWhatWasEncoded(f *testing.F) {
	f.Add((&snapshot{docs: []coord.Doc{{Key: "k", Rev: 3, Value: []byte("v")}}, store: "s", terms: 4, seats: map[string]string{"a": "b"}}).encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := decodeSnapshot(data); err == nil {
			if b, err := decodeSnapshot(a.encode()); err != nil || fmt.Sprint(*a) != fmt.Sprint(*b) {
				t.Fatalf("%v became %v, %v", a, b, err)
			}
		}
		_ = decodeLog(data, new(raft.Log))
		m := &machine{docs: map[string]coord.Doc{}, seats: map[string]string{}, changed: func(coord.Doc) {}, named: func(string) {}}
		m.Apply(&raft.Log{Data: data})
	})
}
