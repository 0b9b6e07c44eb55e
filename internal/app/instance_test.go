// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestOnlyOneProcessRunsAMember(t *testing.T) {
	dir := t.TempDir()
	first, err := claim(dir, "a.yaml")
	if err != nil {
		t.Fatal(err)
	}
	i, err := ReadInstance(dir)
	if err != nil || i.PID != os.Getpid() || !i.Alive() || i.Config != "a.yaml" {
		t.Errorf("record %+v %v", i, err)
	}
	if _, err := claim(dir, "a.yaml"); err == nil || !strings.Contains(err.Error(), "runs already, as process") {
		t.Errorf("second claim: %v", err)
	}
	first.release()
	again, err := claim(dir, "a.yaml")
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	again.release()
}

func TestASignalReachesOnlyTheProcessThatWasMeant(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	i, err := NewInstance(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := i
	other.Start++ // the same pid, given to somebody else
	if other.Alive() {
		t.Error("another process counts as alive")
	}
	if err := other.Signal(syscall.SIGKILL); err != nil || !i.Alive() {
		t.Errorf("the wrong process was signalled (%v)", err)
	}
	if err := i.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if i.Alive() || i.Signal(syscall.SIGKILL) != nil {
		t.Error("a process that is gone must neither be alive nor an error")
	}
}

func TestPartsStopInReverseOrderAndFailuresAreReported(t *testing.T) {
	s := stack{failed: make(chan error, 1)}
	var order []string
	for _, name := range []string{"view", "agent", "proxy"} {
		s.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, name) // one part stops at a time
			return ctx.Err()
		})
	}
	log := slog.New(slog.DiscardHandler)
	s.stopAll(log, "view")
	s.stopAll(log)
	if got := strings.Join(order, " "); got != "proxy agent view" {
		t.Errorf("stopped %s", got)
	}
	s.start("broken", func(context.Context) error { return errors.New("no port") })
	if err := <-s.failed; err.Error() != "broken: no port" {
		t.Errorf("failure %v", err)
	}
	s.stopAll(log)
}
