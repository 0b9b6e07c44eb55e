// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"redoubt/internal/clock"
)

// Scripts are programs that are run as a Sentinel runs them; empty: none.
type Scripts struct {
	Notification string // for each event that is a warning: its type and its text
	Reconfig     string // for each change of the primary's address: name, leader or observer, start, old host and port, new host and port
}

// The bounds of scripts, which are Sentinel's own (sentinel.c, Redis 7.0.15).
const (
	scriptsMax    = 16  // at once
	scriptsQueue  = 256 // waiting; beyond that the oldest that does not run is forgotten
	scriptTries   = 10
	scriptTime    = time.Minute // then it is killed
	scriptDelay   = 30 * time.Second
	scriptRetries = 1 // the exit status that asks for another try; so does the end by a signal
)

// script is one run that is to be made, or under way.
type script struct {
	argv  []string
	tries int           // begun
	due   time.Duration // uptime
	since time.Duration // uptime, while it runs
	pid   int           // 0: it waits
}

// scripts is the queue. Its methods are safe for concurrent use.
type scripts struct {
	Scripts
	clock clock.Clock
	log   *slog.Logger
	limit time.Duration // of one run
	delay time.Duration // before the first repetition; doubled with each
	wake  chan struct{} // capacity one

	mu  sync.Mutex
	all []*script // oldest first
	wg  sync.WaitGroup
}

func newScripts(o Scripts, c clock.Clock, log *slog.Logger) *scripts {
	return &scripts{Scripts: o, clock: c, log: log, limit: scriptTime, delay: scriptDelay, wake: make(chan struct{}, 1)}
}

// warning reports whether a Sentinel tells its notification script of an event.
func warning(channel string) bool {
	switch channel {
	case "+sdown", "-sdown", "+odown", "-odown", "+new-epoch", "+try-failover", "+elected-leader", "+failover-state-select-slave", "+selected-slave",
		"+promoted-slave", "+failover-state-reconf-slaves", "+failover-end", "+switch-master":
		return true
	}
	return false
}

// notify tells the notification script of an event.
func (s *scripts) notify(m message) {
	if s.Notification != "" && warning(m.channel) {
		s.add(s.Notification, m.channel, m.payload)
	}
}

// reconfigured tells the other script that the primary's address changed.
func (s *scripts) reconfigured(name string, leads bool, t tell, was, is string) {
	if s.Reconfig == "" {
		return
	}
	role := "observer"
	if leads {
		role = "leader"
	}
	fromHost, fromPort := t.at(was)
	toHost, toPort := t.at(is)
	s.add(s.Reconfig, name, role, "start", fromHost, fromPort, toHost, toPort)
}

func (s *scripts) add(argv ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= scriptsQueue {
		if i := slices.IndexFunc(s.all, func(x *script) bool { return x.pid == 0 }); i >= 0 {
			s.log.Warn("too many scripts wait; the oldest is forgotten", "argv", s.all[i].argv)
			s.all = slices.Delete(s.all, i, i+1)
		}
	}
	s.all = append(s.all, &script{argv: argv, due: s.clock.Uptime()})
	s.nudge()
}

func (s *scripts) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run starts what is due until ctx ends, and returns when nothing runs any more.
func (s *scripts) run(ctx context.Context) {
	defer s.wg.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := s.startDue(ctx)
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// startDue starts what is due, as far as there is room, and returns when to look again.
func (s *scripts) startDue(ctx context.Context) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, next, running := s.clock.Uptime(), time.Hour, 0
	for _, x := range s.all {
		if x.pid != 0 {
			running++
		}
	}
	for _, x := range slices.Clone(s.all) {
		switch {
		case x.pid != 0 || running >= scriptsMax:
		case x.due > now:
			next = min(next, x.due-now)
		case s.begin(ctx, x):
			running++
		}
	}
	return next
}

// begin starts one and reports whether it runs. The caller holds the lock.
func (s *scripts) begin(ctx context.Context, x *script) bool {
	limited, cancel := context.WithTimeout(ctx, s.limit)
	cmd := exec.CommandContext(limited, x.argv[0], x.argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with what it has started
	x.tries, x.since = x.tries+1, s.clock.Uptime()
	if err := cmd.Start(); err != nil {
		cancel()
		s.log.Warn("-script-error: it cannot be started", "argv", x.argv, "err", err)
		s.drop(x)
		return false
	}
	x.pid = cmd.Process.Pid
	s.wg.Go(func() {
		defer cancel()
		err := cmd.Wait()
		s.ended(x, err, limited.Err() != nil && ctx.Err() == nil)
	})
	return true
}

// ended settles a run: done, to be repeated, or given up.
func (s *scripts) ended(x *script, err error, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.nudge()
	x.pid = 0
	var exit *exec.ExitError
	again := errors.As(err, &exit) && (exit.ExitCode() == scriptRetries || exit.ExitCode() < 0)
	switch {
	case err == nil:
		s.drop(x)
	case again && x.tries < scriptTries:
		x.due = s.clock.Uptime() + s.delay<<(x.tries-1)
		s.log.Info("a script asks to be run again", "argv", x.argv, "tries", x.tries, "err", err, "late", late)
	default:
		s.log.Warn("-script-error: it is not run again", "argv", x.argv, "tries", x.tries, "err", err, "late", late)
		s.drop(x)
	}
}

func (s *scripts) drop(x *script) {
	s.all = slices.DeleteFunc(s.all, func(y *script) bool { return x == y })
}

// counts returns how many run and how many are known at all, as INFO shows them.
func (s *scripts) counts() (running, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.pid != 0 {
			running++
		}
	}
	return running, len(s.all)
}

// pending answers PENDING-SCRIPTS.
func (se *session) pending() {
	s := se.s.scripts
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Uptime()
	se.array(len(s.all))
	for _, x := range s.all {
		se.mapOf(5)
		se.bulk("argv")
		se.array(len(x.argv))
		for _, a := range x.argv {
			se.bulk(a)
		}
		f := fields{{"flags", "scheduled"}, {"pid", "0"}, {"run-delay", ms(max(x.due-now, 0))}, {"retry-num", fmt.Sprint(x.tries)}}
		if x.pid != 0 {
			f = fields{{"flags", "running"}, {"pid", fmt.Sprint(x.pid)}, {"run-time", ms(now - x.since)}, {"retry-num", fmt.Sprint(x.tries)}}
		}
		for _, kv := range f {
			se.bulk(kv[0])
			se.bulk(kv[1])
		}
	}
}
