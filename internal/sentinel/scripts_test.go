// SPDX-License-Identifier: Apache-2.0

package sentinel

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt/internal/clock"
)

// program writes a script, and returns it and the file that it appends its arguments to.
func program(t *testing.T, body string) (path, said string) {
	t.Helper()
	dir := t.TempDir()
	path, said = filepath.Join(dir, "script"), filepath.Join(dir, "said")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho \"$@\" >> "+said+"\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path, said
}

func linesOf(path string) []string {
	b, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// queue runs scripts with short times.
func queue(t *testing.T, o Scripts, limit time.Duration) *scripts {
	t.Helper()
	s := newScripts(o, clock.Real{}, slog.New(slog.DiscardHandler))
	s.limit, s.delay = limit, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *scripts) idle() bool { _, all := s.counts(); return all == 0 }

func TestScriptsGetSentinelsArguments(t *testing.T) {
	path, said := program(t, "")
	s := queue(t, Scripts{Notification: path, Reconfig: path}, time.Minute)
	s.notify(message{"+sdown", "master mymaster 127.0.0.1 6379"})
	s.notify(message{"+slave-reconf-sent", "no warning"})
	eventually(t, "the notification", s.idle)
	s.reconfigured("mymaster", true, tell{}, "10.0.0.1:6379", "10.0.0.2:6380")
	eventually(t, "the reconfiguration", s.idle)
	want := "+sdown master mymaster 127.0.0.1 6379|mymaster leader start 10.0.0.1 6379 10.0.0.2 6380"
	if got := strings.Join(linesOf(said), "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAScriptIsRunAgainWhenItAsksForIt(t *testing.T) {
	for _, c := range []struct {
		name  string
		body  string
		limit time.Duration
		runs  int
	}{
		{"one", "exit 1", time.Minute, scriptTries},
		{"two", "exit 2", time.Minute, 1},
		{"signal", "kill -9 $$", time.Minute, scriptTries},
		{"late", "exec tail -f /dev/null", 20 * time.Millisecond, scriptTries}, // killed when it takes too long
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path, said := program(t, c.body)
			s := queue(t, Scripts{Notification: path}, c.limit)
			s.notify(message{"+odown", "x"})
			eventually(t, "the end of it", s.idle)
			if n := len(linesOf(said)); n != c.runs && c.limit == time.Minute {
				t.Errorf("it ran %d times, want %d", n, c.runs)
			}
		})
	}
}

func TestOnlySoManyScriptsRunAndWait(t *testing.T) {
	path, _ := program(t, "exec tail -f /dev/null")
	s := queue(t, Scripts{Notification: path}, time.Minute)
	for i := range scriptsQueue + 50 {
		s.notify(message{"+odown", fmt.Sprint(i)})
	}
	eventually(t, "as many to run as may", func() bool { n, _ := s.counts(); return n == scriptsMax })
	running, all := s.counts()
	if running != scriptsMax || all > scriptsQueue {
		t.Errorf("%d run and %d are known", running, all)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.all[len(s.all)-1].argv[2]; last != fmt.Sprint(scriptsQueue+49) {
		t.Errorf("the newest is %s: the oldest are to be forgotten", last)
	}
}
