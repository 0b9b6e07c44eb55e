// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"redoubt/internal/redis"
	"redoubt/internal/resp"
	"redoubt/internal/topo"
)

// Fake is one server in memory. It implements redis.Node, and its other methods are the script of a test. All fields are
// guarded by its Net; FullSyncs is to be read when nothing moves.
type Fake struct {
	FullSyncs int // how often this server copied everything from another one

	net     *Net
	addr    string
	wake    chan struct{}
	changed chan struct{} // closed and replaced when health changes, so that waiting verbs look again

	health    topo.Health
	healthAt  time.Duration
	pid       int
	runID     string
	role      topo.Role
	following string
	linkUp    bool
	linkTo    string // run id of the process that the link leads to
	pos       topo.Position
	backlog   bool
	cached    bool // there is a cached primary: the position is true
	queued    bool // a fence waits for the server to go on
	data      []entry
	keep      bool // the data survives a crash, as with an intact append-only file
	kept      bool
	settings  []string
	problems  []string
	disk      topo.DiskState
	bad       string // the data that no start can read
	faults    map[string]error
	wants     redis.Settings
	proxies   int
	late      []string
	promoted  topo.Elected
	admits    redis.Credentials // what replicas must present
	presents  redis.Credentials // to whom it follows
}

var _ redis.Node = (*Fake)(nil)

// boot starts a process: always frozen, with a new run id and without the position (as after loading an append-only file).
func (f *Fake) boot() {
	w := f.net
	if !f.keep {
		f.data = nil
	}
	f.kept = f.keep && f.runID != ""
	f.runID, f.pid = w.newID("run"), w.ids+1000
	f.pos = topo.Position{ReplID: w.newID("hist"), Offset2: -1}
	f.role, f.following, f.linkUp, f.backlog, f.cached, f.queued = topo.RoleReplica, "", false, false, false, false
	f.promoted = topo.Elected{}
	if f.disk != topo.DiskUnable {
		f.disk = topo.DiskAble
	}
	f.admits, f.presents = redis.Credentials{}, redis.Credentials{}
	f.setHealth(topo.HealthUp)
}

func (f *Fake) setHealth(h topo.Health) {
	f.health, f.healthAt = h, f.net.clk.Uptime()
	close(f.changed)
	f.changed = make(chan struct{})
	if f.answers() && f.queued {
		f.fence()
	}
	f.net.settle()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *Fake) answers() bool {
	return f.health == topo.HealthUp || f.health == topo.HealthLoading
}

// SetHealth scripts how the server answers. Exited is a crash.
func (f *Fake) SetHealth(h topo.Health) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.setHealth(h)
}

// Crash ends the process.
func (f *Fake) Crash() { f.SetHealth(topo.HealthExited) }

// SetKeep says whether the data survives a crash.
func (f *Fake) SetKeep(keep bool) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.keep = keep
}

// SetFault makes a verb ("Follow", "Freeze", "Fence", "Promote", "Configure", "Restart", "Kill", …) return err until it is set to nil.
func (f *Fake) SetFault(verb string, err error) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.faults[verb] = err
}

// SetReport scripts what an observation says of settings and problems.
func (f *Fake) SetReport(settings, problems []string) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.settings, f.problems = slices.Clone(settings), slices.Clone(problems)
}

// SetDisk scripts whether the server can say what is on its disk. One that is able syncs every write once Configure asks for it.
func (f *Fake) SetDisk(s topo.DiskState) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.disk = s
}

// SetUnreadable ends the process: no start works before the data at path is set aside.
func (f *Fake) SetUnreadable(path string) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.bad = path
	f.setHealth(topo.HealthExited)
}

// SetProxyConnections scripts what ProxyConnections counts.
func (f *Fake) SetProxyConnections(n int) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.proxies = n
}

// Write is a client's write. It returns the offset at its end, or an error where a server would refuse it.
func (f *Fake) Write(value string) (int64, error) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	switch {
	case !f.answers():
		return 0, fmt.Errorf("write at %s: %w", f.addr, redis.ErrUnanswered)
	case f.role != topo.RolePrimary:
		return 0, fmt.Errorf("write at %s: READONLY", f.addr)
	case f.net.attached(f, 0) < f.wants.MinReplicas:
		return 0, fmt.Errorf("write at %s: NOREPLICAS", f.addr)
	}
	f.pos.Offset += bytesPerWrite
	f.data = append(f.data, entry{f.pos.Offset, value})
	f.net.settle()
	return f.pos.Offset, nil
}

