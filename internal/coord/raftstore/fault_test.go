// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
	"redoubt/internal/coord/kit"
	"redoubt/test/ports"
)

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestPartitionedControllerCanNeitherReadNorControl(t *testing.T) {
	p := newParty(t, 3)
	i := p.controller()
	old := p.stores[i]
	lease, err := old.Campaign(within(t, time.Second))
	if err != nil {
		t.Fatal(err)
	}
	rev := coordtest.Put(t, old, "k", "before")
	p.nets[i].setCut(true)
	if _, err := old.Get(within(t, 300*time.Millisecond), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("get of the cut controller: %v", err)
	}
	select {
	case <-lease.Lost():
	case <-within(t, 10*time.Second).Done():
		t.Fatal("the cut controller did not learn it")
	}
	if _, ok := old.ReadAge("m1"); ok {
		t.Fatal("the cut controller still knows ages")
	}
	if _, err := old.Swap(within(t, 300*time.Millisecond), "k", []byte("x"), rev); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("swap of the cut controller: %v", err)
	}
	if err := old.Send(within(t, time.Second), "m", nil, time.Second); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("report of the cut controller: %v", err)
	}
	next := p.stores[p.controller(i)]
	coordtest.Put(t, next, "k", "after")
	seen := old.Watch(within(t, 20*time.Second), "k")
	p.nets[i].setCut(false)
	for doc := range seen {
		if string(doc.Value) == "after" {
			break
		}
	}
	if doc, err := old.Get(within(t, 5*time.Second), "k"); err != nil || string(doc.Value) != "after" {
		t.Fatalf("healed member reads %q, %v", doc.Value, err)
	}
}

// A controller whose disk hangs goes on sending what needs no disk. The others must not follow it: it can commit nothing.
func TestAControllerWhoseDiskHangsIsReplaced(t *testing.T) {
	p := newParty(t, 3)
	i := p.controller()
	old := p.stores[i]
	rev := coordtest.Put(t, old, "k", "before")
	old.disk.log.mu.Lock() // every append waits from here on
	release := sync.OnceFunc(old.disk.log.mu.Unlock)
	defer release()
	if _, err := old.Swap(within(t, 300*time.Millisecond), "k", []byte("x"), rev); err == nil {
		t.Fatal("a swap succeeded without a disk")
	}
	begun := time.Now()
	next := p.stores[p.controller(i)]
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it was replaced after %s", took)
	}
	coordtest.Put(t, next, "k", "after")
	release()
	coordtest.Until(t, "the old controller reads the present", func() bool {
		doc, err := old.Get(within(t, time.Second), "k")
		return err == nil && string(doc.Value) == "after"
	})
}

func TestControllerWhosePacketsWereHeldReadsThePresent(t *testing.T) {
	p := newParty(t, 3)
	for range 3 {
		i := p.controller()
		old := p.stores[i]
		coordtest.Put(t, old, "k", "before")
		p.nets[i].hold(true)
		next := p.stores[p.controller(i)]
		coordtest.Put(t, next, "k", "after")
		got := make(chan string, 1)
		go func() {
			doc, err := old.Get(context.Background(), "k")
			if err != nil {
				doc.Value = []byte(err.Error())
			}
			got <- string(doc.Value)
		}()
		p.nets[i].hold(false)
		if v := <-got; v != "after" {
			t.Fatalf("read %q after the release", v)
		}
	}
}

func TestOnlyAnswersOfThisRoundAndTermConfirm(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	i := p.controller()
	g := p.stores[i].reign.Load()
	p.nets[i].hold(true) // no real answers
	defer p.nets[i].hold(false)
	q := &round{done: make(chan struct{}), full: make(chan struct{})}
	g.mu.Lock()
	g.begin(q)
	g.mu.Unlock()
	other := p.members[p.other(i)].ID
	g.confirmed(other, kit.Frame{ID: q.id - 1, Rev: g.raftTerm}, 0)
	g.confirmed(other, kit.Frame{ID: q.id, Rev: g.raftTerm + 1}, 0)
	g.confirmed("stranger", kit.Frame{ID: q.id, Rev: g.raftTerm}, 0)
	g.confirmed(p.members[i].ID, kit.Frame{ID: q.id, Rev: g.raftTerm}, 0)
	select {
	case <-q.full:
		t.Fatal("an answer counted that proves nothing")
	default:
	}
	g.confirmed(other, kit.Frame{ID: q.id, Rev: g.raftTerm}, 0)
	<-q.full
}

// handClock stands still until a test moves it.
type handClock struct {
	clock.Real
	at time.Duration
}

func (c *handClock) Uptime() time.Duration { return c.at }

