// SPDX-License-Identifier: Apache-2.0

// Package accord keeps a primary going while the store is away: its member asks every other data node's agent for a pledge
// not to take part in an election for a while, and the other members, whose proxies serve clients, ask it for its word.
//
// It decides nothing about a server and is not for anything while the store answers: then nobody is asked. Its invariant: a
// lease that does not come from the store counts from before the first question of a round in which everybody pledged. DESIGN.md
// tells the rest. Goroutines: Run's own, and while a round lasts one for each member asked; answers run in the callers'.
package accord

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/coord"
	"redoubt/internal/event"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// Node is the agent beside this member's server, as far as it is needed here.
type Node interface {
	// Pledge answers a plea, after it is on disk; why says why it is refused.
	Pledge(p topo.Plea) (ok bool, why string)
	// Settle forgets pledges that are over.
	Settle() error
	// Writable reports whether the server may be a primary that takes writes.
	Writable() bool
}

// Options are what an accord needs. Node is nil on a member without a data node, and Events may be nil.
type Options struct {
	Member string // its data node, if it has one, has the same id
	View   *view.View
	Clock  clock.Clock
	Peers  coord.Peers
	Node   Node
	Log    *slog.Logger
	Events event.Sink
}

// Accord is one member's part.
type Accord struct {
	o        Options
	mu       sync.Mutex
	said     string // the present state in words; empty while the store answers
	settleAt time.Duration
}

// New returns an accord that does nothing until it runs.
func New(o Options) *Accord {
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	return &Accord{o: o}
}

// question is what one member asks another one. Exactly one field is set.
type question struct {
	Plea *topo.Plea `json:"plea,omitempty"` // pledge to this primary
	Word *topo.Plea `json:"word,omitempty"` // you are this primary: since when does your lease count?
}

type answer struct {
	OK  bool          `json:"ok"`
	Why string        `json:"why,omitempty"` // it is not
	Age time.Duration `json:"age,omitempty"` // to Word: of the lease, when the answer was given
	By  []topo.NodeID `json:"by,omitempty"`  // to Word: who pledged; empty: the store answers there
}

// settleEvery is how often it is looked whether a pledge on disk is over.
const settleEvery = time.Second

// Run takes part until ctx ends.
func (a *Accord) Run(ctx context.Context) error {
	a.o.Peers.Answer(a.answer)
	defer a.o.Peers.Answer(nil)
	tick := time.NewTicker(topo.LANTiming().Beat.D() / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			a.turn(ctx)
		}
	}
}

// Words says in one sentence how this member stands to the store's outage; empty while the store answers.
func (a *Accord) Words() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said
}

// turn looks for a lease if the store has not given one lately.
func (a *Accord) turn(ctx context.Context) {
	s := a.o.View.Load()
	if s == nil {
		return
	}
	now, as := a.o.Clock.Uptime(), s.Shard.Assigned
	if now-s.ReadStart < s.Shard.Spec.Timing.SeekAfter() {
		a.say(s, "")
		a.settle(now)
		return
	}
	switch {
	case as.Phase != topo.PhaseServing:
		a.say(s, fmt.Sprintf("the store is unreachable, and the shard was %s", as.Phase))
	case string(as.Primary) != a.o.Member:
		a.askForWord(ctx, s)
	case a.o.Node == nil || !a.o.Node.Writable():
		a.say(s, "the store is unreachable, and the server here takes no writes: only an election makes a primary")
	case s.Leased(now): // a lease that has ended is not taken up again: the fence has begun
		a.plead(ctx, s)
	}
}

func (a *Accord) settle(now time.Duration) {
	if a.o.Node == nil || now < a.settleAt {
		return
	}
	a.settleAt = now + settleEvery
	if err := a.o.Node.Settle(); err != nil {
		a.o.Log.Warn("a pledge that is over was not cleared", "err", err)
	}
}

// plead asks everybody for a pledge. Only if all give one, the lease counts from the start of the round.
func (a *Accord) plead(ctx context.Context, s *view.Snapshot) {
	begun := a.o.Clock.Uptime()
	plea := topo.PleaOf(s.Shard)
	var by []topo.NodeID
	for _, id := range plea.Nodes {
		if id != plea.Primary {
			by = append(by, id)
		}
	}
	answers := make([]answer, len(by))
	var asked sync.WaitGroup
	for i, id := range by {
		asked.Go(func() { answers[i] = a.ask(ctx, s, string(id), question{Plea: &plea}) })
	}
	asked.Wait()
	var against []string
	for i, ans := range answers {
		if !ans.OK {
			against = append(against, fmt.Sprintf("%s (%s)", by[i], ans.Why))
		}
	}
	switch {
	case ctx.Err() != nil, len(against) > 0 && young(s, begun):
	case len(against) > 0:
		a.say(s, fmt.Sprintf("the store is unreachable, and %s cannot go on, because not all nodes pledged not to freeze: %s", plea.Primary, strings.Join(against, ", ")))
	case len(by) == 0:
		a.o.View.Extend(s.Shard.Assigned, begun, nil)
		a.say(s, fmt.Sprintf("the store is unreachable, %s goes on: there is no other node that could be elected", plea.Primary))
	default:
		a.o.View.Extend(s.Shard.Assigned, begun, by)
		a.say(s, going(plea.Primary, by))
	}
}

