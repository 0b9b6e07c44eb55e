// SPDX-License-Identifier: Apache-2.0

// Package agent is the loop beside one data node: look at the server, ask converge for the one next thing, do it, report.
//
// It decides nothing itself (converge, failover) and calls no other component: it obeys the document in the view and
// reports through Beats. Its invariant: a promise is on disk before it is reported, and no order older than the promise
// is carried out. Goroutines: Run's own, one that sends the latest report, and one while a tail is kept, for which Run waits.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"redoubt/internal/clock"
	"redoubt/internal/converge"
	"redoubt/internal/coord"
	"redoubt/internal/event"
	"redoubt/internal/redis"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// Options are what an agent needs. All fields but Addr, Events and Salvage are required.
type Options struct {
	ID     topo.NodeID
	Node   redis.Node
	View   *view.View
	Beats  coord.Beats
	Clock  clock.Clock
	Dir    string // for the promise and the number of the start; survives restarts
	Addr   string // where the server is reached, for as long as the roster does not say so
	Bus    int    // mode cluster: likewise, as in topo.Node …
	Server string // … and its id
	Log    *slog.Logger
	Events event.Sink

	Salvage Keeper // nil: what a failover discards is not kept
}

// Agent keeps one server as the agreed document wants it.
type Agent struct {
	o         Options
	promise   *promise // written under the lock of pledges
	pledges   *pledges
	writable  atomic.Bool
	shown     atomic.Pointer[shown] // for faces of this process
	memory    converge.Memory
	start     int64
	seq       uint64
	seen      topo.Sighting
	latest    converge.Input // of the latest look
	known     coord.Rev      // the document that the latest order came from
	unread    bool           // … which waits for the read that confirms it
	hastened  hasty          // what hasten has seen
	expected  coord.Rev      // the switchover to this node that anticipate has seen
	aware     bool           // a read has returned a document
	settings  redis.Settings
	checkedAt time.Duration // uptime of the latest Configure
	synced    string        // run id of the server that was told to sync every write
	markedAt  time.Duration // uptime of the latest Mark
	impaired  impairment

	refused   string
	refusedAt topo.Epoch
	starting  topo.Epoch // the promotion of that epoch waits for a server that began a moment ago
	failures  int        // consecutive orders that did not work
	restarts  pacing
	ending    ending
	salvaging salvaging
	drainFrom time.Duration
	drainOf   topo.Epoch

	outbox   chan []byte // the latest report, capacity one
	lastSent topo.Sighting
	sentAt   time.Duration
}

// hasty names a document, and whether a read has confirmed it.
type hasty struct {
	rev  coord.Rev
	read bool
}

// The loop's bounds.
const (
	lookTimeout   = 100 * time.Millisecond // a server that does not answer within this is looked at from outside
	lookAgain     = 20 * time.Millisecond  // the same for a server that did not answer the time before
	orderTimeout  = time.Second
	fenceTimeout  = 50 * time.Millisecond // then a managed primary is killed
	fenceLead     = 20 * time.Millisecond // a fence begins so long before the lease ends
	drainGrace    = 150 * time.Millisecond
	hastyFor      = 150 * time.Millisecond // what was seen in that time is good enough for a verb that checks by itself
	readSoon      = 5 * time.Millisecond   // a read that confirms a new document is waited for
	hastyLimit    = 30 * time.Millisecond
	startingPause = 20 * time.Millisecond // between two attempts to promote a server that has just begun
	drainPoll     = 200 * time.Microsecond
	configEvery   = time.Second
)

// New reads the promise, and the pledge that was given last, from disk, and numbers this start.
func New(o Options) (*Agent, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("agent of %s: %w", o.ID, err)
	}
	p, err := openPromise(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", o.ID, err)
	}
	pledges, err := openPledges(o.Dir, o.Clock)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", o.ID, errors.Join(err, p.close()))
	}
	if o.Events == nil {
		o.Events = func(event.Event) {}
	}
	start, err := incarnation(o.Dir, o.Clock.Now())
	if err != nil {
		o.Log.Warn("the start of the agent was not recorded", "node", o.ID, "err", err)
	}
	return &Agent{o: o, promise: p, pledges: pledges, start: start, outbox: make(chan []byte, 1), settings: redis.Settings{MinReplicas: -1}}, nil
}

