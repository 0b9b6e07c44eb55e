// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("no iptables here")
	}
}

// hosts makes hosts for a test, which is skipped where there can be none.
func hosts(t *testing.T, count int) *Net {
	t.Helper()
	needRoot(t)
	n, err := Up(count, false)
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	t.Cleanup(func() {
		if err := n.Down(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// listen starts a listener inside a host, and waits until it listens.
func listen(t *testing.T, n *Net, i int) {
	t.Helper()
	cmd := n.Command(i, "redis-server", "--port", "7000", "--bind", n.Addr(i), "--save", "", "--protected-mode", "no")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no redis-server here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "Ready to accept") {
			return
		}
	}
	t.Fatal("the listener ended")
}

// TestCutsAreWhatTheySay: hosts see each other, do not when one is isolated, and do again.
func TestCutsAreWhatTheySay(t *testing.T) {
	n := hosts(t, 2)
	listen(t, n, 2)
	reach := func(from int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		c, err := n.Dial(ctx, from, "tcp", n.Addr(2)+":7000")
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := reach(1); err != nil {
		t.Fatalf("before the cut: %v", err)
	}
	if err := n.Isolate(2); err != nil {
		t.Fatal(err)
	}
	if reach(1) == nil {
		t.Error("an isolated host was reached")
	}
	if err := reach(2); err != nil {
		t.Errorf("an isolated host does not reach itself: %v", err)
	}
	if err := n.Heal(2); err != nil {
		t.Fatal(err)
	}
	if err := reach(1); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}

// TestADialComesBack: the thread that dialled is where it was, also after a dial that failed.
func TestADialComesBack(t *testing.T) {
	n := hosts(t, 1)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here := func() string {
		s, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := here()
	if _, err := n.Dial(t.Context(), 1, "tcp", n.Addr(1)+":1"); err == nil {
		t.Fatal("somebody answers at a port where nobody listens")
	}
	if now := here(); now != before {
		t.Errorf("the thread is in %s, was in %s", now, before)
	}
	back, err := enter(n.Name(1))
	if err != nil {
		t.Fatal(err)
	}
	if here() == before {
		t.Error("enter did not enter")
	}
	back()
	if now := here(); now != before {
		t.Errorf("after the way back the thread is in %s, was in %s", now, before)
	}
}

// TestDownSparesItsOwnProcess: the main thread is in a host, as during a dial that lasts, and then the process is seen there.
func TestDownSparesItsOwnProcess(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "skip") {
		t.Skipf("no network namespaces here: %s", out)
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

const inside = "REDOUBT_TEST_INSIDE"

func init() {
	if os.Getenv(inside) != "" {
		runtime.LockOSThread() // main runs on the main thread, after which the kernel calls the whole process
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(m.Run())
	}
	n, err := Up(1, false)
	if err != nil {
		fmt.Println("skip:", err)
		return
	}
	if _, err := enter(n.Name(1)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := n.Down(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestSweepTakesWhatADeadProcessLeft, with what runs in it, and nothing of the living.
func TestSweepTakesWhatADeadProcessLeft(t *testing.T) {
	needRoot(t)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	mine := fmt.Sprintf("rd%d-1", os.Getpid())
	left := fmt.Sprintf("rd%d-1", dead.Process.Pid)
	for _, ns := range []string{mine, left} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces here: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	within := exec.Command("ip", "netns", "exec", left, "sleep", "60")
	if err := within.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); len(pids(left)) == 0; {
		if time.Now().After(end) {
			t.Fatal("nothing runs in the namespace")
		}
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if !gone(left) {
		t.Error("the namespace of a dead process is still there")
	}
	if gone(mine) {
		t.Error("the namespace of a living process was removed")
	}
	if err := within.Wait(); err == nil {
		t.Error("what ran inside ended by itself")
	}
}
