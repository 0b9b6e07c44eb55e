// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"redoubt/internal/api"
	"redoubt/internal/app"
	"redoubt/internal/topo"
)

type upFlags struct {
	dir        string
	base       int
	replicas   int
	mode       string
	shards     int
	durability string
	persist    string
	sentinel   string
	store      string
	foreground bool
	detach     bool
	wait       time.Duration
}

func (e *env) up() *cobra.Command {
	var f upFlags
	c := &cobra.Command{
		Use: "up", Short: "Start a whole deployment on this machine",
		Long: "Start a whole deployment on this machine: members as separate processes, each with its own server, exactly as in\n" +
			"production, so that killing any of them is a real test. Run again, it starts only what is not running.\n\n" +
			"Ports from --base-port: read-write proxies +0…, read-only ones +10…, Sentinel faces +20000… (+20… where those ports are given to clients),\nAPIs +30…, stores +40…, servers +100…, their buses in mode cluster +300….",
		RunE: func(c *cobra.Command, _ []string) error {
			return e.runUp(c.Context(), f, c.Flags().Changed("base-port"), c.Flags().Changed("replicas"), c.Flags().Changed("durability"), c.Flags().Changed("mode") || c.Flags().Changed("shards"))
		},
	}
	c.Flags().StringVar(&f.dir, "dir", defaultDir, "where the deployment lives")
	c.Flags().IntVar(&f.base, "base-port", 6379, "the first port")
	c.Flags().IntVar(&f.replicas, "replicas", 2, "replicas of the primary, or of each shard's")
	c.Flags().StringVar(&f.mode, "mode", "single", "single: one shard; ring: --shards shards, keys placed as twemproxy does (fnv1a_64, ketama); cluster: --shards shards of servers with cluster-enabled")
	c.Flags().IntVar(&f.shards, "shards", 4, "shards of a ring or cluster")
	c.Flags().StringVar(&f.durability, "durability", "", "quorum, quorum+disk or async (default: quorum with two or more replicas)")
	c.Flags().StringVar(&f.persist, "persistence", "aof", "what the servers keep on disk: aof, rdb or none")
	c.Flags().StringVar(&f.sentinel, "sentinel-addresses", "proxy", "what Sentinel clients are told: proxy (never changes) or direct (the real primary)")
	c.Flags().StringVar(&f.store, "store", "", "where the agreed state lives: etcd://HOST:PORT[,HOST:PORT…][/PREFIX], or consul://…; etcds and consuls for TLS; or kubernetes://HOST:PORT/PREFIX?namespace=…&token-file=…&ca=… (default: the members themselves)")
	c.Flags().BoolVar(&f.foreground, "foreground", false, "stay, and stop the deployment when interrupted")
	c.Flags().BoolVar(&f.detach, "detach", false, "leave it running (the default)")
	c.Flags().DurationVar(&f.wait, "wait", 30*time.Second, "give up when it does not serve after this time")
	c.Flags().BoolVarP(&e.yes, "yes", "y", false, "accepted for scripts: this verb does not ask")
	c.MarkFlagsMutuallyExclusive("foreground", "detach")
	return c
}

