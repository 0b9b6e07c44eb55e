// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

// notJudged stands for "no run id yet": the first look at any process is then judged (see judgeBoot).
const notJudged = "-"

// managed is the part of a Node that starts processes. Its fields are used by verbs alone, except those under mu.
type managed struct {
	node    *Node
	o       Options
	binary  string
	version int
	secret  string // password of our own user on servers that were started with one

	mu        sync.Mutex
	srv       serverRecord
	seat      seatRecord
	guards    []*process    // the newest last; earlier ones are about to end
	nextGuard time.Duration // clock.Uptime before which no further guard is started
	aof       aofWatch
	aside     []string // unreadable files that were set aside …
	asidesAt  time.Duration
	end       ending // of the newest process that ended
	waited    waited
}

// Managed returns the driver of a server that Redoubt owns. A server that an earlier agent started in this directory is
// adopted as it is; otherwise one is started, frozen. It returns when the process runs, not when it has loaded.
func Managed(ctx context.Context, o Options) (*Node, error) {
	if errs := o.Validate(); len(errs) > 0 {
		return nil, fmt.Errorf("managed server: %w", errors.Join(errs...))
	}
	binary, version, err := findBinary(o.Binary)
	if err != nil {
		return nil, err
	}
	if o.SyncAlways && version < confirmsDisk {
		return nil, fmt.Errorf("durability quorum+disk: %s is version %d.%d and cannot confirm what is on disk: run Redis 7.4 or Valkey 8.0, or newer ones (node.binary), or use durability quorum", binary, version/100, version%100)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("managed server: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("managed server: %w", err)
	}
	if o.Cluster != nil && version < clusterSince {
		return nil, fmt.Errorf("mode cluster: %s is version %d.%d and knows no cluster-port: run Redis 7.0 or Valkey 7.2, or newer ones (node.binary)", binary, version/100, version%100)
	}
	n := newNode(o.Addr, o.Log, o.Clock)
	if n.cluster = o.Cluster; n.cluster != nil {
		n.own, n.d = socketPrefix+o.Dir, member{}
	}
	n.password, n.state, n.knownRun = o.Password, o.Dir, notJudged
	m := &managed{node: n, o: o, binary: binary, version: version}
	n.managed = m
	if err := errors.Join(loadJSON(o.Dir, seatFile, &m.seat), loadJSON(o.Dir, serverFile, &m.srv), loadJSON(o.Dir, adminFile, &n.last)); err != nil {
		return nil, err
	}
	if m.secret, err = seatSecret(o.Dir); err != nil {
		return nil, err
	}
	if m.adopt() {
		return n, nil
	}
	m.awaitPorts(ctx)
	if err := m.start(ctx); err != nil {
		_ = n.Close()
		return nil, err
	}
	return n, nil
}

// awaitPorts gives an earlier server that was killed with its agent a moment to be gone: nothing is known of it where its directory
// was removed.
func (m *managed) awaitPorts(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs := []string{m.o.Addr}
	if c := m.o.Cluster; c != nil {
		host, _, _ := net.SplitHostPort(m.o.Addr)
		addrs = append(addrs, net.JoinHostPort(host, strconv.Itoa(c.BusPort)))
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(addrs, func(a string) bool { return portFree(a) != nil }) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// seatSecret returns the password of our own user on this seat: made once, readable by this system user alone.
func seatSecret(dir string) (string, error) {
	var rec secretRecord
	if err := loadJSON(dir, secretFile, &rec); err != nil || rec.Secret != "" {
		return rec.Secret, err
	}
	rec.Secret = newSecret()
	return rec.Secret, saveJSON(dir, secretFile, rec)
}

// login: a server that was started without our own user is commanded as the default one.
func (m *managed) login() (username, password string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.srv.Admin {
		return adminUser, m.secret
	}
	return "", m.o.Password
}

// adopt takes hold of the server that an earlier agent on this seat started, if it still runs.
func (m *managed) adopt() bool {
	if m.srv.PID == 0 || m.srv.BootID != bootID() || m.srv.Addr != m.o.Addr || m.srv.Member != (m.o.Cluster != nil) {
		return false
	}
	p, err := openProcess(m.srv.PID, m.srv.Start, m.exited(m.srv.PID))
	if err != nil || p.exited() {
		return false
	}
	var boot bootRecord
	_ = loadJSON(m.o.Dir, bootFile, &boot)
	m.node.newProcess(p, topo.RoleUnknown)
	m.aof = aofWatch{scanned: m.srv.LogOffset, suspect: m.seat.Failed}
	if boot.RunID != "" {
		m.node.knownRun = boot.RunID
	}
	m.node.log.Info("adopted the running server", "pid", p.pid)
	m.startGuard(p)
	m.node.nudge()
	return true
}

// Restart brings a server that exited back, frozen. On one that runs it is a no-op.
func (n *Node) Restart(ctx context.Context) error {
	if n.managed == nil {
		return fmt.Errorf("restart %s: %w: its process belongs to another supervisor", n.addr, redis.ErrRefused)
	}
	p := n.process()
	if p != nil && !p.exited() {
		return nil
	}
	if err := n.managed.start(ctx); err != nil {
		return err
	}
	if p != nil {
		p.release()
	}
	return nil
}

// start runs a new process, detached from the agent: it survives the agent's death, and the next agent adopts it.
func (m *managed) start(ctx context.Context) error {
	if err := portFree(m.o.Addr); err != nil {
		return err
	}
	if err := os.MkdirAll(m.o.Dir, 0o700); err != nil { // somebody may have removed it
		return fmt.Errorf("make the server's directory: %w", err)
	}
	if err := m.prepareMembership(ctx); err != nil {
		return err
	}
	rec, err := m.prepareSeat()
	if err != nil {
		return err
	}
	pid, err := m.spawn()
	if err != nil {
		return fmt.Errorf("start %s: %w", m.binary, err)
	}
	p, err := openProcess(pid, 0, m.exited(pid)) // our child and not yet reaped: the pid cannot mean another process
	if err != nil {
		return fmt.Errorf("start %s: %w", m.binary, errors.Join(err, unix.Kill(pid, sigKill)))
	}
	m.node.newProcess(p, topo.RoleReplica)
	m.node.mu.Lock()
	m.node.knownRun = notJudged
	m.node.mu.Unlock()
	rec.PID, rec.Start = p.pid, p.start
	m.mu.Lock()
	m.srv, m.aof = rec, aofWatch{scanned: rec.LogOffset}
	m.mu.Unlock()
	if err := saveJSON(m.o.Dir, serverFile, rec); err != nil {
		return errors.Join(err, m.node.Kill(ctx)) // a server that nobody could adopt must not stay
	}
	m.node.log.Info("started the server frozen", "pid", p.pid, "binary", m.binary)
	m.startGuard(p)
	m.node.nudge()
	return nil
}

// portFree makes a foreign server on the port a clear error instead of a server that exits. It binds and does not listen: a program
// that starts at this moment has the probe's socket until it runs, and one that listened would look like a server to the next probe.
func portFree(addr string) error {
	err := bindable(addr)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("start a server at %s: another process listens there: stop it, give this node another port, or attach to it", addr)
	}
	if err != nil {
		return fmt.Errorf("start a server at %s: %w", addr, err)
	}
	return nil
}

// bindable reports whether a socket that allows what Redis allows (SO_REUSEADDR) can have the address.
func bindable(addr string) error {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return err
	}
	var at unix.Sockaddr
	family := unix.AF_INET6
	if ip := a.IP.To4(); ip != nil {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(ip)}
	} else {
		six := &unix.SockaddrInet6{Port: a.Port}
		copy(six.Addr[:], a.IP) // none: any
		at = six
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.Bind(fd, at)
}

// prepareSeat decides whether the next process will have kept everything, and marks the seat for the one after it.
func (m *managed) prepareSeat() (serverRecord, error) {
	log := filepath.Join(m.o.Dir, serverLog)
	m.mu.Lock()
	prev, unchecked := m.seat, m.srv.PID != 0 && !m.srv.Checked
	m.mu.Unlock()
	aof := m.o.Persistence == PersistAOF || m.o.Persistence == ""
	boot := bootID()
	there := aof && prev.AOF && boot != "" && prev.BootID == boot && aofPresent(m.o.Dir)
	was := readStory(log, prev.LogOffset)
	lacking := !was.anew && (prev.Lacking || unchecked && aofTruncated(log, prev.LogOffset))
	covers := was.covers && !prev.Failed
	kept := there && covers && !lacking
	if fileSize(log) > logBytesMax {
		if err := os.Rename(log, log+".1"); err != nil {
			return serverRecord{}, fmt.Errorf("set the server log aside: %w", err)
		}
	}
	seat := seatRecord{BootID: boot, AOF: aof, LogOffset: fileSize(log), Lacking: lacking || !there || was.ready && !covers}
	if err := saveJSON(m.o.Dir, seatFile, seat); err != nil {
		return serverRecord{}, err
	}
	m.mu.Lock()
	m.seat = seat
	m.mu.Unlock()
	return serverRecord{BootID: boot, Addr: m.o.Addr, Kept: kept, LogOffset: seat.LogOffset, Admin: m.o.ownUser(), Member: m.o.Cluster != nil}, nil
}

// spawn starts the process and returns its pid. What must hold is on the command line, which wins; defaults, the user's
// directives and the passwords go to its standard input ("-", Redis 6.2 and later).
func (m *managed) spawn() (int, error) {
	out, err := os.OpenFile(filepath.Join(m.o.Dir, serverLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	in, err := inputOf(m.o.directives(m.secret))
	if err != nil {
		return 0, err
	}
	defer in.Close()
	cmd := exec.Command(m.binary, append(m.o.arguments(m.version), "-")...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = m.o.Dir, in, out, out
	cmd.Env = serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return startDetached(cmd)
}

// serverEnv is the agent's environment without what would make a server talk to the agent's own supervisor.
func serverEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "LISTEN_") && !strings.HasPrefix(e, "WATCHDOG_") {
			env = append(env, e)
		}
	}
	return env
}

// inputOf returns an unnamed file with this content, for a child's standard input. It is never on a disk.
func inputOf(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("redoubt-input", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("prepare the configuration: %w", err)
	}
	f := os.NewFile(uintptr(fd), "configuration")
	if _, err := f.WriteString(text); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("prepare the configuration: %w", err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("prepare the configuration: %w", err)
	}
	return f, nil
}

// startDetached starts cmd and gives up the handle; the watcher reaps the child when its pidfd shows the exit.
func startDetached(cmd *exec.Cmd) (int, error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	return pid, cmd.Process.Release()
}

// exited is what the watcher does when the process was seen to exit: reap it, if it is a child, and wake the agent.
func (m *managed) exited(pid int) func() {
	return func() {
		if status, ok := reap(pid); ok {
			m.mu.Lock()
			m.waited = waited{pid, status}
			m.mu.Unlock()
		}
		m.node.nudge()
	}
}

// reap collects an exited child. Of an adopted process it is not the parent, and then there is nothing to collect.
func reap(pid int) (status unix.WaitStatus, ok bool) {
	for {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return status, err == nil && got == pid
		}
	}
}

