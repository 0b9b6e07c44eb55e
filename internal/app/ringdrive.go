// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"redoubt/internal/mover"
	"redoubt/internal/redis"
	"redoubt/internal/reshard"
	"redoubt/internal/ring"
	"redoubt/internal/route"
	"redoubt/internal/topo"
)

// ringDriver carries out a change of the ring while this member is the controller of the store. Nothing but the document has to be known to go on with one.
// One goroutine has it.
type ringDriver struct {
	*carrier // what it knows of shards
	b        *ringBook
	said     time.Time
	began    time.Time // of the latest stop of clients
	told     time.Time // progress was stored
}

const (
	ringWho     = 300 * time.Millisecond // for members to say who they are
	ringTell    = time.Second
	ringTries   = 20 // hand-overs in vain, after which it is begun anew
	ringRetry   = 100 * time.Millisecond
	ringStillIn = 100 * time.Millisecond // for members to say that they are still
)

var errNotDriver = errors.New("another member goes on with this change of the ring")

func (m *member) startRing() {
	m.hall.Of(m.deploy.Name).Answer(m.answerRing)
	m.parts.start("ring change", m.driveRing)
}

// driveRing carries out what there is to change until ctx ends.
func (m *member) driveRing(ctx context.Context) error {
	d := &ringDriver{carrier: &carrier{m: m}, b: m.ring}
	tick := time.NewTicker(reshardEvery)
	defer tick.Stop()
	for {
		doc, _, known, changed := d.b.get()
		if known && doc.Change != nil && m.store.Controller() == m.o.Config.Member.ID {
			reigning, over := m.whileController(ctx)
			err := d.step(reigning)
			over()
			if err != nil && ctx.Err() == nil {
				d.b.setTrouble(err.Error())
				if time.Since(d.said) > complainEvery {
					d.said = time.Now()
					m.log.Warn("the ring cannot be changed at the moment", "err", err)
				}
				if err := nap(ctx, reshardAgain); err != nil {
					return err
				}
				continue
			}
			d.b.setTrouble("")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-changed:
		}
	}
}

// step does what the stage asks for.
func (d *ringDriver) step(ctx context.Context) error {
	doc, _, _, _ := d.b.get()
	c := doc.Change
	if c == nil {
		return nil
	}
	switch c.Stage {
	case ringClosing: // of an attempt that is over, however it went
		return d.open(ctx, doc.Stamp)
	case ringCopying:
		if c.Cancel {
			return d.stage(ctx, "", ringUndoing)
		}
		return d.attempt(ctx)
	case ringSettling:
		return d.clean(ctx, doc, ringDone)
	case ringUndoing:
		return d.clean(ctx, doc, ringUndone)
	}
	return fmt.Errorf("stage %q is not known: all members need the same version", c.Stage)
}

// stage stores the next stage, if this is still the one to do so (by: the driver's name; empty: whoever).
func (d *ringDriver) stage(ctx context.Context, by, next string) error {
	done := false
	_, err := d.b.change(ctx, func(doc *ringDoc) bool {
		if done = doc.Change != nil && (by == "" || doc.Change.Driver == by); done {
			doc.Change.Stage = next
		}
		return done
	})
	if err == nil && !done {
		err = errNotDriver
	}
	return err
}

// open has everybody give commands to shards again by the ring of before.
func (d *ringDriver) open(ctx context.Context, stamp uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := d.b.change(ctx, func(doc *ringDoc) bool {
		if doc.Stamp != stamp || doc.Change == nil || doc.Change.Stage != ringClosing {
			return false
		}
		doc.Change.Stage, doc.Change.Crew = ringCopying, nil
		doc.Stamp++
		return true
	})
	if err == nil {
		_, _, err = d.m.askCrew(ctx, ringQuestion{Look: true}, ringAnswer)
	}
	return err
}

// plan is what an attempt has in its hands.
type ringPlan struct {
	me     string
	was    []ringShard
	next   []ringShard
	from   []string          // ids of shards that give keys away
	tenure map[string]string // of all shards of it, when it began
	paths  []mover.Path
	lease  time.Duration
}

