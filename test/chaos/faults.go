// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"redoubt/test/netns"
)

// fault is one thing that is done to the hosts, and undone after a while.
type fault struct {
	at, lasts time.Duration
	kind      string
	target    string // primary, controller, or any
	dice      int    // what else is left to chance
	alone     bool   // only while everything is well, and nothing else begins before it is undone
}

// deed is how a kind of fault is done. It returns its own undoing.
type deed func(r *run, ctx context.Context, f fault, at int) (undo func() error, err error)

// kind is a sort of fault, with its weight in the lottery and the longest that it lasts.
type kind struct {
	name    string
	weight  int
	longest time.Duration
	do      deed
}

func kinds() []kind {
	return []kind{
		{"kill-server", 8, 3 * time.Second, kill(server)},
		{"kill-agent", 5, 4 * time.Second, kill(agent)},
		{"kill-both", 4, 4 * time.Second, kill(both)},
		{"kill-host", 4, 5 * time.Second, kill(host)},
		{"kill-everything", 2, time.Second, killEverything},
		{"stop-server", 6, 5 * time.Second, stopped(server)},
		{"stop-agent", 5, 5 * time.Second, stopped(agent)},
		{"stop-both", 4, 5 * time.Second, stopped(both)},
		{"stop-host", 4, 5 * time.Second, stopped(host)},
		{"cut", 8, 8 * time.Second, cut},
		{"cut-in", 4, 6 * time.Second, rules([]string{"INPUT", "-i", netns.Interface, "-j", "DROP"})},
		{"cut-out", 4, 6 * time.Second, rules([]string{"OUTPUT", "-o", netns.Interface, "-j", "DROP"})},
		{"bridge", 5, 8 * time.Second, bridge},
		{"cut-store", 5, 6 * time.Second, cutStore},
		{"cut-servers", 5, 6 * time.Second, cutServers},
		{"lossy", 4, 6 * time.Second, lossy},
		{"delay", 5, 6 * time.Second, rough(delayed)},
		{"reorder", 4, 6 * time.Second, rough(reordered)},
		{"ragged", 4, 6 * time.Second, rough(ragged)},
		{"disk-full", 3, 5 * time.Second, diskFull},
		{"disk-slow", 3, 6 * time.Second, diskSlow},
		{"disk-hang", 3, 4 * time.Second, diskHang},
		{"clock", 4, 5 * time.Second, clockStep},
		{"switchover", 8, 0, switchover},
	}
}

