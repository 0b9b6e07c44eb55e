// SPDX-License-Identifier: Apache-2.0

// Package render keeps files for other programs current: the configuration of a twemproxy, an HAProxy or an Envoy that people
// keep is made from a template of theirs, checked and loaded when the topology changes.
//
// It decides nothing, and looks at no server. Its invariant: a target is replaced as a whole by a text that its check has
// accepted, and a text is loaded once; what fails leaves the target as it was, and is tried again when the text changes, or
// slowly. Goroutines: Run's, and one for each file.
package render

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/template"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/event"
	"redoubt/internal/view"
)

// The bounds of rendering.
const (
	textMax    = 4 << 20         // bytes of a rendered text
	sourceMax  = 1 << 20         // bytes of a template
	outputMax  = 4 << 10         // bytes of a command's output that are kept
	retryFirst = 5 * time.Second // after a failure, if the text stays the same
	retryLast  = 5 * time.Minute // the slowest
	burst      = 10              // texts that are loaded within a burstTime without a pause
	burstTime  = time.Minute
	lookEvery  = 10 * time.Second // for a changed template
)

// File is one file to keep.
type File struct {
	Source  string        // the template
	Target  string        // what is made of it
	Check   string        // shell command that judges a new text, which is in the file $FILE; empty: none
	Reload  string        // shell command that loads the target, $FILE; empty: none
	Mode    fs.FileMode   // of the target; zero: as it is, or 0644
	Timeout time.Duration // of each command
}

// Options are what rendering needs. Board, Dir and Log are required.
type Options struct {
	Files  []File
	Member string
	Board  *view.Board // that runs
	Dir    string      // remembers which target was not loaded yet
	Clock  clock.Clock
	Log    *slog.Logger
	Events event.Sink
}

// Data is what templates see.
type Data struct {
	view.Picture
	Member string // this member's id
}

// State is how it stands with one file.
type State struct {
	Target string
	Loads  uint64 // texts that were put in place and loaded
	Fails  uint64
	Error  string // of the latest attempt; empty when it worked
}

// Renderer keeps files current.
type Renderer struct {
	o     Options
	files []*keeper
}

// keeper keeps one file. Its fields are run's own, but for state.
type keeper struct {
	File
	o       Options
	applied string // hash of the text that is in place and loaded; empty: not known
	failed  string // hash of what did not work
	fails   int    // in a row
	again   time.Duration
	loads   []time.Duration // uptime of the latest ones

	mu    sync.Mutex // guards state
	state State
}

// New returns what keeps these files.
func New(o Options) (*Renderer, error) {
	if o.Board == nil || o.Log == nil || o.Clock == nil || o.Dir == "" {
		return nil, errors.New("render: Board, Log, Clock and Dir are required")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("render: %w", err)
	}
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	r := &Renderer{o: o}
	for _, f := range o.Files {
		if _, err := parse(f.Source); err != nil {
			return nil, err
		}
		r.files = append(r.files, &keeper{File: f, o: o, state: State{Target: f.Target}})
	}
	return r, nil
}

// States tells how it stands with all files.
func (r *Renderer) States() []State {
	var all []State
	for _, k := range r.files {
		k.mu.Lock()
		all = append(all, k.state)
		k.mu.Unlock()
	}
	return all
}

// Run keeps the files current until ctx ends.
func (r *Renderer) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, k := range r.files {
		all.Go(func() { k.run(ctx) })
	}
	all.Wait()
	return ctx.Err()
}

func (k *keeper) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		next := k.o.Board.Next()
		if p := k.o.Board.Look(); p.Known {
			if wait := k.keep(ctx, p); wait > 0 {
				again.Reset(wait)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-next:
		case <-tick.C:
		case <-again.C:
		}
	}
}