// plan looks who gives what to whom.
func (d *ringDriver) plan(doc ringDoc) (*ringPlan, error) {
	p := &ringPlan{me: newMoverSecret()[:16], was: doc.Shards, next: doc.Change.Other, tenure: map[string]string{}}
	before, err := d.m.ringSpec(p.was)
	if err != nil {
		return nil, err
	}
	after, err := d.m.ringSpec(p.next)
	if err != nil {
		return nil, err
	}
	names := func(shards []ringShard, i int) string {
		if i < 0 {
			return ""
		}
		return shards[i].Name
	}
	at := map[string]mover.Shard{}
	for _, s := range d.shards() {
		at[s.ID] = s
	}
	for _, f := range p.was {
		for _, t := range p.next {
			if f.Name == t.Name || d.m.deploy.RingSpec().Distribution == ring.Random {
				continue
			}
			from, to := at[d.m.deploy.Name+"-"+f.Name], at[d.m.deploy.Name+"-"+t.Name]
			for _, s := range []mover.Shard{from, to} {
				if s.ID == "" || s.Busy != "" || s.Primary.Addr == "" {
					return nil, fmt.Errorf("shards %s and %s have to serve: %s", f.Name, t.Name, s.Busy)
				}
				p.tenure[s.ID] = s.Tenure
			}
			if !slices.Contains(p.from, from.ID) {
				p.from = append(p.from, from.ID)
			}
			p.paths = append(p.paths, mover.Path{From: from.Primary.Addr, To: to.Primary.Addr, Replicas: d.replicas(to.ID), Mine: func(key []byte) bool {
				return names(p.was, before.Shard(key, 0)) == f.Name && names(p.next, after.Shard(key, 0)) == t.Name
			}})
		}
	}
	for _, u := range d.m.all() {
		if s := u.view.Load(); s != nil {
			p.lease = max(p.lease, s.Shard.Spec.Timing.Lease.D()+s.Shard.Spec.Timing.Margin.D())
		}
	}
	return p, nil
}

