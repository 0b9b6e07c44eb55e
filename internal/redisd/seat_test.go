// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

func TestAFullSyncMakesTheFileCountOnlyAfterItsRewrite(t *testing.T) {
	t.Parallel()
	p := primary(t, nil)
	fill(t, client(t, p.addr, ""), 100)
	r := open(t, func(o *Options) { o.Persistence = PersistAOF })
	follow(t, r, p)
	see(t, r, "the end of the rewrite", func(o redis.Observation) bool { return isUp(o) && !o.AOFBusy && o.Keys == 100 })
	if err := r.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(r.managed.o.Dir, serverLog)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "ull resync from") || !readStory(log, 0).anew {
		t.Fatalf("this server's log is not understood:\n%s", text)
	}
	// The same end without the rewrite: what a kill in the middle of it leaves.
	cut := strings.LastIndex(string(text), "AOF rewrite finished successfully")
	if err := os.WriteFile(log, text[:cut], 0o600); err != nil {
		t.Fatal(err)
	}
	if readStory(log, 0).covers {
		t.Fatal("a sync without a finished rewrite counts")
	}
	if err := os.WriteFile(log, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if o := see(t, r, "the new process", isUp); !o.Kept || o.Keys != 100 {
		t.Fatalf("after a full sync, its rewrite and a kill: %+v", o)
	}
}

func TestASeatWhoseDataWasRemovedIsNotKept(t *testing.T) {
	t.Parallel()
	n := open(t, func(o *Options) { o.Persistence = PersistAOF })
	promote(t, n)
	must(t, client(t, n.addr, ""), "SET", "k", "v")
	if err := n.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"appendonlydir", "appendonly.aof"} {
		if err := os.RemoveAll(filepath.Join(n.managed.o.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if o := see(t, n, "the new process", isUp); o.Kept || o.Keys != 0 {
		t.Fatalf("after its data was removed: %+v", o)
	}
}

func TestAServerThatSleepsIsHungAndNotBusy(t *testing.T) {
	t.Parallel()
	n := open(t, func(o *Options) { o.Directives = map[string]string{"enable-debug-command": "local"} })
	if o := see(t, n, "the start or its refusal", func(o redis.Observation) bool { return isUp(o) || o.Health == topo.HealthExited }); !isUp(o) {
		t.Skipf("a server before 7.0 cannot be made to sleep this way: %s", o.Detail)
	}
	promote(t, n)
	if _, err := client(t, n.addr, "").send([]string{"DEBUG", "SLEEP", "1"}); err != nil {
		t.Fatal(err)
	}
	o := see(t, n, "the silence", func(o redis.Observation) bool { return !isUp(o) })
	if o.Health != topo.HealthHung {
		t.Fatalf("a sleeping server looks like %+v", o)
	}
	see(t, n, "time pass in the same health", func(o redis.Observation) bool {
		return o.Health == topo.HealthHung && o.HealthFor > 200*time.Millisecond
	})
	see(t, n, "the end of it", isUp)
}

func TestTheNextAgentRecallsAPromotionWhoseTracePrimingErased(t *testing.T) {
	t.Parallel()
	n := open(t, nil)
	e := electedOf(see(t, n, "an answering server", isUp))
	pos, err := n.Promote(within(t, time.Second), e, tenure())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Managed(within(t, time.Second), n.managed.o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if now, err := again.Promote(within(t, time.Second), e, tenure()); err != nil || now != pos {
		t.Fatalf("the same promotion by the next agent: %+v, %v; it was %+v", now, err, pos)
	}
	e.Offset++
	if _, err := again.Promote(within(t, time.Second), e, tenure()); !errors.Is(err, redis.ErrRefused) {
		t.Fatalf("another promotion: %v", err)
	}
	if err := again.Stop(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if o := again.Observe(within(t, time.Second)); o.Health != topo.HealthExited {
		t.Fatalf("after a polite stop: %+v", o)
	}
}

func TestKeptIsOnlySaidWhenTheFileHoldsEverything(t *testing.T) {
	t.Parallel()
	restart := func(t *testing.T, n *Node) redis.Observation {
		t.Helper()
		if err := n.Kill(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := n.Restart(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		return see(t, n, "the new process", isUp)
	}
	n := open(t, keepsAll)
	if o := see(t, n, "the first process", isUp); o.Kept {
		t.Fatal("a new seat says that it kept everything")
	}
	promote(t, n)
	c := client(t, n.addr, "")
	must(t, c, "SET", "k", "v")
	if o := restart(t, n); !o.Kept || o.Keys != 1 {
		t.Fatalf("after a plain kill: %+v", o)
	}
	// A torn tail.
	if err := n.Kill(within(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(n.managed.o.Dir, "appendonlydir", "*.incr.aof"))
	if len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(n.managed.o.Dir, "*.aof"))
	}
	if err := os.Truncate(files[len(files)-1], fileSize(files[len(files)-1])-3); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if o := see(t, n, "the new process", isUp); o.Kept {
		t.Fatalf("after a torn tail: %+v", o)
	}
	if o := restart(t, n); o.Kept {
		t.Fatalf("a second start on what was left: %+v", o)
	}
	promote(t, n) // what it has is everything from here on
	if o := restart(t, n); !o.Kept {
		t.Fatalf("after its election: %+v", o)
	}
	// The file switched off while running.
	must(t, client(t, n.addr, ""), "CONFIG", "SET", "appendonly", "no")
	n.Observe(within(t, time.Second))
	if o := restart(t, n); o.Kept {
		t.Fatalf("after appendonly no: %+v", o)
	}
}

// TestASeatStartsAfterALossOfPower: files that were not synced are there with nothing in them, or with zero bytes.
func TestASeatStartsAfterALossOfPower(t *testing.T) {
	t.Parallel()
	for _, left := range []string{"", "\x00\x00\x00\x00"} {
		n := open(t, keepsAll)
		promote(t, n)
		must(t, client(t, n.addr, ""), "SET", "k", "v")
		if err := n.Kill(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		dir := n.managed.o.Dir
		for _, name := range []string{seatFile, serverFile, bootFile, adminFile, promotedFile, secretFile} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(left), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		again := open(t, func(o *Options) { o.Persistence, o.Dir = PersistAOF, dir })
		o := see(t, again, "the next process", func(o redis.Observation) bool { return isUp(o) && o.Frozen })
		if o.Kept || o.Keys != 1 {
			t.Errorf("%q: kept %v, %d keys", left, o.Kept, o.Keys)
		}
	}
}
