// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/topo"
)

const (
	lookTimeout     = time.Second           // of Observe, when ctx has no deadline
	settingsFor     = time.Second           // settings are read again after that long
	exitGrace       = 20 * time.Millisecond // a closed connection is often an exit that the pidfd shows a moment later
	loadingSilence  = 5 * time.Second       // a loading server may be silent that long and still count as loading
	bootSilence     = 30 * time.Second      // … and a process of less than this age that has never answered
	lateAfter       = 2 * time.Millisecond  // a server that answers within it is not looked at from outside
	busyShare       = 10                    // a silent process is busy when it wants at least 1/busyShare of a processor
	stateMargin     = 2 * time.Millisecond  // kept from ctx for the look at the process
	stateMarginPart = 10                    // … but never more than this part of the time that ctx leaves
)

// Observe looks at the server in one round trip, and at its process. See redis.Node and redis.Observation.
func (n *Node) Observe(ctx context.Context) redis.Observation {
	o := redis.Observation{At: n.clk.Uptime()}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookTimeout)
		defer cancel()
	}
	p := n.findProcess()
	if p != nil && p.exited() && n.managed != nil {
		n.fillExited(&o, p)
		return n.timed(o)
	}
	if o, ok := n.latest(); ok {
		return n.timed(o)
	}
	late := watchLate(p)
	asking, cancel := shortened(ctx)
	m, cfg, err := n.examine(asking)
	if err == nil {
		err = n.judgeBoot(asking, &m)
	}
	cancel()
	before, began := late.stop(err == nil)
	if err == nil {
		n.fill(&o, m, cfg)
		return n.timed(o)
	}
	p = n.process()
	if p != nil && !errors.Is(err, context.DeadlineExceeded) {
		grace, cancel := context.WithTimeout(ctx, exitGrace)
		if errors.Is(err, redis.ErrUnanswered) {
			_ = p.await(grace)
		}
		cancel()
	}
	n.fillSilent(&o, p, err, before, time.Since(began))
	return n.timed(o)
}

// lateness is a look at the process of a server that has not answered at once: most do, and need none.
type lateness struct {
	p     *process
	timer *time.Timer
	seen  chan activity
	began time.Time
}

func watchLate(p *process) *lateness {
	l := &lateness{p: p, seen: make(chan activity, 1)}
	if p != nil {
		l.timer = time.AfterFunc(lateAfter, func() { l.began = time.Now(); l.seen <- look(p.pid) })
	}
	return l
}

// stop returns what the process had done, and when that was, if it was late or gave no answer.
func (l *lateness) stop(answered bool) (activity, time.Time) {
	switch {
	case l.timer == nil:
		return activity{}, time.Now()
	case !l.timer.Stop():
		a := <-l.seen
		return a, l.began
	case answered:
		return activity{}, time.Time{}
	}
	return look(l.p.pid), time.Now()
}

// shortened leaves a little of ctx's time for the look at the process after an unanswered question.
func shortened(ctx context.Context) (context.Context, context.CancelFunc) {
	end, _ := ctx.Deadline()
	left := time.Until(end)
	return context.WithDeadline(ctx, end.Add(-min(stateMargin, left/stateMarginPart)))
}