// runUp makes or finds the deployment, starts what is missing and waits until it serves.
func (e *env) runUp(ctx context.Context, f upFlags, given ...bool) error {
	shards := f.shards
	switch {
	case f.mode == "single":
		shards = 0
	case f.mode != "ring" && f.mode != "cluster":
		return fail(ExitUsage, "--mode %s: use single, ring or cluster", f.mode)
	case shards == 0:
		return fail(ExitUsage, "--shards 0: use 1 to %d", shardsMax)
	}
	want, err := newPlan(f.base, f.replicas, shards, f.mode, topo.Durability(f.durability))
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"aof", "rdb", "none"}, f.persist) {
		return fail(ExitUsage, "--persistence %s: use aof, rdb or none", f.persist)
	}
	if want.Durability.OnDisk() && f.persist != "aof" {
		return fail(ExitUsage, "--durability %s needs --persistence aof", want.Durability)
	}
	if f.sentinel != "proxy" && f.sentinel != "direct" {
		return fail(ExitUsage, "--sentinel-addresses %s: use proxy or direct", f.sentinel)
	}
	want.Persist, want.Sentinel = f.persist, f.sentinel
	if f.store != "" {
		if err := want.outside(f.store); err != nil {
			return err
		}
	}
	p, err := readPlan(f.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p = want
		if err := portsFree(p.Members, true); err != nil {
			return err
		}
		if err := os.MkdirAll(f.dir, 0o700); err != nil {
			return fmt.Errorf("make the deployment's directory: %w", err)
		}
		if err := p.write(f.dir); err != nil {
			return err
		}
	case err != nil:
		return err
	case given[0] && p.BasePort != want.BasePort, given[1] && p.Replicas != want.Replicas, given[2] && p.Durability != want.Durability, given[3] && (p.Shards != want.Shards || p.Mode != want.Mode):
		return fail(ExitUsage, "%s holds a deployment with --base-port %d --replicas %d --durability %s and %d shards (0: mode single): leave these flags out, use another --dir, or remove it with `redoubt down --purge --dir %s`",
			f.dir, p.BasePort, p.Replicas, p.Durability, p.Shards, f.dir)
	}
	if at, _, _ := strings.Cut(f.store, "?"); f.store != "" && !strings.HasPrefix(p.Outside, strings.TrimSuffix(at, "/")) {
		return fail(ExitUsage, "%s holds a deployment whose agreed state is at %q: leave --store out, or use another --dir", f.dir, cmp.Or(p.Outside, "its members"))
	}
	for _, m := range p.Members {
		if i, runs := running(f.dir, m); runs {
			fmt.Fprintf(e.err, "%s runs already, as process %d\n", m.ID, i.PID)
		}
	}
	started, err := e.awaitServing(ctx, f, p)
	if err != nil {
		if f.foreground && ctx.Err() != nil { // interrupted while it was starting
			end(started)
			return errors.Join(err, e.stopAll(context.WithoutCancel(ctx), f.dir, p))
		}
		return err
	}
	e.tell(f.dir, p)
	if !f.foreground {
		return nil
	}
	fmt.Fprintln(e.err, "running in the foreground; Ctrl-C stops the deployment")
	<-ctx.Done()
	return e.stopAll(context.WithoutCancel(ctx), f.dir, p)
}

// portsFree tries to listen on every port of members that do not run. A server may have outlived its member: then its
// port is in use, and rightly so.
func portsFree(members []planMember, servers bool) error {
	var busy []string
	for _, m := range members {
		for _, p := range m.ports() {
			if p[0] == "server" && !servers {
				continue
			}
			ln, err := net.Listen("tcp", p[1])
			if err != nil {
				busy = append(busy, fmt.Sprintf("%s (%s of %s): %v", p[1], p[0], m.ID, errors.Unwrap(err)))
				continue
			}
			ln.Close()
		}
	}
	if len(busy) > 0 {
		return fail(ExitFailed, "ports are in use; choose another --base-port or stop what uses them:\n  %s", strings.Join(busy, "\n  "))
	}
	return nil
}

// child is a member that this command started.
type child struct {
	planMember
	process *os.Process
	exited  chan error // gets the result of Wait
}

// end interrupts members that this command has started, and waits for their ends: those that have just begun are in no record yet, by
// which stopAll could find them.
func end(started []child) {
	for _, c := range started {
		_ = c.process.Signal(syscall.SIGINT)
	}
	late := time.After(downGrace)
	for _, c := range started {
		select {
		case <-c.exited:
		case <-late:
			return // stopAll kills it: by now it is in its record
		}
	}
}

// running reports whether the member's process is there, by the record in its directory.
func running(dir string, m planMember) (app.Instance, bool) {
	i, err := app.ReadInstance(filepath.Join(dir, m.Dir, "data"))
	return i, err == nil && i.Alive()
}

