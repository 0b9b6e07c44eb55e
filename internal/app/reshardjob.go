// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"redoubt/internal/api"
	"redoubt/internal/coord"
	"redoubt/internal/reshard"
	"redoubt/internal/slots"
	"redoubt/internal/topo"
)

// job is what is to be moved, as the store keeps it. How far the batch has come that is on its way stands beside the slot map.
type job struct {
	Format    int                `json:"format"`
	N         int                `json:"n"` // grows with each
	By        string             `json:"by,omitempty"`
	Secret    string             `json:"secret,omitempty"` // of redis.MoverUser, while it is under way
	Weights   map[string]float64 `json:"weights,omitempty"`
	Measure   reshard.Measure    `json:"measure"`
	Batch     int                `json:"batch"`
	Rate      reshard.Rate       `json:"rate"`
	Force     bool               `json:"force,omitempty"`
	Wish      reshard.Wish       `json:"wish,omitempty"`
	State     string             `json:"state"`
	Why       string             `json:"why,omitempty"`
	Leaving   string             `json:"leaving,omitempty"` // the shard that is emptied to be removed
	Came      []string           `json:"came,omitempty"`    // shards that were given their part by themselves, in this or an earlier one
	Todo      []leg              `json:"todo,omitempty"`
	Slots     int                `json:"slots"`
	Moved     int                `json:"moved"`
	Keys      int64              `json:"keys"`
	Bytes     int64              `json:"bytes"`
	Stops     int                `json:"stops"`
	Longest   topo.Duration      `json:"longest_stop"`
	Waits     []int              `json:"waits,omitempty"` // how many stops ended within each of stopBounds
	Took      topo.Duration      `json:"took"`            // of all batches
	StartedMS int64              `json:"started_ms"`
	EndedMS   int64              `json:"ended_ms,omitempty"`
}

// leg is what one shard gives to another.
type leg struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Slots string `json:"slots"`
}

const (
	jobFormat    = 1
	batchDefault = 32
	batchMost    = 200
	stallDefault = 2 * time.Millisecond
)

func (j *job) active() bool {
	return j != nil && (j.State == api.ReshardRunning || j.State == api.ReshardPaused)
}

// next returns the batch that comes next; false: there is none.
func (j *job) next() (reshard.Move, bool) {
	for _, l := range j.Todo {
		if rs, err := slots.ParseRanges(l.Slots); err == nil && len(rs) > 0 {
			all := numbersOf(rs)
			return reshard.Move{Slots: all[:min(len(all), j.Batch)], From: l.From, To: l.To, Force: j.Force}, true
		}
	}
	return reshard.Move{}, false
}

// without returns what is left to do behind a batch.
func without(todo []leg, mv reshard.Move) []leg {
	gone := map[int]bool{}
	for _, s := range mv.Slots {
		gone[s] = true
	}
	var left []leg
	for _, l := range todo {
		rs, err := slots.ParseRanges(l.Slots)
		if err != nil {
			continue
		}
		var kept []int
		for _, s := range numbersOf(rs) {
			if l.From != mv.From || l.To != mv.To || !gone[s] {
				kept = append(kept, s)
			}
		}
		if len(kept) > 0 {
			left = append(left, leg{l.From, l.To, slotsText(kept)})
		}
	}
	return left
}

// jobBook is this member's copy of the document. Safe for concurrent use.
type jobBook struct {
	mu      sync.Mutex // guards what follows
	now     *job       // nil: none was ever ordered, or it is not known yet
	rev     coord.Rev
	changed chan struct{} // closed at each new revision
	trouble string        // why it does not go on, by who carries it out; here
}

func newJobBook() *jobBook { return &jobBook{changed: make(chan struct{})} }

func (b *jobBook) get() (*job, coord.Rev, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now, b.rev, b.changed
}

func (b *jobBook) offer(doc coord.Doc) error {
	var j job
	if err := json.Unmarshal(doc.Value, &j); err != nil || j.Format != jobFormat {
		return fmt.Errorf("what is stored about moving slots cannot be used (format %d): all members need the same version: %w", j.Format, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if doc.Rev > b.rev {
		b.now, b.rev = &j, doc.Rev
		close(b.changed)
		b.changed = make(chan struct{})
	}
	return nil
}

// secret is the password of who moves slots; empty: nobody does.
func (b *jobBook) secret() string {
	if j, _, _ := b.get(); j.active() {
		return j.Secret
	}
	return ""
}

func (b *jobBook) setTrouble(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trouble = text
}

// keepJobs keeps this member's copy current until ctx ends.
func (m *member) keepJobs(ctx context.Context) error {
	key := topo.KeyReshard + m.deploy.Name
	pushed := m.shared.Watch(ctx, key)
	tick := time.NewTicker(slotsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case doc, ok := <-pushed:
			if !ok {
				pushed = nil
			} else if err := m.jobs.offer(doc); err != nil {
				return err
			}
		case <-tick.C:
			if _, err := m.readJob(ctx); err != nil && !errors.Is(err, coord.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				m.log.Debug("read what is stored about moving slots", "err", err)
			}
		}
	}
}

// readJob reads the document; nil without an error: there is none.
func (m *member) readJob(ctx context.Context) (*job, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	doc, err := m.shared.Get(ctx, topo.KeyReshard+m.deploy.Name)
	switch {
	case errors.Is(err, coord.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := m.jobs.offer(doc); err != nil {
		return nil, err
	}
	j, _, _ := m.jobs.get()
	return j, nil
}

// changeJob changes the document by what change makes of a copy of the present one (nil: there is none). A nil result changes nothing.
func (m *member) changeJob(ctx context.Context, change func(*job) (*job, error)) (*job, error) {
	var result *job
	doc, err := m.rewrite(ctx, topo.KeyReshard+m.deploy.Name, func() ([]byte, coord.Rev, error) {
		if _, err := m.readJob(ctx); err != nil {
			return nil, 0, err
		}
		now, rev, _ := m.jobs.get()
		var was *job
		if now != nil {
			c := *now
			was = &c
		}
		next, err := change(was)
		if err != nil || next == nil {
			result = now
			return nil, 0, err
		}
		next.Format, result = jobFormat, next
		value, err := json.Marshal(next)
		if err != nil {
			return nil, 0, fmt.Errorf("encode what is to be moved: %w", err)
		}
		return value, rev, nil
	})
	if err != nil || doc.Value == nil {
		return result, err
	}
	return result, m.jobs.offer(doc)
}

func newMoverSecret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // it never returns an error (crypto/rand, Go 1.24)
	return hex.EncodeToString(b)
}
