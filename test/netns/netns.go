// SPDX-License-Identifier: Apache-2.0

// Package netns makes hosts of network namespaces on one bridge, for tests that cut, drop and starve what passes between
// them. It needs root, iproute2 and iptables. It is not for production code and knows nothing of what runs in a host.
// Invariant: every name and address comes from the process id, so that two tests do not meet, and what a dead process
// left behind is told from what a living one uses. It has no goroutines; a Net may be used by many.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Interface is the network device of every host.
const Interface = "eth0"

// Net is a set of hosts, numbered from 1.
type Net struct {
	prefix, subnet string
	hosts          int
	outside        bool
}

// Up makes hosts; with outside, the process itself reaches them, too, under the address of host 100.
func Up(hosts int, outside bool) (*Net, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run it as root")
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	pid := os.Getpid()
	n := &Net{prefix: fmt.Sprintf("rd%d", pid), subnet: fmt.Sprintf("10.%d.%d.", 100+pid/250%100, pid%250), hosts: hosts, outside: outside}
	if err := n.build(); err != nil {
		return nil, errors.Join(err, n.Down())
	}
	return n, nil
}

func (n *Net) build() error {
	sw := n.prefix + "-sw"
	steps := [][]string{
		{"netns", "add", sw},
		{"-n", sw, "link", "add", "br0", "type", "bridge"},
		{"-n", sw, "link", "set", "br0", "up"},
	}
	plug := func(i int, far string, into ...string) {
		near := fmt.Sprintf("p%d", i)
		steps = append(steps,
			append([]string{"link", "add", near, "netns", sw, "type", "veth", "peer", "name", far}, into...),
			[]string{"-n", sw, "link", "set", near, "master", "br0", "up"})
	}
	for i := 1; i <= n.hosts; i++ {
		ns := n.Name(i)
		steps = append(steps, []string{"netns", "add", ns})
		plug(i, Interface, "netns", ns)
		steps = append(steps,
			[]string{"-n", ns, "addr", "add", n.Addr(i) + "/24", "dev", Interface},
			[]string{"-n", ns, "link", "set", Interface, "up"},
			[]string{"-n", ns, "link", "set", "lo", "up"})
	}
	if n.outside {
		plug(100, n.prefix+"c")
		steps = append(steps,
			[]string{"addr", "add", n.Addr(100) + "/24", "dev", n.prefix + "c"},
			[]string{"link", "set", n.prefix + "c", "up"})
	}
	for _, args := range steps {
		if err := run("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Down kills what runs in the hosts and removes them.
func (n *Net) Down() error {
	if n.outside {
		_ = run("ip", "link", "del", n.prefix+"c") // it may not have come to be, and goes with its peer anyway
	}
	return remove(func(pid int) bool { return pid == os.Getpid() })
}

// Name is the namespace of host i.
func (n *Net) Name(i int) string { return fmt.Sprintf("%s-%d", n.prefix, i) }

// Addr is the address of host i.
func (n *Net) Addr(i int) string { return n.subnet + strconv.Itoa(i) }

// Command is a command that runs in host i, under the process id that it is started with.
func (n *Net) Command(i int, name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", n.Name(i), name}, args...)...)
}

// Append adds a rule to the packet filter of host i, Delete takes one of its kind away.
func (n *Net) Append(i int, rule ...string) error { return n.filter(i, "-A", rule) }

// Delete takes a rule away that Append added.
func (n *Net) Delete(i int, rule ...string) error { return n.filter(i, "-D", rule) }

func (n *Net) filter(i int, verb string, rule []string) error {
	return run("ip", append([]string{"netns", "exec", n.Name(i), "iptables", "-w", "5", verb}, rule...)...)
}

// Isolate drops everything to and from host i but its own loopback, until Heal.
func (n *Net) Isolate(i int) error {
	return errors.Join(n.Append(i, "INPUT", "-i", Interface, "-j", "DROP"), n.Append(i, "OUTPUT", "-o", Interface, "-j", "DROP"))
}

// Heal takes all rules away from host i.
func (n *Net) Heal(i int) error {
	return run("ip", "netns", "exec", n.Name(i), "iptables", "-w", "5", "-F")
}

// PIDs are the processes in host i, without those of this package: this one (the kernel says that it is where its main thread is, which may be
// dialling), and the tools that change rules and links there at the moment.
func (n *Net) PIDs(i int) []int { return pids(n.Name(i)) }

func pids(ns string) []int {
	out, err := exec.Command("ip", "netns", "pids", ns).Output()
	if err != nil {
		return nil // the namespace is gone, and all in it
	}
	var all []int
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() && !isTool(pid) {
			all = append(all, pid)
		}
	}
	return all
}

func isTool(pid int) bool {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	name := strings.TrimSpace(string(comm))
	return name == "ip" || name == "tc" || strings.HasPrefix(name, "iptables") || strings.HasPrefix(name, "xtables")
}

// Dial connects from inside host i; the address must not need to be resolved.
func (n *Net) Dial(ctx context.Context, i int, network, addr string) (net.Conn, error) {
	back, err := enter(n.Name(i))
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	defer back()
	var d net.Dialer
	return d.DialContext(ctx, network, addr) // a literal address: the socket is made by this very thread
}

// enter moves the calling thread into a namespace and returns the way back. A thread that cannot go back is not used again.
func enter(ns string) (back func(), err error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	there, err := os.Open(filepath.Join("/run/netns", ns))
	if err != nil {
		home.Close()
		runtime.UnlockOSThread()
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		home.Close()
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter %s: %w", ns, err)
	}
	return func() {
		defer home.Close()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}, nil
}

var named = regexp.MustCompile(`^rd(\d+)-(\d+|sw)$`)

// Sweep removes the hosts of processes that are gone, with what still runs in them.
func Sweep() error {
	return remove(func(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
}

func remove(of func(pid int) bool) error {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	var errs []error
	for _, e := range entries {
		m := named.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if pid, err := strconv.Atoi(m[1]); err != nil || !of(pid) {
			continue
		}
		for _, pid := range pids(e.Name()) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := run("ip", "netns", "del", e.Name()); err != nil && !gone(e.Name()) {
			errs = append(errs, err) // unless another process swept at the same time
		}
	}
	return errors.Join(errs...)
}

func gone(ns string) bool {
	_, err := os.Stat(filepath.Join("/run/netns", ns))
	return os.IsNotExist(err)
}