// Holds tells whether a value is in the data.
func (f *Fake) Holds(value string) bool {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	return slices.ContainsFunc(f.data, func(e entry) bool { return e.value == value })
}

// Demands returns what Configure applied last.
func (f *Fake) Demands() redis.Settings {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	return f.wants
}

// Addr is where other fakes reach this one.
func (f *Fake) Addr() string { return f.addr }

// frozen: a replica of nobody.
func (f *Fake) frozen() bool { return f.role == topo.RoleReplica && f.following == "" }

// enter locks the net and waits until the server answers. On success the caller unlocks.
func (f *Fake) enter(ctx context.Context, verb string) error {
	for {
		f.net.mu.Lock()
		switch {
		case f.faults[verb] != nil:
			err := f.faults[verb]
			f.net.mu.Unlock()
			return fmt.Errorf("%s at %s: %w", verb, f.addr, err)
		case f.answers() && ctx.Err() == nil:
			return nil
		case f.health == topo.HealthExited:
			f.net.mu.Unlock()
			return fmt.Errorf("%s at %s: %w: it exited", verb, f.addr, redis.ErrUnanswered)
		case f.health == topo.HealthDenied:
			f.net.mu.Unlock()
			return fmt.Errorf("%s at %s: %w: it refuses our credentials", verb, f.addr, redis.ErrRefused)
		}
		changed := f.changed
		f.net.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s at %s: %w: %w", verb, f.addr, redis.ErrUnanswered, ctx.Err())
		}
	}
}

// Observe looks at once; a server that does not answer is looked at when ctx ends, as a real one.
func (f *Fake) Observe(ctx context.Context) redis.Observation {
	at := f.net.clk.Uptime()
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		cancel()
	}
	if err := f.enter(ctx, "Observe"); err != nil {
		f.net.mu.Lock()
	}
	defer f.net.mu.Unlock()
	o := redis.Observation{At: at, Health: f.health, RunID: f.runID, PID: f.pid, Version: "fake 7.0", HealthFor: f.net.clk.Uptime() - f.healthAt}
	if !f.answers() {
		o.Unreadable = f.bad
		return o
	}
	o.Role, o.Frozen, o.Pos, o.Backlog = f.role, f.frozen(), f.pos, f.backlog
	o.Whole = f.health != topo.HealthLoading && (f.role == topo.RolePrimary || f.cached)
	o.Following, o.LinkUp = f.following, f.linkUp
	o.Keys, o.Kept = int64(len(f.data)), f.kept
	f.fillMark(&o)
	o.Replicas = f.net.replicas(f)
	o.Settings, o.Problems = slices.Clone(f.settings), slices.Clone(f.problems)
	if o.Disk = f.disk; o.Disk == topo.DiskUnable {
		o.NoDisk = "it has no append-only file"
	}
	o.AOFBusy = slices.Contains(f.problems, "aof-rewrite")
	return o
}

// Follow makes the fake a replica of addr.
func (f *Fake) Follow(ctx context.Context, addr string, cred redis.Credentials) error {
	if err := f.enter(ctx, "Follow"); err != nil {
		return err
	}
	defer f.net.mu.Unlock()
	if f.health == topo.HealthLoading || addr == f.addr || addr == "" {
		return fmt.Errorf("follow %q: %w: loading, or not another server", addr, redis.ErrRefused)
	}
	if f.role == topo.RolePrimary {
		f.fence()
	}
	f.presents = cred
	if f.following != addr {
		f.following, f.linkUp = addr, false
	}
	f.net.settle()
	return nil
}

// Freeze stops following.
func (f *Fake) Freeze(ctx context.Context) error {
	if err := f.enter(ctx, "Freeze"); err != nil {
		return err
	}
	defer f.net.mu.Unlock()
	f.fence()
	return nil
}

// fence freezes. A primary caches itself as its own former primary, so that its position stays true.
func (f *Fake) fence() {
	f.cached = f.cached || f.role == topo.RolePrimary
	f.role, f.following, f.linkUp, f.queued, f.proxies = topo.RoleReplica, "", false, false, 0
	f.net.settle()
}

