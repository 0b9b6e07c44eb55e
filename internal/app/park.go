// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"redoubt/internal/coord"
	"redoubt/internal/coord/scope"
	"redoubt/internal/mover"
	"redoubt/internal/slots"
)

// Whoever moves slots asks the fronts of all members to have commands about them wait. Nothing but the clients' comfort depends on the answers:
// the source's server refuses who comes all the same (ADR 31). So a member that does not answer is not waited for, the next time either.

const (
	parkWait  = 150 * time.Millisecond // for the members' answers
	parkFly   = 100 * time.Millisecond // for commands that are under way: on a machine with too much to do they take that long
	parkMost  = 2 * time.Second        // a hold ends by itself behind that
	deafTries = 2                      // times in a row that a member's answer is missed and the hand-over is put off for it
	deafFor   = 200 * time.Millisecond // who did not answer so often is not asked for so long; after each further time for twice as long
	deafMost  = 5 * time.Second
	crewEvery = 2 * time.Second
)

// The answers.
const (
	parkDone     = "done"
	parkFlying   = "under way" // held, but commands of before are not answered yet
	parkStranger = "that shard is not known here"
)

// parkOrder is what members ask each other.
type parkOrder struct {
	To    string    `json:"to,omitempty"`    // of Hold: whose they will be
	Hold  string    `json:"hold,omitempty"`  // slots
	Flow  string    `json:"flow,omitempty"`  // slots
	Owner string    `json:"owner,omitempty"` // of Flow: whose they are
	Rev   coord.Rev `json:"rev,omitempty"`   // of Flow: of the document that allows it
}

// parker holds clients at the fronts of all members. One goroutine uses it.
type parker struct {
	m     *member
	to    func() string // whose the slots will be
	peers *scope.Store
	crew  []string // the other members
	asked time.Time
	deaf  map[string]deaf // members that did not answer
}

type deaf struct {
	since time.Time
	times int
}

func newParker(m *member, peers *scope.Store, to func() string) *parker {
	return &parker{m: m, to: to, peers: peers, deaf: map[string]deaf{}}
}

// Park implements mover.Parker.
func (p *parker) Park(ctx context.Context, which []int) error {
	stranger, flying := p.tell(ctx, parkOrder{Hold: slotsText(which), To: p.to()}, parkWait)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case stranger != "":
		return fmt.Errorf("member %s does not know shard %s yet", stranger, p.to())
	case flying:
		return mover.ErrUnderWay
	}
	return nil
}

// Flow implements mover.Parker.
func (p *parker) Flow(ctx context.Context, which []int, owner string) error {
	_, rev := p.m.slots.latest()
	p.tell(ctx, parkOrder{Flow: slotsText(which), Owner: owner, Rev: rev}, parkWait)
	return ctx.Err()
}

// tell asks all members at once, and names one that does not know the shard that it is about. flying: at one of them commands of before
// take long.
func (p *parker) tell(ctx context.Context, o parkOrder, wait time.Duration) (stranger string, flying bool) {
	question, err := json.Marshal(o)
	if err != nil {
		return "", false // there is nothing in it that cannot be encoded
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var all sync.WaitGroup
	crew := p.others(ctx)
	heard, said := make([]bool, len(crew)), make([]string, len(crew))
	for i, id := range crew {
		all.Go(func() {
			answer, err := p.peers.Ask(ctx, id, question)
			heard[i], said[i] = err == nil, string(answer)
		})
	}
	flying = p.m.parked(ctx, o) > 0
	all.Wait()
	for i, id := range crew {
		if heard[i] {
			delete(p.deaf, id)
			switch said[i] {
			case parkDone:
			case parkFlying:
				flying = true
			default:
				stranger = id
			}
		} else {
			p.deaf[id] = deaf{time.Now(), p.deaf[id].times + 1}
			flying = flying || p.deaf[id].times <= deafTries // nobody knows; it may only be late, and is asked again
		}
	}
	return stranger, flying
}

// others are the members that are asked.
func (p *parker) others(ctx context.Context) []string {
	if time.Since(p.asked) > crewEvery {
		if all, err := p.peers.Members(ctx); err == nil {
			p.crew, p.asked = p.crew[:0], time.Now()
			for _, m := range all {
				if m.ID != p.m.o.Config.Member.ID {
					p.crew = append(p.crew, m.ID)
				}
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(p.crew), func(id string) bool {
		d := p.deaf[id]
		return d.times >= deafTries && time.Since(d.since) < min(deafFor<<min(d.times-deafTries, 10), deafMost)
	})
}

// answerMoves answers the member that moves slots.
func (m *member) answerMoves(_ string, question []byte) []byte {
	var o parkOrder
	if json.Unmarshal(question, &o) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), parkWait)
	defer cancel()
	if o.Hold != "" && m.unitOf(o.To) == nil {
		return []byte(parkStranger)
	}
	if m.parked(ctx, o) > 0 {
		return []byte(parkFlying)
	}
	return []byte(parkDone)
}

// parked carries out an order at this member's front. left is how many commands of before are still under way to slots that are held.
func (m *member) parked(ctx context.Context, o parkOrder) (left int) {
	if m.front == nil {
		return 0
	}
	if o.Hold != "" {
		rs, err := slots.ParseRanges(o.Hold)
		if err != nil {
			return 0
		}
		ctx, cancel := context.WithTimeout(ctx, parkFly)
		defer cancel()
		if left = m.front.Hold(ctx, numbersOf(rs), parkMost); left > 0 {
			m.log.Debug("commands are still under way to slots that are to be handed over", "commands", left, "slots", o.Hold)
		}
		return left
	}
	if rs, err := slots.ParseRanges(o.Flow); err == nil {
		m.slots.steer(numbersOf(rs), o.Owner, o.Rev)
	}
	m.front.Release()
	return 0
}

// numbersOf lists the slots of ranges.
func numbersOf(rs []slots.Range) (out []int) {
	for _, r := range rs {
		for s := r.From; s <= r.To; s++ {
			out = append(out, s)
		}
	}
	return out
}

// slotsText writes slots, which ascend, as ranges.
func slotsText(which []int) string {
	var rs []slots.Range
	for _, s := range which {
		if n := len(rs); n > 0 && rs[n-1].To == s-1 {
			rs[n-1].To = s
		} else {
			rs = append(rs, slots.Range{From: s, To: s})
		}
	}
	return slots.Text(rs)
}
