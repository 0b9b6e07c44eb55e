// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"redoubt/internal/coord/memstore"
	"redoubt/internal/looptest"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// boardWorld is a board over a store in memory, in a bubble, whose controller is another member.
type boardWorld struct {
	*world
	board *view.Board
	other *memstore.Store
}

func startBoard(t *testing.T) *boardWorld {
	t.Helper()
	w := &world{t: t, clock: looptest.NewClock()}
	w.store = memstore.New(w.clock, "m1", "m2")
	b := &boardWorld{world: w, other: w.store.Member("m2")}
	if _, err := b.other.Campaign(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.write(serving(1, "run1"))
	w.view = view.New(w.store.Member("m1"), w.clock, key, slog.New(slog.DiscardHandler))
	var err error
	b.board, err = view.NewBoard(view.BoardOptions{Deployment: "d", Mode: "single", Parts: []view.Part{{ID: "s", View: w.view}}, Beats: w.store.Member("m1"), Clock: w.clock})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *boardWorld) report(name string, v any) {
	b.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.other.Send(b.t.Context(), name, body, 10*time.Second); err != nil {
		b.t.Fatal(err)
	}
}

// everybody reports.
func (b *boardWorld) everybody(epoch topo.Epoch) {
	b.report(topo.BeatNode+"n2", topo.Sighting{Node: "n2", Health: topo.HealthUp, Role: topo.RoleReplica, Whole: true, LinkUp: true, InSync: epoch})
	b.report(topo.BeatMember+"m2", topo.MemberReport{ID: "m2", ProxyAddr: "10.0.0.2:6379"})
}

// shows is the picture in a few words: primary, latest, replicas, proxies.
func (b *boardWorld) shows() string {
	p := b.board.Look()
	var words []string
	for _, at := range []*view.Place{p.Shards[0].Primary, p.Shards[0].Latest} {
		if at == nil {
			words = append(words, "-")
		} else {
			words = append(words, at.ID)
		}
	}
	return fmt.Sprint(strings.Join(words, " "), " ", len(p.Shards[0].Replicas), " ", len(p.Proxies))
}

func (b *boardWorld) expect(when, want string) {
	b.t.Helper()
	if got := b.shows(); got != want {
		b.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

func TestABoardNamesAPrimaryUnderALeaseOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBoard(t)
		b.expect("before anything is known", "- - 0 0")
		stop := looptest.Start(t, map[string]func(context.Context) error{"view": b.view.Run, "board": b.board.Run})
		defer stop()
		b.everybody(1)
		looptest.Pass(300 * time.Millisecond)
		b.expect("serving", "n1 n1 1 1")

		next := b.board.Next()
		fencing := serving(2, "run1")
		fencing.Phase = topo.PhaseFencing
		b.write(fencing)
		select {
		case <-next:
		case <-time.After(time.Millisecond):
			t.Error("nobody was told at once")
		}
		b.expect("between two primaries", "- n1 1 1")

		again := serving(3, "run2")
		b.write(again)
		looptest.Pass(100 * time.Millisecond)
		b.expect("serving again, replicas not in sync yet", "n1 n1 0 1")

		next = b.board.Next()
		b.store.Cut("m1")
		looptest.Pass(topo.LANTiming().Lease.D() + 100*time.Millisecond)
		b.expect("the lease is over", "- n1 0 1")
		select {
		case <-next:
		default:
			t.Error("nobody was told of the end of the lease")
		}
		looptest.Pass(time.Minute)
		b.expect("what was known last of the members stands", "- n1 0 1")
	})
}

func TestWhoDoesNotReportIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBoard(t)
		stop := looptest.Start(t, map[string]func(context.Context) error{"view": b.view.Run, "board": b.board.Run})
		defer stop()
		b.everybody(1)
		looptest.Pass(time.Second)
		b.expect("reported a second ago", "n1 n1 1 1")
		looptest.Pass(500 * time.Millisecond)
		b.expect("a node that is silent", "n1 n1 0 1")
		looptest.Pass(1500 * time.Millisecond)
		b.expect("a member that is silent", "n1 n1 0 0")
		b.everybody(1)
		looptest.Pass(300 * time.Millisecond)
		b.expect("back", "n1 n1 1 1")
	})
}