// examine asks INFO, and the settings when they are due.
func (n *Node) examine(ctx context.Context) (info, map[string]string, error) {
	c, err := n.ready(ctx)
	if err != nil {
		return nil, nil, err
	}
	n.mu.Lock()
	cfg, run := n.cfg, n.runID
	if n.clk.Uptime()-n.cfgAt >= settingsFor {
		cfg = nil
	}
	n.mu.Unlock()
	m, fresh, err := n.question(ctx, c, cfg == nil)
	if err == nil && m.unsealed() {
		m, fresh, err = n.seal(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	if fresh == nil && m["run_id"] != run { // another process than the one whose settings we know
		if m, fresh, err = n.question(ctx, c, true); err != nil {
			return nil, nil, err
		}
	}
	if fresh == nil {
		return m, cfg, nil
	}
	if err := n.readMark(ctx, c, m); err != nil {
		return nil, nil, err
	}
	n.mu.Lock()
	n.cfg, n.cfgAt = fresh, n.clk.Uptime()
	n.mu.Unlock()
	return m, fresh, nil
}

func (n *Node) question(ctx context.Context, c *conn, withSettings bool) (info, map[string]string, error) {
	cmds := n.d.look() // one section by name would need one command each before Redis 7.0
	first, watched := len(cmds), n.watchedSettings()
	if withSettings {
		cmds = append(cmds, configGets(watched)...)
		cmds = append(cmds, []string{"ACL", "LOG", aclLogMax}, []string{"COMMAND", "INFO", "WAITAOF"})
		if n.cluster != nil {
			cmds = append(cmds, []string{"CLUSTER", "INFO"})
		}
		if n.managed == nil { // whether its access rules may be changed shows only in the attempt; this user has no rights yet
			cmds = append(cmds, admissionProbe())
		}
	}
	reps, err := c.do(ctx, cmds...)
	if err != nil {
		return nil, nil, err
	}
	if err := firstError(reps[:first]); err != nil {
		return nil, nil, err
	}
	m := n.read(reps)
	if !withSettings {
		return m, nil, nil
	}
	cfg := map[string]string{}
	for _, r := range reps[first:] { // a refused CONFIG GET shows as a setting that is not readable
		for k, v := range r.pairs() {
			cfg[k] = v
		}
	}
	cfg[aclTurnedAway] = turnedAway(reps[first+len(watched)])
	cfg[waitsForDisk] = knowsCommand(reps[first+1+len(watched)])
	if n.cluster != nil {
		cfg[clusterState] = parseInfo(reps[first+2+len(watched)].text)[clusterState]
	}
	if last := reps[len(reps)-1]; n.managed == nil && last.err() != nil {
		cfg[aclRefusal] = last.text
	}
	return m, cfg, nil
}

// judgeBoot checks, at the first look at a new run id, that the server really booted frozen (SAFETY A11). One that did
// not is fenced at once, and named until it is restarted.
func (n *Node) judgeBoot(ctx context.Context, m *info) error {
	run := (*m)["run_id"]
	n.mu.Lock()
	known := n.knownRun
	n.mu.Unlock()
	if run == known {
		return nil
	}
	bad := ""
	if known != "" && !m.frozen() {
		what := "came up as a primary"
		if f := m.following(); f != "" {
			what = "came up following " + f
		}
		if n.cluster == nil || n.managed != nil { // a member of a cluster that somebody else starts cannot boot otherwise
			bad = "boot-not-frozen: the server " + what + ": start it with --replicaof " + deadHost + " " + deadPort + " on its command line"
		}
		n.log.Error("server did not boot frozen; fencing it", "run_id", run, "detail", what)
		if err := n.fenceByOrder(ctx); err != nil {
			return fmt.Errorf("fence a server that %s: %w", what, err)
		}
		c, err := n.ready(ctx)
		if err != nil {
			return err
		}
		if *m, _, err = n.question(ctx, c, false); err != nil {
			return err
		}
	}
	n.mu.Lock()
	n.knownRun, n.badBoot = run, bad
	n.mu.Unlock()
	if n.state == "" {
		return nil
	}
	if err := saveJSON(n.state, bootFile, bootRecord{RunID: run}); err != nil {
		n.log.Warn("run id not recorded", "error", err)
	}
	return nil
}

// fill makes the observation of a server that answered.
func (n *Node) fill(o *redis.Observation, m info, cfg map[string]string) {
	o.Health = topo.HealthUp
	if m.loading() {
		o.Health = topo.HealthLoading
		o.Detail = "loading its data set: " + m["loading_loaded_perc"] + " %"
	}
	o.Role, o.Frozen, o.Whole = m.role(), m.frozen(), m.whole()
	o.RunID, o.Pos, o.Backlog = m["run_id"], m.position(), m["repl_backlog_active"] == "1"
	o.Following, o.LinkUp = m.following(), m.linkUp() && !n.linkSilent(m)
	o.Keys, o.AOFBusy = m.keys(), m.aofBusy()
	o.Replicas = m.replicas()
	if who := cfg[aclTurnedAway]; who != "" && o.Role == topo.RolePrimary {
		o.Problems = append(o.Problems, "stranger-refused: a server at "+who+" tries to replicate from this one without the epoch's credentials, again and again: find it and stop it")
	}
	if cfg[clusterState] == "fail" && o.Role == topo.RolePrimary {
		o.Problems = append(o.Problems, "cluster-down: the server answers CLUSTERDOWN: most primaries of the cluster are out of its reach, or were a moment ago")
	}
	if why := cfg[aclRefusal]; why != "" {
		o.Open = true
		o.Problems = append(o.Problems, "replication-open: the server refuses to have its access rules changed, so anybody may replicate and be counted: give the agent's user +acl ("+why+")")
	}
	o.PID, o.Version = int(m.num("process_id")), m.version()
	o.Settings, o.Problems = violations(cfg, m.major(), n.demands(n.disk)), append(o.Problems, m.problems(cfg)...)
	o.Disk, o.NoDisk = n.diskState(cfg, o.Version)
	n.mu.Lock()
	n.frozen = o.Frozen && o.Health == topo.HealthUp
	n.fillMark(o, m)
	n.role, n.runID, n.version, n.verText, n.answered = o.Role, o.RunID, m.major(), o.Version, true
	n.loadedAt = 0
	if o.Health == topo.HealthLoading {
		n.loadedAt = n.clk.Uptime()
	}
	bad := n.badBoot
	n.mu.Unlock()
	if bad != "" {
		o.Problems = append(o.Problems, bad)
	}
	if n.managed == nil {
		n.learnProcess(m)
		return
	}
	n.managed.note(o, m)
}

func (n *Node) fillExited(o *redis.Observation, p *process) {
	n.identify(o, p)
	o.Health, o.Detail = topo.HealthExited, "the process exited"
	if n.managed == nil {
		return
	}
	o.Detail = n.managed.why(p)
	o.Problems = append(o.Problems, "server-ended: "+o.Detail)
	if n.managed.ending(p).unreadable {
		o.Unreadable = n.managed.aofPath()
		o.Problems = append(o.Problems, "aof-unreadable: the server cannot read its append-only file at "+o.Unreadable+
			". It is set aside when the data can come from another node; if that does not happen, no other node has served since: mend it (redis-check-aof --fix, on a copy first)")
	}
	n.managed.noteAsides(o)
}

// identify fills in what stays true of a process that does not answer.
func (n *Node) identify(o *redis.Observation, p *process) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o.RunID, o.Version = n.runID, n.verText
	if p != nil {
		o.PID = p.pid
	}
}

// fillSilent makes the observation of a server that gave no useful answer: told apart by its words, then by its process.
func (n *Node) fillSilent(o *redis.Observation, p *process, err error, before activity, took time.Duration) {
	n.identify(o, p)
	o.Detail = err.Error()
	var refusal serverError
	switch {
	case p != nil && p.exited():
		n.fillExited(o, p)
	case errors.Is(err, errForeign):
		o.Health, o.Problems = topo.HealthUnreachable, []string{"foreign-server: " + err.Error()}
	case isCode(err, "BUSY"):
		o.Health = topo.HealthBusy
	case isCode(err, "LOADING"):
		o.Health = topo.HealthLoading
	case errors.As(err, &refusal): // NOAUTH, WRONGPASS, NOPERM, too many clients, …
		o.Health = topo.HealthDenied
	case p == nil:
		o.Health, o.RunID = topo.HealthUnreachable, ""
	default:
		n.fillByProcess(o, err, before, look(p.pid), took)
		if young := n.clk.Uptime() - p.startedAt(); o.Health != topo.HealthStopped && !n.hasAnswered() && young < bootSilence {
			o.Health, o.Detail = topo.HealthLoading, "the process is starting and has not answered yet"
		}
	}
}

// fillByProcess tells stopped, busy, loading and hung apart without any answer.
func (n *Node) fillByProcess(o *redis.Observation, err error, before, now activity, took time.Duration) {
	n.mu.Lock()
	loadedAt := n.loadedAt
	n.mu.Unlock()
	wanted := now.wanted - before.wanted
	refused := errors.Is(err, syscall.ECONNREFUSED)
	switch {
	case now.state == 'T' || now.state == 't':
		o.Health, o.Detail = topo.HealthStopped, "the process is stopped by a signal"
	case now.frozen:
		o.Health, o.Detail = topo.HealthStopped, "the process's control group is frozen"
	case loadedAt != 0 && n.clk.Uptime()-loadedAt < loadingSilence:
		o.Health, o.Detail = topo.HealthLoading, "loading its data set, and silent meanwhile"
	case refused:
		o.Health, o.Detail = topo.HealthHung, "the process runs but does not listen: it is shutting down, or stuck at its end"
	case now.state == 'R', wanted > 0 && wanted*busyShare >= took:
		o.Health, o.Detail = topo.HealthBusy, fmt.Sprintf("no answer within %s; the process is working", took.Round(time.Millisecond))
	default:
		o.Health, o.Detail = topo.HealthHung, fmt.Sprintf("no answer within %s; the process is idle (state %c)", took.Round(time.Millisecond), now.state)
	}
}

func (n *Node) hasAnswered() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.answered
}

// timed adds how long the health has been so.
func (n *Node) timed(o redis.Observation) redis.Observation {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o.Health != n.health || n.healthAt == 0 {
		n.health, n.healthAt = o.Health, o.At
	}
	o.HealthFor = max(0, n.clk.Uptime()-n.healthAt)
	slices.Sort(o.Problems)
	return o
}
