// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestForegroundDeploymentEndsWithItsCommand: interrupted when it serves, and interrupted while it starts.
func TestForegroundDeploymentEndsWithItsCommand(t *testing.T) {
	for _, after := range []time.Duration{-1, 20 * time.Millisecond, 40 * time.Millisecond, 60 * time.Millisecond, 300 * time.Millisecond} { // -1: when it serves
		d := &deployment{t: t, bin: binary(t), dir: t.TempDir(), base: freeBase(t)}
		t.Cleanup(func() { _ = exec.Command(d.bin, "down", "--dir", d.dir, "--yes").Run() })
		var errs bytes.Buffer
		cmd := exec.Command(d.bin, "up", "--dir", d.dir, "--base-port", strconv.Itoa(d.base), "--foreground")
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pids []int
		if after < 0 {
			for _, n := range d.waitHealthy(20 * time.Second).nodes() {
				pids = append(pids, n.PID, n.AgentPID)
			}
			wait(200 * time.Millisecond) // it looks every 50 ms
		} else {
			wait(after)
		}
		signal(t, cmd.Process.Pid, syscall.SIGINT)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if after < 0 && err != nil {
				t.Errorf("interrupted when it served: %v\n%s", err, errs.String())
			}
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Fatalf("it does not end: %v\n%s", <-done, errs.String())
		}
		for _, pid := range pids {
			d.until(2*time.Second, "every process has ended", func() (bool, string) { // a thread of it may be seen a moment longer
				err := syscall.Kill(pid, 0)
				return err == syscall.ESRCH, fmt.Sprintf("process %d is left (%v)", pid, err)
			})
		}
		for end := time.Now().Add(time.Second); after > 0 && time.Now().Before(end); wait(50 * time.Millisecond) { // one that is left takes a moment
			if out, err := d.run("status"); err == nil {
				t.Errorf("interrupted after %s, a member still answers:\n%s", after, out)
				break
			}
		}
		if out, err := d.run("status"); after < 0 && err == nil {
			t.Errorf("a member still answers:\n%s", out)
		}
		for range 2 { // stopping what is stopped is no error
			if out, err := exec.Command(d.bin, "down", "--dir", d.dir).CombinedOutput(); err != nil {
				t.Errorf("down: %v\n%s", err, out)
			}
		}
	}
}

// TestAMemberThatIsInterruptedAsItBeginsEnds: at any moment, also before it has looked at its file.
func TestAMemberThatIsInterruptedAsItBeginsEnds(t *testing.T) {
	d := up(t)
	if out, err := d.run("down", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for after := range 40 * roundsOr(1) {
		cmd := exec.Command(d.bin, "run", "-c", filepath.Join(d.dir, "member-1", "redoubt.yaml"))
		cmd.Dir = filepath.Join(d.dir, "member-1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		wait(time.Duration(after%40) * time.Millisecond)
		signal(t, cmd.Process.Pid, syscall.SIGINT)
		_ = cmd.Wait()
		if !late.Stop() {
			t.Fatalf("interrupted after %d ms, it does not end", after%40)
		}
	}
}

// TestAMemberThatWaitsToJoinEndsWhenItIsAsked: the first signal is enough, of either kind.
func TestAMemberThatWaitsToJoinEndsWhenItIsAsked(t *testing.T) {
	c := newCrew(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		c.start("n1", c.at(40, 2)) // nobody is there
		cmd := c.members["n1"]
		c.d.until(10*time.Second, "it waits to join", func() (bool, string) {
			n, err := net.DialTimeout("tcp", c.at(40, 1), time.Second)
			if err != nil {
				return false, err.Error()
			}
			return n.Close() == nil, ""
		})
		wait(200 * time.Millisecond)
		signal(t, cmd.Process.Pid, sig)
		late := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		if !late.Stop() || err != nil {
			t.Fatalf("%s: it ends as %v: %s", sig, err, c.log("n1"))
		}
		delete(c.members, "n1")
	}
}
