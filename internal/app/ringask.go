// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"
)

// What who changes a ring asks of all members: who they are, to be still, and to look at the document.

// ringQuestion asks a member. Exactly one field is set.
type ringQuestion struct {
	Who   bool   `json:"who,omitempty"`
	Still uint64 `json:"still,omitempty"` // stamp of the document by which that is asked
	Look  bool   `json:"look,omitempty"`
}

type ringReply struct {
	Me    string `json:"me"`
	Still bool   `json:"still,omitempty"` // it is, and will be until the document has another stamp
	Why   string `json:"why,omitempty"`   // it is not
}

// answerRing answers who changes the ring.
func (m *member) answerRing(_ string, question []byte) []byte {
	var q ringQuestion
	if json.Unmarshal(question, &q) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), ringAnswer)
	defer cancel()
	body, err := json.Marshal(m.ring.obey(ctx, q))
	if err != nil {
		return nil
	}
	return body
}

func (b *ringBook) obey(ctx context.Context, q ringQuestion) ringReply {
	r := ringReply{Me: b.me}
	switch {
	case q.Look:
		_ = b.read(ctx) // it is pushed, too
		b.turn(ctx)
	case q.Still != 0:
		r.Why = b.beStill(ctx, q.Still)
		r.Still = r.Why == ""
	}
	return r
}

// beStill gives nothing to shards any more and waits until all is answered; why says why that did not succeed.
func (b *ringBook) beStill(ctx context.Context, stamp uint64) (why string) {
	if b.stamp() < stamp {
		if err := b.read(ctx); err != nil {
			return err.Error()
		}
	}
	if b.m.succeeds.Load() { // what that process has sent and still sends is not known here
		return "an earlier process of this member still hands its clients over"
	}
	b.mu.Lock()
	c := b.doc.Change
	if b.doc.Stamp != stamp || c == nil || c.Stage != ringClosing || b.doc.shuts(b.me) || b.m.front != nil && (!b.begun || b.gen != b.doc.Gen) {
		b.mu.Unlock()
		return "another stage is known there"
	}
	if b.m.front == nil { // nobody speaks to shards through this member
		b.mu.Unlock()
		return ""
	}
	b.asked, b.stopped, b.since = stamp, true, time.Now()
	b.m.front.Still()
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, ringStill)
	defer cancel()
	ok := b.until(ctx, func() bool { return b.quiet(false) })
	if ok {
		for _, u := range b.m.all() {
			if u.proxy != nil {
				u.proxy.Shut()
			}
		}
		ok = b.until(ctx, func() bool { return b.quiet(true) })
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if ok && b.asked == stamp && b.doc.Stamp == stamp {
		return ""
	}
	b.asked = 0
	close(b.changed) // who keeps the book lets clients go on
	b.changed = make(chan struct{})
	return "commands are still under way there"
}

// until looks again and again.
func (b *ringBook) until(ctx context.Context, is func() bool) bool {
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// askCrew asks all members something at once, but for those in without. silent are those that did not answer.
func (m *member) askCrew(ctx context.Context, q ringQuestion, wait time.Duration, without ...string) (said map[string]ringReply, silent []string, err error) {
	peers := m.hall.Of(m.deploy.Name)
	members, err := peers.Members(ctx)
	if err != nil {
		return nil, nil, err
	}
	question, err := json.Marshal(q)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	said = map[string]ringReply{}
	var mu sync.Mutex // guards said and silent
	var all sync.WaitGroup
	for _, o := range members {
		if slices.Contains(without, o.ID) {
			continue
		}
		all.Go(func() {
			var r ringReply
			ok := true
			if o.ID == m.o.Config.Member.ID {
				r = m.ring.obey(ctx, q)
			} else {
				body, err := peers.Ask(ctx, o.ID, question)
				ok = err == nil && json.Unmarshal(body, &r) == nil && r.Me != ""
			}
			mu.Lock()
			defer mu.Unlock()
			if said[o.ID] = r; !ok {
				delete(said, o.ID)
				silent = append(silent, o.ID)
			}
		})
	}
	all.Wait()
	return said, silent, nil
}
