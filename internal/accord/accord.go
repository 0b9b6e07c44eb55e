// SPDX-License-Identifier: Apache-2.0

// Package accord keeps a primary going while the store is away: its member asks every other data node's agent for a pledge
// not to take part in an election for a while, and the other members, whose proxies serve clients, ask it for its word.
//
// It decides nothing about a server and is not for anything while the store answers: then nobody is asked. Its invariant: a
// lease that does not come from the store counts from before everybody was asked for the pledge that he gave last. DESIGN.md
// tells the rest. Goroutines: Run's own, and one for each member that is being asked; answers run in the callers'.
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
	// Ring numbers what is agreed about the ring that places keys, as this member knows it: who knows another one may not lend a lease. nil: there is no ring.
	Ring func() uint64
}

// Accord is one member's part.
type Accord struct {
	o        Options
	settleAt time.Duration
	asking   sync.WaitGroup

	mu    sync.Mutex
	said  string                 // the present state in words; empty while the store answers
	plea  topo.Plea              // that the pledges below were given to
	nodes map[topo.NodeID]pledge // of the other data nodes
	asked bool                   // the primary's member is being asked for its word
}

// pledge is what another data node's agent was asked and answered last.
type pledge struct {
	from   time.Duration // uptime at which it was asked for the latest one that it gave; zero: it gave none
	asked  bool          // it is being asked
	refuse string        // why it gave none the last time; empty: it did
}

// New returns an accord that does nothing until it runs.
func New(o Options) *Accord {
	if o.Ring == nil {
		o.Ring = func() uint64 { return 0 }
	}
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	return &Accord{o: o}
}

// question is what one member asks another one. Exactly one of the first two fields is set.
type question struct {
	Plea *topo.Plea `json:"plea,omitempty"` // pledge to this primary
	Word *topo.Plea `json:"word,omitempty"` // you are this primary: since when does your lease count?
	Ring uint64     `json:"ring,omitempty"` // Options.Ring of who asks
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
	defer a.asking.Wait()
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

// plead asks everybody for a pledge who is not being asked already. The lease counts from when the one was asked whose pledge is
// oldest; only if all have pledged there is one.
func (a *Accord) plead(ctx context.Context, s *view.Snapshot) {
	plea, begun := topo.PleaOf(s.Shard), a.o.Clock.Uptime()
	a.mu.Lock()
	if a.plea.Epoch != plea.Epoch || a.plea.RunID != plea.RunID || a.plea.Lease != plea.Lease || !slices.Equal(a.plea.Nodes, plea.Nodes) {
		a.plea, a.nodes = plea, map[topo.NodeID]pledge{}
	}
	nodes := a.nodes
	var toAsk []topo.NodeID
	for _, id := range plea.Nodes {
		if p := nodes[id]; id != plea.Primary && !p.asked {
			p.asked = true
			nodes[id] = p
			toAsk = append(toAsk, id)
		}
	}
	a.mu.Unlock()
	for _, id := range toAsk {
		a.asking.Go(func() {
			ans := a.ask(ctx, s, string(id), question{Plea: &plea})
			a.mu.Lock()
			p := pledge{from: nodes[id].from, refuse: ans.Why}
			if ans.OK {
				p = pledge{from: begun}
			}
			nodes[id] = p
			a.mu.Unlock()
			if ctx.Err() == nil {
				a.count(s, plea, nodes)
			}
		})
	}
	if len(plea.Nodes) == 1 {
		a.o.View.Extend(s.Shard.Assigned, begun, nil)
		a.say(s, fmt.Sprintf("the store is unreachable, %s goes on: there is no other node that could be elected", plea.Primary))
	}
}

// count extends the lease as far as the pledges reach.
func (a *Accord) count(s *view.Snapshot, plea topo.Plea, nodes map[topo.NodeID]pledge) {
	var by []topo.NodeID
	var against []string
	from, missing := a.o.Clock.Uptime(), false
	a.mu.Lock()
	for _, id := range plea.Nodes {
		if id == plea.Primary {
			continue
		}
		p := nodes[id]
		by, from, missing = append(by, id), min(from, p.from), missing || p.from == 0
		if p.refuse != "" {
			against = append(against, fmt.Sprintf("%s (%s)", id, p.refuse))
		}
	}
	a.mu.Unlock()
	if !missing {
		a.o.View.Extend(s.Shard.Assigned, from, by)
	}
	switch now := a.o.View.Load(); {
	case len(against) == 0 && !missing:
		a.say(s, going(plea.Primary, by))
	case len(against) > 0 && !young(now, a.o.Clock.Uptime()):
		a.say(s, fmt.Sprintf("the store is unreachable, and %s cannot go on, because not all nodes pledged not to freeze: %s", plea.Primary, strings.Join(against, ", ")))
	}
}

// askForWord asks the primary's member how old its lease is: clients here may be served as long as there.
func (a *Accord) askForWord(ctx context.Context, s *view.Snapshot) {
	begun := a.o.Clock.Uptime()
	a.mu.Lock()
	asked := a.asked
	a.asked = true
	a.mu.Unlock()
	if asked {
		return
	}
	a.asking.Go(func() {
		tenure := topo.PleaOf(s.Shard)
		ans := a.ask(ctx, s, string(tenure.Primary), question{Word: &tenure})
		a.mu.Lock()
		a.asked = false
		a.mu.Unlock()
		switch {
		case ctx.Err() != nil, !ans.OK && young(a.o.View.Load(), a.o.Clock.Uptime()):
		case !ans.OK:
			a.say(s, fmt.Sprintf("the store is unreachable, and %s does not go on: %s", tenure.Primary, ans.Why))
		default:
			a.o.View.Extend(s.Shard.Assigned, begun-max(ans.Age, 0), ans.By)
			a.say(s, going(tenure.Primary, ans.By))
		}
	})
}

// young reports whether the lease was given so lately that a question without a good answer is not worth a word.
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

// ask asks one member. An answer that comes later is of little use: what it gives counts from the question.
func (a *Accord) ask(ctx context.Context, s *view.Snapshot, member string, q question) answer {
	ctx, cancel := context.WithTimeout(ctx, s.Shard.Spec.Timing.Lease.D()/2)
	defer cancel()
	q.Ring = a.o.Ring()
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
	case q.Ring != a.o.Ring():
		ans = answer{Why: "another ring is known there"}
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
	case here.Epoch != of.Epoch || here.Primary != of.Primary || here.RunID != of.RunID || here.Rule != of.Rule || as.Phase != topo.PhaseServing || string(here.Primary) != a.o.Member:
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
	if now := a.o.View.Load(); words != "" && a.o.Clock.Uptime()-now.ReadStart < now.Shard.Spec.Timing.SeekAfter() {
		return // it came late: the store answers again
	}
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