// askForWord asks the primary's member how old its lease is: clients here may be served as long as there.
func (a *Accord) askForWord(ctx context.Context, s *view.Snapshot) {
	begun := a.o.Clock.Uptime()
	tenure := topo.PleaOf(s.Shard)
	ans := a.ask(ctx, s, string(tenure.Primary), question{Word: &tenure})
	switch {
	case ctx.Err() != nil, !ans.OK && young(s, begun):
	case !ans.OK:
		a.say(s, fmt.Sprintf("the store is unreachable, and %s does not go on: %s", tenure.Primary, ans.Why))
	default:
		a.o.View.Extend(s.Shard.Assigned, begun-max(ans.Age, 0), ans.By)
		a.say(s, going(tenure.Primary, ans.By))
	}
}

// young reports whether the lease was given so lately that a round that failed is not worth a word.
func young(s *view.Snapshot, now time.Duration) bool {
	return now-s.LeaseStart() < s.Shard.Spec.Timing.SeekAfter()
}

func going(primary topo.NodeID, by []topo.NodeID) string {
	if len(by) == 0 {
		return fmt.Sprintf("the store is unreachable here, going on by the word of %s", primary)
	}
	words := make([]string, len(by))
	for i, id := range by {
		words[i] = string(id)
	}
	return fmt.Sprintf("the store is unreachable, %s goes on by the promise of %s not to freeze", primary, strings.Join(words, ", "))
}

// ask asks one member. An answer that comes late is of no use: the next round asks again.
func (a *Accord) ask(ctx context.Context, s *view.Snapshot, member string, q question) answer {
	ctx, cancel := context.WithTimeout(ctx, s.Shard.Spec.Timing.Lease.D()/4)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return answer{Why: err.Error()}
	}
	raw, err := a.o.Peers.Ask(ctx, member, body)
	if err != nil {
		a.o.Log.Debug("a member was not reached", "member", member, "err", err)
		return answer{Why: "it does not answer"}
	}
	var ans answer
	if err := json.Unmarshal(raw, &ans); err != nil {
		return answer{Why: "its answer is not understood"}
	}
	if !ans.OK && ans.Why == "" {
		ans.Why = "it refuses"
	}
	return ans
}

// answer answers another member's question.
func (a *Accord) answer(from string, raw []byte) []byte {
	var q question
	ans := answer{Why: "the question is not understood: upgrade all members"}
	switch err := json.Unmarshal(raw, &q); {
	case err != nil:
	case q.Plea != nil:
		ans = a.pledge(from, *q.Plea)
	case q.Word != nil:
		ans = a.word(*q.Word)
	}
	body, err := json.Marshal(ans)
	if err != nil {
		a.o.Log.Error("encode an answer", "err", err)
	}
	return body
}

func (a *Accord) pledge(from string, p topo.Plea) answer {
	if a.o.Node == nil || from != string(p.Primary) {
		return answer{Why: "no data node here takes that plea"}
	}
	ok, why := a.o.Node.Pledge(p)
	return answer{OK: ok, Why: why}
}

// word says how old the lease of the primary here is.
func (a *Accord) word(of topo.Plea) answer {
	s := a.o.View.Load()
	if s == nil {
		return answer{Why: "no order is known there"}
	}
	now, as := a.o.Clock.Uptime(), s.Shard.Assigned
	here := topo.PleaOf(s.Shard)
	switch {
	case here.Epoch != of.Epoch || here.Primary != of.Primary || here.RunID != of.RunID || as.Phase != topo.PhaseServing || string(here.Primary) != a.o.Member:
		return answer{Why: "another order is known there"}
	case a.o.Node == nil || !a.o.Node.Writable():
		return answer{Why: "its server takes no writes"}
	case !s.Leased(now):
		return answer{Why: "its lease has ended"}
	}
	ans := answer{OK: true, Age: now - s.LeaseStart()}
	if s.Pledged.From > s.ReadStart {
		ans.By = slices.Clone(s.Pledged.By)
	}
	return ans
}

// say keeps the present state in words, and tells operators when it changed.
func (a *Accord) say(s *view.Snapshot, words string) {
	a.mu.Lock()
	was := a.said
	a.said = words
	a.mu.Unlock()
	if was == words {
		return
	}
	as := s.Shard.Assigned
	if words == "" {
		words = "the store answers again"
		a.o.Log.Info(words, "shard", s.Shard.ID, "epoch", as.Epoch)
	} else {
		a.o.Log.Warn(words, "shard", s.Shard.ID, "epoch", as.Epoch)
	}
	a.o.Events(event.Event{At: a.o.Clock.Now(), Kind: "outage", Shard: s.Shard.ID, Node: string(as.Primary), Epoch: uint64(as.Epoch), Text: words})
}