// Run keeps the server as ordered until ctx ends. It leaves the server as it is: whoever stops the process decides.
func (a *Agent) Run(ctx context.Context) error {
	sent := make(chan struct{})
	go func() { defer close(sent); a.send(ctx) }()
	defer func() { <-sent }()
	defer a.promise.close()
	defer a.pledges.close()
	defer a.writable.Store(false)
	for ctx.Err() == nil {
		changed := a.o.View.Next()
		a.anticipate()
		if a.hasten(ctx) {
			a.wait(ctx, changed, readSoon)
			continue
		}
		in := a.look(ctx)
		order := a.next(ctx, &in)
		a.report(in)
		a.unread = order.Unread
		pause := a.idle(in)
		if order.Do != converge.Nothing {
			pause = a.carryOut(ctx, in, order)
		}
		a.configure(ctx, in)
		a.mark(ctx, in)
		if pause > 0 {
			a.wait(ctx, changed, a.patience(pause))
		}
	}
	return ctx.Err()
}

// wait returns after pause, or when there is something new: a document, what a read was waited for, or the server's word.
// That a lease was renewed is no news.
func (a *Agent) wait(ctx context.Context, changed <-chan struct{}, pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = a.o.View.Next() // before the look, so that nothing is missed
			if a.unread || a.o.View.Load().Rev != a.known {
				return
			}
		case <-a.o.Node.Wake():
			return
		case <-t.C:
			return
		}
	}
}

// idle is how long nothing needs to be looked at: never past the end of the lease, or of a pledge.
func (a *Agent) idle(in converge.Input) time.Duration {
	if in.Shard == nil {
		return topo.LANTiming().Beat.D()
	}
	d := in.Shard.Spec.Timing.Beat.D()
	as := in.Shard.Assigned
	switch {
	case as.Phase == topo.PhasePromoting && as.Primary == a.o.ID && in.Seen.Role == topo.RoleReplica:
		d = drainPoll
	case in.Seen.Role == topo.RolePrimary:
		d /= 2 // a hang begins to count when it is seen
	case as.Phase == topo.PhaseServing && in.Memory.InSync != as.Epoch && in.Seen.Role == topo.RoleReplica:
		d = min(d, 20*time.Millisecond)
	}
	if c := as.Change; c != nil && as.Phase == topo.PhaseServing { // a change should not take longer than it must
		d = min(d, 20*time.Millisecond)
	}
	for _, end := range []time.Duration{in.LeaseEnd, in.Pledged.Until} {
		if left := end - in.Now; left > 0 && left < d {
			d = left
		}
	}
	return d
}

// next derives the order from a look. A promise is kept at once: it changes nothing at the server, so that what was seen of it
// is still good.
func (a *Agent) next(ctx context.Context, in *converge.Input) converge.Order {
	order := converge.Next(*in)
	if order.Do == converge.Promise && a.carryOut(ctx, *in, order) == 0 {
		in.Promised = a.promise.epoch
		order = converge.Next(*in)
	}
	return order
}

// hasten carries out what a new document asks for, on what was seen of the server a moment ago, where the verb itself
// checks what it finds: a look costs time that a switchover does not have. Nothing is reported from it. It returns true if
// there is nothing to do but to wait for the read that confirms the document, which is on its way.
func (a *Agent) hasten(ctx context.Context) bool {
	s, in := a.o.View.Load(), a.latest
	if s == nil || s.Rev == a.hastened.rev && s.Confirmed == a.hastened.read || in.Shard == nil || in.Seen.Health != topo.HealthUp ||
		a.o.Clock.Uptime()-in.Now > hastyFor {
		return false
	}
	a.hastened = hasty{s.Rev, s.Confirmed}
	a.consult(&in)
	in.Now, in.Memory, in.Hasty = a.o.Clock.Uptime(), a.memory, true
	order := a.next(ctx, &in)
	a.unread = order.Unread
	limited, cancel := context.WithTimeout(ctx, hastyLimit) // it may have stopped since, and that has to be reported
	defer cancel()
	switch {
	case order.Do == converge.Fence: // it has a limit of its own, and kills what does not carry it out
		a.carryOut(ctx, in, order)
	case order.Do == converge.Freeze, order.Do == converge.Drain, order.Do == converge.Promote,
		order.Do == converge.Follow && in.Seen.Frozen: // where it stands is final: there is nothing to be kept of it first
		a.carryOut(limited, in, order)
	}
	return order.Unread
}

// leaseEnd is when the server has to be fenced: so long before the lease is over that the fence is, too.
func leaseEnd(s *view.Snapshot) time.Duration {
	lease := s.Shard.Spec.Timing.Lease.D()
	return s.LeaseStart() + lease - min(fenceLead, lease/10)
}

// consult takes what the view says into an input.
func (a *Agent) consult(in *converge.Input) {
	in.Pledged = *a.pledges.given.Load()
	s := a.o.View.Load()
	if s == nil {
		return
	}
	a.aware = a.aware || s.Confirmed
	in.Shard, in.Read, in.Aware, in.LeaseEnd, a.known = &s.Shard, s.Confirmed, a.aware, 0, s.Rev
	if s.LeaseStart() > 0 {
		in.LeaseEnd = leaseEnd(s)
	}
}