// startMembers starts the members that neither run nor are among those started already, each in its own session.
func (e *env) startMembers(dir string, p plan, already []child) ([]child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	var missing []planMember
	for _, m := range p.Members {
		mine := slices.ContainsFunc(already, func(c child) bool { return c.ID == m.ID })
		if _, runs := running(dir, m); !runs && !mine {
			missing = append(missing, m)
		}
	}
	if err := portsFree(missing, false); err != nil {
		return nil, err
	}
	var started []child
	for _, m := range missing {
		at := filepath.Join(dir, m.Dir)
		log, err := os.OpenFile(filepath.Join(at, "redoubt.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return started, fmt.Errorf("open the log of %s: %w", m.ID, err)
		}
		file, err := filepath.Abs(filepath.Join(at, "redoubt.yaml"))
		if err != nil {
			return started, fmt.Errorf("locate the configuration of %s: %w", m.ID, err)
		}
		cmd := exec.Command(self, "run", "-c", file)
		cmd.Dir, cmd.Stdout, cmd.Stderr = at, log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err = cmd.Start()
		log.Close()
		if err != nil {
			return started, fmt.Errorf("start %s: %w", m.ID, err)
		}
		fmt.Fprintf(e.err, "started %s as process %d\n", m.ID, cmd.Process.Pid)
		c := child{m, cmd.Process, make(chan error, 1)}
		go func() { c.exited <- cmd.Wait(); close(c.exited) }() // ends with the member, or with this short-lived command
		started = append(started, c)
	}
	return started, nil
}

// dying is how long a killed process may still hold its ports after it is seen to be gone: its threads end one by one.
const dying = 2 * time.Second

// awaitServing starts the members that do not run, and polls the API until the shard serves and every member reports. It returns those that it started.
// A member that was found running may have been dying: it is started when it is gone.
func (e *env) awaitServing(ctx context.Context, f upFlags, p plan) (started []child, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	var addrs []string
	for _, m := range p.Members {
		addrs = append(addrs, m.API)
	}
	client := api.NewClient(addrs...)
	defer client.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	said, able := "", time.Now()
	for {
		late, err := e.startMembers(f.dir, p, started)
		started = append(started, late...)
		if err == nil {
			able = time.Now()
		} else if time.Since(able) > dying {
			return started, err
		}
		st, err := client.Status(ctx)
		now := "waiting for a member to answer"
		if err == nil {
			if serving(st) && everybody(st, f.dir, p) {
				return started, nil
			}
			now = progress(st, p)
		}
		if now != said {
			said = now
			fmt.Fprintln(e.err, now)
		}
		for _, c := range started {
			select {
			case err := <-c.exited:
				return started, fail(ExitFailed, "%s ended (%v)%s", c.ID, err, tails(f.dir, []planMember{c.planMember}))
			default:
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return started, ctx.Err()
			}
			return started, fail(ExitFailed, "the deployment does not serve after %s (%s); it is left running: see `redoubt explain --dir %s`, or stop it with `redoubt down --dir %s`%s", f.wait, said, f.dir, f.dir, tails(f.dir, p.Members))
		case <-tick.C:
		}
	}
}

// settled reports whether a node is where it belongs, and its agent lives in that process.
func settled(n api.NodeStatus, agent int) bool {
	return (n.State == api.StateServing || n.State == api.StateFollowing) && n.Enrolled && n.AgentPID == agent
}

// everybody reports whether all members report, each node through the process that its member is now, and all nodes are
// where they belong.
func everybody(st api.Status, dir string, p plan) bool {
	alive, pids := 0, map[topo.NodeID]int{}
	for _, m := range p.Members {
		if i, runs := running(dir, m); runs {
			pids[topo.NodeID(m.ID)] = i.PID
		}
	}
	for _, m := range st.Members {
		if m.Alive {
			alive++
		}
	}
	for _, d := range st.Deployments {
		for _, s := range d.Shards {
			for _, n := range s.Nodes {
				if !settled(n, pids[n.ID]) {
					return false
				}
			}
		}
	}
	return alive >= len(p.Members)
}

func progress(st api.Status, p plan) string {
	alive := 0
	for _, m := range st.Members {
		if m.Alive {
			alive++
		}
	}
	s := fmt.Sprintf("%d of %d members report", alive, len(p.Members))
	for _, d := range st.Deployments {
		for _, sh := range d.Shards {
			s += ", shard " + string(sh.Phase)
			for _, n := range sh.Nodes {
				s += fmt.Sprintf(", %s %s", n.ID, n.State)
			}
		}
	}
	return s
}

// tails returns the last lines of the members' logs.
func tails(dir string, members []planMember) string {
	var b strings.Builder
	for _, m := range members {
		path := filepath.Join(dir, m.Dir, "redoubt.log")
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		fmt.Fprintf(&b, "\n--- %s\n%s", path, strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
	return b.String()
}

// tell prints where everything is: the result of the verb.
func (e *env) tell(dir string, p plan) {
	on := coloured(e.out)
	fmt.Fprintf(e.out, "%s serves (durability %s). Its data is in %s.\n\n", paint(on, bold, "mymaster"), p.Durability, dir)
	rows := [][]cell{{{text: "MEMBER"}, {text: "PROXY"}, {text: "READ-ONLY"}, {text: "SENTINEL"}, {text: "API"}, {text: "SERVER"}}}
	for _, m := range p.Members {
		rows = append(rows, []cell{{text: m.ID}, {text: m.Proxy}, {text: orDash(m.Readonly)}, {text: m.Sentinel}, {text: m.API}, {text: orDash(strings.Join(m.servers(), " "))}})
	}
	table(e.out, on, rows)
	flag := ""
	if filepath.Clean(dir) != defaultDir {
		flag = " --dir " + dir
	}
	_, port, _ := net.SplitHostPort(p.Members[0].Proxy)
	fmt.Fprintf(e.out, "\nTry      redis-cli -p %s set hello world\nLook     redoubt status%s   or http://%s/\nStop     redoubt down%s\n", port, flag, p.Members[0].API, flag)
}
