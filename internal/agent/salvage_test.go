// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// shelf is a keeper in memory.
type shelf struct {
	mu    sync.Mutex
	files map[string]topo.Salvage
	data  map[string]string
	err   error
	tries int
}

func newShelf() *shelf { return &shelf{files: map[string]topo.Salvage{}, data: map[string]string{}} }

func (s *shelf) Keep(head topo.Salvage, read func(int64, io.Writer) error) (topo.Salvage, bool, error) {
	s.mu.Lock()
	s.tries++
	err := s.err
	s.mu.Unlock()
	var b bytes.Buffer
	if err = errors.Join(err, read(1<<20, &b)); err != nil {
		return head, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	head.ID, head.To, head.Bytes, head.Commands = string(head.Node), head.End, int64(b.Len()), int64(strings.Count(b.String(), "SET"))
	s.files[head.ID], s.data[head.ID] = head, b.String()
	return head, true, nil
}

func (s *shelf) of(id topo.NodeID) (topo.Salvage, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[string(id)], s.data[string(id)]
}

func (w *world) noted() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.notes, "\n")
}

// diverge makes n1 acknowledge writes that n2 does not get, and lets n2 serve epoch 2 as soon as serve is called.
func diverge(w *world) (old, next *seat, branch int64, serve func()) {
	old, next = w.start("n1"), w.start("n2")
	w.promote("n1", 1)
	w.until("n2 follows", time.Second, func() bool { return next.look().LinkUp })
	if _, err := old.Write("both"); err != nil {
		w.t.Fatal(err)
	}
	w.servers.Cut("n1:1", "n2:1", true)
	for _, v := range []string{"lost1", "lost2"} {
		if _, err := old.Write(v); err != nil {
			w.t.Fatal(err)
		}
	}
	w.fencing(2)
	w.until("both are frozen", time.Second, func() bool { return w.told("n1").Frozen && w.told("n2").Frozen && w.told("n2").Promised == 2 })
	branch = next.look().Pos.Offset
	a := w.agreed()
	parent := a.History[len(a.History)-1].Epoch
	a.Phase, a.Primary, a.Elected = topo.PhasePromoting, "n2", next.elected()
	a.RunID = a.Elected.RunID
	w.order(a)
	w.until("n2 is promoted", time.Second, func() bool { t := w.told("n2"); return t.Role == topo.RolePrimary && t.Epoch == 2 })
	return old, next, branch, func() {
		a.Phase, a.Elected = topo.PhaseServing, nil
		a.History = append(a.History, topo.HistoryEntry{Epoch: 2, ReplID: next.look().Pos.ReplID, Start: branch, Parent: parent, Node: "n2"})
		w.order(a)
		w.servers.Cut("n1:1", "n2:1", false)
	}
}

func TestDiscardedWritesAreKeptBeforeTheNodeFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := newShelf()
		w.keeper = s
		old, _, branch, serve := diverge(w)
		end := old.look().Pos
		serve()
		w.until("n1 follows", time.Second, func() bool { return old.look().LinkUp })
		f, data := s.of("n1")
		if f.From != branch || f.End != end.Offset || f.ReplID != end.ReplID || f.Epoch != 2 || f.RunID == "" || !strings.Contains(data, "lost1") || !strings.Contains(data, "lost2") || strings.Contains(data, "both") {
			t.Fatalf("kept %+v %q, branch %d, end %+v", f, data, branch, end)
		}
		if old.Holds("lost1") || s.tries != 1 {
			t.Fatalf("after %d tries it still has its tail", s.tries)
		}
		w.until("it is told", time.Second, func() bool { return strings.Contains(w.noted(), "n1 had 2 commands (20 bytes)") })
	})
}

