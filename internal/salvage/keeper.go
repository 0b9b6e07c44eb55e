// SPDX-License-Identifier: Apache-2.0

// Package salvage keeps the writes that a failover discards as files in the member's directory, and reads such files.
//
// It is not for deciding what is kept (converge), reading servers (redisd) or sending anything again (cli). Its invariant:
// a file that has its name is complete, and what it holds is a whole number of commands, as its checksum says. The number
// of files and the bytes of each are bounded. No goroutines.
package salvage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"redoubt/internal/topo"
)

const (
	suffix     = ".salvage"  // of a file
	noted      = ".replayed" // behind that, for the note about its replay
	unfinished = ".tmp"
	headSize   = 4096 // the first line: a JSON object, filled up with spaces
	reasonMax  = 500
	format     = 1
)

// Options are the bounds of a Keeper. All fields are required.
type Options struct {
	Dir   string
	Bytes int64 // most bytes of one file's stream
	Keep  int   // most files; the oldest go first
	Log   *slog.Logger
}

// Keeper keeps salvaged streams in one directory. It is safe for concurrent use; only one Keep runs at a time.
type Keeper struct {
	o    Options
	turn sync.Mutex // of Keep

	mu   sync.Mutex     // guards list
	list []topo.Salvage // the oldest first
}

// ErrUnknown: there is no such file here.
var ErrUnknown = errors.New("no such salvage file here")

// New reads what is there and removes what an earlier process did not finish. A file that cannot be understood is left alone and
// named in the log.
func New(o Options) (*Keeper, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for salvaged writes: %w", err)
	}
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("read the directory for salvaged writes: %w", err)
	}
	k := &Keeper{o: o}
	for _, e := range entries {
		path := filepath.Join(o.Dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case unfinished:
			_ = os.Remove(path)
		case suffix:
			head, err := readHead(path)
			if err != nil {
				o.Log.Warn("a salvage file is damaged", "file", path, "err", err)
				continue
			}
			k.list = append(k.list, head)
		}
	}
	slices.SortFunc(k.list, func(x, y topo.Salvage) int { return int(min(max(x.AtMS-y.AtMS, -1), 1)) })
	return k, nil
}

// List returns what is kept, the oldest first.
func (k *Keeper) List() []topo.Salvage {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.list)
}

func (k *Keeper) find(id string) (topo.Salvage, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.list, func(s topo.Salvage) bool { return s.ID == id })
	if i < 0 {
		return topo.Salvage{}, false
	}
	return k.list[i], true
}

// Open returns the file with that id, as it is. The caller closes it.
func (k *Keeper) Open(id string) (io.ReadCloser, error) {
	if _, ok := k.find(id); !ok { // an id never becomes a path unless it is a known one
		return nil, fmt.Errorf("%q: %w", id, ErrUnknown)
	}
	return os.Open(k.path(id))
}

func (k *Keeper) path(id string) string { return filepath.Join(k.o.Dir, id+suffix) }

// Keep stores what read writes as the file that head describes, and completes head. It returns false when nothing of it
// changes data: then there is no file. A tail that is kept already is not read again.
func (k *Keeper) Keep(head topo.Salvage, read func(limit int64, w io.Writer) error) (topo.Salvage, bool, error) {
	k.turn.Lock()
	defer k.turn.Unlock()
	head.Format, head.Reason = format, head.Reason[:min(len(head.Reason), reasonMax)]
	head.ID = fmt.Sprintf("%s-%d-%d", head.Node, head.Epoch, head.End)
	if head.Journal {
		head.ID = fmt.Sprintf("%s-%d-aof", head.Node, head.Epoch)
	}
	if old, ok := k.find(head.ID); ok && old.ReplID == head.ReplID && old.From == head.From {
		return old, true, nil
	}
	path := k.path(head.ID) + unfinished
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return head, false, fmt.Errorf("keep discarded writes: %w", err)
	}
	kept, err := k.fill(f, &head, read)
	if err = errors.Join(err, f.Close()); err != nil || !kept {
		return head, false, errors.Join(err, os.Remove(path))
	}
	if err := os.Remove(k.path(head.ID) + noted); err != nil && !errors.Is(err, fs.ErrNotExist) { // of another file of that name
		return head, false, fmt.Errorf("keep discarded writes: %w", err)
	}
	if err := os.Rename(path, k.path(head.ID)); err != nil {
		return head, false, fmt.Errorf("keep discarded writes: %w", err)
	}
	k.add(head)
	return head, true, syncDir(k.o.Dir)
}

