// SPDX-License-Identifier: Apache-2.0

package salvage

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

func keeper(t *testing.T, dir string, limit int64, keep int) *Keeper {
	t.Helper()
	k, err := New(Options{Dir: dir, Bytes: limit, Keep: keep, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func stream(lines ...string) (b []byte) {
	for _, l := range lines {
		b = resp.AppendCommand(b, strings.Fields(l)...)
	}
	return b
}

// piecewise hands a stream over in small pieces, up to the limit, as a server does.
func piecewise(data []byte) func(int64, io.Writer) error {
	return func(limit int64, w io.Writer) error {
		data := data[:min(int64(len(data)), limit)]
		for len(data) > 0 {
			n := min(7, len(data))
			if _, err := w.Write(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	}
}

func head(from int64, data []byte, at int64) topo.Salvage {
	return topo.Salvage{Shard: "s-0", Node: "n1", Epoch: 5, RunID: "r", ReplID: "a", From: from, End: from + int64(len(data)), AtMS: at, Reason: "test"}
}

func TestWhatIsKeptCanBeReadAgain(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir, 1<<20, 3)
	data := stream("SELECT 0", "SET a 1", "PING", "MULTI", "INCR b", "SELECT 2", "MSET c 1 d 2", "EXEC", "PUBLISH x y", "FLUSHALL")
	kept, ok, err := k.Keep(head(300, data, 1), piecewise(data))
	if err != nil || !ok || kept.Commands != 4 || kept.To != kept.End || kept.Truncated || kept.Bytes != int64(len(data)) {
		t.Fatalf("%+v, %t, %v", kept, ok, err)
	}
	f, err := k.Open(kept.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, cmds, err := Read(f)
	if err != nil || again != kept {
		t.Fatalf("%+v, %v", again, err)
	}
	want := []Command{
		{0, []string{"SET", "a", "1"}, []string{"a"}}, {0, []string{"INCR", "b"}, []string{"b"}},
		{2, []string{"MSET", "c", "1", "d", "2"}, []string{"c", "d"}}, {2, []string{"FLUSHALL"}, nil},
	}
	if !reflect.DeepEqual(cmds, want) {
		t.Fatalf("%+v", cmds)
	}
	if info, err := os.Stat(filepath.Join(dir, kept.ID+suffix)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v: others may not read data", info.Mode(), err)
	}
	if _, _, err := k.Keep(head(300, data, 2), func(int64, io.Writer) error { return errors.New("read again") }); err != nil {
		t.Fatalf("a tail that is kept: %v", err)
	}
	if err := k.Replayed(kept.ID, topo.Replay{AtMS: 9, Keys: 1, Sent: 2}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*Keeper{k, keeper(t, dir, 1<<20, 3)} { // also the next process
		if l := k.List(); len(l) != 1 || l[0].Replayed == nil || l[0].Replayed.Sent != 2 {
			t.Fatalf("%+v", l)
		}
	}
}

func TestAStreamBeyondTheLimitIsCutBetweenCommands(t *testing.T) {
	k := keeper(t, t.TempDir(), 100, 3)
	data := stream("SET a 1", "SET b 2", "SET c 3", "SET d "+strings.Repeat("x", 200))
	kept, ok, err := k.Keep(head(0, data, 1), piecewise(data))
	if err != nil || !ok || !kept.Truncated || kept.Commands != 3 || kept.Bytes != int64(len(stream("SET a 1", "SET b 2", "SET c 3"))) || kept.Lost() != int64(len(data)) {
		t.Fatalf("%+v, %t, %v", kept, ok, err)
	}
}

func TestNothingIsKeptOfAStreamWithoutWrites(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir, 1000, 3)
	data := stream("PING", "SELECT 0", "SET __redoubt:commit x")
	for _, ours := range [][]string{redis.Marker(true), {"function", "LOAD", "REPLACE", topo.Mark{Epoch: 7, Offset: 9}.Library()}} {
		data = resp.AppendCommand(data, ours...)
	}
	if kept, ok, err := k.Keep(head(0, data, 1), piecewise(data)); err != nil || ok {
		t.Fatalf("%+v, %t, %v", kept, ok, err)
	}
	users := stream("FUNCTION LOAD #!lua")
	if kept, ok, err := keeper(t, t.TempDir(), 1000, 3).Keep(head(0, users, 1), piecewise(users)); err != nil || !ok || kept.Commands != 1 {
		t.Fatalf("a function of a user's: %+v, %t, %v", kept, ok, err)
	}
	if _, ok, err := k.Keep(head(0, data, 1), piecewise(data[1:])); ok || !errors.Is(err, errBoundary) {
		t.Fatalf("a stream that begins within a command: %t, %v", ok, err)
	}
	broken := errors.New("the server died")
	if _, ok, err := k.Keep(head(0, data, 1), func(int64, io.Writer) error { return broken }); ok || !errors.Is(err, broken) {
		t.Fatalf("a stream that breaks: %t, %v", ok, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 || len(k.List()) != 0 {
		t.Fatalf("left: %v", left)
	}
}

func TestTheOldestFilesGoFirst(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir, 1000, 2)
	data := stream("SET a 1")
	for i := range int64(4) {
		if _, ok, err := k.Keep(head(i*100, data, i+1), piecewise(data)); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	for _, k := range []*Keeper{k, keeper(t, dir, 1000, 2)} {
		l := k.List()
		if len(l) != 2 || l[0].AtMS != 3 || l[1].AtMS != 4 {
			t.Fatalf("%+v", l)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 {
		t.Fatalf("%v", files)
	}
	if _, err := k.Open("../../etc/passwd"); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
}

func TestADamagedFileIsNoticed(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir, 1000, 2)
	data := stream("SET a 1", "SET b 2")
	kept, _, err := k.Keep(head(0, data, 1), piecewise(data))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, kept.ID+suffix)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file[len(file)-3] ^= 1
	if _, _, err := Read(bytes.NewReader(file)); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+unfinished, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if l := keeper(t, dir, 1000, 2).List(); len(l) != 0 {
		t.Fatalf("%+v", l)
	}
	if _, err := os.Stat(path + unfinished); err == nil {
		t.Fatal("what was not finished is still there")
	}
}

func TestTheKeysOfCommands(t *testing.T) {
	for line, want := range map[string]string{
		"SET a 1": "a", "del a b c": "a b c", "MSET a 1 b 2": "a b", "RENAME a b": "a b", "BITOP AND d a b": "d a b", "XGROUP CREATE s g $": "s",
		"ZUNIONSTORE d 2 a b WEIGHTS 1 2": "d a b", "EVAL return 2 a b x": "a b", "EVAL return 0": "", "FCALL f 1 a x": "a", "LMPOP 2 a b LEFT": "a b",
		"SORT a BY x STORE b": "a b", "FLUSHALL": "", "XADD s * f v": "s", "SPOP a": "a", "MODULE.CMD a b": "a", "EVAL return x": "",
	} {
		if got := strings.Join(keysOf(strings.Fields(line)), " "); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestTheNoteOfAReplayIsNotThatOfAnotherFile(t *testing.T) {
	dir, data := t.TempDir(), stream("SELECT 0", "SET a 1")
	k := keeper(t, dir, 1<<20, 3)
	kept, _, err := k.Keep(head(300, data, 1), piecewise(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Replayed(kept.ID, topo.Replay{By: "ann", Sent: 1}); err != nil {
		t.Fatal(err)
	}
	other := head(300, data, 2)
	other.ReplID = "b" // another history, with the same end
	if kept, _, err = k.Keep(other, piecewise(data)); err != nil || kept.Replayed != nil {
		t.Fatalf("%+v, %v", kept, err)
	}
	if again := keeper(t, dir, 1<<20, 3).List(); len(again) != 1 || again[0].ReplID != "b" || again[0].Replayed != nil {
		t.Errorf("after a start: %+v", again)
	}
}