func TestOathsOfAnEarlierTermAreToldToTheNext(t *testing.T) {
	now := &handClock{at: time.Hour}
	o := oaths{clock: now, before: now.at}
	term := uint64(3)
	present := func() uint64 { return term }
	swear := func(asked, wantTerm uint64, want time.Duration) {
		t.Helper()
		if got, age := o.swear(asked, present); got != wantTerm || age != want {
			t.Errorf("asked for term %d: %d, %s; want %d, %s", asked, got, age, wantTerm, want)
		}
	}
	now.at += time.Second
	swear(3, 3, time.Second) // what an earlier process of this member swore was before it began
	now.at += time.Second
	swear(3, 3, 2*time.Second)
	term = 5
	now.at += time.Second
	swear(3, 5, 0) // not confirmed, so it is no oath
	swear(5, 5, time.Second)
	now.at += time.Second
	swear(5, 5, 2*time.Second)
	swear(4, 5, 0)
	term = 6
	swear(6, 6, 0) // term 5 was confirmed just now
}

// A controller that was cut off long before its successor took the seat: the time between counts.
func TestVacancyBeginsWithTheLastAnswerOfTheEarlierController(t *testing.T) {
	p := newParty(t, 3)
	i := p.controller()
	reader := p.stores[p.other(i)]
	coordtest.Put(t, p.stores[i], "k", "v")
	wait := func(d time.Duration) { <-time.After(d) }
	wait(100 * time.Millisecond)
	earliest := time.Now()
	if _, err := reader.Get(within(t, 5*time.Second), "k"); err != nil {
		t.Fatal(err)
	}
	answered := time.Now()
	p.nets[i].setCut(true)
	defer p.nets[i].setCut(false)
	n := p.controller(i)
	next := p.stores[n]
	if _, err := next.Get(within(t, 5*time.Second), "k"); err != nil { // a round of its own
		t.Fatal(err)
	}
	least := time.Since(answered) - 50*time.Millisecond // what messages take; an election takes longer
	vacant, ok := next.VacantFor()
	if most := time.Since(earliest); !ok || vacant > most || vacant < least {
		t.Errorf("vacant for %s (%t); the last read was answered between %s and %s ago", vacant, ok, least, most)
	}
	if age, ok := next.ReadAge("m1"); !ok || age < least {
		t.Errorf("read age %s (%t), want at least %s", age, ok, least)
	}
	if _, ok := reader.VacantFor(); ok && reader != next {
		t.Error("one that is not the controller knows a vacancy")
	}
}

func TestReadAgeCountsReadsThatAnEarlierControllerAnswered(t *testing.T) {
	p := newParty(t, 3)
	i := p.controller()
	reader := p.stores[p.other(i)]
	coordtest.Put(t, p.stores[i], "k", "v")
	if _, err := reader.Get(within(t, 5*time.Second), "k"); err != nil {
		t.Fatal(err)
	}
	read := time.Now()
	p.nets[i].setCut(true)
	n := p.controller(i)
	age, ok := p.stores[n].ReadAge(reader.opts.ID)
	if since := time.Since(read); !ok || age > since {
		t.Fatalf("age %s (%t) is longer than the %s since the read", age, ok, since)
	}
	p.nets[i].setCut(false)
}

func TestMembersJoinThroughAnyMemberAndLearnTheirRemoval(t *testing.T) {
	p := newParty(t, 1)
	rev := coordtest.Put(t, p.stores[0], "k", "v")
	for _, id := range []string{"m2", "m3", "m4"} {
		addr := ports.Addr(t)
		p.members = append(p.members, coord.Member{ID: id, Addr: addr})
		p.nets = append(p.nets, &network{conns: map[*testConn]struct{}{}})
		via := p.stores[len(p.stores)-1].Addr()
		p.opts = append(p.opts, Options{ID: id, ListenAddr: addr, Dir: filepath.Join(t.TempDir(), id), Join: via, Log: testLog(t)})
		p.stores = append(p.stores, nil)
		p.open(len(p.stores) - 1)
		if doc, err := p.stores[len(p.stores)-1].Get(within(t, 5*time.Second), "k"); err != nil || doc.Rev != rev {
			t.Fatalf("%s reads %+v, %v", id, doc, err)
		}
	}
	list, err := p.stores[3].Members(within(t, 5*time.Second))
	if err != nil || len(list) != 4 || list[3].Addr != p.members[3].Addr {
		t.Fatalf("members %+v, %v", list, err)
	}
	p.stores[3].Close()
	p.open(3) // a member that joined comes back by itself
	if doc, err := p.stores[3].Get(within(t, 5*time.Second), "k"); err != nil || doc.Rev != rev {
		t.Fatalf("restarted member reads %+v, %v", doc, err)
	}
	c := p.controller()
	gone := p.stores[c]
	by := p.stores[p.other(c)]
	if err := by.RemoveMember(within(t, 10*time.Second), gone.opts.ID); err != nil { // even the controller
		t.Fatal(err)
	}
	select {
	case <-gone.Removed():
	case <-within(t, 10*time.Second).Done():
		t.Fatal("the removed member did not learn it")
	}
	if _, err := gone.Get(within(t, time.Second), "k"); !errors.Is(err, coord.ErrUnavailable) || !strings.Contains(err.Error(), "was removed") {
		t.Fatalf("get of a removed member: %v", err)
	}
	if err := by.RemoveMember(within(t, 5*time.Second), gone.opts.ID); !errors.Is(err, coord.ErrNotFound) {
		t.Fatalf("second removal: %v", err)
	}
	coordtest.Put(t, by, "k", "w")
}

