// SPDX-License-Identifier: Apache-2.0

package redisd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"redoubt/internal/clock"
	"redoubt/internal/redis"
)

// Persistence is how a managed server keeps its data on disk.
type Persistence string

// The kinds of persistence. The zero value means PersistAOF.
const (
	PersistAOF  Persistence = "aof"  // append-only file, synced every second unless a directive says otherwise
	PersistRDB  Persistence = "rdb"  // snapshots
	PersistNone Persistence = "none" // memory only
)

// Options describe a managed server.
type Options struct {
	Addr         string            // host:port to listen on; the server binds to this host alone
	Dir          string            // data, log and our own small files; created if missing; belongs to this node alone
	Binary       string            // empty: redis-server or valkey-server, found on PATH
	Directives   map[string]string // further configuration directives; a value of several lines is a directive repeated
	Password     string            // requirepass: of the default user; empty: none
	Persistence  Persistence       // empty: PersistAOF
	SyncAlways   bool              // start with appendfsync always, whatever the directives say: for durability quorum+disk
	Cluster      *ClusterSeat      // its place in a cluster; nil: it is no member of one
	Mover        func() string     // the password of who moves keys away from it (redis.MoverUser); nil, or empty: nobody does
	GuardCommand []string          // argv that runs RunGuard; empty: no guard, and then an agent that dies leaves its primary writable
	Log          *slog.Logger      // nil: silent
	Clock        clock.Clock       // nil: the machine's
}

// reserved are the directives that this package sets itself, with the reason why a user cannot.
func reserved(name string) string {
	switch name {
	case "replicaof", "slaveof":
		return "a server boots frozen and follows whom the controller says"
	case "port", "bind", "dir", "logfile":
		return "it comes from the node's own options"
	case "daemonize", "supervised", "pidfile":
		return "the agent watches the process itself"
	case "requirepass", "masterauth", "masteruser":
		return "use the password option"
	case "appendonly":
		return "use the persistence option"
	case "cluster-enabled":
		return "use mode: cluster"
	case "replica-read-only", "slave-read-only", "replica-ignore-maxmemory", "slave-ignore-maxmemory", "propagation-error-behavior",
		"replica-ignore-disk-write-errors", "repl-backlog-ttl", "replica-serve-stale-data", "slave-serve-stale-data":
		return "safety needs its own value (a replica must not acknowledge what it does not hold)"
	}
	return ""
}

// Validate returns everything that is wrong with the options; nil when they are sound.
func (o Options) Validate() []error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	host, port, err := net.SplitHostPort(o.Addr)
	number, perr := strconv.Atoi(port)
	need(err == nil && host != "" && perr == nil && number > 0 && number < 65536, "addr %q: must be host:port with a port from 1 to 65535", o.Addr)
	need(o.Dir != "", "dir is empty: every node needs its own directory")
	need(slices.Contains([]Persistence{"", PersistAOF, PersistRDB, PersistNone}, o.Persistence), "persistence %q: must be aof, rdb or none", o.Persistence)
	need(!strings.ContainsAny(o.Password, "\x00\r\n"), "password: must be one line")
	for _, u := range o.users() {
		need(u != adminUser && u != redis.ReplicationUser, "directive user %s: this name is Redoubt's own", u)
	}
	for name, value := range o.Directives {
		key := strings.ToLower(name)
		need(key != "" && !strings.ContainsAny(name, " \t\r\n\"'"), "directive %q: not a name", name)
		why := reserved(key)
		if o.Cluster != nil && why == "" {
			why = reservedInCluster(key)
		}
		need(why == "", "directive %s: cannot be set here: %s", name, why)
		need(!strings.ContainsAny(value, "\x00\r"), "directive %s: the value holds a control character", name)
		if key == "repl-backlog-size" {
			n, err := parseMemory(value)
			need(err == nil && n >= backlogMin, "directive repl-backlog-size %s: must be at least 64mb", value)
		}
		if key == "repl-diskless-load" {
			need(value == "disabled" || value == "swapdb", "directive repl-diskless-load %s: must be disabled or swapdb", value)
		}
		if key == "rename-command" {
			errs = append(errs, renames(value)...)
			if o.Cluster != nil {
				errs = append(errs, renamesInCluster(value)...)
			}
		}
	}
	if o.Cluster != nil {
		errs = append(errs, o.Cluster.validate(host, number)...)
	}
	return errs
}

// renames refuses to hide the commands that this driver lives on.
func renames(value string) []error {
	var errs []error
	for line := range strings.Lines(value) {
		f := strings.Fields(strings.ToLower(line))
		if len(f) > 0 && slices.Contains([]string{"replicaof", "config", "info", "client", "multi", "exec", "role", "wait", "waitaof", "publish", "psync", "replconf", "auth", "acl", "sync", "ping"}, f[0]) {
			errs = append(errs, fmt.Errorf("directive rename-command %s: the agent needs this command; restrict other users by ACL instead", f[0]))
		}
	}
	return errs
}