// script reads a schedule that is given by hand: KIND@AT+LASTS:TARGET,…, for example cut@2s+6s:primary; the target is
// primary, controller or the number of a host.
func script(text string, hosts int, faultTime time.Duration) ([]fault, error) {
	var fs []fault
	for _, one := range strings.FieldsFunc(text, func(c rune) bool { return c == ',' }) {
		name, rest, _ := strings.Cut(one, "@")
		when, target, _ := strings.Cut(rest, ":")
		at, lasts, _ := strings.Cut(when, "+")
		f := fault{kind: name, target: target}
		var err1, err2 error
		f.at, err1 = time.ParseDuration(at)
		if lasts != "" {
			f.lasts, err2 = time.ParseDuration(lasts)
		}
		if i, err := strconv.Atoi(target); err == nil && i >= 1 && i <= hosts {
			f.target, f.dice = "any", i-1
		} else if target != "primary" && target != "controller" {
			err1 = errors.Join(err1, fmt.Errorf("target %q: give primary, controller or the number of a host", target))
		}
		if !slices.ContainsFunc(kinds(), func(k kind) bool { return k.name == name }) {
			err1 = errors.Join(err1, fmt.Errorf("there is no fault %q: see docs/internals/chaos.md", name))
		}
		if f.at+f.lasts > faultTime {
			err1 = errors.Join(err1, fmt.Errorf("it ends after %s, when faults end: give more seconds", faultTime))
		}
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("plan %q: %w", one, err)
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// lottery draws a schedule from the seed: mostly one after the other, sometimes on top of each other.
func (r *run) lottery() []fault {
	if len(r.o.script) > 0 {
		return r.o.script
	}
	draw := rand.New(rand.NewPCG(uint64(r.seed), 2))
	var bowl []int
	all := kinds()
	for i, k := range all {
		for range k.weight {
			bowl = append(bowl, i)
		}
	}
	var fs []fault
	for at := time.Second; ; {
		k := all[bowl[draw.IntN(len(bowl))]]
		f := fault{at: at, kind: k.name, dice: draw.IntN(1 << 20), target: []string{"primary", "primary", "controller", "any"}[draw.IntN(4)]}
		if k.longest > 0 {
			f.lasts = 200*time.Millisecond + time.Duration(draw.Int64N(int64(k.longest)))
		}
		if !r.o.ours() && f.lasts > 0 {
			f.lasts += 8 * time.Second // longer than it takes to notice, or nothing happens at all
		}
		f.alone = strings.HasPrefix(k.name, "disk-") || r.persistence == "none" // what forgets, forgets alone: that is the promise
		gap := 500*time.Millisecond + time.Duration(draw.Int64N(int64(2500*time.Millisecond)))
		if draw.IntN(3) > 0 || f.alone {
			gap += f.lasts
		}
		if at += gap; f.at+f.lasts > r.o.faultTime() {
			return fs
		}
		if r.persistence != "none" || k.name != "kill-everything" {
			fs = append(fs, f)
		}
	}
}

func (o options) faultTime() time.Duration { return time.Duration(o.seconds) * time.Second * 3 / 4 }

// torment plays the schedule, and undoes all of it.
func (r *run) torment(ctx context.Context) {
	begun := r.history.now()
	var wg sync.WaitGroup
	for _, f := range r.lottery() {
		wait(ctx, begun+f.at-r.history.now())
		if ctx.Err() != nil {
			break
		}
		if !f.alone {
			wg.Go(func() { r.strike(ctx, f) })
			continue
		}
		wg.Wait()
		if err := r.wellWithin(ctx, begun+r.o.faultTime()-f.lasts-r.history.now()); err != nil {
			r.history.note("%s left out: not all is well: %v", f.kind, err)
			continue
		}
		r.strike(ctx, f)
	}
	wg.Wait()
}

func (r *run) strike(ctx context.Context, f fault) {
	at := 0
	switch f.target {
	case "primary":
		at = r.sys.primary(ctx)
	case "controller":
		at = r.sys.controller(ctx)
	}
	who := f.target
	if at == 0 {
		at, who = f.dice%r.o.hosts+1, "any"
	}
	all := kinds()
	k := all[slices.IndexFunc(all, func(k kind) bool { return k.name == f.kind })]
	r.history.note("%s at host %d (%s) for %s", f.kind, at, who, f.lasts.Round(time.Millisecond))
	r.hit.Store(int64(at))
	undo, err := k.do(r, ctx, f, at)
	if err != nil {
		r.history.note("%s at host %d: %v", f.kind, at, err)
	}
	wait(ctx, f.lasts)
	if undo == nil {
		return
	}
	if err := undo(); err != nil {
		r.history.note("cannot undo %s at host %d: %v", f.kind, at, err)
		r.broken.Store(true)
		return
	}
	r.history.note("%s at host %d is over", f.kind, at)
}

// signal hits processes that are in host i, and nobody else's.
func (r *run) signal(i int, pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		if slices.Contains(r.net().PIDs(i), pid) {
			_ = syscall.Kill(pid, sig) // it may have ended in between
		}
	}
}

func kill(what string) deed {
	return func(r *run, ctx context.Context, f fault, at int) (func() error, error) {
		r.sys.hold(at, what, true)
		r.signal(at, r.sys.pids(at, what), syscall.SIGKILL)
		return func() error { r.sys.hold(at, what, false); return nil }, nil
	}
}

func killEverything(r *run, ctx context.Context, f fault, _ int) (func() error, error) {
	r.awaitWritten(ctx)
	for i := 1; i <= r.o.hosts; i++ {
		r.sys.hold(i, host, true)
		r.signal(i, r.sys.pids(i, host), syscall.SIGKILL)
	}
	return func() error {
		for i := 1; i <= r.o.hosts; i++ {
			r.sys.hold(i, host, false)
		}
		return nil
	}, nil
}

// awaitWritten waits, for a few seconds at most, until no server syncs its append-only file or is soon to begin: meanwhile it may put off
// the write itself, and then what it acknowledged is in no file. That is not promised (docs/guarantees.md, "Everything stops at once"),
// and a slow disk would have it found here instead of everything else that a kill of all processes can find.
func (r *run) awaitWritten(ctx context.Context) {
	const atMost, fresh = 4 * time.Second, 700 * time.Millisecond // a sync begins once a second
	if r.persistence != "aof" {
		return
	}
	synced := make([]time.Time, r.o.hosts+1) // when each was last seen syncing
	for begun := time.Now(); time.Since(begun) < atMost; wait(ctx, 2*time.Millisecond) {
		calm := true
		for i := 1; i <= r.o.hosts; i++ {
			_ = r.b.say(ctx, i, r.sys.serverPorts(), func(ctx context.Context, c *redis.Client) error {
				text, err := c.Info(ctx, "persistence").Result()
				if err == nil && strings.Contains(text, "aof_pending_bio_fsync:1") {
					synced[i], calm = time.Now(), false
				}
				return err
			})
		}
		for _, at := range synced[1:] {
			calm = calm && time.Since(at) < fresh
		}
		if calm || ctx.Err() != nil {
			return
		}
	}
}

func stopped(what string) deed {
	return func(r *run, ctx context.Context, f fault, at int) (func() error, error) {
		pids := r.sys.pids(at, what)
		r.signal(at, pids, syscall.SIGSTOP)
		return func() error { r.signal(at, pids, syscall.SIGCONT); return nil }, nil
	}
}

// filter adds rules to hosts; the undoing takes exactly these away.
func (r *run) filter(at []int, rules ...[]string) (func() error, error) {
	var undos []func() error
	undo := func() error {
		var errs []error
		for _, u := range undos {
			errs = append(errs, u())
		}
		return errors.Join(errs...)
	}
	for _, i := range at {
		for _, rule := range rules {
			if err := r.net().Append(i, rule...); err != nil {
				return undo, err
			}
			undos = append(undos, func() error { return r.net().Delete(i, rule...) })
		}
	}
	return undo, nil
}

func rules(rules ...[]string) deed {
	return func(r *run, ctx context.Context, f fault, at int) (func() error, error) {
		return r.filter([]int{at}, rules...)
	}
}

// dropPort drops what goes to or comes from a port, in both directions, as far as it crosses the network.
func dropPort(port string) [][]string {
	var out [][]string
	for _, side := range []string{"--dport", "--sport"} {
		out = append(out, []string{"INPUT", "-i", netns.Interface, "-p", "tcp", side, port, "-j", "DROP"},
			[]string{"OUTPUT", "-o", netns.Interface, "-p", "tcp", side, port, "-j", "DROP"})
	}
	return out
}

func cutServers(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	return r.filter([]int{at}, dropPort(r.sys.serverPorts())...)
}

func cutStore(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	return r.filter([]int{at}, dropPort(r.sys.storePort())...)
}

// cut parts the target's side from the others: alone, or with five hosts perhaps with a second one.
func cut(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	side := []int{at}
	if r.o.hosts == 5 && f.dice%2 == 0 {
		side = append(side, at%5+1)
		r.history.note("cut: hosts %v are together", side)
	}
	return r.part(side, func(i int) bool { return slices.Contains(side, i) })
}

// bridge: two sides that do not see each other, and one host between them that sees both.
func bridge(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	middle := (at+f.dice%(r.o.hosts-1))%r.o.hosts + 1
	side := []int{at}
	if next := at%r.o.hosts + 1; r.o.hosts == 5 && next != middle {
		side = append(side, next)
	}
	r.history.note("bridge: hosts %v on one side, host %d sees both", side, middle)
	return r.part(side, func(i int) bool { return slices.Contains(side, i) || i == middle })
}

// part drops what hosts of one side and hosts outside of it send each other.
func (r *run) part(side []int, inside func(i int) bool) (func() error, error) {
	var rules [][]string
	for i := 1; i <= r.o.hosts; i++ {
		if !inside(i) {
			rules = append(rules, []string{"INPUT", "-s", r.net().Addr(i), "-j", "DROP"}, []string{"OUTPUT", "-d", r.net().Addr(i), "-j", "DROP"})
		}
	}
	return r.filter(side, rules...)
}

// lossy loses every tenth to third packet, at one host or at all.
func lossy(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	hosts := r.several(f, at)
	share := fmt.Sprintf("0.%d", 10+f.dice%21)
	r.history.note("lossy: hosts %v lose %s of what arrives", hosts, share)
	return r.filter(hosts, []string{"INPUT", "-i", netns.Interface, "-m", "statistic", "--mode", "random", "--probability", share, "-j", "DROP"})
}

// switchover asks for a planned move. It may be refused or given up in the middle of other faults: that is no failure.
func switchover(r *run, ctx context.Context, f fault, at int) (func() error, error) {
	to := at%r.o.hosts + 1
	if err := r.sys.switchover(ctx, to); err != nil {
		text := err.Error()
		r.history.note("switchover to host %d was not done: %s", to, strings.ToValidUTF8(text[:min(len(text), 160)], ""))
		return nil, nil
	}
	r.history.note("switchover to host %d done", to)
	return nil, nil
}
