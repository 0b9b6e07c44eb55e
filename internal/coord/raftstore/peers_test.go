// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/coordtest"
)

func echo(_ string, question []byte) []byte { return question }

// TestMembersAnswerEachOtherWithoutAMajority: two of five are left, and talk; a member that restarts is found again.
func TestMembersAnswerEachOtherWithoutAMajority(t *testing.T) {
	p := newParty(t, 5)
	coordtest.Put(t, p.stores[0], "k", "v")
	for _, s := range p.stores {
		s.Answer(echo)
	}
	for i := 2; i < 5; i++ {
		if err := p.stores[i].Close(); err != nil {
			t.Fatal(err)
		}
		p.stores[i] = nil
	}
	if _, err := p.stores[0].Get(within(t, 500*time.Millisecond), "k"); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("the store answers without a majority: %v", err)
	}
	ask := func() error {
		_, err := p.stores[0].Ask(within(t, time.Second), "m2", []byte("question"))
		return err
	}
	for range 3 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.stores[1].Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("a member that does not run answers: %v", err)
	}
	p.open(1)
	p.stores[1].Answer(echo)
	if err := ask(); err != nil {
		t.Fatalf("after its restart: %v", err)
	}
}

// TestAnAnswerThatComesLateIsNotTakenForAnother: the question after one that was given up gets its own answer.
func TestAnAnswerThatComesLateIsNotTakenForAnother(t *testing.T) {
	p := newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	release := make(chan struct{})
	p.stores[1].Answer(func(from string, question []byte) []byte {
		if string(question) == "slow" {
			<-release
		}
		return question
	})
	defer close(release)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if got, err := p.stores[0].Ask(ctx, "m2", []byte("slow")); !errors.Is(err, coord.ErrUnavailable) {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := p.stores[0].Ask(within(t, 5*time.Second), "m2", []byte("quick")); err != nil || string(got) != "quick" {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestQuestionsOfStrangersAreRefused: a member of another deployment, and one that lost its directory, get no answer.
func TestQuestionsOfStrangersAreRefused(t *testing.T) {
	p, q := newParty(t, 3), newParty(t, 3)
	coordtest.Put(t, p.stores[0], "k", "v")
	coordtest.Put(t, q.stores[0], "k", "v")
	p.stores[1].Answer(echo)
	stranger := q.stores[0]
	coordtest.Until(t, "both know their deployment", func() bool { return p.stores[1].Deployment() != "" && stranger.Deployment() != "" })
	if got, err := stranger.lines.Ask(within(t, 2*time.Second), p.members[1].Addr, "m2", []byte("question")); err == nil {
		t.Fatalf("a stranger was answered %q", got)
	}
}