// attempt copies, hands over, and leaves the rest to the next step. Whatever goes wrong, the next one begins anew.
func (d *ringDriver) attempt(ctx context.Context) error {
	doc, _, _, _ := d.b.get()
	p, err := d.plan(doc)
	if err != nil {
		return err
	}
	taken := false
	doc, err = d.b.change(ctx, func(doc *ringDoc) bool {
		if taken = doc.Change != nil && doc.Change.Stage == ringCopying && !doc.Change.Cancel; taken {
			doc.Change.Driver, doc.Change.Keys, doc.Change.Bytes = p.me, 0, 0
		}
		return taken
	})
	if err != nil || !taken {
		return err
	}
	c, err := mover.Carry(ctx, mover.CarryOptions{
		Name: d.m.deploy.Name, User: redis.MoverUser, Password: doc.Change.Secret, Paths: p.paths, Rate: reshard.Rate{Stall: stallDefault}, Keys: ringKeys,
		Confirm: func(ctx context.Context) error { return d.mine(ctx, p.me) },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	total := c.Total()
	if err := d.tell(ctx, p.me, c, total); err != nil {
		return err
	}
	if err := d.copy(ctx, p, c, total); err != nil {
		return err
	}
	for tries := 1; ; tries++ {
		if err := d.near(ctx, p, c, total); err != nil {
			return err
		}
		err := d.handOver(ctx, p, c, tries)
		if err == nil || tries == ringTries || ctx.Err() != nil || !errors.Is(err, errNotStill) {
			return err
		}
		d.b.setTrouble(err.Error())
		if err := nap(ctx, ringRetry); err != nil {
			return err
		}
	}
}

// copy is the first copy; meanwhile it is stored how far it is.
func (d *ringDriver) copy(ctx context.Context, p *ringPlan, c *mover.Carrier, total int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for nap(ctx, ringTell) == nil {
			if err := d.tell(ctx, p.me, c, total); err != nil {
				cancel(err)
			}
		}
	}()
	err := c.CopyAll(ctx)
	if why := context.Cause(ctx); why != nil {
		err = why
	}
	cancel(nil)
	<-done
	return err
}

// near copies what was written until little is left.
func (d *ringDriver) near(ctx context.Context, p *ringPlan, c *mover.Carrier, total int64) error {
	for {
		near, err := c.CatchUp(ctx)
		if err != nil || near {
			return errors.Join(err, d.tell(ctx, p.me, c, total))
		}
		if time.Since(d.told) > ringTell {
			if err := d.tell(ctx, p.me, c, total); err != nil {
				return err
			}
		}
		if err := nap(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// tell stores how far it is, and fails if it is to be ended or another member goes on with it.
func (d *ringDriver) tell(ctx context.Context, me string, c *mover.Carrier, total int64) error {
	ok := false
	_, err := d.b.change(ctx, func(doc *ringDoc) bool {
		if ok = doc.Change != nil && doc.Change.Driver == me && doc.Change.Stage == ringCopying && !doc.Change.Cancel; ok {
			doc.Change.Keys, doc.Change.Bytes = c.Copied()
			doc.Change.Of = total
		}
		return ok
	})
	d.told = time.Now()
	if err == nil && !ok {
		err = errNotDriver
	}
	return err
}

// mine says whether this is still the attempt that counts.
func (d *ringDriver) mine(ctx context.Context, me string) error {
	if err := d.b.read(ctx); err != nil {
		return err
	}
	if doc, _, _, _ := d.b.get(); doc.Change == nil || doc.Change.Driver != me {
		return errNotDriver
	}
	return nil
}

// ringKeys makes of a server's reply to COMMAND what finds the keys in commands.
func ringKeys(command []byte) func(args [][]byte, dst []int) ([]int, bool) {
	table, ok := route.FromCommand(command)
	if !ok {
		table = route.Builtin()
	}
	return func(args [][]byte, dst []int) ([]int, bool) {
		row := table.Lookup(args[0])
		return row.Keys(args, dst), row.Name != ""
	}
}

// confirm reads the tenures of all shards of the plan anew.
func (d *ringDriver) tenures(ctx context.Context, p *ringPlan) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for id, was := range p.tenure {
		doc, err := d.m.store.Get(ctx, topo.KeyShard+id)
		if err != nil {
			return fmt.Errorf("shard %s: %w", id, err)
		}
		s, err := topo.DecodeShard(doc.Value)
		if err != nil {
			return fmt.Errorf("shard %s: %w", id, err)
		}
		if s.Assigned.Phase != topo.PhaseServing || tenureOf(s.Assigned) != was {
			return fmt.Errorf("shard %s has had a failover: its keys are copied anew", id)
		}
	}
	return nil
}

// clean removes what is not where it belongs, and ends the change.
func (d *ringDriver) clean(ctx context.Context, doc ringDoc, end string) error {
	now, other := doc.Shards, doc.Change.Other // settling: the other one is the former ring; undoing: the one that did not come
	present, err := d.m.ringSpec(now)
	if err != nil {
		return err
	}
	absent, err := d.m.ringSpec(other)
	if err != nil {
		return err
	}
	at := map[string]mover.Shard{}
	for _, s := range d.shards() {
		at[s.ID] = s
	}
	removed := int64(0)
	for _, s := range other {
		sh := at[d.m.deploy.Name+"-"+s.Name]
		if sh.Busy != "" || sh.Primary.Addr == "" {
			return fmt.Errorf("shard %s has to serve: %s", s.Name, sh.Busy)
		}
		if d.m.deploy.RingSpec().Distribution == ring.Random {
			continue
		}
		n, err := mover.Clean{Addr: sh.Primary.Addr, Stale: func(key []byte) bool {
			i, j := present.Shard(key, 0), absent.Shard(key, 0)
			return i >= 0 && j >= 0 && now[i].Name != s.Name && other[j].Name == s.Name
		}}.Remove(ctx, redis.MoverUser, doc.Change.Secret, func(ctx context.Context) error {
			if err := d.b.read(ctx); err != nil {
				return err
			}
			if seen, _, _, _ := d.b.get(); seen.Gen != doc.Gen || seen.Change == nil || seen.Change.N != doc.Change.N || seen.Change.Stage != doc.Change.Stage {
				return errNotDriver
			}
			return nil
		})
		if err != nil {
			return err
		}
		removed += n
	}
	if leaves := doc.Change.Leaves; leaves != "" && end == ringDone {
		if err := d.m.retire(ctx, leaves); err != nil {
			return err
		}
	}
	_, err = d.b.change(ctx, func(next *ringDoc) bool {
		if next.Change == nil || next.Change.N != doc.Change.N || next.Change.Stage != doc.Change.Stage {
			return false
		}
		next.Last, next.Change = next.Change, nil
		l := next.Last
		l.Stage, l.Other, l.Secret, l.Driver, l.Removed, l.EndedMS = end, nil, "", "", removed, d.m.clock.Now().UnixMilli()
		return true
	})
	return err
}

// whose tells the member of a proxy's connection; empty: it is none.
func whose(name string) string {
	if id, _, ok := redis.RuleOf(name); ok {
		return id
	}
	id, _ := strings.CutPrefix(name, redis.ErrandClientName)
	return id
}