// parseMemory reads a size in the servers' notation: 64mb, 1gb, 1000k, 67108864.
func parseMemory(s string) (int64, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	digits := strings.TrimRight(s, "kmgb")
	unit, ok := map[string]int64{"": 1, "b": 1, "k": 1e3, "kb": 1 << 10, "m": 1e6, "mb": 1 << 20, "g": 1e9, "gb": 1 << 30}[s[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return n * unit, nil
}

// findBinary returns the server to run and its Redis-compatible version (major × 100 + minor).
func findBinary(name string) (string, int, error) {
	names := []string{name}
	if name == "" {
		names = []string{"redis-server", "valkey-server"}
	}
	var errs []error
	for _, n := range names {
		path, err := exec.LookPath(n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out, err := exec.Command(path, "--version").Output()
		if err != nil {
			return "", 0, fmt.Errorf("ask %s for its version: %w", path, err)
		}
		_, v, ok := strings.Cut(string(out), "v=")
		if !ok {
			return "", 0, fmt.Errorf("%s does not tell its version (%.60q): is it redis-server or valkey-server", path, out)
		}
		number := versionNumber(v)
		if number < 602 {
			return "", 0, fmt.Errorf("%s is version %.10s: 6.2 or newer is needed", path, v)
		}
		return path, number, nil
	}
	return "", 0, fmt.Errorf("find a server to run: %w: install redis-server or valkey-server, or name it", errors.Join(errs...))
}

// arguments are the directives that must hold, on the command line: it wins over everything else.
func (o Options) arguments(version int) []string {
	host, port, _ := net.SplitHostPort(o.Addr)
	aof := "no"
	if o.Persistence == PersistAOF || o.Persistence == "" {
		aof = "yes"
	}
	args := []string{"--replicaof", deadHost, deadPort, "--port", port}
	if o.Cluster != nil {
		args = o.Cluster.arguments(host, port)
	}
	args = append(args,
		"--bind", host, "--dir", o.Dir, "--logfile", serverLog,
		"--daemonize", "no", "--appendonly", aof,
		"--repl-backlog-ttl", "0",
		"--replica-read-only", "yes", "--replica-ignore-maxmemory", "yes", "--replica-serve-stale-data", "yes",
	)
	if version >= 700 {
		args = append(args, "--propagation-error-behavior", "panic-on-replicas", "--replica-ignore-disk-write-errors", "no")
	}
	return args
}

// noSyncDelay: a replica gets its sync at once, unless the user's directives say otherwise.
const noSyncDelay = "0"

// syncDelay is the repl-diskless-sync-delay that the server was started with.
func (o Options) syncDelay() string {
	for name, value := range o.Directives {
		if strings.EqualFold(name, disklessDelay) {
			return strings.Trim(value, ` "'`)
		}
	}
	return noSyncDelay
}

// directives is the configuration that goes to the server's standard input: our defaults, which the user's directives
// replace, then those, and the password, which a command line would show to everybody on the machine.
func (o Options) directives(secret string) string {
	host, _, _ := net.SplitHostPort(o.Addr)
	protected := "no" // bound to one address that other nodes must reach; the password guards it
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		protected = "yes"
	}
	lines := [][2]string{
		{"protected-mode", protected}, {"repl-backlog-size", "64mb"},
		{diskless, "yes"}, {disklessDelay, noSyncDelay}, {"repl-diskless-load", "disabled"},
		{"repl-timeout", "30"}, {pingPeriod, "1"}, {"client-output-buffer-limit", "replica 512mb 256mb 60"}, {"tcp-keepalive", "15"},
		{"appendfsync", "everysec"}, {"always-show-logo", "no"},
	}
	if o.Cluster != nil {
		lines = append(lines, [2]string{nodeTimeout, nodeTimeoutMS})
	}
	if o.Persistence == PersistRDB {
		lines = append(lines, [2]string{"save", "3600 1\n300 100\n60 10000"})
	} else {
		lines = append(lines, [2]string{"save", `""`})
	}
	user := map[string]string{}
	for name, value := range o.Directives {
		user[strings.ToLower(name)] = value
	}
	if o.SyncAlways {
		user[appendFsync] = "always"
	}
	lines = slices.DeleteFunc(lines, func(l [2]string) bool { _, ok := user[l[0]]; return ok })
	names := make([]string, 0, len(user))
	for name := range user {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		lines = append(lines, [2]string{name, user[name]})
	}
	if o.Password != "" {
		lines = append(lines, [2]string{"requirepass", quoted(o.Password)})
	}
	if o.ownUser() {
		lines = append(lines, [2]string{"user", adminUser + " on " + hashed(secret) + " ~* &* +@all"})
		if !slices.Contains(o.users(), "default") {
			lines = append(lines, [2]string{"user", "default on " + o.defaultPassword() + " ~* &* +@all " + strings.Join(o.ours(), " ")})
		}
	}
	var b strings.Builder
	for _, l := range lines {
		for v := range strings.SplitSeq(l[1], "\n") {
			if v != "" || l[1] == "" {
				fmt.Fprintf(&b, "%s %s\n", l[0], v)
			}
		}
	}
	return b.String()
}

// ownUser tells whether the server is started with a user of our own (SAFETY A11). Beside a file of access rules that
// cannot be: a server takes users from one place only, and so the default user keeps commanding it.
func (o Options) ownUser() bool {
	for name := range o.Directives {
		if strings.EqualFold(name, "aclfile") {
			return false
		}
	}
	return true
}

// users names the server's users that the directives define.
func (o Options) users() []string {
	var out []string
	for name, value := range o.Directives {
		if !strings.EqualFold(name, "user") {
			continue
		}
		for line := range strings.Lines(value) {
			if f := strings.Fields(line); len(f) > 0 {
				out = append(out, f[0])
			}
		}
	}
	return out
}

func (o Options) defaultPassword() string {
	if o.Password == "" {
		return "nopass"
	}
	return hashed(o.Password)
}

// quoted writes a value so that the servers' configuration parser (sdssplitargs) reads exactly these bytes.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