// keep makes the target what the picture asks for, and returns when to come back if it did not come to that; zero: with the next
// change.
func (k *keeper) keep(ctx context.Context, p view.Picture) time.Duration {
	now := k.o.Clock.Uptime()
	text, err := k.text(p)
	hash := hashOf(text)
	if err != nil {
		hash = "error " + err.Error()
	}
	switch {
	case err == nil && hash == k.applied:
		k.failed, k.fails = "", 0
		return 0
	case hash == k.failed && now < k.again:
		return k.again - now
	case err == nil && k.applied == "" && k.inPlace(text):
		k.applied = hash
		return 0
	}
	if wait := k.pause(now); wait > 0 {
		return wait
	}
	if err == nil {
		err = k.apply(ctx, text)
	}
	if ctx.Err() != nil {
		return 0 // stopped in the middle: whoever comes next finds what is owed
	}
	if err != nil {
		return k.fail(hash, err)
	}
	k.applied, k.failed, k.fails = hash, "", 0
	k.note(nil)
	k.tell(p, "wrote and loaded "+k.Target)
	return 0
}

// text renders the template.
func (k *keeper) text(p view.Picture) ([]byte, error) {
	t, err := parse(k.Source)
	if err != nil {
		return nil, err
	}
	out := &bounded{most: textMax}
	if err := t.Execute(out, Data{p, k.o.Member}); err != nil {
		return nil, fmt.Errorf("render %s: %w", k.Source, err)
	}
	return out.Bytes(), nil
}

// bounded takes so many bytes and no more.
type bounded struct {
	bytes.Buffer
	most int
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.most {
		return 0, fmt.Errorf("the text is longer than %d bytes", b.most)
	}
	return b.Buffer.Write(p)
}

func parse(path string) (*template.Template, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the template: %w", err)
	}
	if info.Size() > sourceMax {
		return nil, fmt.Errorf("read the template: %s has more than %d bytes", path, sourceMax)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the template: %w", err)
	}
	t, err := template.New(filepath.Base(path)).Option("missingkey=error").Funcs(template.FuncMap{
		"join": strings.Join, "lower": strings.ToLower, "replace": strings.ReplaceAll,
		"json": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
	}).Parse(string(b))
	if err != nil {
		return nil, fmt.Errorf("read the template %s: %w", path, err)
	}
	return t, nil
}

func hashOf(text []byte) string {
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:])
}

// pause is how long to wait so that a topology that does not come to rest does not load in a loop.
func (k *keeper) pause(now time.Duration) time.Duration {
	for len(k.loads) > 0 && now-k.loads[0] > burstTime {
		k.loads = k.loads[1:]
	}
	if len(k.loads) >= burst {
		return k.loads[0] + burstTime - now + time.Millisecond
	}
	k.loads = append(k.loads, now)
	return 0
}

// fail notes what did not work, and returns when to try the same again.
func (k *keeper) fail(hash string, err error) time.Duration {
	if hash != k.failed {
		k.failed, k.fails = hash, 0
	}
	k.fails++
	wait := min(retryFirst<<min(k.fails-1, 10), retryLast)
	k.again = k.o.Clock.Uptime() + wait
	k.note(err)
	k.o.Log.Error("a file was not updated; it stays as it was, or is not loaded yet", "file", k.Target, "err", err, "again_in", wait)
	k.o.Events(event.Event{At: k.o.Clock.Now(), Kind: "template", Text: fmt.Sprintf("%s was not updated: %v", k.Target, err)})
	return wait
}

func (k *keeper) tell(p view.Picture, text string) {
	var epoch uint64
	for _, s := range p.Shards {
		epoch = max(epoch, uint64(s.Epoch))
	}
	k.o.Log.Info(text, "epoch", epoch)
	k.o.Events(event.Event{At: k.o.Clock.Now(), Kind: "template", Epoch: epoch, Text: text})
}

func (k *keeper) note(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.state.Fails++
		k.state.Error = err.Error()
		return
	}
	k.state.Loads++
	k.state.Error = ""
}
