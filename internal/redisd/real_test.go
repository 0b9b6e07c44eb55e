// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

func TestAServerAlwaysBootsFrozen(t *testing.T) {
	t.Parallel()
	n := open(t, func(o *Options) { o.Persistence = PersistAOF })
	o := see(t, n, "the first look", isUp)
	if !o.Frozen || o.Role != topo.RoleReplica || len(o.Settings) > 0 || len(o.Problems) > 0 {
		t.Fatalf("not frozen and sound after the start: %+v", o)
	}
	promote(t, n)
	if err := n.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	if o := n.Observe(within(t, time.Second)); o.Health != topo.HealthExited || o.RunID == "" {
		t.Fatalf("after the kill: %+v", o)
	}
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	again := see(t, n, "the second process", isUp)
	if !again.Frozen || again.RunID == o.RunID {
		t.Fatalf("not frozen after the restart: %+v", again)
	}
}

func TestPrimingGivesABacklogAndAnIDThatTheFirstReplicaDoesNotChange(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	o := see(t, n, "an answering server", isUp)
	e := electedOf(o)
	began := time.Now()
	pos, err := n.Promote(within(t, 2*time.Second), e, tenure())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("promotion with priming took %s", time.Since(began))
	o = see(t, n, "the primary", isUp)
	if !o.Backlog || o.Role != topo.RolePrimary || o.Pos != pos {
		t.Fatalf("after the promotion to %+v: %+v", pos, o)
	}
	if again, err := n.Promote(within(t, time.Second), e, tenure()); err != nil || again != pos {
		t.Fatalf("the same promotion again: %+v, %v", again, err)
	}
	c := client(t, n.addr, "")
	if must(t, c, "SET", "k", "v"); !strings.Contains(must(t, c, "INFO", "stats").text, "total_forks:0") {
		t.Fatal("priming forked a child")
	}
	if got := must(t, c, "CONFIG", "GET", "repl-diskless-sync-delay").items[1].text; got != "0" {
		t.Fatalf("repl-diskless-sync-delay was left at %s", got)
	}
	r := follow(t, open(t, nil), n)
	if r.Pos.ReplID != pos.ReplID {
		t.Fatalf("the first replica has id %s, the primary had %s", r.Pos.ReplID, pos.ReplID)
	}
}

func TestPromotionIsRefusedForAnotherProcessOrPosition(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	o := see(t, n, "an answering server", isUp)
	for name, change := range map[string]func(*topo.Elected){
		"run id": func(e *topo.Elected) { e.RunID = strings.Repeat("0", 40) },
		"replid": func(e *topo.Elected) { e.ReplID = strings.Repeat("0", 40) },
		"offset": func(e *topo.Elected) { e.Offset++ },
	} {
		e := electedOf(o)
		change(&e)
		if _, err := n.Promote(within(t, time.Second), e, tenure()); !errors.Is(err, redis.ErrRefused) {
			t.Fatalf("wrong %s: %v", name, err)
		}
	}
	if o = n.Observe(within(t, time.Second)); !o.Frozen {
		t.Fatalf("a refused promotion changed something: %+v", o)
	}
}
