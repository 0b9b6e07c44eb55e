// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/clock"
)

// AttachOptions describe a server whose process belongs to another supervisor (systemd, a container runtime).
type AttachOptions struct {
	Addr     string       // host:port at which the server answers
	Username string       // ACL user of the agent; empty: the default user
	Password string       // empty: none
	PIDFile  string       // where the supervisor writes the server's pid; empty: INFO tells, once the server has answered
	StateDir string       // our own small files; empty: what is known of the run id dies with the agent
	Cluster  *ClusterSeat // its place in a cluster; nil: it is no member of one
	Log      *slog.Logger // nil: silent
	Clock    clock.Clock  // nil: the machine's
}

// Attached returns the driver of a server that somebody else starts. It opens nothing yet: the first verb connects.
// Restart and Kill answer ErrRefused.
func Attached(o AttachOptions) (*Node, error) {
	if host, port, err := net.SplitHostPort(o.Addr); err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("attached server: addr %q must be host:port", o.Addr)
	}
	n := newNode(o.Addr, o.Log, o.Clock)
	n.username, n.password, n.pidFile, n.state = o.Username, o.Password, o.PIDFile, o.StateDir
	if n.cluster = o.Cluster; n.cluster != nil {
		host, port, _ := net.SplitHostPort(o.Addr)
		number, _ := strconv.Atoi(port)
		if errs := n.cluster.validate(host, number); len(errs) > 0 {
			return nil, fmt.Errorf("attached server: %w", errors.Join(errs...))
		}
		n.d = member{attached: true}
	}
	if o.StateDir == "" {
		return n, nil
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("attached server: %w", err)
	}
	var boot bootRecord
	if err := errors.Join(loadJSON(o.StateDir, bootFile, &boot), loadJSON(o.StateDir, adminFile, &n.last)); err != nil {
		return nil, err
	}
	n.knownRun = boot.RunID
	return n, nil
}

// FrozenArguments are the command-line arguments that make a server boot frozen. They win over any configuration file;
// a line in an included file does not, because CONFIG REWRITE appends the present primary after it (SAFETY A11).
func FrozenArguments() []string { return []string{"--replicaof", deadHost, deadPort} }

// SystemdDropIn renders a drop-in for a unit whose ExecStart is execStart, for example as
// /etc/systemd/system/redis-server.service.d/redoubt.conf. It appends the arguments that make the server boot frozen.
func SystemdDropIn(execStart string) (string, error) {
	execStart = strings.TrimSpace(execStart)
	if execStart == "" || strings.ContainsAny(execStart, "\r\n") {
		return "", fmt.Errorf("render a systemd drop-in: ExecStart %q must be one command line", execStart)
	}
	line := execStart + " " + strings.Join(FrozenArguments(), " ")
	return "# Written for Redoubt: the server must boot frozen, read-only and following nothing.\n[Service]\nExecStart=\nExecStart=" + line + "\n", nil
}

// FrozenInclude renders a file to be included at the very end of a server's configuration, where no command line can be
// changed. It is the weaker form: every start is checked, and one that did not boot frozen is fenced and reported.
func FrozenInclude() string {
	return "# Written for Redoubt: include this as the last line. The server boots read-only and following nothing.\n" +
		strings.TrimPrefix(strings.Join(FrozenArguments(), " "), "--") + "\nreplica-read-only yes\nreplica-ignore-maxmemory yes\nrepl-backlog-ttl 0\n"
}

// findProcess returns the server's process, looking into the pid file of an attached server whose process is unknown.
func (n *Node) findProcess() *process {
	p := n.process()
	if n.managed != nil || n.pidFile == "" || p != nil && !p.exited() {
		return p
	}
	b, err := os.ReadFile(n.pidFile)
	if err != nil {
		return p
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 || p != nil && p.pid == pid {
		return p
	}
	if st, err := readStat(pid); err != nil || !serverComm(st.comm) {
		return p
	}
	return n.watchProcess(pid)
}

// learnProcess takes the pid that the server itself tells, if that is a process on this machine and the same one.
func (n *Node) learnProcess(m info) {
	pid := int(m.num("process_id"))
	p := n.process()
	if pid <= 1 || p != nil && p.pid == pid && !p.exited() || !localHost(n.addr) {
		return
	}
	st, err := readStat(pid)
	if err != nil || !serverComm(st.comm) || !sameAge(st.start, m.num("uptime_in_seconds"), n.clk.Uptime()) {
		return // the pid is one of another namespace
	}
	n.watchProcess(pid)
}

func (n *Node) watchProcess(pid int) *process {
	old := n.process()
	p, err := openProcess(pid, 0, n.nudge)
	if err != nil {
		return old
	}
	n.mu.Lock()
	n.proc = p
	n.mu.Unlock()
	if old != nil {
		old.release()
	}
	return p
}

// serverComm is deliberately wide: distributions rename the program (redis-server, valkey-server, redis-check-rdb links).
func serverComm(comm string) bool {
	return strings.Contains(comm, "redis") || strings.Contains(comm, "valkey")
}

// sameAge compares a process's start, in ticks after boot, with the age that the server tells.
func sameAge(startTicks uint64, uptimeSeconds int64, now time.Duration) bool {
	age := now - ticks(startTicks)
	diff := age - time.Duration(uptimeSeconds)*time.Second
	return diff > -3*time.Second && diff < 3*time.Second
}

// localHost tells whether the address is one of this machine.
func localHost(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	if host == "localhost" || ip != nil && ip.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil || ip == nil {
		return false
	}
	for _, a := range addrs {
		if in, ok := a.(*net.IPNet); ok && in.IP.Equal(ip) {
			return true
		}
	}
	return false
}