// fill writes the body, and then the head, whose size is fixed.
func (k *Keeper) fill(f *os.File, head *topo.Salvage, read func(int64, io.Writer) error) (bool, error) {
	if _, err := f.Seek(headSize, io.SeekStart); err != nil {
		return false, err
	}
	body := newBody(f)
	if err := read(k.o.Bytes, body); err != nil {
		return false, err
	}
	head.To, head.Bytes, head.Commands, head.SHA256 = head.From+body.whole, body.whole, body.commands, body.sum()
	if head.Journal {
		head.End = head.To // a last command that a crash tore apart was acknowledged to nobody
	}
	head.Truncated = head.To < head.End
	if head.Commands == 0 && !head.Truncated {
		return false, nil
	}
	line, err := json.Marshal(head)
	if err == nil && len(line) >= headSize {
		err = fmt.Errorf("its description needs %d bytes, there are %d", len(line), headSize)
	}
	if err != nil {
		return false, err
	}
	line = append(line, bytes.Repeat([]byte{' '}, headSize-1-len(line))...)
	if _, err := f.WriteAt(append(line, '\n'), 0); err != nil {
		return false, err
	}
	return true, f.Sync()
}

// add notes a file and removes the oldest beyond the bound.
func (k *Keeper) add(head topo.Salvage) {
	k.mu.Lock()
	k.list = append(slices.DeleteFunc(k.list, func(s topo.Salvage) bool { return s.ID == head.ID }), head)
	over := slices.Clone(k.list[:max(0, len(k.list)-k.o.Keep)])
	k.list = slices.Clone(k.list[len(over):])
	k.mu.Unlock()
	for _, old := range over {
		k.o.Log.Info("an old salvage file is removed: salvage.keep is reached", "id", old.ID, "commands", old.Commands)
		for _, path := range []string{k.path(old.ID), k.path(old.ID) + noted} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				k.o.Log.Warn("an old salvage file could not be removed", "err", err)
			}
		}
	}
}

// Replayed notes beside a file that its commands, or some of them, were sent again.
func (k *Keeper) Replayed(id string, r topo.Replay) error {
	k.turn.Lock()
	defer k.turn.Unlock()
	if _, ok := k.find(id); !ok {
		return fmt.Errorf("%q: %w", id, ErrUnknown)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("note a replay: %w", err)
	}
	path := k.path(id) + noted
	if err := os.WriteFile(path+unfinished, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("note a replay: %w", err)
	}
	if err := os.Rename(path+unfinished, path); err != nil {
		return fmt.Errorf("note a replay: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.list {
		if k.list[i].ID == id {
			k.list[i].Replayed = &r
		}
	}
	return nil
}

// readHead reads a file's description, and the note beside it.
func readHead(path string) (topo.Salvage, error) {
	f, err := os.Open(path)
	if err != nil {
		return topo.Salvage{}, err
	}
	defer f.Close()
	head, err := parseHead(f)
	if err != nil {
		return head, err
	}
	if id := strings.TrimSuffix(filepath.Base(path), suffix); head.ID != id {
		return head, fmt.Errorf("it describes %q", head.ID)
	}
	if b, err := os.ReadFile(path + noted); err == nil {
		var r topo.Replay
		if json.Unmarshal(b, &r) == nil {
			head.Replayed = &r
		}
	}
	return head, nil
}

func parseHead(r io.Reader) (head topo.Salvage, err error) {
	line := make([]byte, headSize)
	if _, err := io.ReadFull(r, line); err != nil {
		return head, fmt.Errorf("read its description: %w", err)
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return head, fmt.Errorf("read its description: %w", err)
	}
	if head.Format != format {
		return head, fmt.Errorf("it has format %d, this program reads %d", head.Format, format)
	}
	return head, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