// Fence freezes and cuts clients; a primary that does not answer is killed when ctx ends, a replica never.
func (f *Fake) Fence(ctx context.Context) error {
	err := f.enter(ctx, "Fence")
	if err == nil {
		defer f.net.mu.Unlock()
		f.fence()
		return nil
	}
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	switch {
	case f.faults["Fence"] != nil:
		return err
	case f.health == topo.HealthExited:
		return nil
	case f.role == topo.RoleReplica:
		f.queued = true
		return err
	}
	f.setHealth(topo.HealthExited)
	return nil
}

// Promote makes the elected process a primary.
func (f *Fake) Promote(ctx context.Context, e topo.Elected, cred redis.Credentials) (topo.Position, error) {
	if err := f.enter(ctx, "Promote"); err != nil {
		return topo.Position{}, err
	}
	defer f.net.mu.Unlock()
	e = topo.Elected{RunID: e.RunID, ReplID: e.ReplID, Offset: e.Offset}
	switch {
	case f.role == topo.RolePrimary && f.promoted == e:
		f.admits = cred
		return f.pos, nil
	case f.health == topo.HealthUp && f.role == topo.RoleReplica && f.runID == e.RunID && f.pos.ReplID == e.ReplID && f.pos.Offset < e.Offset && f.following != "":
		return topo.Position{}, fmt.Errorf("promote %s: %w: it is at %+v, elected was %+v", f.addr, redis.ErrBehind, f.pos, e)
	case f.health == topo.HealthLoading || f.role == topo.RolePrimary || f.runID != e.RunID || f.pos.ReplID != e.ReplID || f.pos.Offset != e.Offset:
		return topo.Position{}, fmt.Errorf("promote %s: %w: it is %s %s at %+v, elected was %+v", f.addr, redis.ErrRefused, f.role, f.runID, f.pos, e)
	}
	f.promoted, f.role, f.following, f.linkUp, f.admits = e, topo.RolePrimary, "", false, cred
	f.net.cutReplicas(f)
	former := f.pos
	f.pos.ReplID, f.pos.ReplID2, f.pos.Offset2 = f.net.newID("hist"), former.ReplID, former.Offset+1
	if !f.backlog { // priming changes the id once more and forgets the former one
		f.backlog = true
		f.pos = topo.Position{ReplID: f.net.newID("hist"), Offset: former.Offset + 1, Offset2: -1}
	}
	f.net.settle()
	return f.pos, nil
}

// PrimaryPosition reads another fake's position.
func (f *Fake) PrimaryPosition(ctx context.Context, addr string) (topo.Role, topo.Position, error) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	p := f.net.at(addr)
	if p == nil || !p.answers() || f.net.cuts[[2]string{min(f.addr, addr), max(f.addr, addr)}] || ctx.Err() != nil {
		return "", topo.Position{}, fmt.Errorf("read the position of %s: %w", addr, redis.ErrUnanswered)
	}
	return p.role, p.pos, f.faults["PrimaryPosition"]
}

// StreamPosition is PrimaryPosition: a fake's stream begins with its link.
func (f *Fake) StreamPosition(ctx context.Context, addr string) (topo.Role, topo.Position, error) {
	return f.PrimaryPosition(ctx, addr)
}

// Acknowledge changes nothing: a fake's stream begins with its link.
func (f *Fake) Acknowledge(ctx context.Context) error {
	if err := f.enter(ctx, "Acknowledge"); err != nil {
		return err
	}
	f.net.mu.Unlock()
	return nil
}

// Tail writes the values behind from, as commands. They are longer than a write of the fake moves the offset.
func (f *Fake) Tail(ctx context.Context, from, limit int64, w io.Writer) (redis.Tail, error) {
	if err := f.enter(ctx, "Tail"); err != nil {
		return redis.Tail{}, err
	}
	defer f.net.mu.Unlock()
	t := redis.Tail{RunID: f.runID, ReplID: f.pos.ReplID, End: f.pos.Offset, To: min(f.pos.Offset, from+limit)}
	switch {
	case !f.frozen() || f.health == topo.HealthLoading || from < 0 || from >= t.End || limit <= 0:
		return t, fmt.Errorf("read the tail of %s: %w: it stands at %d", f.addr, redis.ErrRefused, t.End)
	case !f.backlog:
		return t, fmt.Errorf("read the tail of %s: %w", f.addr, redis.ErrNoTail)
	}
	for _, e := range f.data {
		if e.end > from && e.end <= t.To {
			if _, err := w.Write(resp.AppendCommand(nil, "SET", e.value, "v")); err != nil {
				return t, fmt.Errorf("read the tail of %s: %w", f.addr, err)
			}
		}
	}
	return t, nil
}