// note adds what only the owner of a process knows, and follows what the seat's marker must know.
func (m *managed) note(o *redis.Observation, in info) {
	m.mu.Lock()
	srv, seat := m.srv, m.seat
	m.mu.Unlock()
	was, checked := seat, false
	if !in.loading() {
		seat.Failed = m.watchAOF(in)
		seat.AOF = seat.AOF && in["aof_enabled"] != "0" // from here on the file does not hold everything
	}
	if !srv.Checked && !in.loading() {
		srv.Checked = true
		if aofTruncated(filepath.Join(m.o.Dir, serverLog), srv.LogOffset) {
			srv.Kept, seat.Lacking = false, true
		}
		checked = true
	}
	if seat != was { // first: a start that is checked is not checked again
		m.keep(saveJSON, func() { m.seat = seat }, seatFile, seat)
	}
	if checked {
		m.keep(saveJSON, func() { m.srv = srv }, serverFile, srv)
	}
	if seat.Lacking && in.role() == topo.RolePrimary { // it was elected as it is: what it has is everything from here on
		seat.Lacking = false
		m.keep(overwriteJSON, func() { m.seat = seat }, seatFile, seat) // in place: this is the middle of a failover
	}
	if seat.Failed && in["aof_last_write_status"] != "err" {
		o.Problems = append(o.Problems, suspectSentence)
	}
	m.noteAsides(o)
	o.Kept = srv.Kept && srv.Checked
	if p := m.node.process(); p != nil && !m.guarded(p) {
		o.Problems = append(o.Problems, "guard-missing: the guard process does not run: if the agent dies, nobody fences this server")
	}
}

func (m *managed) keep(save func(dir, name string, v any) error, change func(), name string, v any) {
	m.mu.Lock()
	change()
	m.mu.Unlock()
	if err := save(m.o.Dir, name, v); err != nil {
		m.node.log.Warn("seat not recorded", "error", err)
	}
}

func (m *managed) close() {
	m.mu.Lock()
	guards := m.guards
	m.mu.Unlock()
	for _, g := range guards {
		g.release()
	}
}