// look observes the server and puts together everything that the order may depend on.
func (a *Agent) look(ctx context.Context) converge.Input {
	limit := lookTimeout
	if h := a.seen.Health; h == topo.HealthStopped || h == topo.HealthHung {
		limit = lookAgain // an order that arrives meanwhile must not wait for a server that will not answer
	}
	lookCtx, cancel := context.WithTimeout(ctx, a.patience(limit))
	obs := a.o.Node.Observe(lookCtx)
	cancel()
	in := converge.Input{Self: a.o.ID, Promised: a.promise.epoch, Seen: sighting(obs), Memory: a.memory}
	a.consult(&in)
	in.Seen.Problems = append(in.Seen.Problems, noteReplication(in, obs.Replicas)...)
	in.Now = a.o.Clock.Uptime()
	a.ending = ending{obs.Detail, obs.Unreadable}
	in.Memory = converge.Remember(a.memory, in)
	a.noteChange(in)
	a.memory, a.latest = in.Memory, in
	a.writable.Store(in.Memory.WasPrimary)
	return in
}

// noteChange tells operators what changed at the server, once.
func (a *Agent) noteChange(in converge.Input) {
	old, s := a.seen, in.Seen
	a.seen = s
	a.restarts.look(s)
	switch {
	case s.Health == topo.HealthExited && (s.Health != old.Health || s.PID != old.PID):
		if s.Health != old.Health {
			a.restarts.ended(in.Now)
		}
		a.tell(in, "health", fmt.Sprintf("server is %s%s", s.Health, a.ending), "was", string(old.Health))
	case s.Health != old.Health:
		a.tell(in, "health", fmt.Sprintf("server is %s", s.Health), "was", string(old.Health))
	}
}

func (a *Agent) tell(in converge.Input, kind, text string, facts ...string) {
	e := event.Event{At: a.o.Clock.Now(), Kind: kind, Node: string(a.o.ID), Text: text}
	if in.Shard != nil {
		e.Shard, e.Epoch = in.Shard.ID, uint64(in.Shard.Assigned.Epoch)
	}
	if len(facts) == 2 {
		e.Facts = map[string]string{facts[0]: facts[1]}
	}
	a.o.Log.Info(text, "node", a.o.ID, "epoch", e.Epoch, "kind", kind)
	a.o.Events(e)
}

// patience shortens what is about to wait while this server may be writable: a server that does not answer must not hold
// up the self-fence, which has to be over before the margin is.
func (a *Agent) patience(limit time.Duration) time.Duration {
	s := a.o.View.Load()
	if s == nil {
		return limit
	}
	unheard := !a.memory.Heard && a.seen.Health != topo.HealthExited && s.Shard.Assigned.Primary == a.o.ID
	if !a.memory.WasPrimary && !unheard {
		return limit
	}
	if left := leaseEnd(s) - a.o.Clock.Uptime(); s.LeaseStart() > 0 && left > 0 {
		return min(limit, left+time.Millisecond)
	}
	return min(limit, lookAgain)
}

// carryOut performs one order and returns how long to pause before the next look; zero: at once.
func (a *Agent) carryOut(ctx context.Context, in converge.Input, o converge.Order) time.Duration {
	if o.Do == converge.Restart && in.Now < a.restarts.at {
		return min(a.restarts.at-in.Now, a.idle(in)) // it is looked at and reported all the same
	}
	err := a.perform(ctx, in, o)
	if o.Do == converge.Restart {
		a.restarts.tried(a.o.Clock.Uptime())
	}
	if err == nil {
		a.o.Log.Debug("order carried out", "node", a.o.ID, "order", o.Do, "rule", o.Rule, "took", a.o.Clock.Uptime()-in.Now)
		a.failures = 0
		return 0
	}
	if errors.Is(err, redis.ErrBehind) {
		return drainPoll
	}
	if ctx.Err() != nil {
		return 0
	}
	a.failures = min(a.failures+1, 10)
	if errors.Is(err, redis.ErrStarting) {
		a.starting = o.Epoch
		return startingPause
	}
	a.refused, a.refusedAt = fmt.Sprintf("%s: %v", o.Do, err), 0
	if o.Do == converge.Promote && errors.Is(err, redis.ErrRefused) {
		a.refusedAt = o.Epoch // the controller elects again
	}
	a.o.Log.Warn("order was not carried out", "node", a.o.ID, "order", o.Do, "rule", o.Rule, "err", err)
	return min(time.Millisecond<<min(a.failures, 6), 50*time.Millisecond)
}