func TestWhatCannotBeKeptDoesNotHoldANodeBack(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		limit time.Duration
	}{
		"not in memory":        {redis.ErrNoTail, 100 * time.Millisecond},
		"a server that hangs":  {redis.ErrUnanswered, 3 * time.Second},
		"a disk that is full":  {errors.New("no space left on device"), 3 * time.Second},
		"it says it may not":   {redis.ErrRefused, 3 * time.Second},
		"nothing keeps at all": {nil, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "n1", "n2")
				s := newShelf()
				s.err = c.err
				if c.err != nil {
					w.keeper = s
				}
				old, _, _, serve := diverge(w)
				serve()
				w.until("n1 follows", c.limit, func() bool { return old.look().LinkUp })
				if c.err == nil {
					return
				}
				w.until("it is told", time.Second, func() bool {
					return strings.Contains(w.noted(), "could not be kept") && strings.Contains(w.noted(), c.err.Error())
				})
			})
		})
	}
}

func TestAnElectionDoesNotWaitForASalvage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := newShelf()
		w.keeper = s
		old, _, _, serve := diverge(w)
		old.mu.Lock()
		old.slowTail = true // until its time is over
		old.mu.Unlock()
		serve()
		w.until("the salvage has begun", time.Second, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.tries == 1 })
		seq := w.told("n1").Seq
		w.until("reports go on", time.Second, func() bool { return w.told("n1").Seq >= seq+2 })
		if old.look().LinkUp {
			t.Fatal("it follows before its tail is kept")
		}
		w.fencing(3)
		took := w.until("n1 is a witness", time.Second, func() bool { t := w.told("n1"); return t.Epoch == 3 && t.Frozen && t.Promised == 3 })
		if took > 50*time.Millisecond {
			t.Errorf("that took %s", took)
		}
		old.mu.Lock()
		old.slowTail = false
		old.mu.Unlock()
		a := w.agreed()
		a.Epoch, a.Phase, a.Elected = 4, topo.PhaseServing, nil
		w.order(a)
		w.until("the tail is kept", 3*time.Second, func() bool { _, data := s.of("n1"); return strings.Contains(data, "lost2") })
	})
}

func TestAPrimaryThatCrashedLeavesItsJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		s := newShelf()
		w.keeper = s
		old, next := w.start("n1"), w.start("n2")
		old.SetKeep(true)
		w.promote("n1", 1)
		w.until("n2 follows", time.Second, func() bool { return next.look().LinkUp })
		w.servers.Cut("n1:1", "n2:1", true)
		if _, err := old.Write("lost"); err != nil {
			t.Fatal(err)
		}
		old.Crash()
		w.fencing(2)
		w.until("n2 is frozen", time.Second, func() bool { return w.told("n2").Frozen && w.told("n2").Promised == 2 })
		a := w.agreed()
		branch, parent := next.look().Pos.Offset, a.History[0].Epoch
		a.Phase, a.Primary, a.Elected = topo.PhasePromoting, "n2", next.elected()
		a.RunID = a.Elected.RunID
		w.order(a)
		w.until("n2 is promoted", time.Second, func() bool { t := w.told("n2"); return t.Role == topo.RolePrimary && t.Epoch == 2 })
		a.Phase, a.Elected = topo.PhaseServing, nil
		a.History = append(a.History, topo.HistoryEntry{Epoch: 2, ReplID: next.look().Pos.ReplID, Start: branch, Parent: parent, Node: "n2"})
		w.order(a)
		w.servers.Cut("n1:1", "n2:1", false)
		w.until("n1 follows", 3*time.Second, func() bool { return old.look().LinkUp })
		if f, data := s.of("n1"); !f.Journal || f.Epoch != 2 || !strings.Contains(data, "lost") {
			t.Fatalf("kept %+v %q", f, data)
		}
		w.until("it is told", time.Second, func() bool { return strings.Contains(w.noted(), "its memory is gone") })

		// As a replica it has nothing of its own: that it crashes says nothing.
		old.Crash()
		w.until("n1 is gone", time.Second, func() bool { return !old.look().LinkUp })
		w.until("n1 follows again", 3*time.Second, func() bool { return old.look().LinkUp })
		if s.tries != 1 {
			t.Fatalf("a replica's journal was kept")
		}
	})
}