// Journal writes all values, as commands, if the data survives crashes.
func (f *Fake) Journal(ctx context.Context, limit int64, w io.Writer) (int64, error) {
	if err := f.enter(ctx, "Journal"); err != nil {
		return 0, err
	}
	defer f.net.mu.Unlock()
	var b []byte
	for _, e := range f.data {
		b = resp.AppendCommand(b, "SET", e.value, "v")
	}
	switch {
	case !f.frozen():
		return 0, fmt.Errorf("read the journal of %s: %w", f.addr, redis.ErrRefused)
	case !f.keep || len(b) == 0 || int64(len(b)) > limit:
		return 0, fmt.Errorf("read the journal of %s: %w", f.addr, redis.ErrNoTail)
	}
	n, err := w.Write(b)
	return int64(n), err
}

// ProxyConnections returns what the script says.
func (f *Fake) ProxyConnections(ctx context.Context) (int, error) {
	if err := f.enter(ctx, "ProxyConnections"); err != nil {
		return 0, err
	}
	defer f.net.mu.Unlock()
	return f.proxies, nil
}

// SetLate scripts which proxies' connections Enforce finds; cut ends them.
func (f *Fake) SetLate(late ...string) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.late = late
}

// Enforce goes by the script, and by how many replicas are attached.
func (f *Fake) Enforce(ctx context.Context, rule redis.Rule) ([]string, bool, error) {
	if err := f.enter(ctx, "Enforce"); err != nil {
		return nil, false, err
	}
	defer f.net.mu.Unlock()
	if rule.Law > 0 && len(f.late) > 0 {
		late := f.late
		if rule.Cut {
			f.late = nil
		}
		return late, false, nil
	}
	if !rule.Cut {
		return nil, false, nil
	}
	if f.role != topo.RolePrimary {
		return nil, false, fmt.Errorf("write a barrier to %s: %w", f.addr, redis.ErrRefused)
	}
	if rule.Disk && f.disk != topo.DiskSynced {
		return nil, false, fmt.Errorf("write a barrier to %s: its file is not synced: %w", f.addr, redis.ErrRefused)
	}
	n := 0
	for _, r := range f.net.fakes {
		if r.following == f.addr && r.linkUp && (!rule.Disk || r.disk == topo.DiskSynced) {
			n++
		}
	}
	return nil, n >= rule.Acks, nil
}

// Configure applies s and mends all settings.
func (f *Fake) Configure(ctx context.Context, s redis.Settings) error {
	if err := f.enter(ctx, "Configure"); err != nil {
		return err
	}
	defer f.net.mu.Unlock()
	f.wants, f.settings = s, nil
	switch {
	case f.disk == topo.DiskUnable:
	case s.Disk:
		f.disk = topo.DiskSynced
	default:
		f.disk = topo.DiskAble
	}
	if !s.Admit.Open() && f.admits != s.Admit {
		f.admits = s.Admit
		f.net.cutReplicas(f)
		f.net.settle()
	}
	return nil
}

// Restart starts a crashed fake again, frozen.
func (f *Fake) Restart(context.Context) error {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	if err := f.faults["Restart"]; err != nil {
		return fmt.Errorf("restart %s: %w", f.addr, err)
	}
	if f.health == topo.HealthExited && f.bad == "" { // with it, the start is followed by an exit
		f.boot()
	}
	return nil
}

// SetAside forgets the data, if they are why the process ended.
func (f *Fake) SetAside(context.Context) (string, error) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	if err := f.faults["SetAside"]; err != nil || f.health != topo.HealthExited || f.bad == "" {
		return "", errors.Join(fmt.Errorf("set the data of %s aside: %w", f.addr, redis.ErrRefused), err)
	}
	to := f.bad + ".unreadable"
	f.bad, f.data, f.runID = "", nil, "" // the next process has kept nothing
	return to, nil
}

// Kill ends the process.
func (f *Fake) Kill(context.Context) error {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	if err := f.faults["Kill"]; err != nil {
		return fmt.Errorf("kill %s: %w", f.addr, err)
	}
	if f.health != topo.HealthExited {
		f.setHealth(topo.HealthExited)
	}
	return nil
}

// Wake gets a value when the fake's health changed.
func (f *Fake) Wake() <-chan struct{} { return f.wake }

// Close does nothing.
func (f *Fake) Close() error { return nil }