func TestMemberWithANewAddressIsFoundAgain(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	i := p.other(p.controller())
	p.stores[i].Close()
	addr := ports.Addr(t)
	p.opts[i].ListenAddr, p.members[i].Addr = addr, addr
	p.open(i)
	coordtest.Until(t, "the others know the new address", func() bool {
		list, err := p.stores[p.controller()].Members(within(t, time.Second))
		return err == nil && list[i].Addr == addr
	})
	coordtest.Until(t, "raft reaches it", func() bool {
		_, id := p.stores[i].raft.Load().LeaderWithID()
		return id != ""
	})
}

func TestMemberThatLostItsDataCountsNoMore(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	i := p.other(p.controller())
	coordtest.Until(t, "all directories are known", func() bool { return p.stores[p.controller()].machine.seat(p.members[i].ID) != "" })
	p.stores[i].Close()
	dir := p.opts[i].Dir
	p.opts[i].Dir = filepath.Join(t.TempDir(), "empty")
	p.open(i)
	select {
	case <-p.stores[i].Removed():
	case <-within(t, 10*time.Second).Done():
		t.Fatal("the member did not learn that it cannot take part")
	}
	if _, err := p.stores[i].Get(within(t, time.Second), "k"); err == nil || !strings.Contains(err.Error(), "lost its data") {
		t.Fatalf("get: %v", err)
	}
	p.stores[i].Close()
	o := p.opts[i]
	o.Bootstrap, o.Join = nil, p.stores[p.other(i)].Addr()
	o.Dir = filepath.Join(t.TempDir(), "other")
	if s, err := Open(within(t, 5*time.Second), o); err == nil || !strings.Contains(err.Error(), "is a member already") {
		t.Fatalf("join under a name that is taken: %v", errors.Join(err, s.Close()))
	}
	p.opts[i].Dir = dir // it was only misplaced
	p.open(i)
	if doc, err := p.stores[i].Get(within(t, 5*time.Second), "k"); err != nil || string(doc.Value) != "v" {
		t.Fatalf("read %q, %v", doc.Value, err)
	}
	p.stores[i].Close()
	if err := p.stores[p.other(i)].RemoveMember(within(t, 5*time.Second), o.ID); err != nil {
		t.Fatal(err)
	}
	o.Dir = filepath.Join(t.TempDir(), "new")
	p.opts[i] = o
	p.open(i)
	if doc, err := p.stores[i].Get(within(t, 5*time.Second), "k"); err != nil || string(doc.Value) != "v" {
		t.Fatalf("the member that joined again reads %q, %v", doc.Value, err)
	}
}

func TestJoinGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, Options{ID: "x", ListenAddr: "127.0.0.1:0", Dir: t.TempDir(), Join: ports.Addr(t)})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("join of nobody: %v", err)
	}
}

func TestStrangersOfAnotherDeploymentAreRefused(t *testing.T) {
	a, b := newParty(t, 1), newParty(t, 1)
	coordtest.Put(t, a.stores[0], "k", "a")
	coordtest.Put(t, b.stores[0], "k", "b")
	f := greeting{deployment: b.stores[0].Deployment(), seat: "s"}.frame(kit.KindHello, "m1", "x:1")
	if _, err := a.stores[0].checkHello(f); err == nil || !strings.Contains(err.Error(), "deployment") {
		t.Fatalf("hello of another deployment: %v", err)
	}
	f = greeting{target: "m7", seat: "s"}.frame(kit.KindHello, "m9", "x:1")
	if _, err := a.stores[0].checkHello(f); err == nil || !strings.Contains(err.Error(), `"m7"`) {
		t.Fatalf("hello for another member: %v", err)
	}
}
