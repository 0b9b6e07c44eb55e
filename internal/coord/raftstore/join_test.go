// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"redoubt/internal/coord/coordtest"
	"redoubt/test/ports"
)

// TestWhoHasJoinedCanElect: with a part of the log, and an old list of members in it, the new member would refuse its vote to the other
// one that is left.
func TestWhoHasJoinedCanElect(t *testing.T) {
	p := newParty(t, 3)
	for i := range 200 {
		coordtest.Put(t, p.stores[0], fmt.Sprint("k", i), string(bytes.Repeat([]byte{'v'}, 50_000)))
	}
	for range 3 {
		c := p.controller()
		i := p.other(c)
		p.stores[i].Close()
		if err := p.stores[c].RemoveMember(within(t, 10*time.Second), p.opts[i].ID); err != nil {
			t.Fatal(err)
		}
		p.opts[i].Bootstrap, p.opts[i].Join, p.opts[i].Dir = nil, p.stores[p.other(i)].Addr(), filepath.Join(t.TempDir(), "new")
		p.open(i)
		p.stores[c].Close()
		if doc, err := p.stores[p.controller(c)].Get(within(t, 10*time.Second), "k199"); err != nil || len(doc.Value) != 50_000 {
			t.Fatalf("%d bytes, %v", len(doc.Value), err)
		}
		p.open(c)
	}
}

// TestWhoJoinsIsNotSentAwayBefore: Raft still calls the member that had this name and address, when the new one begins.
func TestWhoJoinsIsNotSentAwayBefore(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	c := p.controller()
	gate, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	addr := ports.Addr(t)
	o := Options{ID: "m9", ListenAddr: addr, Dir: t.TempDir(), Join: gate.Addr().String(), Log: testLog(t)}
	type opened struct {
		s   *Store
		err error
	}
	end := make(chan opened, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	go func() {
		s, err := Open(ctx, o)
		end <- opened{s, err}
	}()
	asks, err := gate.Accept() // it runs, and asks
	if err != nil {
		t.Fatal(err)
	}
	r := p.stores[c].raft.Load()
	beat := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(p.opts[c].ID), Addr: []byte(p.stores[c].Addr())}, Term: r.CurrentTerm()}
	for until := time.Now().Add(time.Second); time.Now().Before(until); <-time.After(20 * time.Millisecond) {
		if err := p.stores[c].transport.AppendEntries("m9", raft.ServerAddress(addr), &beat, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case o := <-end:
		t.Fatalf("it is not asked to join yet, and ended: %v", o.err)
	default:
	}
	relay := func(from net.Conn) {
		to, err := net.Dial("tcp", p.stores[c].Addr())
		if err != nil {
			_ = from.Close()
			return
		}
		go func() { _, _ = io.Copy(to, from); _ = to.Close() }()
		_, _ = io.Copy(from, to)
		_ = from.Close()
	}
	go relay(asks)
	go func() {
		for {
			from, err := gate.Accept()
			if err != nil {
				return
			}
			go relay(from)
		}
	}()
	got := <-end
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer func() { _ = got.s.Close() }()
	if doc, err := got.s.Get(within(t, 5*time.Second), "k"); err != nil || string(doc.Value) != "v" {
		t.Fatalf("%q, %v", doc.Value, err)
	}
	config := p.stores[p.controller()].raft.Load().GetConfiguration().Configuration()
	if !isVoter(&config, "m9") {
		t.Fatalf("it has no vote: %+v", config)
	}
}

// TestWhoEndedBeforeItHadAVoteAsksForItAgain: the other half of its join is made up for when it is started again.
func TestWhoEndedBeforeItHadAVoteAsksForItAgain(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	c := p.controller()
	i := p.other(c)
	coordtest.Until(t, "its directory is known", func() bool { return p.stores[c].machine.seat(p.opts[i].ID) != "" })
	if err := p.stores[c].raft.Load().DemoteVoter(raft.ServerID(p.opts[i].ID), 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	voter := func() bool {
		config := p.stores[c].raft.Load().GetConfiguration().Configuration()
		return isVoter(&config, p.opts[i].ID)
	}
	coordtest.Until(t, "it knows that", func() bool {
		config := p.stores[i].members.Load()
		return config != nil && !isVoter(config, p.opts[i].ID)
	})
	p.stores[i].Close()
	if voter() {
		t.Fatal("it has its vote")
	}
	p.open(i)
	coordtest.Until(t, "it has its vote again", voter)
}

// TestWhoHasAVoteIsElectedByWhoHasNotHeardOfIt: its vote was committed by the controller and itself, and the controller is lost before the
// third one knows. That one cannot be elected, because its log ends before; so it has to vote for the new one.
func TestWhoHasAVoteIsElectedByWhoHasNotHeardOfIt(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	var c, late, risen int
	votes := func(in, of int) bool {
		config := p.stores[in].raft.Load().GetConfiguration().Configuration()
		return isVoter(&config, p.opts[of].ID)
	}
	coordtest.Until(t, "two know what the third one does not", func() bool {
		p.nets[late].setCut(false)
		c = p.controller()
		late, risen = p.other(c), p.other(p.other(c))
		r, id, addr := p.stores[c].raft.Load(), raft.ServerID(p.opts[risen].ID), raft.ServerAddress(p.opts[risen].ListenAddr)
		if r.DemoteVoter(id, 0, time.Second).Error() != nil {
			return false
		}
		coordtest.Until(t, "all know that it has no vote", func() bool { return !votes(late, risen) && !votes(risen, risen) })
		p.nets[late].setCut(true)
		return r.AddVoter(id, addr, 0, time.Second).Error() == nil && votes(risen, risen) && !votes(late, risen)
	})
	p.stores[c].Close()
	p.nets[late].setCut(false)
	if got := p.controller(c); got != risen {
		t.Fatalf("%s is elected, whose log ends before", p.opts[got].ID)
	}
	coordtest.Put(t, p.stores[late], "k", "w")
}