func (a *Agent) perform(ctx context.Context, in converge.Input, o converge.Order) error {
	if o.Do == converge.Promote {
		a.memory.WasPrimary = true // one that does not answer any more may have become it: only a refusal or a look can tell
	}
	if o.Do == converge.Salvage {
		return a.salvage(ctx, in, o)
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience(orderTimeout))
	defer cancel()
	switch o.Do {
	case converge.Promise:
		return a.keepPromise(in, o.Epoch)
	case converge.Fence:
		a.tell(in, "fence", "fencing the server: "+o.Why, "rule", o.Rule)
		return a.fence(ctx, fenceTimeout)
	case converge.Freeze:
		return a.o.Node.Freeze(ctx)
	case converge.Follow:
		a.memory.FollowedAt = in.Now
		if err := a.syncs(ctx, in); err != nil {
			return err
		}
		a.o.Log.Info("following", "node", a.o.ID, "addr", o.Addr, "epoch", o.Epoch, "why", o.Why)
		return a.o.Node.Follow(ctx, o.Addr, credentials(in))
	case converge.Promote:
		cred := credentials(in)
		if err := a.syncs(ctx, in); err != nil {
			return err
		}
		pos, err := a.o.Node.Promote(ctx, o.Expect, cred)
		a.memory.WasPrimary = !errors.Is(err, redis.ErrRefused) && !errors.Is(err, redis.ErrBehind)
		if err == nil {
			a.settings.Admit = cred // Configure has nothing to add
			a.tell(in, "promote", fmt.Sprintf("promoted at offset %d, history %s", pos.Offset, pos.ReplID))
		}
		return err
	case converge.CheckSync:
		role, pos, err := a.o.Node.StreamPosition(ctx, o.Addr)
		if err != nil {
			return err
		}
		last, _ := in.Shard.Assigned.Latest()
		a.memory = converge.Synced(a.memory, o.Epoch, role, pos, last)
		return a.o.Node.Acknowledge(ctx)
	case converge.Drain:
		return a.drain(ctx, in)
	case converge.Enforce:
		return a.enforce(ctx, in, o)
	case converge.Restart:
		return a.restart(ctx, in)
	}
	return nil
}

// drain waits until the proxies have let go of the server, for a grace at most, and then fences it. Its offset is final
// from then on (SAFETY C1).
func (a *Agent) drain(ctx context.Context, in converge.Input) error {
	if a.drainOf != in.Shard.Assigned.Epoch {
		a.drainOf, a.drainFrom = in.Shard.Assigned.Epoch, in.Now
	}
	for {
		left := drainGrace - (a.o.Clock.Uptime() - a.drainFrom)
		if left <= 0 {
			break
		}
		asking, cancel := context.WithTimeout(ctx, left)
		n, err := a.o.Node.ProxyConnections(asking)
		cancel()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		a.o.Clock.Nap(drainPoll)
		if s := a.o.View.Load(); s.Shard.Assigned.Phase != topo.PhaseDraining {
			return nil
		}
	}
	a.tell(in, "fence", "fencing the server for a switchover")
	return a.fence(ctx, max(fenceTimeout, a.patience(orderTimeout)))
}

// fence gives a fence a time of its own, however little is left of ctx, and also when the agent is being stopped: a managed
// primary that has not carried it out by then is killed.
func (a *Agent) fence(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return a.o.Node.Fence(ctx)
}

// configure keeps the settings that safety needs on the server.
func (a *Agent) configure(ctx context.Context, in converge.Input) {
	if in.Shard == nil || in.Seen.Health != topo.HealthUp {
		return
	}
	want := demands(in)
	want.Admit = admits(in)
	if want == a.settings && in.Now-a.checkedAt < configEvery {
		return
	}
	if in.Shard.Assigned.Phase != topo.PhaseServing && in.Shard.Assigned.Phase != topo.PhaseNew {
		return // nothing may delay an election
	}
	a.checkedAt = in.Now
	ctx, cancel := context.WithTimeout(ctx, a.patience(lookTimeout))
	defer cancel()
	if err := a.o.Node.Configure(ctx, want); err != nil {
		a.o.Log.Warn("settings were not applied", "node", a.o.ID, "err", err)
		return
	}
	a.settings = want
	if want.Disk {
		a.synced = in.Seen.RunID
	}
}

// demands are the settings that a shard asks of a server, whatever its role.
func demands(in converge.Input) redis.Settings {
	want := redis.Settings{Disk: in.Shard.OnDisk()}
	if k := in.Shard.Agreed(); k > 0 {
		want.MinReplicas, want.MinReplicasMaxLag = k, 1
	}
	return want
}
